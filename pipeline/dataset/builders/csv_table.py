"""An own dataset as a table: one row a video."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.dataset.builders.class_folders import hashed_part, hashed_remark
from pipeline.dataset.builders.found import VIDEO_SUFFIXES, Found, Listing, list_folders, read_text
from pipeline.dataset.manifest import LABEL_SEPARATOR, PARTS, id_problem, labels_problem


def csv_table(table: Path, *, root: Path, test_fraction: float) -> Listing:
    """Videos listed in a CSV with the columns ``path`` and ``label``, and optionally ``id``, ``split1``, ``split2`` ...

    Several labels of one video are separated by semicolons. A video in the folder of a listed one that the table does
    not name is extra.

    Args:
        table: the CSV; paths in it are relative to ``root``. An id defaults to the file name's stem.
        root: folder.
        test_fraction: held out by a stable hash if the table names no split.

    Raises:
        ValueError: no such file, a column is missing or there twice, or a row cannot be used.
    """
    lines = _lines(table)
    columns = _columns(next(lines, (1, []))[1], table=table)
    listed = list(_videos(lines, columns, table=table, root=root, test_fraction=test_fraction))
    names = {os.path.normpath(video.path) for video in listed}
    parents = sorted({os.path.dirname(name) or "." for name in names})
    there, extra = set(), []
    for folder in list_folders(filter(os.path.isdir, parents)):
        for path in map(os.path.normpath, (*folder.files, *folder.folders)):
            there.add(path)
            if path not in names and path.lower().endswith(VIDEO_SUFFIXES):
                extra.append(os.path.relpath(path, root))
    videos, missing = [], []
    for video in listed:
        path = os.path.normpath(video.path)
        if path in there or os.path.lexists(path):  # a listing leaves hidden files out, which a table may name
            videos.append(video)
        else:
            missing.append(os.path.relpath(path, root))
    hashed = hashed_remark(f"no column of {table}", test_fraction=test_fraction)
    return Listing(tuple(videos), tuple(missing), tuple(sorted(extra)), () if columns.splits else (hashed,))


class _Columns(NamedTuple):
    """The columns that are read, as positions in a row."""

    number: int
    """Of all columns."""
    path: int
    label: int
    id: int | None
    splits: dict[str, int]


def _columns(names: Sequence[str], *, table: Path) -> _Columns:
    places: dict[str, int] = {}
    splits: dict[str, int] = {}
    for at, name in enumerate(names):
        is_split = name.lower().startswith("split")
        if is_split and not re.fullmatch(r"\w+", name):
            raise ValueError(
                f"{table} has the column {name!r}; call it as split1, without blanks and signs, or rename it"
            )
        if not is_split and name not in ("path", "label", "id"):
            continue
        kind, key = (splits, name.lower()) if is_split else (places, name)
        if kind.setdefault(key, at) != at:
            raise ValueError(f"{table} has the column {key!r} twice; remove one of them")
    for column in ("path", "label"):
        if column not in places:
            raise ValueError(f"{table} has no column {column!r}; its columns are {', '.join(names) or 'none'}")
    return _Columns(len(names), places["path"], places["label"], places.get("id"), splits)


def _lines(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of each row that is not empty."""
    rows = csv.reader(io.StringIO(read_text(table, key="csv")), strict=True)
    try:
        for row in filter(None, rows):
            yield rows.line_num, [cell.strip() for cell in row]
    except csv.Error as error:
        raise ValueError(f"line {rows.line_num} of {table} is not CSV ({error}); correct it") from None


def _videos(
    lines: Iterator[tuple[int, list[str]]], columns: _Columns, *, table: Path, root: Path, test_fraction: float
) -> Iterator[Found]:
    numbers: dict[str, int] = {}
    for number, cells in lines:
        try:
            found = _found(cells, columns, root=root, test_fraction=test_fraction)
            first = numbers.setdefault(found.id, number)
            if first != number:
                raise ValueError(f"the id {found.id!r} is that of line {first} too; tell them apart in a column 'id'")
        except ValueError as error:
            raise ValueError(f"line {number} of {table}: {error}") from None
        yield found


def _found(cells: list[str], columns: _Columns, *, root: Path, test_fraction: float) -> Found:
    if len(cells) != columns.number:
        raise ValueError(f"it has {len(cells)} cells and the header {columns.number}; correct it")
    path, label = cells[columns.path], cells[columns.label]
    if not path or not label:
        raise ValueError("it lacks a path or a label; add it or remove the row")
    id = (columns.id is not None and cells[columns.id]) or os.path.splitext(os.path.basename(path))[0]
    labels = tuple(part.strip() for part in label.split(LABEL_SEPARATOR))
    if problem := id_problem(id) or labels_problem(labels):
        raise ValueError(problem)
    splits = {name: cells[at] for name, at in columns.splits.items()}
    for name, part in splits.items():
        if part not in PARTS:
            raise ValueError(f"{name} is {part!r}; it must be train, val, test or empty")
    hashed = {} if splits else {"split1": hashed_part(id, test_fraction=test_fraction)}
    return Found(id=id, path=root / path, labels=labels, splits=splits or hashed)
