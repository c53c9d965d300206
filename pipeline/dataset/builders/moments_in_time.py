"""Moments in Time (Monfort et al., 2018): three-second clips, about 802,000 to train on and 33,900 to validate.

The first release has 339 classes. The labels of its test set were never published, so papers test on the validation
set, and so does ``split1`` here.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.dataset.builders.found import Found, Listing, malformed, match, read_lines, scan_names

CLASS_LISTS = ("moments_categories.txt", "category_momentsv2.txt")
"""Lines ``label,number`` in the first release, ``label`` in the second."""
TABLES = (("trainingSet.csv", "training", "train"), ("validationSet.csv", "validation", "test"))
"""A table, the folder of its videos, and the part of the split."""
NAME = re.compile(r"([^/]+)/([^/]+?)(\.\w+)?")


def moments_in_time(videos: Path, annotations: Path) -> Listing:
    """The videos of ``trainingSet.csv`` and ``validationSet.csv``: rows ``class/name.mp4,label,yes votes,no votes``.

    Args:
        videos: folder of ``training/`` and ``validation/``.
        annotations: folder of the tables and of the list of classes.

    Raises:
        ValueError: a file is missing, or a line of one cannot be used.
    """
    labels = {name: (name,) for name in read_classes(annotations)}  # shared by 800,000 rows
    expected: dict[str, Found] = {}
    for table, folder, part in TABLES:
        splits = {"split1": part}
        for number, line in read_lines(annotations / table):
            try:
                found = _found(line, root=videos / folder, labels=labels, splits=splits)
            except ValueError as error:
                raise malformed(annotations / table, number, line, str(error)) from None
            if expected.setdefault(found.id, found) is not found:
                raise malformed(annotations / table, number, line, "this video is listed before; keep one of the lines")
    return match(expected.values(), scan_names(videos), root=videos)


def read_classes(annotations: Path) -> frozenset[str]:
    """The classes of whichever list is there.

    Raises:
        ValueError: neither is, or a class is named twice.
    """
    path = next((annotations / name for name in CLASS_LISTS if (annotations / name).exists()), None)
    if path is None:
        raise ValueError(f"{annotations} has no {' or '.join(CLASS_LISTS)}; check the key 'annotations'")
    classes: set[str] = set()
    for number, line in read_lines(path):
        label, comma, digits = line.rpartition(",")
        name = label if comma and digits.strip().isdecimal() else line
        if name in classes:
            raise malformed(path, number, line, "the class stands there twice; remove one")
        classes.add(name)
    return frozenset(classes)


def _found(line: str, *, root: Path, labels: Mapping[str, tuple[str, ...]], splits: dict[str, str]) -> Found:
    try:
        cells = next(csv.reader((line,), strict=True))  # a row is one line: no official name has a newline in it
    except csv.Error:
        cells = [""]
    name = NAME.fullmatch(cells[0])
    if name is None or len(cells) != 4 or not (cells[2].isdecimal() and cells[3].isdecimal()):
        raise ValueError("expected class/name.mp4, the class, votes for and votes against; restore the official file")
    (folder, stem, suffix), label = name.groups(default=""), cells[1]
    if label not in labels:
        raise ValueError(f"the list of classes has no {label!r}; correct one of them")
    return Found(id=f"{folder}--{stem}", path=root / f"{folder}/{stem}{suffix}", labels=labels[label], splits=splits)
