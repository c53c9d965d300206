"""The cache of features: what its stage costs beside the network's own forward pass, and reading beside recomputing.

    python -m benchmarks.features [--videos N] [--device cpu | cuda]

ResNet-50 with random weights, 25 frames a video, 224 px, whole frames of 340x256 in a store of frames (smooth noise).
The stage decodes, resizes, looks and writes, but for reading the checkpoint, which it does once a shard
(``checkpoint_s``); the bare forward pass gets the same images, ready and in the same chunks. Both take turns.
``cache_vs_forward`` is images a second of the stage by those of the forward pass, ``read_vs_recompute`` the time of the
stage by that of reading what it has written. Processor time of one thread; on a CUDA device wall time. Medians; the
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from models.build import build
from models.checkpoint import save_checkpoint
from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.learning.augmentation import cut
from pipeline.learning.batches import scoring_snippets
from pipeline.learning.job import model_keywords
from pipeline.learning.loader import Clip
from pipeline.learning.readers import Index, open_reader
from pipeline.stores.features import FeatureStore
from pipeline.stores.frames import ShardWriter
from pipeline.stores.provenance import made_by
from stages.features import load_network, make_features

WIDTH, HEIGHT, FRAMES, SNIPPETS, SIDE, CLASSES = 340, 256, 50, 25, 224, 51


def write_frames(folder: Path, *, videos: int) -> Index:
    """A store of frames: smooth noise that moves."""
    rng, facts = np.random.default_rng(0), {}
    folder.mkdir()
    with (folder / "00000.tar").open("w+b") as file:
        writer = ShardWriter(file, folder=folder)
        for number in range(videos):
            name = f"video-{number}"
            noise = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8 + FRAMES, 3), np.uint8)
            scene = cv2.resize(noise, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
            images = [scene[:HEIGHT, 4 * i : 4 * i + WIDTH] for i in range(FRAMES)]
            jpegs = [cv2.imencode(".jpg", image)[1].tobytes() for image in images]
            sample = writer.add(
                jpegs, metadata={"id": name, "artifact_key": name, **made_by("frames"), "parameters": {}}
            )
            facts[name] = {
                "key": name, "shard": "00000.tar", "offset": sample.offset, "length": sample.length,
                "frames": FRAMES, "width": WIDTH, "height": HEIGHT, "fps": 25.0,
            }  # fmt: skip
        writer.finish()
    return {"stage": "frames", "store": str(folder), "parameters": {}, "videos": facts, "quarantined": {}}


def seconds_of(work: Callable[[], object], *, cuda: bool) -> float:
    """Processor time on the CPU, wall time on a CUDA device."""
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize()
    start = clock()
    work()
    if cuda:
        torch.cuda.synchronize()
    return clock() - start


def experiments() -> tuple[ExperimentConfig, ExperimentConfig]:
    """A network, and a head that reads its maps."""
    sampling = {"snippet": 1, "segments": 3, "test_segments": SNIPPETS, "test_crops": "whole", "input_size": SIDE}
    trunk = {"modality": "frames", "model": {"backbone": "resnet50"}, "sampling": sampling}
    head = {"modality": "frames", "features": "trunk", "model": {"family": "where_when"}, "sampling": sampling}
    return ExperimentConfig.model_validate(trunk), ExperimentConfig.model_validate(head)


def write_checkpoint(path: Path, trunk: ExperimentConfig) -> None:
    """Random weights."""
    torch.manual_seed(0)
    keywords = model_keywords(trunk, num_classes=CLASSES)
    names = [str(number) for number in range(CLASSES)]
    save_checkpoint(path, model=build(**keywords), build=keywords, classes=names)


def ready_images(index: Index, video: str, *, head: ExperimentConfig, device: torch.device) -> list[Tensor]:
    """What the network sees of a video, in the stage's chunks."""
    dataset = scoring_snippets([Clip(video, 0, FRAMES)], open_reader(index), experiment=head)
    items = (dataset[i] for i in range(len(dataset)))
    return [cut(item.images, item.views, size=SIDE, flow_from=None)[0].to(device) for item in items]


def look(network: Any, chunks: list[Tensor]) -> None:
    """The bare forward pass."""
    with torch.inference_mode():
        for chunk in chunks:
            network.backbone.feature_map(network.normalise(chunk))


def measure(folder: Path, *, videos: int, device: torch.device) -> dict[str, float]:
    """Images a second of the stage and of the forward pass, and their relations."""
    (trunk, head), cuda = experiments(), device.type == "cuda"
    index = write_frames(folder / "frames", videos=videos)
    write_checkpoint(folder / "model.pt", trunk)
    network: Any = load_network(folder / "model.pt", source=trunk).to(device).eval()
    store = FeatureStore(folder / "features")
    stage = partial(
        make_features,
        index=index,
        shard="00000",
        checkpoint=folder / "model.pt",
        experiment=head,
        source=trunk,
        compute=ComputeConfig(accelerator="cuda" if cuda else "cpu"),
        store=store.root,
    )
    checkpoint_s = min(seconds_of(partial(stage, []), cuda=cuda) for _ in range(3))
    spent: dict[str, list[float]] = {"stage": [], "forward": [], "read": []}
    size = 0
    for number in range(-1, videos):  # the first is not counted, which warms up
        video = f"video-{max(number, 0)}"
        works: dict[str, Callable[[], object]] = {
            "stage": partial(stage, [video]),
            "forward": partial(look, network, ready_images(index, video, head=head, device=device)),
        }
        for name in sorted(works, reverse=bool(number % 2)):
            spent[name].append(seconds_of(works[name], cuda=cuda))
        key = stage([video]).videos[video]["key"]
        spent["read"].append(seconds_of(partial(store.read, key), cuda=cuda))
        size = store.verify(key)
        if number < 0:
            store.remove(key)
    stage_s, forward_s, read_s = (statistics.median(seconds[1:]) for seconds in spent.values())
    stage_s -= checkpoint_s
    return {
        "images_per_s": SNIPPETS / stage_s,
        "forward_images_per_s": SNIPPETS / forward_s,
        "cache_vs_forward": forward_s / stage_s,
        "read_ms": 1000 * read_s,
        "read_vs_recompute": stage_s / read_s,
        "megabytes_a_video": size / 1e6,
        "checkpoint_s": checkpoint_s,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The cache of features beside the forward pass.")
    parser.add_argument("--videos", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"device": "cuda", "rows": "not measured: there is no CUDA device"}))
        return
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), videos=arguments.videos, device=device)
    print(", ".join(f"{name} {value:.4g}" for name, value in found.items()), file=sys.stderr)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "one CPU core"
    rounded = {name: float(f"{value:.4g}") for name, value in found.items()}
    print(json.dumps({"device": where, "videos": arguments.videos, "torch": torch.__version__, **rounded}))


if __name__ == "__main__":
    main()
