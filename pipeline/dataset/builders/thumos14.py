"""THUMOS14, temporal detection (Jiang et al., "THUMOS Challenge", 2014): when 20 actions happen in long videos.

A line of ``annotation_val/<Class>_val.txt`` or ``annotation_test/<Class>_test.txt`` is a video and an interval in
seconds, ``video_test_0000324  49.2 53.5``. ``Ambiguous_*.txt`` has the intervals that nobody could decide on, which
become segments without a label; ``detclasslist.txt`` has the classes. The challenge has 3,007 intervals in 200 videos
to validate on, 27 of them of several classes (all CliffDiving is Diving too), and 3,358 in 212 to test.

Intervals that overlap, or that are listed out of order, stay as they are: the official evaluation goes by that order.
No official interval for validation is empty or reversed, but some lie past the end of their video (those of
video_validation_0000364 and 0000856, video_test_0000270, 0000814 and 0001081, by all that is known). The files do not
show it; probing does, and the report names them. A test video that is only ambiguous (video_test_0001292) has no
class and counts as extra.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.dataset.builders.found import VIDEO_SUFFIXES, Found, Listing, malformed, match, read_lines, scan
from pipeline.dataset.builders.ucf101 import class_numbers
from pipeline.dataset.manifest import Segment

CLASS_LIST = "detclasslist.txt"
FOLDERS = {"val": "annotation_val", "test": "annotation_test"}
NAMES = {"val": re.compile(r"video_validation_\d{7}"), "test": re.compile(r"video_test_\d{7}")}
DISPUTED = "Ambiguous"
TRIMMED_LISTS = ("trainlist01.txt", "testlist01.txt")


def thumos14(videos: Path, annotations: Path, *, trimmed: Path | None, single_label: bool) -> Listing:
    """Videos with classes, split1 and intervals.

    Args:
        videos: folder of the validation and test videos, in folders of any name below it.
        annotations: folder of ``annotation_val`` and ``annotation_test``; if there are trimmed clips, of UCF-101's
            ``trainlist01.txt`` and ``testlist01.txt`` too.
        trimmed: UCF-101's videos. Given, split1 trains on those of the 20 classes (all 2,765, whatever their part in
            UCF-101) and the validation videos are its part ``val``; None: it trains on the validation videos.
        single_label: leave out videos with intervals of several classes.

    Raises:
        ValueError: a file is absent or has a line that makes no sense, or a video is there twice.
    """
    classes = _classes(annotations)
    parts = {"val": "train" if trimmed is None else "val", "test": "test"}
    present = scan(videos)
    by_name = _by_name(present)
    expected = []
    for part, role in parts.items():
        for name, segments in _intervals(annotations, part, classes).items():
            path = by_name.get(name, videos / f"{name}.mp4")
            labels = tuple(label for label in classes if any(segment.label == label for segment in segments))
            expected.append(Found(id=name, path=path, labels=labels, splits={"split1": role}, segments=segments))
    listing = match([video for video in expected if video.labels], present, root=videos)
    if single_label:
        listing = _of_one_class(listing, {f"{video.id}.mp4" for video in expected if len(video.labels) > 1})
    if trimmed is None:
        return listing
    clips = _trimmed(trimmed, annotations, classes)
    return Listing(
        videos=clips.videos + listing.videos,
        missing=clips.missing + listing.missing,
        extra=clips.extra + listing.extra,
    )


def _of_one_class(listing: Listing, several: set[str]) -> Listing:
    videos = tuple(video for video in listing.videos if len(video.labels) == 1)
    return listing._replace(videos=videos, missing=tuple(name for name in listing.missing if name not in several))


def _classes(annotations: Path) -> tuple[str, ...]:
    places = [annotations / folder / CLASS_LIST for folder in ("", *FOLDERS.values())]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ValueError(f"{annotations} has no {CLASS_LIST}, nor in {FOLDERS['val']}; check the key 'annotations'")
    return tuple(class_numbers(path))


def _by_name(present: Sequence[Path]) -> dict[str, Path]:
    names: dict[str, Path] = {}
    for path in present:
        if path.suffix.lower() in ("", *VIDEO_SUFFIXES) and names.setdefault(path.stem, path) != path:
            raise ValueError(f"{names[path.stem]} and {path} could both be {path.stem}; keep one of them")
    return names


def _intervals(annotations: Path, part: str, classes: tuple[str, ...]) -> dict[str, tuple[Segment, ...]]:
    """Intervals by video, in the order of the class list and then of the file; the disputed ones last."""
    folder = annotations / FOLDERS[part]
    known = (*classes, DISPUTED)
    for path in sorted(folder.glob(f"*_{part}.txt")):
        if path.name.removesuffix(f"_{part}.txt") not in known:
            raise ValueError(f"{path} is of a class that {CLASS_LIST} does not have; remove it or add the class")
    segments: dict[str, list[Segment]] = defaultdict(list)
    for label in known:
        for name, start, end in _lines(folder / f"{label}_{part}.txt", NAMES[part]):
            segments[name].append(Segment(None if label == DISPUTED else label, start, end))
    return {name: tuple(segments[name]) for name in sorted(segments)}


def _lines(path: Path, pattern: re.Pattern[str]) -> Iterator[tuple[str, float, float]]:
    for number, line in read_lines(path):
        fields = line.split()
        if len(fields) != 3 or not pattern.fullmatch(fields[0]):
            raise malformed(path, number, line, f"expected {pattern.pattern}, start and end; correct the line")
        try:
            start, end = float(fields[1]), float(fields[2])
        except ValueError:
            start = end = math.nan
        if not 0 <= start < end < math.inf:
            raise malformed(path, number, line, "expected seconds from 0, the start before the end; correct the line")
        yield fields[0], start, end


def _trimmed(root: Path, annotations: Path, classes: tuple[str, ...]) -> Listing:
    """All clips of the classes in UCF-101, train and test alike."""
    expected = [
        Found(id=Path(name).stem, path=root / name, labels=(label,), splits={"split1": "train"})
        for list_ in TRIMMED_LISTS
        for label, name in _clips(annotations / list_)
        if label in classes
    ]
    for label in classes:
        if not any(video.labels == (label,) for video in expected):
            raise ValueError(f"{' and '.join(TRIMMED_LISTS)} in {annotations} have no clip of {label}; use UCF-101's")
    present = [path for path in scan(root) if path.relative_to(root).parts[0] in classes]
    return match(expected, present, root=root)


def _clips(path: Path) -> Iterator[tuple[str, str]]:
    """Class and name of each clip of a list of UCF-101; the class number behind it is not needed."""
    for number, line in read_lines(path):
        clip = re.fullmatch(r"(([^/\s]+)/[^/\s]+)(\s+\d+)?", line)
        if clip is None:
            raise malformed(path, number, line, "expected Class/video.avi; restore the official file")
        yield clip[2], clip[1]
