"""FlyingChairs (Dosovitskiy et al., "FlowNet", ICCV 2015): pairs of frames with the true flow between them.

They pre-train flow networks; they are no videos and have no labels. The archive has 22,872 pairs of 512 x 384 pixels,
``NNNNN_img1.ppm``, ``NNNNN_img2.ppm`` and ``NNNNN_flow.flo``, numbered from 1, and a list with one line a pair, 1 to
train on and 2 to validate. The examples that come with FlowNet 2 are named ``NNNNNNN-img0.ppm``, ``-img1.ppm`` and
``-gt.flo``; both forms are read.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from pipeline.dataset.builders.found import malformed, named, read_lines

FORMS = (("_img1.ppm", "_img2.ppm", "_flow.flo"), ("-img0.ppm", "-img1.ppm", "-gt.flo"))
"""What follows the number in the names of first frame, second frame and flow."""
PARTS = {"1": "train", "2": "val"}
_NAME = re.compile(rf"(\d+)({'|'.join(re.escape(suffix) for form in FORMS for suffix in form)})")


class FlowPair(NamedTuple):
    """Two frames and the flow from the first to the second."""

    id: str
    """The number as the file names have it."""
    prev: Path
    next: Path
    flow: Path
    """A .flo file: see ``pipeline.optical_flow.flo``."""
    part: str
    """train or val."""


def flying_chairs(root: Path, *, split_file: Path | None) -> tuple[FlowPair, ...]:
    """The pairs of a folder, in the order of their numbers.

    Args:
        root: folder of the frames and flows, ``data`` of the archive.
        split_file: line k says whether pair k trains (1) or validates (2); None: all train.

    Raises:
        ValueError: there is no pair, a pair lacks a file, two have one number, or the list does not fit the folder.
    """
    pairs = _pairs(root)
    if split_file is None:
        return tuple(pair._replace(part="train") for _, pair in sorted(pairs.items()))
    parts = _parts(split_file)
    _same_numbers(set(parts), set(pairs), root=root, split_file=split_file)
    return tuple(pair._replace(part=parts[number]) for number, pair in sorted(pairs.items()))


def _pairs(root: Path) -> dict[int, FlowPair]:
    try:
        names = set(os.listdir(root))
    except OSError as error:
        raise ValueError(f"cannot read the folder {root}: {error.strerror}; check its name") from None
    pairs: dict[int, FlowPair] = {}
    for name in sorted(names):
        found = _NAME.fullmatch(name)
        if found is None:
            if name.endswith((".ppm", ".flo")):
                raise ValueError(f"{root / name} is not named like 00001{FORMS[0][0]} or 0000001{FORMS[1][0]}; move it")
            continue
        digits, form = found[1], next(form for form in FORMS if found[2] in form)
        prev, next_, flow = (f"{digits}{suffix}" for suffix in form)
        if absent := [each for each in (prev, next_, flow) if each not in names]:
            raise ValueError(f"{root} has {name} but not {', '.join(absent)}; restore or remove the pair")
        pair = FlowPair(digits, root / prev, root / next_, root / flow, part="")
        other = pairs.setdefault(int(digits), pair)
        if other != pair:
            raise ValueError(f"{other.prev} and {pair.prev} both are of the pair {int(digits)}; keep one of them")
    if not pairs:
        raise ValueError(f"{root} has no file like 00001{FORMS[0][0]}; check the folder")
    return pairs


def _parts(split_file: Path) -> dict[int, str]:
    parts = {}
    for number, line in read_lines(split_file):
        if line not in PARTS:
            raise malformed(split_file, number, line, "expected 1 (train) or 2 (validation); restore the official file")
        parts[number] = PARTS[line]
    return parts


def _same_numbers(listed: set[int], there: set[int], *, root: Path, split_file: Path) -> None:
    for numbers, what in (
        (sorted(listed - there), f"pairs listed in {split_file} are not in {root}"),
        (sorted(there - listed), f"pairs in {root} have no line in {split_file}"),
    ):
        if numbers:
            first = named([str(number) for number in numbers])
            raise ValueError(f"{len(numbers)} {what}: {first}; the list and the folder must belong together")
