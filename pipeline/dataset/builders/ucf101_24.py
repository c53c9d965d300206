"""UCF101-24: boxes around each actor in the videos of 24 classes of UCF-101, as corrected by Singh et al. (ICCV 2017).

``finalAnnots.mat`` has ``annot``, an entry a video: ``name`` (Class/v_Class_gGG_cCC), ``num_imgs`` (frames) and
``tubes``, each with ``class`` (from 1), ``sf`` and ``ef`` (first and last frame, from 1, both included) and ``boxes``
(x, y, width, height, a row a frame). Numbers are packed as uint8 or uint16: x + width overflows unless cast first.
3,194 videos (2,284 to train on, the 910 of ``testlist01.txt`` to test), 4,458 tubes, 715 videos with several.

A box becomes [x, x + width) x [y, y + height), as published evaluations take it. In the official file x and y are never
0, while x + width and y + height reach 320 and 240, so that its boxes may start one pixel late. None of its 573,862
boxes leaves the frame, no tube runs past ``num_imgs``, every tube has a box a frame: nothing is cut or left out.

``num_imgs`` counts images that were extracted, which for these AVI files are often one more than decode, as ffmpeg's
default doubles the first. 2,744 tubes end with the last image; the manifest allows for it (``FRAME_SLACK``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.dataset.builders.found import Found, Listing, malformed, match, read_lines, scan
from pipeline.dataset.builders.matlab import number_table, read_mat, text, whole_number
from pipeline.dataset.manifest import Tube

ANNOTATIONS = "finalAnnots.mat"
PICKLE = "pyannot.pkl"
TEST_LIST = "testlist01.txt"


def ucf101_24(videos: Path, annotations: Path) -> Listing:
    """Videos with class, split1 and tubes.

    Args:
        videos: folder of UCF-101's class folders; classes without boxes may be there too, and count as extra.
        annotations: folder of ``finalAnnots.mat`` and ``testlist01.txt``.

    Raises:
        ValueError: a file is absent or damaged, lacks a field, or contradicts itself.
    """
    entries = _entries(annotations)
    tested = _tested(annotations / TEST_LIST, {entry.name for entry in entries})
    expected = (
        Found(
            id=entry.name.rpartition("/")[2],
            path=videos / f"{entry.name}.avi",
            labels=(entry.label,),
            splits={"split1": "test" if entry.name in tested else "train"},
            tubes=entry.tubes,
        )
        for entry in entries
    )
    return match(expected, scan(videos), root=videos)


class _Entry(NamedTuple):
    name: str
    label: str
    tubes: tuple[Tube, ...]


def _entries(annotations: Path) -> list[_Entry]:
    path = annotations / ANNOTATIONS
    if not path.exists() and (annotations / PICKLE).exists():
        raise ValueError(
            f"{annotations / PICKLE} is a pickle, which can run any code and is not read; put {ANNOTATIONS} beside it"
        )
    annot = read_mat(path, ["annot"])["annot"]
    _need_fields(annot, ("name", "tubes", "num_imgs"), where=f"'annot' of {path}")
    numbers: dict[str, int] = {}
    entries = [_entry(record, path, numbers) for record in annot.flat]
    owner: dict[int, str] = {}
    for label, number in numbers.items():
        if owner.setdefault(number, label) != label:
            raise ValueError(f"{path} gives the class {number} to {owner[number]} and to {label}; correct one of them")
    return entries


def _entry(record: Any, path: Path, numbers: dict[str, int]) -> _Entry:
    """``numbers`` collects the number of each class, which must be one."""
    name = text(record["name"], name="name", where=f"an entry of {path}")
    where = f"{path}, video {name},"
    label, _, stem = name.partition("/")
    if not (label and stem) or "/" in stem:
        raise ValueError(f"{where} has no name like Class/v_Class_g01_c01; correct it")
    frames = whole_number(record["num_imgs"], name="num_imgs", where=where)
    tubes = record["tubes"]
    _need_fields(tubes, ("class", "sf", "ef", "boxes"), where=f"'tubes' of {where[:-1]}")
    for tube in tubes.flat:
        number = whole_number(tube["class"], name="class", where=where)
        if numbers.setdefault(label, number) != number:
            raise ValueError(f"{where} has a tube of the class {number}, but {label} is {numbers[label]}; correct it")
    return _Entry(name, label, tuple(_tube(tube, label, frames, where) for tube in tubes.flat))


def _need_fields(array: npt.NDArray[Any], names: tuple[str, ...], *, where: str) -> None:
    if array.dtype.names is None or not array.size:
        raise ValueError(f"{where} is not a structure with an entry; get the file anew")
    for name in names:
        if name not in array.dtype.names:
            raise ValueError(f"{where} has no field {name!r}; get the file anew")


def _tube(tube: Any, label: str, frames: int, where: str) -> Tube:
    first = whole_number(tube["sf"], name="sf", where=where)
    last = whole_number(tube["ef"], name="ef", where=where)
    boxes = number_table(tube["boxes"], columns=4, name="boxes", where=where)  # x, y, width, height
    if not 1 <= first <= last <= frames:
        raise ValueError(f"{where} has a tube from frame {first} to {last} of {frames}, counted from 1; correct it")
    if len(boxes) != last - first + 1:
        raise ValueError(f"{where} has {len(boxes)} boxes for frames {first} to {last}; give one for each frame")
    for row in np.flatnonzero(~(boxes[:, 2:] > 0).all(axis=1) | (boxes[:, :2] < 0).any(axis=1)):
        raise ValueError(
            f"{where} has the box {boxes[row].tolist()} in frame {first + row}, counted from 1; x and y must not be"
            " negative, width and height must be over 0"
        )
    boxes[:, 2:] += boxes[:, :2]
    return Tube(label, first - 1, tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in boxes.tolist()))


def _tested(path: Path, names: set[str]) -> set[str]:
    tested = set[str]()
    for number, line in read_lines(path):
        name = line.removesuffix(".avi")
        if name not in names:
            raise malformed(path, number, line, f"{ANNOTATIONS} has no such video; use the list that comes with it")
        if name in tested:
            raise malformed(path, number, line, "the video stands there a second time; remove the line")
        tested.add(name)
    return tested
