"""Stage manifest: find and label the videos of a dataset, and write one row for each. Names of datasets stop here.

``find`` and ``digest`` run whenever the Snakefile is parsed and cost one stat a file. The stage itself joins labels
with what probing found, after the shards were probed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.dataset.digests import digest_files
from pipeline.dataset.ledger import check_share
from pipeline.dataset.manifest import Manifest, Video, check, check_split, write_manifest
from pipeline.dataset.receipts import Receipt

UT_INTERACTION_CLASSES = ("handshake", "hug", "kick", "point", "punch", "push", "none")
UT_INTERACTION_NAME = re.compile(r"(?P<number>\d+)_(?P<sequence>\d+)_(?P<label>[0-6])\.avi")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A video file that a builder found."""

    id: str
    path: Path
    label: str
    splits: dict[str, str]
    """Part by split; empty where nothing names one."""


def find(config: Config) -> Manifest:
    """Find and label the videos of the configured dataset; reads no video and writes nothing.

    Raises:
        ValueError: a missing folder or column, or a list that cannot be trained on (see ``check``).
    """
    found = list(_build(config))
    unknown = set(config.exclude_labels) - {video.label for video in found}
    if unknown:
        raise ValueError(f"exclude_labels names {min(unknown)!r}, which no video has; correct it or leave it out")
    listed = (
        Video(id=video.id, path=str(video.path), digest="", bytes=0, labels=(video.label,), splits=video.splits)
        for video in found
        if video.label not in config.exclude_labels
    )
    return check(listed, splits=config.splits)


def digest(manifest: Manifest, *, cache: Path) -> Manifest:
    """The manifest with digests and sizes of the files.

    Args:
        manifest: of ``find``.
        cache: file of the digest cache, made if absent.

    Raises:
        ValueError: a file cannot be read, or the cache cannot be used.
    """
    found = digest_files([Path(video.path) for video in manifest.videos], cache=cache)
    return Manifest(
        tuple(replace(video, digest=d, bytes=size) for video, (d, size) in zip(manifest.videos, found, strict=True))
    )


def _build(config: Config) -> Iterator[Found]:
    match config.dataset:
        case "demo":
            folder = demo_folder(config)
            return csv_file(folder / "videos.csv", root=folder, test_fraction=config.test_fraction)
        case "class_folders":
            assert config.videos is not None
            return class_folders(config.videos, test_fraction=config.test_fraction)
        case "csv":
            assert config.csv is not None
            root = config.videos or config.csv.parent
            return csv_file(config.csv, root=root, test_fraction=config.test_fraction)
        case "ut_interaction":
            assert config.videos is not None
            return ut_interaction(config.videos)


def demo_folder(config: Config) -> Path:
    """Where the demo's videos are rendered."""
    return config.work_dir / "dataset"


def class_folders(root: Path, *, test_fraction: float) -> Iterator[Found]:
    """Videos in ``root/<class>/``, or in ``root/{train,val,test}/<class>/``. The id is ``<class>--<file name stem>``.

    Every file that is not hidden counts as a video: one that is not will be quarantined, not overlooked.

    Raises:
        ValueError: no such folder, or no folder of a class in it.
    """
    parts = [name for name in _folders(root) if name in ("train", "val", "test")]
    if parts and len(parts) != len(_folders(root)):
        raise ValueError(f"{root} has folders {', '.join(parts)} beside class folders; use one layout or the other")
    for part in parts or [""]:
        for label in _folders(root / part):
            for path in _videos(root / part / label):
                name = f"{label}--{path.stem}"
                yield Found(id=name, path=path, label=label, splits=_splits(name, part, test_fraction))


def csv_file(table: Path, *, root: Path, test_fraction: float) -> Iterator[Found]:
    """Videos listed in a CSV with the columns ``path`` and ``label``, and optionally ``id``, ``split1``, ``split2`` ...

    Args:
        table: the CSV; paths in it are relative to ``root``. An id defaults to the file name's stem.
        root: folder.
        test_fraction: held out if the table names no split.

    Raises:
        ValueError: no such file, or a column is missing, or a row is incomplete.
    """
    try:
        file = table.open(newline="", encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read the table {table}: {error.strerror}") from None
    with file:
        rows = csv.DictReader(file)
        columns = _header(rows, table)
        for column in ("path", "label"):
            if column not in columns:
                raise ValueError(f"{table} has no column {column!r}; its columns are {', '.join(columns) or 'none'}")
        split_columns = [column for column in columns if re.fullmatch(r"split\w*", column, flags=re.IGNORECASE)]
        for row in rows:
            if not row["path"] or not row["label"]:
                raise ValueError(f"line {rows.line_num} of {table} lacks a path or a label")
            name = row.get("id") or Path(row["path"]).stem
            splits = {column.lower(): (row[column] or "").strip() for column in split_columns}
            splits = splits or _splits(name, "", test_fraction)
            yield Found(id=name, path=root / row["path"], label=row["label"].strip(), splits=splits)


def _header(rows: csv.DictReader[str], table: Path) -> list[str]:
    try:
        return list(rows.fieldnames or ())
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table} is not a CSV in UTF-8 ({error}); save it as one") from None


def ut_interaction(root: Path) -> Iterator[Found]:
    """UT-Interaction's segmented clips, ``<number>_<sequence>_<class>.avi``.

    Ten sequences make five splits: split k tests on sequences 2k-1 and 2k, so no scene is on both sides.

    Raises:
        ValueError: no such folder, or a file of another name in it.
    """
    for path in _files(root):
        match = UT_INTERACTION_NAME.fullmatch(path.name)
        if match is None:
            raise ValueError(f"{path} is not named <number>_<sequence>_<class>.avi; take it out of the folder")
        sequence = int(match["sequence"])
        splits = {f"split{k}": "test" if sequence in (2 * k - 1, 2 * k) else "train" for k in range(1, 6)}
        yield Found(id=path.stem, path=path, label=UT_INTERACTION_CLASSES[int(match["label"])], splits=splits)


def _videos(folder: Path) -> list[Path]:
    """The files of a class's folder; what would be overlooked is refused."""
    if nested := [entry.name for entry in _entries(folder) if entry.is_dir()]:
        raise ValueError(f"{folder} holds the folder {nested[0]}; videos lie directly in the folder of their class")
    if not (files := _files(folder)):
        raise ValueError(f"the class folder {folder} holds no video; add one or remove the folder")
    return files


def _folders(root: Path) -> list[str]:
    names = sorted(entry.name for entry in _entries(root) if entry.is_dir())
    if not names:
        raise ValueError(f"{root} holds no folder; a folder for each class is expected in it")
    return names


def _files(root: Path) -> list[Path]:
    return sorted(root / entry.name for entry in _entries(root) if not entry.is_dir())


def _entries(root: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"cannot read the folder {root}: {error.strerror}; check the key 'videos'") from None


def _splits(video_id: str, part: str, test_fraction: float) -> dict[str, str]:
    """The part named by the layout, or else one by a stable hash: adding a video moves no other one."""
    if part:
        return {"split1": part}
    draw = int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=8, person=b"split").digest(), "big") / 2**64
    return {"split1": "test" if draw < test_fraction else "train"}


def join(labels: list[dict[str, Any]], receipts: list[Receipt], media: list[dict[str, Any]]) -> Manifest:
    """One row a video from the plan's labels and media and the probe's receipts."""
    outcomes = {name: outcome for receipt in receipts for name, outcome in receipt.videos.items()}
    sources = {row["id"]: row for row in media}
    videos = []
    for row in labels:
        video = Video(**sources[row["id"]], labels=tuple(row["labels"]), splits=row["splits"])
        outcome = outcomes[row["id"]]
        facts: dict[str, Any] = {name: outcome.facts.get(name) for name in ("frames", "fps", "width", "height")}
        videos.append(replace(video, **facts, stage=outcome.stage, reason=outcome.reason))
    return Manifest(tuple(sorted(videos, key=lambda video: video.id)))


def main(argv: list[str] | None = None) -> None:
    """Write the manifest of a probed dataset."""
    parser = argparse.ArgumentParser(prog="python -m stages.manifest", description=main.__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="folder of the plan")
    parser.add_argument("--receipts", type=Path, required=True, help="folder of the probe's receipts")
    parser.add_argument("--splits", nargs="+", required=True, help="splits that the run uses")
    parser.add_argument("--max-quarantined", type=float, required=True, help="largest unusable part, 0 to 1")
    parser.add_argument("--out", type=Path, required=True, help="manifest to write")
    arguments = parser.parse_args(argv)
    try:
        shards = json.loads((arguments.plan / "shards.json").read_text())
        labels, media = (
            [row for shard in shards for row in json.loads((arguments.plan / part / f"{shard}.json").read_text())]
            for part in ("labels", "media")
        )
        receipts = [Receipt.read(arguments.receipts / f"{shard}.json") for shard in shards]
        manifest = join(labels, receipts, media)
        check_share(receipts, limit=arguments.max_quarantined)
        for split in arguments.splits:
            check_split(manifest, split)
    except ValueError as error:
        sys.exit(f"manifest: {error}")
    write_manifest(arguments.out, manifest)


if __name__ == "__main__":
    main()
