"""Penn Action (Zhang, Zhu and Derpanis, "From Actemes to Action", ICCV 2013): 2,326 folders of frames, 15 classes.

A MATLAB file ``labels/NNNN.mat`` tells of the folder ``frames/NNNN``: ``action``, ``train`` (1, otherwise -1),
``nframes``, ``dimensions`` (height, width, frames) and ``bbox``, a row x1, y1, x2, y2 a frame. Those are corners: read
as sizes, most boxes of the official files would leave the frame. Coordinates are fractions of pixels, because the
videos were shrunk after they were marked, and are kept as they are.

Where there are fewer boxes than frames, they are those of the first frames, and the rest has none. A box that reaches
out of the frame is cut at its edge. In every 32nd official file (73 files, 5,207 boxes) neither happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.dataset.builders.found import Found, Listing, match, scan
from pipeline.dataset.builders.matlab import number_table, read_mat, text, whole_number
from pipeline.dataset.manifest import Tube

FIELDS = ("action", "train", "nframes", "dimensions", "bbox")
PARTS = {1: "train", -1: "test", 0: "test"}
"""Copies of the dataset write -1 or 0 for what is not trained on."""


def penn_action(videos: Path, annotations: Path) -> Listing:
    """Sequences with their action, official part (as split1) and the actor's boxes.

    Args:
        videos: folder of the folders of frames, ``frames`` of the archive.
        annotations: folder of the .mat files, ``labels`` of the archive, or the folder that holds it.

    Raises:
        ValueError: a file cannot be read, or lacks a field, or a field has no sense.
    """
    return match(_sequences(videos, annotations), scan(videos), root=videos)


def _sequences(videos: Path, annotations: Path) -> Iterator[Found]:
    inner = annotations / "labels"
    files = sorted((inner if inner.is_dir() else annotations).glob("*.mat"))
    if not files:
        raise ValueError(f"{annotations} has no .mat files, nor in a folder labels; check the key 'annotations'")
    with ThreadPoolExecutor(16) as pool:  # on a network disk reading is mostly waiting
        yield from pool.map(lambda path: _sequence(path, videos), files)


def _sequence(path: Path, videos: Path) -> Found:
    fields = read_mat(path, FIELDS)
    label = text(fields["action"], name="action", where=str(path))
    train = whole_number(fields["train"], name="train", where=str(path))
    if train not in PARTS:
        raise ValueError(f"{path} has {train} for 'train'; it must be 1 (train), or -1 or 0 (test)")
    tube = Tube(label, 0, _boxes(fields, path))
    return Found(
        id=path.stem,
        path=videos / path.stem,
        labels=(label,),
        splits={"split1": PARTS[train]},
        tubes=(tube,),
    )


def _boxes(fields: dict[str, npt.NDArray[Any]], path: Path) -> tuple[tuple[float, float, float, float], ...]:
    frames = whole_number(fields["nframes"], name="nframes", where=str(path))
    boxes = number_table(fields["bbox"], columns=4, name="bbox", where=str(path))
    if not 1 <= len(boxes) <= frames:
        raise ValueError(f"{path} has {len(boxes)} rows in 'bbox' for {frames} frames; correct 'bbox' or 'nframes'")
    size = fields["dimensions"].ravel()[:2]
    if len(size) < 2 or size.dtype.kind not in "uif" or not size.min() > 0:
        raise ValueError(f"{path} has {size.tolist()} for 'dimensions'; it must start with the height and the width")
    height, width = size.tolist()
    inside = np.clip(boxes, 0, [width, height, width, height])
    for row in np.flatnonzero(~(inside[:, :2] < inside[:, 2:]).all(axis=1)):  # negated, so that a NaN counts
        raise ValueError(
            f"row {row + 1} of 'bbox' in {path} is {boxes[row].tolist()}, which is no x1, y1, x2, y2 within"
            f" {width} x {height} pixels; correct it"
        )
    return tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in inside.tolist())
