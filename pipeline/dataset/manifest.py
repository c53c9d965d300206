"""The manifest: one row a video, as tab-separated text that a person can read.

Units: times in seconds, half-open; frames counted from 0; boxes x0, y0, x1, y1 in pixels, half-open.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import io
import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.stores.publish import atomic_file

PARTS = ("train", "val", "test", "")
"""What a split may say of a video; empty: the split does not use it."""

FACTS = ("frames", "fps", "width", "height")
COLUMNS = ("id", "labels", *FACTS, "bytes", "digest", "path", "stage", "reason", "segments", "tubes")
LABEL_SEPARATOR = ";"

END_SLACK_SECONDS = 0.5
"""How far an interval may reach past the end: people mark ends by the clock of a player, which rounds."""
BOX_SLACK_PX = 1.0
"""How far a box may reach out of the frame: many tools count the last pixel in, or from 1."""
FRAME_SLACK = 2
"""How many frames a tube may reach past the end: people count images that they extracted, and ffmpeg's default doubles
the first frame of many AVI files."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Segment:
    """An interval in which something is done."""

    label: str | None
    """None: disputed; what is detected there counts neither for nor against."""
    start: float
    """Seconds; the interval is half-open, [start, end)."""
    end: float


@dataclass(frozen=True, slots=True)
class Tube:
    """Where one actor is, frame by frame, while something is done."""

    label: str
    first_frame: int
    """The frame of the first box, counted from 0."""
    boxes: tuple[Box, ...]
    """x0, y0, x1, y1 in pixels of the video as it is, half-open; one box a frame without gaps."""


@dataclass(frozen=True, kw_only=True, slots=True)
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
    """Part of each split: one of ``PARTS``. Videos may share one mapping; it is not to be changed."""
    frames: int | None = None
    """Number of frames by decoding; None before probing or if quarantined. So are the next three."""
    fps: float | None = None
    """Average frame rate, frames per second; of a folder of images, as told, before probing too."""
    width: int | None = None
    """Pixels, after rotation metadata."""
    height: int | None = None
    stage: str | None = None
    """The stage that quarantined the video."""
    reason: str | None = None
    """Why the video cannot be used; None if it can."""
    segments: tuple[Segment, ...] = ()
    """When: empty where nobody has marked it, or where the whole video is the action."""
    tubes: tuple[Tube, ...] = ()
    """Where: empty where nobody has marked it."""

    @property
    def usable(self) -> bool:
        """Whether no stage has quarantined the video."""
        return self.reason is None


@dataclass(frozen=True)
class Manifest:
    """All videos of a dataset, in the order of their ids."""

    videos: tuple[Video, ...]

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Sorted class names, those of quarantined videos too: a class's number does not move with a broken file."""
        return tuple(sorted({label for labels in {video.labels for video in self.videos} for label in labels}))

    @cached_property
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


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the cyclic garbage collector off, in a block or a function that makes very many objects that live on.

    It would look at all of them again and again and find nothing: a third of the time at a million rows.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check(videos: Iterable[Video], *, splits: Iterable[str]) -> Manifest:
    """Put videos in order and refuse a list that could not be trained on.

    Args:
        videos: in any order.
        splits: the splits that the run uses.

    Raises:
        ValueError: two videos with one id, an id with a path in it, no video, an unknown split or part, a class with
            no training video, a split with no test video, an interval or a box that is empty or reversed.
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


_NOT_UTF8 = re.compile("[\ud800-\udfff]")  # how Python shows bytes that are not UTF-8
_PATH_OR_CONTROL = re.compile(r"[/\\\x00-\x1f]")
_CONTROL = re.compile(r"[\x00-\x1f]")


def _check_video(video: Video) -> None:
    if _NOT_UTF8.search(video.path):
        raise ValueError(f"the file name {video.path!a} is not UTF-8; rename the file")
    if problem := id_problem(video.id):
        raise ValueError(problem)
    if problem := labels_problem(video.labels):
        raise ValueError(f"the video {video.id!r}: {problem}")
    for name, part in video.splits.items():
        if part not in PARTS:
            raise ValueError(f"{name} of the video {video.id!r} is {part!r}; it must be train, val, test or empty")
    if video.segments or video.tubes:
        _check_truth(video)


def id_problem(video_id: str) -> str | None:
    """What is wrong with an id, as a sentence; None if nothing is."""
    if video_id in ("", ".", "..") or _PATH_OR_CONTROL.search(video_id):
        return f"the video id {video_id!r} has a path or a control character in it; use a plain name"
    return None


def labels_problem(labels: Sequence[str]) -> str | None:
    """What is wrong with the labels of one video, as a sentence; None if nothing is."""
    if not labels:
        return "it has no label; give it one or leave it out"
    for label in labels:
        if not label or LABEL_SEPARATOR in label or _CONTROL.search(label):
            return f"the label {label!r} is empty, or has {LABEL_SEPARATOR!r} or a control character in it; rename it"
    if len(set(labels)) < len(labels):
        return f"the labels {LABEL_SEPARATOR.join(labels)} name a class twice; name it once"
    return None


def _check_truth(video: Video) -> None:
    problems = (*map(segment_problem, video.segments), *map(tube_problem, video.tubes))
    if problem := next(filter(None, problems), None):
        raise ValueError(f"in the video {video.id!r} {problem}; correct it")
    of_truth = {segment.label for segment in video.segments} | {tube.label for tube in video.tubes}
    if unknown := of_truth - {*video.labels, None}:
        named, labels = ", ".join(sorted(map(str, unknown))), ", ".join(video.labels)
        raise ValueError(f"the video {video.id!r} has ground truth of {named}, but the labels {labels}; add it to them")


def segment_problem(segment: Segment) -> str | None:
    """What is wrong with an interval, as part of a sentence; None if nothing is."""
    name = f"the interval {segment.start:g} to {segment.end:g} s of {segment.label or 'disputed action'}"
    if not (math.isfinite(segment.start) and math.isfinite(segment.end) and segment.start >= 0):
        return f"{name} does not lie in the video's time"
    if segment.start >= segment.end:
        return f"{name} is empty or reversed"
    return None


def past_the_end(video: Video) -> tuple[Segment, ...]:
    """The intervals that end after the probed video does.

    They are kept as annotated, and told: official files have some (THUMOS14 in five videos), official evaluations
    count them, and a video is not unusable for an interval that nobody can see.
    """
    if not (video.frames and video.fps):
        return ()
    end = video.frames / video.fps + END_SLACK_SECONDS
    return tuple(segment for segment in video.segments if segment.end > end)


def tube_problem(
    tube: Tube, *, frames: float = math.inf, width: float = math.inf, height: float = math.inf
) -> str | None:
    """What is wrong with a tube, as part of a sentence; None if nothing is.

    Args:
        tube: boxes of one actor.
        frames: length of the video.
        width: of the video, pixels.
        height: of the video, pixels.
    """
    first, past = tube.first_frame, tube.first_frame + len(tube.boxes)
    if first < 0 or not tube.boxes:
        return f"a tube of {tube.label} starts at frame {first} and has {len(tube.boxes)} boxes"
    if past > frames + FRAME_SLACK:
        return f"a tube of {tube.label} reaches frame {past - 1}, but the video has {frames} frames, counted from 0"
    for frame, (x0, y0, x1, y1) in enumerate(tube.boxes, first):
        name = f"the box {x0:g}, {y0:g}, {x1:g}, {y1:g} of {tube.label} in frame {frame}"
        if not (-math.inf < x0 < x1 < math.inf and -math.inf < y0 < y1 < math.inf):  # false with a NaN too
            return f"{name} is empty or reversed"
        if min(x0, y0) < -BOX_SLACK_PX or x1 > width + BOX_SLACK_PX or y1 > height + BOX_SLACK_PX:
            return f"{name} lies outside the frame of {width} x {height} pixels"
    return None


def misfit(tubes: Iterable[Tube], *, frames: int, width: int, height: int) -> str | None:
    """Where boxes do not fit a probed video, as part of a sentence; None if they do.

    Args:
        tubes: boxes in the video.
        frames: of the video.
        width: pixels.
        height: pixels.
    """
    problems = (tube_problem(tube, frames=frames, width=width, height=height) for tube in tubes)
    return next(filter(None, problems), None)


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


def segment_rows(segments: Iterable[Segment]) -> list[list[Any]]:
    """Segments as JSON values: label or null, start, end."""
    return [[segment.label, segment.start, segment.end] for segment in segments]


def tube_rows(tubes: Iterable[Tube]) -> list[list[Any]]:
    """Tubes as JSON values: label, first frame, boxes."""
    return [[tube.label, tube.first_frame, tube.boxes] for tube in tubes]


def segments_of(rows: Iterable[Sequence[Any]]) -> tuple[Segment, ...]:
    """What ``segment_rows`` gave."""
    return tuple(Segment(label, start, end) for label, start, end in rows)


def tubes_of(rows: Iterable[Sequence[Any]]) -> tuple[Tube, ...]:
    """What ``tube_rows`` gave."""
    return tuple(
        Tube(label, first, tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in boxes)) for label, first, boxes in rows
    )


_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write tab-separated text with one header line; a split is a column of its own, ground truth is JSON in a cell."""
    splits = manifest.splits
    with atomic_file(path) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
        writer = csv.writer(text, dialect="excel-tab", lineterminator="\n")
        writer.writerow([*COLUMNS[:2], *splits, *COLUMNS[2:]])
        writer.writerows(_row(video, splits) for video in manifest.videos)


def _row(video: Video, splits: Sequence[str]) -> list[Any]:
    part = video.splits.get
    return [
        video.id,
        LABEL_SEPARATOR.join(video.labels),
        *[part(name, "") for name in splits],
        video.frames,  # None is written as nothing
        video.fps,
        video.width,
        video.height,
        video.bytes,
        video.digest,
        video.path,
        video.stage,
        video.reason,
        _compact(segment_rows(video.segments)) if video.segments else "",
        _compact(tube_rows(video.tubes)) if video.tubes else "",
    ]


@collector_paused()
def read_manifest(path: Path) -> Manifest:
    """Read what ``write_manifest`` wrote.

    Raises:
        ValueError: the file is not a manifest.
    """
    limit = csv.field_size_limit(sys.maxsize)  # the boxes of a long video make a long cell
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return Manifest(tuple(_videos(csv.reader(file, dialect="excel-tab"))))
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not a manifest: {error}; delete it and run again") from None
    finally:
        csv.field_size_limit(limit)


def _videos(rows: Iterator[list[str]]) -> Iterator[Video]:
    header = next(rows, [])
    if missing := set(COLUMNS) - set(header):
        raise ValueError(f"it lacks the column {min(missing)!r}")
    first_fact = header.index(FACTS[0])
    names = header[2:first_fact]
    shared: dict[tuple[str, ...], dict[str, str]] = {}  # a million videos have a handful of labels and parts
    labels: dict[str, tuple[str, ...]] = {}
    for row in rows:
        parts = tuple(row[2:first_fact])
        frames, fps, width, height, size, digest, path, stage, reason, segments, tubes = row[first_fact:]
        yield Video(
            id=row[0],
            path=path,
            digest=digest,
            bytes=int(size),
            labels=labels.get(row[1]) or labels.setdefault(row[1], tuple(row[1].split(LABEL_SEPARATOR))),
            splits=shared.get(parts) or shared.setdefault(parts, dict(zip(names, parts, strict=True))),
            frames=int(frames) if frames else None,
            fps=float(fps) if fps else None,
            width=int(width) if width else None,
            height=int(height) if height else None,
            stage=stage or None,
            reason=reason or None,
            segments=segments_of(json.loads(segments)) if segments else (),
            tubes=tubes_of(json.loads(tubes)) if tubes else (),
        )
