"""What a very large dataset costs before any video is decoded: finding, digesting, planning, and the manifest file.

The dataset has the form of Moments in Time: two tables, 339 class folders, and small files, hard links to a few.
Every step is the code that a run uses. Memory is the largest resident set of the process so far.

    python -m benchmarks.manifest --videos 1000000
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from pipeline.config import Config, load
from pipeline.dataset.builders.found import scan_names
from pipeline.dataset.manifest import Manifest, read_manifest, write_manifest
from pipeline.dataset.plan import write_plan
from stages.manifest import digest, find, select

Result = TypeVar("Result")

CLASSES = 339
LINKS = 50_000
"""Names of one file: file systems allow about 65,000."""


def make_dataset(folder: Path, *, videos: int) -> Config:
    """Tables and files, one video in 25 to validate on; returns a configuration that reads them."""
    labels = [f"class{i:03d}" for i in range(CLASSES)]
    (folder / "moments_categories.txt").write_text("".join(f"{label},{i}\n" for i, label in enumerate(labels)))
    tables = {"training": folder / "trainingSet.csv", "validation": folder / "validationSet.csv"}
    for part in tables:
        for label in labels:
            (folder / "videos" / part / label).mkdir(parents=True)
    with tables["training"].open("w") as training, tables["validation"].open("w") as validation:
        for i in range(videos):
            label = labels[i % CLASSES]
            part, table = ("validation", validation) if i // CLASSES % 25 == 0 else ("training", training)
            source = folder / f"source{i // LINKS}"
            if i % LINKS == 0:
                source.write_bytes(b"%d" % i)
            os.link(source, folder / "videos" / part / label / f"video-{i:07d}.mp4")
            table.write(f"{label}/video-{i:07d}.mp4,{label},3,0\n")
    values = {"name": "moments", "dataset": "moments_in_time", "annotations": str(folder)}
    return load({**values, "videos": str(folder / "videos"), "work": str(folder / "work")})


class Steps:
    """Seconds and peak memory of named steps."""

    def __init__(self) -> None:
        self.measured: dict[str, dict[str, float]] = {}

    def run(self, name: str, step: Callable[[], Result]) -> Result:
        """Run one step and remember what it took."""
        wall, cpu = time.perf_counter(), time.process_time()
        result = step()
        found = {
            "seconds": round(time.perf_counter() - wall, 2),
            "cpu_seconds": round(time.process_time() - cpu, 2),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
        print(name, found, file=sys.stderr, flush=True)
        self.measured[name] = found
        return result


def measure(config: Config, *, shards: int) -> dict[str, dict[str, float]]:
    """Every step from folders to a manifest that is read back."""
    steps, table = Steps(), config.work_dir / "manifest.tsv"
    assert config.videos is not None
    steps.run("scan", partial(scan_names, config.videos))
    manifest = _plan(steps, config, shards=shards)
    probed = (replace(video, frames=90, fps=29.97, width=340, height=256) for video in manifest.videos)
    steps.run("write", partial(write_manifest, table, Manifest(tuple(probed))))
    steps.run("read", partial(read_manifest, table))
    return steps.measured


def _plan(steps: Steps, config: Config, *, shards: int) -> Manifest:
    """As whenever the Snakefile is parsed."""
    digested = partial(digest, cache=config.work_dir / "digests.sqlite", image_fps=config.image_fps)
    listing = steps.run("find", partial(find, config))
    manifest = steps.run("select", partial(select, listing, config))
    steps.run("digest_cold", partial(digested, manifest))
    manifest = steps.run("digest_warm", partial(digested, manifest))
    for name in ("plan", "plan_unchanged"):
        steps.run(name, partial(write_plan, manifest, shards=shards, folder=config.work_dir / "plan"))
    return manifest


def main(argv: list[str] | None = None) -> None:
    """Measure a synthetic dataset."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.manifest", description=main.__doc__)
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=5_000)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="wherewhen-manifest-") as name:
        config = make_dataset(Path(name), videos=arguments.videos)
        print(f"made {arguments.videos} files", file=sys.stderr, flush=True)
        measured = measure(config, shards=arguments.shards)
    print(json.dumps({"videos": arguments.videos, "shards": arguments.shards, "steps": measured}))


if __name__ == "__main__":
    main()
