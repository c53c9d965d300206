"""The cache of features: what its stage costs beside the network's own forward pass, and reading beside recomputing.

    python -m benchmarks.features [--videos N] [--device cpu | cuda]

ResNet-50 with random weights, 25 frames a video, 224 px, whole frames of 340x256 in a store of frames (noise that JPEG
finds as hard as video). The stage decodes, resizes, looks and writes, but for reading the checkpoint, which it does once
a shard (``checkpoint_s``); the bare forward pass gets the same images, ready and in the same chunks. Both take turns. ``cache_vs_forward`` is images a second of the stage by those of the forward
pass, ``read_vs_recompute`` the time of the stage by that of reading what it has written. Processor time of one thread;
on a CUDA device wall time. Medians; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

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


def measure(folder: Path, *, videos: int, device: torch.device) -> dict[str, Any]:
    """Seconds a video of the stage, of the forward pass and of reading, and their relations."""
    index = write_frames(folder / "frames", videos=videos)
    sampling = {"snippet": 1, "segments": 3, "test_segments": SNIPPETS, "test_crops": "whole", "input_size": SIDE}
    trunk = ExperimentConfig.model_validate(
        {"modality": "frames", "model": {"backbone": "resnet50"}, "sampling": sampling}
    )
    head = ExperimentConfig.model_validate(
        {"modality": "frames", "features": "trunk", "model": {"family": "where_when"}, "sampling": sampling}
    )
    keywords = model_keywords(trunk, num_classes=CLASSES)
    torch.manual_seed(0)
    names = [str(number) for number in range(CLASSES)]
    save_checkpoint(folder / "model.pt", model=build(**keywords), build=keywords, classes=names)
    cuda = device.type == "cuda"
    network: Any = load_network(folder / "model.pt", source=trunk).to(device).eval()
    store = FeatureStore(folder / "features")
    settings: dict[str, Any] = {
        "shard": "00000",
        "checkpoint": folder / "model.pt",
        "experiment": head,
        "source": trunk,
        "compute": ComputeConfig(accelerator="cuda" if cuda else "cpu"),
        "store": store.root,
    }
    empty = seconds_of(lambda: make_features([], index, **settings), cuda=cuda)  # once a shard: to read the checkpoint
    stage, forward, read = [], [], []
    size = 0
    for number in range(-1, videos):  # the first is not counted: it warms up
        name = f"video-{max(number, 0)}"
        clips = [Clip(name, 0, FRAMES)]
        views = [
            cut(images, boxes, size=SIDE, flow_from=None)[0].to(device)
            for images, boxes, *_ in scoring_snippets(clips, open_reader(index), experiment=head)
        ]

        def look(views: Any = views) -> None:
            with torch.inference_mode():
                for each in views:
                    network.backbone.feature_map(network.normalise(each))

        def run(name: str = name) -> None:
            made = make_features([name], index, **settings)
            keys.append(made.videos[name]["key"])

        keys: list[str] = []
        order = (("stage", run), ("forward", look)) if number % 2 else (("forward", look), ("stage", run))
        spent = {what: seconds_of(work, cuda=cuda) for what, work in order}
        spent["read"] = seconds_of(lambda key=keys[0]: store.read(key), cuda=cuda)  # type: ignore[misc]
        if number < 0:
            store.remove(keys[0])
            continue
        size = store.verify(keys[0])
        stage.append(spent["stage"] - empty)
        forward.append(spent["forward"])
        read.append(spent["read"])
    stage_s, forward_s, read_s = map(statistics.median, (stage, forward, read))
    return {
        "images_per_s": SNIPPETS / stage_s,
        "forward_images_per_s": SNIPPETS / forward_s,
        "cache_vs_forward": forward_s / stage_s,
        "read_ms": 1000 * read_s,
        "read_vs_recompute": stage_s / read_s,
        "megabytes_a_video": size / 1e6,
        "checkpoint_s": empty,
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
