"""The manifest: one row a video, as tab-separated text that a person can read."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.stores.publish import write_text

PARTS = ("train", "val", "test", "")
"""What a split may say of a video; empty: the split does not use it."""

COLUMNS = ("id", "labels", "frames", "fps", "width", "height", "bytes", "digest", "path", "stage", "reason")
LABEL_SEPARATOR = ";"


@dataclass(frozen=True, kw_only=True)
class Video:
    """One video of a dataset."""

    id: str
    """Unique in the dataset and stable: shards, splits by hash and stores follow it."""
    path: str
    digest: str
    """BLAKE2b of the file's bytes."""
    bytes: int
    labels: tuple[str, ...]
    """Class names, usually one."""
    splits: dict[str, str] = field(default_factory=dict)
    """Part of each split: one of ``PARTS``."""
    frames: int | None = None
    """Number of frames by decoding; None before probing or if quarantined. So are the next three."""
    fps: float | None = None
    """Average frame rate, frames per second."""
    width: int | None = None
    """Pixels, after rotation metadata."""
    height: int | None = None
    stage: str | None = None
    """The stage that quarantined the video."""
    reason: str | None = None
    """Why the video cannot be used; None if it can."""

    @property
    def usable(self) -> bool:
        """Whether no stage has quarantined the video."""
        return self.reason is None


@dataclass(frozen=True)
class Manifest:
    """All videos of a dataset, in the order of their ids."""

    videos: tuple[Video, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Sorted class names, those of quarantined videos too: a class's number does not move with a broken file."""
        return tuple(sorted({label for video in self.videos for label in video.labels}))

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(sorted({name for video in self.videos for name in video.splits}))

    @property
    def quarantined(self) -> tuple[Video, ...]:
        """The videos that cannot be used."""
        return tuple(video for video in self.videos if not video.usable)

    def part(self, split: str, name: str) -> tuple[Video, ...]:
        """The usable videos of one part of a split.

        Raises:
            ValueError: there is no such split.
        """
        if split not in self.splits:
            raise ValueError(f"the manifest has no split {split!r}; it has {', '.join(self.splits) or 'none'}")
        return tuple(video for video in self.videos if video.usable and video.splits.get(split) == name)


def check(videos: Iterable[Video], *, splits: Iterable[str]) -> Manifest:
    """Put videos in order and refuse a list that could not be trained on.

    Args:
        videos: in any order.
        splits: the splits that the run uses.

    Raises:
        ValueError: two videos with one id, an id with a path in it, no video, an unknown split or part, a class with
            no training video, a split with no test video.
    """
    manifest = Manifest(tuple(sorted(videos, key=lambda video: video.id)))
    if not manifest.videos:
        raise ValueError("the dataset has no video; check the folder and the labels left out")
    for one, next_ in zip(manifest.videos, manifest.videos[1:], strict=False):
        if one.id == next_.id:
            raise ValueError(f"two videos have the id {one.id!r}: {one.path} and {next_.path}; ids must be unique")
    for video in manifest.videos:
        _check_video(video)
    for split in splits:
        check_split(manifest, split)
    return manifest


def _check_video(video: Video) -> None:
    if re.search("[\ud800-\udfff]", video.path):  # how Python shows bytes that are not UTF-8
        raise ValueError(f"the file name {video.path!a} is not UTF-8; rename the file")
    if not video.id or video.id in (".", "..") or re.search(r"[/\\\x00-\x1f]", video.id):
        raise ValueError(f"the video id {video.id!r} has a path or a control character in it; use a plain name")
    if not video.labels:
        raise ValueError(f"the video {video.id!r} has no label; give it one or leave it out")
    for label in video.labels:
        if not label or LABEL_SEPARATOR in label or re.search(r"[\x00-\x1f]", label):
            raise ValueError(
                f"the label {label!r} of {video.id!r} is empty or has {LABEL_SEPARATOR!r} in it; rename it"
            )
    for name, part in video.splits.items():
        if part not in PARTS:
            raise ValueError(f"{name} of the video {video.id!r} is {part!r}; it must be train, val, test or empty")


def check_split(manifest: Manifest, split: str) -> None:
    """Refuse a split that cannot be trained or tested on.

    Raises:
        ValueError: as ``check``.
    """
    trained = {label for video in manifest.part(split, "train") for label in video.labels}
    for label in manifest.classes:
        if label not in trained:
            raise ValueError(
                f"the class {label!r} has no usable training video in {split}; add one, or list it in exclude_labels"
            )
    if not manifest.part(split, "test"):
        raise ValueError(f"{split} has no usable test video; mark some videos as test")


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write tab-separated text with one header line; a split is a column of its own."""
    text = io.StringIO()
    writer = csv.writer(text, dialect="excel-tab", lineterminator="\n")
    writer.writerow([*COLUMNS[:2], *manifest.splits, *COLUMNS[2:]])
    for video in manifest.videos:
        splits = [video.splits.get(name, "") for name in manifest.splits]
        plain = ["" if getattr(video, name) is None else getattr(video, name) for name in COLUMNS[2:]]
        writer.writerow([video.id, LABEL_SEPARATOR.join(video.labels), *splits, *plain])
    write_text(path, text.getvalue())


def read_manifest(path: Path) -> Manifest:
    """Read what ``write_manifest`` wrote.

    Raises:
        ValueError: the file is not a manifest.
    """
    try:
        with path.open(newline="") as file:
            rows = csv.DictReader(file, dialect="excel-tab")
            missing = set(COLUMNS) - set(rows.fieldnames or ())
            if missing:
                raise ValueError(f"it lacks the column {min(missing)!r}")
            splits = [name for name in rows.fieldnames or () if name not in COLUMNS]
            return Manifest(tuple(_video(row, splits) for row in rows))
    except (AttributeError, OSError, TypeError, ValueError, csv.Error) as error:  # a row cut short has None in it
        raise ValueError(f"{path} is not a manifest: {error}; delete it and run again") from None


def _video(row: dict[str, str], splits: list[str]) -> Video:
    return Video(
        id=row["id"],
        path=row["path"],
        digest=row["digest"],
        bytes=int(row["bytes"]),
        labels=tuple(row["labels"].split(LABEL_SEPARATOR)),
        splits={name: row[name] for name in splits},
        frames=int(row["frames"]) if row["frames"] else None,
        fps=float(row["fps"]) if row["fps"] else None,
        width=int(row["width"]) if row["width"] else None,
        height=int(row["height"]) if row["height"] else None,
        stage=row["stage"] or None,
        reason=row["reason"] or None,
    )
