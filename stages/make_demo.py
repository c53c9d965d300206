"""Stage make_demo: render the demo dataset as ordinary video files, with the truth about where and when.

    OUT/videos/<Class>/v_<Class>_gGG_cCC.mp4             H.264 clips of one action, named as UCF-101's
    OUT/untrimmed/{validation,test}/video_*_NNNNNNN.mp4  longer videos of several actions, named as THUMOS14's
    OUT/annotations/{ucf101,thumos14,ucf101_24}/         lists, intervals and tubes in the formats of these datasets
    OUT/truth.json                                       all that is true of every video, frame by frame
    OUT/demo.json                                        what it was made from: the same again renders nothing

The folder appears whole or not at all. Equal parameters give equal bytes on one machine. Only a folder that this stage
made is ever replaced. Frame intervals and boxes are half-open.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import glob
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import ffmpeg
import numpy as np
from numpy.typing import NDArray

from pipeline.demo.annotations import annotation_files, truth
from pipeline.demo.clips import FPS, Clip, PresetName, choose_size, list_clips
from pipeline.demo.render import render_clip
from pipeline.media.ffmpeg import binary
from pipeline.progress import track
from pipeline.stores.publish import TEMPORARY

VERSION = 2  # of everything that decides the bytes of the dataset; another VERSION renders it anew
GENERATOR = "wherewhen make_demo"
FILES = frozenset({"videos", "untrimmed", "annotations", "truth.json", "demo.json"})
FORMER_FILES = frozenset({"videos.csv"})  # of earlier versions; goes with the rest


def make_demo(out: Path, *, preset: PresetName, seed: int = 0, videos_per_class: int | None = None) -> Path:
    """Render the dataset into the folder `out`, unless it already holds this very dataset.

    Args:
        out: folder to make; a demo folder made from other parameters is replaced.
        preset: number and size of the clips.
        seed: another seed is another dataset.
        videos_per_class: clips a class in place of the preset's, a third of them in each split's test part.

    Returns:
        `out`, resolved.

    Raises:
        ValueError: a bad parameter, or `out` is something that this stage did not make.
        RuntimeError: ffmpeg cannot encode.
    """
    size = choose_size(preset, videos_per_class=videos_per_class)
    clips = list_clips(size, seed=seed)
    stamp = {"generator": GENERATOR, "version": VERSION, "seed": seed, "fps": FPS, **asdict(size)}
    stamp["size_px"] = list(size.size_px)  # as JSON has it
    out = out.resolve()
    if _holds(out, stamp):
        return out
    _refuse_foreign(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _alone(out.with_name(f".{out.name}.lock")):
        if _holds(out, stamp):  # another process made it while this one waited
            return out
        _refuse_foreign(out)
        _publish(out, clips, stamp)
    return out


def encode(frames: NDArray[np.uint8], path: Path, *, fps: int) -> None:
    """Encode RGB frames (T, H, W, 3) as H.264 in MP4, nearly without loss and without a trace of time or machine.

    Raises:
        RuntimeError: ffmpeg fails, for example because it has no H.264 encoder.
    """
    _, height, width, _ = frames.shape
    stream = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", video_size=(width, height), framerate=fps)
    stream = stream.output(
        f"file:{path}",
        vcodec="libx264",
        preset="veryfast",
        crf=12,
        pix_fmt="yuv420p",
        sws_flags="bicubic+accurate_rnd+full_chroma_int+bitexact",
        threads=1,
        fflags="+bitexact",
        **{"flags:v": "+bitexact"},
    )
    try:
        stream.global_args("-v", "error").run(cmd=binary(), input=frames.tobytes(), quiet=True)
    except ffmpeg.Error as error:
        reason = (error.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[0]
        raise RuntimeError(
            f"{binary()} cannot encode {path.name}: {reason}; the demo needs an ffmpeg with libx264, "
            "such as the one of the imageio-ffmpeg package, which serves where PATH has none"
        ) from None


def _publish(out: Path, clips: list[Clip], stamp: dict[str, Any]) -> None:
    """Render beside `out` and move into place. The caller holds the lock, so leftovers found here have no owner.

    Each run has a folder of its own: an ffmpeg that outlives its killed run must not write into the next one's.
    """
    prefix = f"{TEMPORARY}{out.name}.demo-"
    replaced = out.with_name(f"{TEMPORARY}{out.name}.replaced")
    for leftover in (*out.parent.glob(f"{glob.escape(prefix)}*"), replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=prefix))
    staging.chmod(0o755)  # mkdtemp's 0700 would hide the demo from the rest of a team
    try:
        _write(staging, clips, stamp)
        if out.exists():
            os.rename(out, replaced)
        os.rename(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _write(folder: Path, clips: list[Clip], stamp: dict[str, Any]) -> None:
    # Threads, because drawing and encoding happen outside Python, in OpenCV, NumPy and ffmpeg.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(_render, folder, clip) for clip in clips]
        try:
            for job in track(as_completed(jobs), total=len(jobs), label="rendering the demo"):
                job.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for name, content in annotation_files(clips).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (folder / "truth.json").write_text(truth(clips))
    (folder / "demo.json").write_text(json.dumps(stamp, sort_keys=True, indent=1) + "\n")


def _render(folder: Path, clip: Clip) -> None:
    path = folder / clip.path
    path.parent.mkdir(parents=True, exist_ok=True)
    encode(render_clip(clip.scene, clip.acts), path, fps=FPS)


def _read_stamp(folder: Path) -> dict[str, Any] | None:
    """The stamp of a demo folder; None if it has none, or one of somebody else's."""
    try:
        stamp = json.loads((folder / "demo.json").read_text())
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and stamp.get("generator") == GENERATOR else None


def _holds(folder: Path, stamp: dict[str, Any]) -> bool:
    """True if the dataset is there. Its videos are not compared: who edits one wants to see what is recomputed."""
    return _read_stamp(folder) == stamp and all((folder / name).exists() for name in FILES)


def _refuse_foreign(out: Path) -> None:
    """Raise ValueError if `out` is anything but absent, empty or a demo folder."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder for the demo that does not exist yet")
    names = {path.name for path in out.iterdir()}
    if names and _read_stamp(out) is None:
        raise ValueError(f"{out} is not empty and not a demo folder, so it is left alone; name another folder")
    if foreign := sorted(names - FILES - FORMER_FILES):
        raise ValueError(f"{out} also holds {foreign[0]!r}, which replacing the demo would delete; move it away first")


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one process at a time into the block; the lock ends with its holder, however it ends, and leaves no file."""
    while True:
        with lock.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"make_demo: waiting for the process that holds {lock}", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), lock):
                continue  # the last holder has deleted this very file; whoever comes next locks another
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def main(argv: list[str] | None = None) -> None:
    """Render the demo dataset, or see that it is there."""
    parser = argparse.ArgumentParser(prog="python -m stages.make_demo", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--preset",
        choices=get_args(PresetName),
        required=True,
        help="tiny: seconds; small: half a minute; full: many minutes",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed is another dataset")
    parser.add_argument(
        "--videos-per-class", type=int, help="in place of the preset's; each split tests on a third of them"
    )
    arguments = parser.parse_args(argv)
    try:
        out = make_demo(
            arguments.out,
            preset=arguments.preset,
            seed=arguments.seed,
            videos_per_class=arguments.videos_per_class,
        )
    except (ValueError, RuntimeError) as error:
        sys.exit(f"make_demo: {error}")
    print(out)


if __name__ == "__main__":
    main()
