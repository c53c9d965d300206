"""What a minute of video costs before training: CPU seconds and bytes of each stage at 340x256, as jobs run it.

Each stage runs as the workflow starts it, ``python -m stages.STAGE`` on a shard that holds the clips, with the settings
that a configuration has by default. Its CPU time is that of the process and its children, user and system. The start of
a job, which a shard of some 200 clips pays once, is measured with an empty shard and taken off. docs/scaling.md reckons
with these figures.

    python -m benchmarks.preprocessing [CLIP ...]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.config import FlowConfig, FramesConfig, StoreConfig, WarpedFlowConfig
from pipeline.dataset.digests import file_digest
from pipeline.dataset.receipts import Receipt

SIZE = (340, 256)
CLIPS = Path(__file__).resolve().parents[2] / "shared" / "data" / "clips"
SETTINGS = {
    "frames": FramesConfig(size=SIZE),
    "flow": FlowConfig(size=SIZE, backend="numba"),
    "warped_flow": WarpedFlowConfig(size=SIZE, backend="numba"),
}
STAGES = ("probe", *SETTINGS)


def default_clips() -> list[Path]:
    """The real videos of the shared data."""
    clips = sorted(path for path in CLIPS.rglob("*") if path.suffix in (".avi", ".mp4"))
    if not clips:
        sys.exit(f"there are no videos in {CLIPS}; name some")
    return clips


def run(stage: str, given: Path, folder: Path, *, store: Path) -> float:
    """CPU seconds of a job, its children included."""
    receipt = folder / f"{stage}.json"
    command = [sys.executable, "-m", f"stages.{stage}", "--shard", str(given), "--store", str(store)]
    command += ["--receipt", str(receipt)]
    if stage in SETTINGS:
        command += ["--params", SETTINGS[stage].model_dump_json(by_alias=True)]
        command += ["--sharing", StoreConfig().model_dump_json()]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(clips: list[Path], folder: Path, *, name: str) -> tuple[dict[str, float], dict[str, int]]:
    """CPU seconds and stored bytes of each stage, on a shard of these clips."""
    work = folder / name
    work.mkdir()
    plan = [
        {"id": clip.stem, "path": str(clip), "digest": file_digest(clip), "bytes": clip.stat().st_size}
        for clip in clips
    ]
    (work / "plan.json").write_text(json.dumps(plan))
    seconds, stored = {}, {}
    for stage in STAGES:
        store = work / "stores" / stage
        given = work / ("plan.json" if stage == "probe" else "probe.json")
        seconds[stage] = run(stage, given, work, store=store)
        stored[stage] = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    return seconds, stored


def main(argv: list[str] | None = None) -> None:
    """Measure and print; the last line is one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preprocessing", description=main.__doc__)
    parser.add_argument("clips", type=Path, nargs="*", help="videos; by default those of the shared data")
    arguments = parser.parse_args(argv)
    clips = arguments.clips or default_clips()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure(clips[-1:], folder, name="warm")  # numba compiles once a machine
        start, _ = measure([], folder, name="empty")
        spent, stored = measure(clips, folder, name="clips")
        videos = Receipt.read(folder / "clips" / "probe.json").videos.values()
    facts = [video.facts for video in videos if video.status == "done"]
    frames = sum(fact["frames"] for fact in facts)
    minutes = sum(fact["frames"] / fact["fps"] for fact in facts) / 60
    print(f"{len(facts)} clips, {frames} frames, {60 * minutes:.1f} s, at {SIZE[0]}x{SIZE[1]}")
    result = {
        "benchmark": "preprocessing",
        "clips": len(facts),
        "frame_count": frames,
        "video_minutes": round(minutes, 3),
    }
    for stage in STAGES:
        costs = {
            "cpu_seconds_per_minute": round((spent[stage] - start[stage]) / minutes, 2),
            "cpu_ms_per_frame": round(1e3 * (spent[stage] - start[stage]) / frames, 3),
            "start_cpu_seconds": round(start[stage], 2),
            "bytes_per_frame": round(stored[stage] / frames),
        }
        print(f"{stage:12s}", json.dumps(costs))
        result[stage] = costs
    print(json.dumps(result))


if __name__ == "__main__":
    main()
