"""What a run with nothing to do costs: wall time and peak memory of ``snakemake`` over a large finished dataset.

The dataset is real and finished for real: one tiny clip under as many names as asked for, so every file is scanned,
planned and indexed, while equal content is decoded once a shard and its flow solved once. Preprocessing alone is
measured, as the training jobs do not grow with the dataset.

    python -m benchmarks.dag --videos 13320
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import imageio_ffmpeg
import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent


def make_dataset(folder: Path, *, videos: int, classes: int) -> None:
    """Class folders with hard links to one clip of six frames."""
    clip = folder / "clip.avi"
    source = "testsrc2=size=32x32:rate=25"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", source, "-frames:v", "6"]
    subprocess.run([*command, "-c:v", "mpeg4", str(clip)], check=True)
    for i in range(videos):
        path = folder / "videos" / f"class{i % classes:03d}" / f"v_{i:07d}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(clip, path)


def write_config(folder: Path, *, shards: int) -> Path:
    """A configuration for preprocessing alone."""
    size = {"size": [32, 32]}
    values = {"name": "dag", "dataset": "class_folders", "videos": "videos", "shards": shards}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**values, "frames": size, "flow": size}))
    return path


def run(folder: Path, *, cores: int) -> tuple[float, float, str]:
    """Run Snakemake; wall seconds, peak resident memory of its process in MB (children apart), and its output."""
    command = [sys.executable, "-m", "snakemake", "preprocess_all", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--workflow-profile", str(ROOT / "profiles/default"), "--configfile", "config.yaml"]
    start = time.perf_counter()
    with (folder / "output.txt").open("w") as output:
        process = psutil.Popen([*command, "--cores", str(cores)], cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            with_memory = process.memory_info().rss if process.is_running() else 0
            peak = max(peak, with_memory)
            time.sleep(0.02)
    seconds = time.perf_counter() - start
    text = (folder / "output.txt").read_text()
    if process.returncode:
        sys.exit(f"dag: snakemake failed: {text[-2000:]}")
    return seconds, peak / 1e6, text


def main(argv: list[str] | None = None) -> None:
    """Measure a run with nothing to do, after one that does everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dag", description=main.__doc__)
    parser.add_argument("--videos", type=int, default=13_320, help="number of files; UCF-101 has 13,320")
    parser.add_argument("--classes", type=int, default=101)
    parser.add_argument("--shards", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="wherewhen-dag-") as name:
        folder = Path(name)
        make_dataset(folder, videos=arguments.videos, classes=arguments.classes)
        write_config(folder, shards=arguments.shards)
        first_seconds, _, _ = run(folder, cores=arguments.cores)
        print(f"first run: {first_seconds:.1f} s", file=sys.stderr)
        repeats = [run(folder, cores=arguments.cores) for _ in range(arguments.repeats)]
    idle = [text for _, _, text in repeats if "Nothing to be done" not in text]
    assert not idle, idle[0]
    seconds = sorted(seconds for seconds, _, _ in repeats)
    result = {
        "videos": arguments.videos,
        "shards": arguments.shards,
        "first_run_seconds": round(first_seconds, 1),
        "noop_seconds": round(seconds[len(seconds) // 2], 2),
        "noop_seconds_all": [round(value, 2) for value in seconds],
        "peak_rss_mb": round(max(peak for _, peak, _ in repeats), 1),
        "cores": arguments.cores,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
