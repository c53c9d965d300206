"""What the report counts: videos by class and part, quarantine, confusion, timings, and which videos to show.

Pure functions from manifest, indexes, results and benchmark files to small tables; nothing here knows HTML.

Shapes: ``C`` classes, ``V`` videos, ``T`` scored snippets.
"""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.dataset.manifest import Manifest, Video
from pipeline.learning.localised import is_uniform
from pipeline.learning.scores import Scores


def read_history(path: Path) -> dict[str, list[float]]:
    """The columns of a training history; an empty cell is NaN.

    Raises:
        ValueError: the file is missing or a cell is not a number.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {name: [float(row[name] or math.nan) for row in rows] for name in (rows[0] if rows else ())}
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a training history ({error}); delete it and run again") from None


class Lost(NamedTuple):
    """A video that some stage could not use."""

    id: str
    labels: tuple[str, ...]
    stage: str
    reason: str


def lost_videos(manifest: Manifest, indexes: Iterable[Mapping[str, Any]]) -> list[Lost]:
    """The quarantined videos, in the order of their ids.

    The manifest knows those of probe, an index those of its stage.
    """
    labels = {video.id: video.labels for video in manifest.videos}
    found = {(video.id, video.stage or ""): video.reason or "" for video in manifest.quarantined}
    for index in indexes:
        found |= {(name, entry["stage"] or ""): entry["reason"] for name, entry in index["quarantined"].items()}
    return [Lost(name, labels.get(name, ()), stage, reason) for (name, stage), reason in sorted(found.items())]


class Count(NamedTuple):
    """Videos that can be used, of those listed."""

    usable: int
    listed: int


class ClassRow(NamedTuple):
    """One class, or all of them."""

    name: str
    videos: Count
    parts: tuple[Count, ...]
    """In the order of the parts asked for."""
    segments: int
    """Marked intervals in the usable videos; of the class, or of any."""
    tubes: int


def class_table(manifest: Manifest, lost: set[str], parts: Sequence[tuple[str, str]]) -> list[ClassRow]:
    """Videos by class; the last row counts every video once.

    Args:
        manifest: with its quarantined videos.
        lost: ids that cannot be used.
        parts: pairs of a split and one of its parts; an empty part is what the split does not use.
    """
    usable = [video for video in manifest.videos if video.id not in lost]
    segments = Counter(segment.label for video in usable for segment in video.segments if segment.label is not None)
    tubes = Counter(tube.label for video in usable for tube in video.tubes)

    def row(name: str, videos: Sequence[Video], truth: tuple[int, int]) -> ClassRow:
        chosen = [[video for video in videos if video.splits.get(split, "") == part] for split, part in parts]
        return ClassRow(name, count(videos), tuple(map(count, chosen)), *truth)

    def count(videos: Sequence[Video]) -> Count:
        return Count(sum(video.id not in lost for video in videos), len(videos))

    by_class: dict[str, list[Video]] = {name: [] for name in manifest.classes}
    for video in manifest.videos:
        for label in video.labels:
            by_class[label].append(video)
    rows = [row(name, videos, (segments[name], tubes[name])) for name, videos in by_class.items()]
    return [*rows, row("all classes", manifest.videos, (segments.total(), tubes.total()))]


class Spread(NamedTuple):
    """Smallest, middle and largest of some numbers, and their sum."""

    low: float
    median: float
    high: float
    total: float


def spread(values: Sequence[float]) -> Spread | None:
    """Summarise numbers; None if there are none."""
    if not values:
        return None
    return Spread(min(values), float(np.median(values)), max(values), float(sum(values)))


def pooled_confusion(results: Mapping[str, Any], experiment: str) -> npt.NDArray[np.int64]:
    """The confusion matrices of an experiment's runs, added up: ``(C, C)``, rows true, columns predicted."""
    size = len(results["classes"])
    matrices = [run["confusion"] for run in results["runs"] if run["experiment"] == experiment]
    return np.asarray(matrices, np.int64).reshape(-1, size, size).sum(axis=0)


def row_shares(matrix: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Each row divided by its sum; a class without test videos stays zero."""
    return matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


class Confused(NamedTuple):
    """How often one class was taken for another."""

    true: str
    predicted: str
    videos: int
    share: float
    """Of the true class's videos, 0 to 1."""


def most_confused(matrix: npt.NDArray[np.int64], classes: Sequence[str], *, limit: int) -> list[Confused]:
    """The pairs with the most mistakes, most frequent first, at most ``limit``."""
    shares = row_shares(matrix)
    pairs = [(i, j) for i, j in zip(*np.nonzero(matrix), strict=True) if i != j]
    pairs.sort(key=lambda pair: (-matrix[pair], -shares[pair], pair))
    return [Confused(classes[i], classes[j], int(matrix[i, j]), float(shares[i, j])) for i, j in pairs[:limit]]


class RuleTiming(NamedTuple):
    """What the jobs of one rule cost, by Snakemake's benchmark files."""

    rule: str
    jobs: int
    seconds: float
    """Wall time of all jobs, added up."""
    slowest: str
    slowest_seconds: float
    cpu_seconds: float
    peak_mib: float
    """Largest resident memory of a job. NaN where Snakemake could not measure, as is ``cpu_seconds``."""


RECIPE = re.compile(r"(?<![0-9a-f])[0-9a-f]{12}(?![0-9a-f])")


def read_benchmarks(folder: Path, *, recipes: Set[str]) -> list[RuleTiming]:
    """Timings by rule, longest first; a missing folder is an empty list.

    Args:
        folder: with one folder a rule, holding Snakemake's benchmark files of its jobs.
        recipes: those of this run; a file named after another one is left from an earlier configuration, not counted.
    """
    timings = []
    for rule in sorted(path for path in folder.glob("*") if path.is_dir()):
        jobs = {}
        for path in sorted(rule.rglob("*.tsv")):
            name = str(path.relative_to(rule).with_suffix(""))
            named = set(RECIPE.findall(name))
            job = _job(path)
            if (not named or named & recipes) and not math.isnan(job["s"]):
                jobs[RECIPE.sub("", name).replace("--", "-").strip("-")] = job
        if jobs:
            timings.append(_rule_timing(rule.name, jobs))
    return sorted(timings, key=lambda timing: (-timing.seconds, timing.rule))


def _job(path: Path) -> dict[str, float]:
    """The last measured row of a benchmark file."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, dialect="excel-tab")) or [{}]
    return {name: _number(rows[-1].get(name)) for name in ("s", "max_rss", "cpu_time")}


def _number(text: str | None) -> float:
    """Snakemake writes - or NA where a job was too short to be measured."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _rule_timing(rule: str, jobs: dict[str, dict[str, float]]) -> RuleTiming:
    def known(name: str) -> list[float]:
        return [job[name] for job in jobs.values() if not math.isnan(job[name])]

    slowest = max(jobs, key=lambda name: jobs[name]["s"])
    return RuleTiming(
        rule=rule,
        jobs=len(jobs),
        seconds=sum(known("s")),
        slowest=slowest,
        slowest_seconds=jobs[slowest]["s"],
        cpu_seconds=sum(known("cpu_time")) if known("cpu_time") else math.nan,
        peak_mib=max(known("max_rss"), default=math.nan),
    )


def sample_videos(manifest: Manifest, usable: set[str], split: str, *, limit: int) -> list[Video]:
    """The first usable test video of each class; if there are too many classes, of classes evenly apart."""
    first: dict[str, Video] = {}
    for video in manifest.videos:
        if video.id in usable and video.splits.get(split) == "test":
            first.setdefault(video.labels[0], video)
    classes = sorted(first)
    if len(classes) > limit:
        classes = [classes[i * len(classes) // limit] for i in range(limit)]
    return [first[name] for name in classes]


def attention_examples(
    streams: Mapping[str, Scores], labels: Mapping[str, tuple[str, ...]], *, limit: int
) -> list[tuple[str, bool]]:
    """Test videos whose attention is worth a look: ids, and whether every stream is right.

    Half of them are videos that every stream gets right, with the sharpest attention (largest weight times ``T``); the
    others are errors, those of most streams first. Another class is taken before a second video of the same.

    Args:
        streams: scores by stream; only videos that all of them scored are looked at.
        labels: true classes by id.
        limit: number of videos.
    """
    rows = {name: {str(id_): row for row, id_ in enumerate(scores.ids)} for name, scores in streams.items()}
    common = set.intersection(*map(set, rows.values())) & set(labels) if rows else set()
    right: list[tuple[tuple[float, ...], str]] = []
    wrong: list[tuple[tuple[float, ...], str]] = []
    for id_ in sorted(common):
        correct = sum(predicted(s, rows[name][id_]) in labels[id_] for name, s in streams.items())
        sharpness = max(_sharpness(s, rows[name][id_]) for name, s in streams.items())
        if correct == len(streams):
            right.append(((-sharpness,), id_))
        else:
            wrong.append(((correct, -sharpness), id_))
    chosen_wrong = _of_different_classes(wrong, labels, max(limit // 2, limit - len(right)))
    chosen_right = _of_different_classes(right, labels, limit - len(chosen_wrong))
    return [(id_, True) for id_ in chosen_right] + [(id_, False) for id_ in chosen_wrong]


def _sharpness(scores: Scores, row: int) -> float:
    """The largest weight of a video over the uniform one."""
    return float(scores.weights[row].max() * np.count_nonzero(scores.positions[row] >= 0))


def attentive(streams: Mapping[str, Scores], *, limit: int) -> dict[str, Scores]:
    """The streams whose attention is most worth a picture, at most ``limit``, in the order given.

    Half of them have spatial maps and half weights that differ between snippets, as far as there are such.
    """
    where = [name for name, scores in streams.items() if scores.maps is not None]
    when = [name for name, scores in streams.items() if name not in where and not _flat(scores)]
    others = [name for name in streams if name not in where + when]
    half = max(limit // 2, limit - len(when))
    chosen = [*where[:half], *when, *where[half:], *others][:limit]
    return {name: scores for name, scores in streams.items() if name in chosen}


def _flat(scores: Scores) -> bool:
    """Whether every snippet of a video has the same weight."""
    return all(is_uniform(row[real]) for row, real in zip(scores.weights, scores.positions >= 0, strict=True))


def predicted(scores: Scores, row: int) -> str:
    """The class with the highest score of one video."""
    return str(scores.classes[int(scores.logits[row].argmax())])


def _of_different_classes(
    ranked: list[tuple[tuple[float, ...], str]], labels: Mapping[str, tuple[str, ...]], limit: int
) -> list[str]:
    """The best of each class before the second best of any."""
    seen: dict[str, int] = {}
    keyed = []
    for rank, id_ in sorted(ranked):
        label = labels[id_][0]
        seen[label] = seen.get(label, 0) + 1
        keyed.append((seen[label], rank, id_))
    return [id_ for _, _, id_ in sorted(keyed)[:limit]]
