"""The dataset card: what the videos are, how they are shared out, what people have marked in them, what is not used.

Pure functions from the manifest, the stores' indexes and the plan's notes to what the template shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from pipeline.dataset.manifest import PARTS, Manifest, Video, past_the_end
from pipeline.report.charts import histogram
from pipeline.report.summaries import ClassRow, class_table, lost_videos, spread

MUCH_CLIPPED = 0.01
"""A video of whose flow vectors a larger part is beyond the bound is listed."""
FORMATS = 8
"""Formats listed one by one; the others are counted together."""
NAMES = 200
"""Names listed of missing or extra videos; the others are counted."""


def dataset_card(
    manifest: Manifest,
    *,
    indexes: Mapping[str, Mapping[str, Any]],
    splits: Sequence[str],
    notes: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    """The values of the page's section on the dataset.

    Args:
        manifest: with its quarantined videos.
        indexes: of the stores, by modality.
        splits: those of the run; the dataset may have more.
        notes: names of the videos that are ``missing`` and ``extra``, sentences on what is ``unofficial``.
    """
    lost = lost_videos(manifest, indexes.values())
    lost_ids = {video.id for video in lost}
    usable = [video for video in manifest.videos if video.id not in lost_ids]
    seconds = [video.frames / video.fps for video in usable if video.frames and video.fps]
    parts = _parts(manifest, splits)
    table = class_table(manifest, lost_ids, parts)
    return {
        "classes": len(manifest.classes),
        "lost": lost,
        "lost_ids": len(lost_ids),
        "lost_by_stage": sorted(Counter(video.stage for video in lost).items()),
        "parts": parts,
        "part_names": [name for name in PARTS if name in {part for _, part in parts}],
        "splits": _split_rows(table[-1], parts),
        "table": table,
        "extremes": _extremes(table[:-1]),
        "frames": spread([video.frames for video in usable if video.frames]),
        "seconds": spread(seconds),
        "lengths": length_chart(seconds),
        "formats": formats(usable),
        "segments": _segments(usable),
        "tubes": _tubes(usable),
        "missing": _names(notes.get("missing", ())),
        "extra": _names(notes.get("extra", ())),
        "unofficial": list(notes.get("unofficial", ())),
        "stores": [_store(name, index) for name, index in sorted(indexes.items(), reverse=True)],
    }


def _parts(manifest: Manifest, splits: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of a split and a part that some video is in; an empty part is what the split leaves unused."""
    used = {(split, video.splits.get(split, "")) for video in manifest.videos for split in splits}
    return [(split, part) for split in splits for part in PARTS if (split, part) in used]


def _split_rows(total: ClassRow, parts: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """One row a split: its counts by part, over all classes."""
    counts = dict(zip(parts, total.parts, strict=True))
    names = dict.fromkeys(split for split, _ in parts)
    return [
        {"name": name, "parts": {part: counts[name, part] for split, part in parts if split == name}} for name in names
    ]


class Extremes(NamedTuple):
    """The classes of the fewest and the most usable videos."""

    smallest: ClassRow
    largest: ClassRow


def _extremes(rows: Sequence[ClassRow]) -> Extremes | None:
    if not rows:
        return None
    return Extremes(min(rows, key=lambda row: row.videos.usable), max(rows, key=lambda row: row.videos.usable))


class Lengths(NamedTuple):
    """The histogram of durations, and how many videos are longer than it reaches."""

    chart: Markup
    beyond: int
    end_seconds: float


def length_chart(seconds: Sequence[float]) -> Lengths | None:
    """A histogram of durations; a few that are much longer than the others do not squeeze it.

    Where the longest is more than twice as long as 99% of the videos, the axis ends there. None if all are alike, or
    none is known.
    """
    if len(set(seconds)) < 2:
        return None
    ordered = sorted(seconds)
    high = ordered[(99 * (len(ordered) - 1)) // 100]
    end = high if ordered[-1] > 2 * high else ordered[-1]
    shown = [value for value in ordered if value <= end]
    chart = histogram(shown, title="videos by duration in seconds", across="seconds")
    return Lengths(chart, len(ordered) - len(shown), end)


class Format(NamedTuple):
    """Size and rate that some videos share; None for what is left when the most frequent are listed."""

    size_px: tuple[int, int] | None
    fps: float | None
    videos: int
    share: float


def formats(videos: Iterable[Video]) -> list[Format]:
    """Videos by size and rate, most frequent first; beyond ``FORMATS`` of them, the others in one row."""
    counts = Counter(
        ((video.width, video.height), round(video.fps, 2))
        for video in videos
        if video.width and video.height and video.fps
    )
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [Format(size, fps, count, count / total) for (size, fps), count in ranked[:FORMATS]]
    others = sum(count for _, count in ranked[FORMATS:])
    return [*rows, Format(None, None, others, others / total)] if others else rows


def _segments(videos: Iterable[Video]) -> dict[str, Any] | None:
    """Intervals that people have marked; None if there are none."""
    marked = [video for video in videos if video.segments]
    sure = [segment for video in marked for segment in video.segments if segment.label is not None]
    if not marked:
        return None
    return {
        "number": len(sure),
        "disputed": sum(len(video.segments) for video in marked) - len(sure),
        "videos": len(marked),
        "seconds": spread([segment.end - segment.start for segment in sure]),
        "past": _names([video.id for video in marked if past_the_end(video)]),
    }


def _tubes(videos: Iterable[Video]) -> dict[str, Any] | None:
    """Boxes that people have drawn; None if there are none."""
    marked = [video for video in videos if video.tubes]
    if not marked:
        return None
    return {
        "number": sum(len(video.tubes) for video in marked),
        "videos": len(marked),
        "several": sum(len(video.tubes) > 1 for video in marked),
        "boxes": spread([len(tube.boxes) for video in marked for tube in video.tubes]),
    }


class Names(NamedTuple):
    """How many there are, and the first of them."""

    number: int
    first: tuple[str, ...]


def _names(names: Sequence[str]) -> Names:
    return Names(len(names), tuple(names[:NAMES]))


def _store(name: str, index: Mapping[str, Any]) -> dict[str, Any]:
    videos = index["videos"]
    clipped = {video: facts["clipped"] for video, facts in videos.items() if "clipped" in facts}
    much = sorted(((share, video) for video, share in clipped.items() if share > MUCH_CLIPPED), reverse=True)
    return {
        "name": name,
        "videos": len(videos),
        "frames": sum(facts["frames"] for facts in videos.values()),
        "sizes": _kinds([f"{facts['width']} × {facts['height']}" for facts in videos.values()], limit=3),
        "clipped": spread(list(clipped.values())),
        "much_clipped": [(video, share) for share, video in much],
        "bound": index["parameters"].get("bound"),
        "camera": _camera([facts for facts in videos.values() if "camera" in facts]),
    }


def _kinds(names: Sequence[str], *, limit: int) -> str:
    """How often each name occurs, most frequent first; beyond ``limit`` names, how many others there are."""
    counts = sorted(Counter(names).items(), key=lambda item: (-item[1], item[0]))
    told = [f"{name} ({count:,})" for name, count in counts[:limit]]
    return ", ".join([*told, f"and {len(counts) - limit:,} others"] if len(counts) > limit else told)


def _camera(videos: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The camera motion that was taken out of a warped flow store; None for another one."""
    if not videos:
        return None
    pairs = sum(facts["frames"] for facts in videos)
    return {
        "motion_px": spread([facts["camera"]["motion_px"] for facts in videos]),
        "residual_px": spread([facts["camera"]["residual_px"] for facts in videos]),
        "moved": sum(facts["camera"]["moved"] * facts["frames"] for facts in videos) / pairs,
    }
