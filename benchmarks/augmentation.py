"""Cutting the views of a batch: OpenCV, which the CPU uses, beside torch, which every other device uses.

    python -m benchmarks.augmentation [--device cpu | cuda] [--rounds N]

Rows: training batches of the demo (96x96 to 80, 16 videos of 6 snippets of 10 channels), of the papers' shape (340x256
to 224, 8 videos of 3 snippets) and ten-crop testing (25 snippets of one video). Boxes are drawn as in training, half of
the views are mirrored flow. Beside each training row stands the training step of ATW on TinyCNN, and the share of it
that cutting takes. The two take turns, starting with another one in each round; medians of milliseconds, on the CPU of
processor time of one thread, on a CUDA device of wall time, where OpenCV's includes the way to the device and
torch's the way of the stored images there. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from models.build import build
from pipeline.learning.augmentation import cut_opencv, cut_torch
from pipeline.learning.transforms import draw_view, fixed_views

CHANNELS, CLASSES = 10, 8


class Row(NamedTuple):
    """A batch."""

    videos: int
    segments: int
    height: int
    width: int
    size: int
    scales: tuple[float, ...]
    """Empty: the ten views of testing."""


ROWS = {
    "demo": Row(16, 6, 96, 96, 80, (1.0, 0.875)),
    "paper": Row(8, 3, 256, 340, 224, (1.0, 0.875, 0.75)),
    "ten crops": Row(1, 25, 256, 340, 224, ()),
}


def make_batch(row: Row) -> tuple[Tensor, Tensor]:
    """Noise (B, N, C, H, W), and views (B, V, 5)."""
    rng = np.random.default_rng(0)
    shape = (row.videos, row.segments, CHANNELS, row.height, row.width)
    images = torch.from_numpy(rng.integers(0, 256, shape, dtype=np.uint8))
    if not row.scales:
        return images, torch.tensor([fixed_views(row.height, row.width, crops=10)] * row.videos)
    drawn = [
        [draw_view(row.height, row.width, size=row.size, scales=row.scales, flip=True, rng=rng)]
        for _ in range(row.videos)
    ]
    return images, torch.tensor(drawn)


def training_step(snippets: Tensor, *, segments: int) -> Callable[[], object]:
    """Forward and backward of ATW on TinyCNN, snippets (B, N, C, S, S)."""
    size = snippets.shape[-1]
    model = build(
        num_classes=CLASSES, modality="flow", in_channels=CHANNELS, segments=segments, dropout=0.0, input_size=size
    ).to(snippets.device)
    labels = torch.arange(len(snippets), device=snippets.device) % CLASSES
    return lambda: model.loss(model(snippets), labels, label_smoothing=0.0).backward()


def milliseconds(work: Callable[[], object], *, device: torch.device) -> float:
    """Processor time on the CPU, wall time on a CUDA device."""
    cuda = device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize(device)
    start = clock()
    work()
    if cuda:
        torch.cuda.synchronize(device)
    return 1000 * (clock() - start)


def measure(row: Row, *, rounds: int, device: torch.device) -> dict[str, float]:
    """Milliseconds a batch, and shares of a training step."""
    images, views = make_batch(row)
    there, boxes = images.to(device), views.to(device)
    works: dict[str, Callable[[], object]] = {
        "opencv": lambda: cut_opencv(images, views, size=row.size, flow_from=0).to(device),
        "torch": lambda: cut_torch(images.to(device), boxes, size=row.size, flow_from=0),
    }
    if row.scales:
        snippets = cut_torch(there, boxes, size=row.size, flow_from=0)[:, 0]
        works["step"] = training_step(snippets, segments=row.segments)
    times: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for number in range(-1, rounds):  # the first round is not counted
        for name in names[number % len(names) :] + names[: number % len(names)]:
            spent = milliseconds(works[name], device=device)
            if number >= 0:
                times[name].append(spent)
    result = {f"{name}_ms": statistics.median(spent) for name, spent in times.items()}
    if row.scales:
        for name in ("opencv", "torch"):
            result[f"{name}_share_of_step"] = result[f"{name}_ms"] / result["step_ms"]
    return {name: round(value, 4) for name, value in result.items()}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Cutting the views of a batch by OpenCV and by torch.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args(argv)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"device": "cuda", "rows": "not measured: there is no CUDA device"}))
        return
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    rows: dict[str, Any] = {}
    for name, row in ROWS.items():
        rows[name] = measure(row, rounds=arguments.rounds, device=device)
        print(f"{name}: {rows[name]}", flush=True)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "one CPU core"
    print(json.dumps({"device": where, "rounds": arguments.rounds, "torch": torch.__version__, "rows": rows}))


if __name__ == "__main__":
    main()
