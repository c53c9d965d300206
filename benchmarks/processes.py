"""Videos a second of a training by two processes against one: ``python -m benchmarks.processes``.

The real job, ``python -m stages.train``: ATW over BN-Inception, three RGB snippets of 224 px a video, stored frames of
340x256, batches of eight over all processes, one CPU thread a process. Runs of one and of two processes alternate; each
gives the videos a second of its last epoch (the first warms up), and each pair a ratio. The limit is two, if there are
two cores with nothing else to do: gradients of 42 MB are exchanged once a step, most of it while the others are
computed. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from pipeline.config import ComputeConfig, ExperimentConfig, canonical
from pipeline.dataset.manifest import Manifest, Video, write_manifest
from pipeline.stores.frames import ShardWriter
from pipeline.stores.provenance import made_by

VIDEOS, FRAMES, BATCH = 16, 12, 8
HEIGHT, WIDTH = 256, 340
CLASSES = ("one", "two")


def make_dataset(folder: Path) -> None:
    """Videos of smooth noise in one shard, with index and manifest; what they show does not matter here."""
    rng = np.random.default_rng(0)
    parameters = {"size": [WIDTH, HEIGHT]}
    facts, videos = {}, []
    (folder / "frames").mkdir()
    with (folder / "frames" / "00000.tar").open("w+b") as file:
        writer = ShardWriter(file, folder=folder)
        for number in range(VIDEOS + 2):
            name, key = f"v{number:03d}", hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()
            small = rng.integers(0, 256, (FRAMES, HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
            images = [cv2.imencode(".jpg", cv2.resize(one, (WIDTH, HEIGHT)))[1].tobytes() for one in small]
            about = {**made_by("frames"), "parameters": parameters, "id": name, "artifact_key": key}
            sample = writer.add(images, metadata={**about, "width": WIDTH, "height": HEIGHT})
            facts[name] = {"key": key, "shard": "00000.tar", "offset": sample.offset, "frames": FRAMES}
            facts[name] |= {"width": WIDTH, "height": HEIGHT}
            splits = {"split1": "train" if number < VIDEOS else "test"}
            label = CLASSES[number % len(CLASSES)]
            videos.append(Video(id=name, path=name, digest=name, bytes=1, labels=(label,), splits=splits))
        writer.finish()
    index = {"stage": "frames", "store": str(folder / "frames"), "parameters": parameters}
    (folder / "frames.json").write_text(json.dumps({**index, "videos": facts, "quarantined": {}}))
    write_manifest(folder / "manifest.tsv", Manifest(tuple(videos)))


def videos_a_second(folder: Path, out: Path, *, processes: int) -> dict[str, float]:
    """Of the last of two epochs, and the seconds of its parts."""
    experiment = ExperimentConfig.model_validate(
        {
            "modality": "frames",
            "model": {"backbone": "bn_inception"},
            "sampling": {"segments": 3, "test_segments": 3, "input_size": 224},
            "optim": {"epochs": 2, "batch_size": BATCH},
        }
    )
    options = {
        "--manifest": folder / "manifest.tsv",
        "--index": folder / "frames.json",
        "--experiment": canonical(experiment),
        "--compute": canonical(ComputeConfig(accelerator="cpu", devices=processes, workers=0)),
        "--split": "split1",
        "--seed": 0,
        "--out": out,
    }
    words = [str(word) for pair in options.items() for word in pair]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "stages.train", *words], check=True, env=environment)
    with (out / "history.csv").open() as file:
        *_, last = csv.DictReader(file)
    return {name: float(value) for name, value in last.items() if value}


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    ratios, rows = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder)
        for number in range(arguments.rounds):
            pair = [
                videos_a_second(folder, folder / f"{number}-{processes}", processes=processes) for processes in (1, 2)
            ]
            ratios.append(pair[1]["samples_per_second"] / pair[0]["samples_per_second"])
            rows.append([row["samples_per_second"] for row in pair])
            shares = {part: pair[1][f"{part}_seconds"] / pair[1]["seconds"] for part in ("data_wait", "backward")}
            print(f"{rows[-1][0]:.3f} and {rows[-1][1]:.3f} videos/s, {ratios[-1]:.2f}; of two: {shares}", flush=True)
    found = {"two_processes_vs_one": statistics.median(ratios), "ratios": ratios, "videos_per_second": rows}
    print(json.dumps({**found, **{f"{part}_share": share for part, share in shares.items()}}))


if __name__ == "__main__":
    main()
