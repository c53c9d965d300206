"""Stage make_demo: render the demo dataset as ordinary video files, with the truth about where and when.

    OUT/videos/<class>/<id>.mp4     H.264 clips
    OUT/videos.csv                  path (relative to OUT), label, split1 (train or test)
    OUT/truth.json                  a clip's action interval, its actor's boxes, its camera
    OUT/demo.json                   what it was made from: the same again renders nothing

The folder appears whole or not at all. Equal parameters give equal bytes on one machine. Only a folder that this stage
made is ever replaced. Frame intervals and boxes are half-open.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import fcntl
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import ffmpeg
import numpy as np
from numpy.typing import NDArray

from pipeline.demo.render import actor_boxes, render_clip
from pipeline.demo.scene import CLASSES, Look, Motion, Scene, draw_scene
from pipeline.media.ffmpeg import binary
from pipeline.progress import track
from pipeline.stores.publish import TEMPORARY

VERSION = 1  # of everything that decides the bytes of the dataset; another VERSION renders it anew
GENERATOR = "wherewhen make_demo"
FPS = 25
FILES = frozenset({"videos", "videos.csv", "truth.json", "demo.json"})

PresetName = Literal["tiny", "small"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Size of a dataset."""

    train_per_class: int
    test_per_class: int
    num_frames: int
    size_px: int


PRESETS: dict[PresetName, Preset] = {
    "tiny": Preset(train_per_class=2, test_per_class=1, num_frames=24, size_px=64),
    "small": Preset(train_per_class=30, test_per_class=10, num_frames=40, size_px=96),
}


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video of the dataset before it is drawn."""

    path: str
    """Relative to the dataset's folder."""
    motion: Motion
    look: Look
    split: Literal["train", "test"]
    scene: Scene

    @property
    def label(self) -> str:
        return f"{self.motion}_{self.look}"


def make_demo(out: Path, *, preset: PresetName, seed: int = 0, videos_per_class: int | None = None) -> Path:
    """Render the dataset into the folder `out`, unless it already holds this very dataset.

    Args:
        out: folder to make; a demo folder made from other parameters is replaced.
        preset: number and size of the clips.
        seed: another seed is another dataset.
        videos_per_class: clips a class in place of the preset's; a quarter of them, at least one, are for testing.

    Returns:
        `out`, resolved.

    Raises:
        ValueError: a bad parameter, or `out` is something that this stage did not make.
        RuntimeError: ffmpeg cannot encode.
    """
    size = choose_size(preset, videos_per_class=videos_per_class)
    clips = list_clips(size, seed=seed)
    stamp = {"generator": GENERATOR, "version": VERSION, "seed": seed, "fps": FPS, **asdict(size)}
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


def choose_size(preset: PresetName, *, videos_per_class: int | None = None) -> Preset:
    """The preset, with another number of clips if one is given.

    Raises:
        ValueError: no such preset, or fewer than 2 videos a class.
    """
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; choose from {', '.join(PRESETS)}")
    size = PRESETS[preset]
    if videos_per_class is None:
        return size
    if videos_per_class < 2:
        raise ValueError(f"videos_per_class is {videos_per_class}; it takes 2 to have one to train and one to test on")
    test = max(1, videos_per_class // 4)
    return Preset(
        train_per_class=videos_per_class - test,
        test_per_class=test,
        num_frames=size.num_frames,
        size_px=size.size_px,
    )


def list_clips(size: Preset, *, seed: int) -> list[Clip]:
    """Every clip of the dataset, in the order of its table.

    Clip i of a class is drawn from (seed, class, i) alone, so more videos a class leave the earlier ones as they were.

    Raises:
        ValueError: a negative seed.
    """
    if seed < 0:
        raise ValueError(f"the seed is {seed}; it must be 0 or more")
    clips = []
    for c, (motion, look) in enumerate(CLASSES):
        for i in range(size.train_per_class + size.test_per_class):
            rng = np.random.default_rng([seed, c, i])
            clips.append(
                Clip(
                    path=f"videos/{motion}_{look}/{motion}_{look}_{i:03d}.mp4",
                    motion=motion,
                    look=look,
                    split="train" if i < size.train_per_class else "test",
                    scene=draw_scene(rng, size_px=size.size_px, num_frames=size.num_frames),
                )
            )
    return clips


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


def clip_truth(clip: Clip) -> dict[str, Any]:
    """What is true of a clip: its class, its action [start, end), the actor's box [x0, y0, x1, y1) in every frame."""
    start, end = clip.scene.action
    return {
        "label": clip.label,
        "motion": clip.motion,
        "look": clip.look,
        "split1": clip.split,
        "camera": clip.scene.camera.kind,
        "action_frames": [start, end],
        "action_seconds": [start / FPS, end / FPS],
        "boxes_px": actor_boxes(clip.scene, clip.motion).tolist(),
    }


def _publish(out: Path, clips: list[Clip], stamp: dict[str, Any]) -> None:
    """Render beside `out` and move into place. The caller holds the lock, so leftovers found here have no owner."""
    staging = out.with_name(f"{TEMPORARY}{out.name}.demo")
    replaced = out.with_name(f"{TEMPORARY}{out.name}.replaced")
    for leftover in (staging, replaced):
        if leftover.exists():
            shutil.rmtree(leftover)
    try:
        _write(staging, clips, stamp)
        if out.exists():
            os.rename(out, replaced)
        os.rename(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _write(folder: Path, clips: list[Clip], stamp: dict[str, Any]) -> None:
    for clip in track(clips, total=len(clips), label="rendering the demo"):
        path = folder / clip.path
        path.parent.mkdir(parents=True, exist_ok=True)
        encode(render_clip(clip.scene, motion=clip.motion, look=clip.look), path, fps=FPS)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["path", "label", "split1"])
    writer.writerows([clip.path, clip.label, clip.split] for clip in clips)
    truth = {
        "fps": FPS,
        "width_px": stamp["size_px"],
        "height_px": stamp["size_px"],
        "num_frames": stamp["num_frames"],
        "videos": {clip.path: clip_truth(clip) for clip in clips},
    }
    (folder / "videos.csv").write_text(table.getvalue())
    (folder / "truth.json").write_text(json.dumps(truth, sort_keys=True) + "\n")
    (folder / "demo.json").write_text(json.dumps(stamp, sort_keys=True, indent=1) + "\n")


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
    if foreign := sorted(names - FILES):
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
        "--preset", choices=get_args(PresetName), required=True, help="tiny: seconds; small: half a minute"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed is another dataset")
    parser.add_argument(
        "--videos-per-class", type=int, help="in place of the preset's; a quarter of them are for testing"
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
