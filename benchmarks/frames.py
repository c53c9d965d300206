"""CPU time of the frames stage against ffmpeg's command line doing the same work: ``python -m benchmarks.frames``.

Ours, measured: ``stages.frames.pack_shard`` on a shard of one clip, from the probe receipt in memory to the tar in its
place: starting ffmpeg, decoding, scaling to 340x256, JPEG at quality 2, splitting, spooling, tar. In this process and
its children, user plus system time. Not inside: starting Python and importing, which a job pays once for a shard of
some 200 clips and which is printed by itself.

The peer, measured: the usual command, ``ffmpeg -threads 1 -i CLIP -vf scale=340:256 -q:v 2 out/%06d.jpg`` (which scales
bicubically where we scale bilinearly). As a second figure, the same with the images thrown away (``-f null``), so that
no file is written at all.

Repeats alternate between the two, so that a busy machine disturbs both; medians are reported.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pipeline.config import FramesConfig
from pipeline.dataset.digests import file_digest
from pipeline.dataset.receipts import Outcome, Receipt
from pipeline.media import ffmpeg
from pipeline.media.probe import probe
from stages.frames import pack_shard

SIZE = (340, 256)
QSCALE = 2
REAL_CLIP = Path(__file__).resolve().parents[2] / "shared" / "data" / "clips" / "kinetics" / "demo.mp4"


def cpu_seconds(work: Callable[[], object]) -> float:
    """User and system time of this process and of the children that it waited for, while ``work`` runs."""

    def spent() -> float:
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in usage)

    before = spent()
    work()
    return spent() - before


def ours(clip: Path, folder: Path) -> Callable[[], object]:
    """The stage's real path; the tar is deleted first, or there would be nothing to do."""
    found = probe(clip)
    facts = {"path": str(clip), "digest": file_digest(clip), "frames": found.frames, "fps": found.fps}
    outcome = Outcome(status="done", facts=facts | {"width": found.width, "height": found.height})
    receipt = Receipt(stage="probe", shard="0", seconds=0.0, videos={clip.stem: outcome})

    def work() -> None:
        (folder / "0.tar").unlink(missing_ok=True)
        packed = pack_shard(receipt, shard="0", store=folder, config=FramesConfig(size=SIZE, qscale=QSCALE))
        assert packed.count() == {"done": 1}, packed

    return work


def peer(clip: Path, *output: str) -> Callable[[], object]:
    """ffmpeg as people run it."""
    scale = f"scale={SIZE[0]}:{SIZE[1]}"
    command = [ffmpeg.binary(), "-y", "-nostdin", "-v", "error", "-threads", "1", "-i", str(clip)]
    command += ["-vf", scale, "-q:v", str(QSCALE), *output]
    return lambda: subprocess.run(command, check=True)


def make_clip(folder: Path) -> Path:
    """A synthetic clip, ten seconds of 640x360 H.264, for where the real one is not there."""
    clip = folder / "testsrc2.mp4"
    source = "testsrc2=size=640x360:rate=28:duration=10"
    command = [ffmpeg.binary(), "-v", "error", "-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", str(clip)]
    subprocess.run(command, check=True)
    return clip


def main(argv: list[str] | None = None) -> None:
    """Measure and print; the last line is one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.frames", description=main.__doc__)
    parser.add_argument("--clip", type=Path, help="a video; the Kinetics clip of the shared data by default")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "jpg").mkdir()
        clip = arguments.clip or (REAL_CLIP if REAL_CLIP.exists() else make_clip(folder))
        works = {
            "ours": ours(clip, folder),
            "ffmpeg_files": peer(clip, str(folder / "jpg" / "%06d.jpg")),
            "ffmpeg_null": peer(clip, "-c:v", "mjpeg", "-f", "null", "-"),
            "import": lambda: subprocess.run([sys.executable, "-c", "import stages.frames"], check=True),
        }
        times: dict[str, list[float]] = {label: [] for label in works}
        for work in works.values():
            work()
        for _ in range(arguments.repeats):
            for label, work in works.items():
                times[label].append(cpu_seconds(work))
        frames = len(list((folder / "jpg").iterdir()))
    median = {label: statistics.median(values) for label, values in times.items()}
    print(f"{clip.name}, {frames} frames, ffmpeg {ffmpeg.version()}, median of {arguments.repeats}, CPU seconds:")
    for label, seconds in median.items():
        print(f"  {label:13} {seconds:.3f}   all: {' '.join(f'{value:.3f}' for value in sorted(times[label]))}")
    result = {
        "benchmark": "frames",
        "clip": clip.name,
        "frames": frames,
        "cpu_ratio": round(median["ours"] / median["ffmpeg_files"], 3),
        "cpu_ratio_to_null": round(median["ours"] / median["ffmpeg_null"], 3),
        "ours_cpu_seconds": round(median["ours"], 3),
        "ffmpeg_cpu_seconds": round(median["ffmpeg_files"], 3),
        "ffmpeg_null_cpu_seconds": round(median["ffmpeg_null"], 3),
        "import_cpu_seconds": round(median["import"], 3),
        "ffmpeg": ffmpeg.version(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
