"""Temporal action detection: mean average precision as THUMOS14 counts it, suppression, and files of detections.

Sources: the evaluation of the THUMOS14 challenge (Jiang et al., "THUMOS Challenge", 2014) as ``TH14evalDet_Updated.m``
has it, and the matching of PASCAL VOC (Everingham et al., IJCV 2010, section 4.2 and ``VOCevaldet.m``). The two differ:

- ``th14``: ground truths choose. In the order of their file, each takes the free detection that overlaps it most, if
  by more than the threshold; of equal overlaps the higher score.
- ``pascal``: detections choose. From the highest score down, each goes to the ground truth that it overlaps most, if by
  no less than the threshold; whoever comes second to one is wrong, even if another ground truth is free.

With both, a detection that matches nothing is wrong, unless it overlaps a disputed interval at all: then it does not
count. The detections of all videos are put in one list by score; of equal scores the video whose name sorts first goes
first, then the order in which they are given. Average precision is the sum of the precisions at the right detections
over the number of ground truths, without the interpolation of PASCAL VOC.

Shapes: A overlap thresholds, D detections, G ground truths; in one video (or frame) and of one class where not said
otherwise. Times are seconds, intervals half-open.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.manifest import Segment
from pipeline.stores.publish import write_text

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Overlaps at which THUMOS14 is reported."""

Matcher = Literal["th14", "pascal"]
Overlaps = NDArray[np.float64]
Truth = Mapping[str, Sequence[Segment]]
"""By video id, the intervals in the order of their file; those without a label are disputed."""


@dataclass(frozen=True, slots=True)
class Detection:
    """An action found in an interval.

    Raises:
        ValueError: the interval is empty or reversed, or a number is not finite.
    """

    video: str
    """Its id."""
    start: float
    """Seconds; the interval is half-open, [start, end)."""
    end: float
    label: str
    score: float
    """Larger is surer; compared between all videos."""

    def __post_init__(self) -> None:
        if not -math.inf < self.start < self.end < math.inf:  # false with a NaN too
            raise ValueError(
                f"the detection of {self.label} in {self.video} from {self.start:g} to {self.end:g} s "
                "is empty, reversed or not finite; drop or correct it"
            )
        if not math.isfinite(self.score):
            raise ValueError(
                f"the detection of {self.label} in {self.video} has the score {self.score}; it must be finite"
            )


class Group(NamedTuple):
    """What one video, or one frame, adds to the average precision of a class."""

    scores: NDArray[np.float64]
    """(D,)"""
    overlaps: Overlaps
    """(G, D) intersection over union of the ground truths with the detections."""
    disputed: NDArray[np.bool_]
    """(D,) whether the detection does not count if it matches nothing."""


def temporal_iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> Overlaps:
    """Intersection over union of every two intervals.

    Args:
        one: (N, 2) starts and ends.
        other: (M, 2) starts and ends.

    Returns:
        (N, M) in [0, 1]; intervals that only touch have 0.
    """
    starts, ends = np.maximum(one[:, None, 0], other[None, :, 0]), np.minimum(one[:, None, 1], other[None, :, 1])
    span = np.maximum(one[:, None, 1], other[None, :, 1]) - np.minimum(one[:, None, 0], other[None, :, 0])
    return np.maximum(ends - starts, 0) / span  # the span is the union wherever two intervals overlap


def box_iou(one: NDArray[np.float64], other: NDArray[np.float64], *, last_pixel: bool = False) -> Overlaps:
    """Intersection over union of every two boxes.

    Args:
        one: (N, 4).
        other: (M, 4).
        last_pixel: whether x1, y1 is the last pixel rather than the end: all sides are then longer by 1.

    Returns:
        (N, M) in [0, 1].
    """
    more = 1.0 if last_pixel else 0.0
    starts, ends = np.maximum(one[:, None, :2], other[None, :, :2]), np.minimum(one[:, None, 2:], other[None, :, 2:])
    common = np.maximum(ends - starts + more, 0).prod(axis=-1)  # each side at least 0: two negative ones would score
    first, second = ((boxes[:, 2:] - boxes[:, :2] + more).prod(axis=1) for boxes in (one, other))
    return common / (first[:, None] + second[None] - common)


def matched(overlaps: Overlaps, *, threshold: float, matcher: Matcher) -> NDArray[np.bool_]:
    """Which detections are right.

    Args:
        overlaps: (G, D), ground truths in the order of their file, detections from the highest score down.
        threshold: overlap, in (0, 1); exceeded with ``th14``, reached with ``pascal``.
        matcher: ``th14`` or ``pascal``.

    Returns:
        (D,), true for at most G detections.
    """
    right = np.zeros(overlaps.shape[1], dtype=bool)
    if overlaps.size == 0:
        return right
    match matcher:
        case "th14":
            for row in overlaps:
                free = np.where(right, -1.0, row)
                best = free.argmax()  # the first of equals, which has the higher score
                right[best] |= free[best] > threshold
        case "pascal":
            claims = np.flatnonzero(overlaps.max(axis=0) >= threshold)
            _, first = np.unique(overlaps.argmax(axis=0)[claims], return_index=True)
            right[claims[first]] = True
    return right


def average_precision(scores: NDArray[np.float64], right: NDArray[np.bool_], *, truths: int) -> float:
    """Sum of the precisions at the right detections over the number of ground truths; equal scores keep their order.

    Args:
        scores: (D,) of all videos.
        right: (D,) whether the detection is right.
        truths: number of ground truths, at least 1.
    """
    hits = right[np.argsort(-scores, kind="stable")]
    precisions = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precisions[hits].sum() / truths)


def pooled_average_precisions(
    groups: Sequence[Group], *, thresholds: Sequence[float], matcher: Matcher
) -> NDArray[np.float64]:
    """Average precision of one class over all videos or frames.

    Args:
        groups: one a video or frame, in the order in which equal scores go; D may be 0 in each.
        thresholds: (A,) overlaps in (0, 1).
        matcher: ``th14`` or ``pascal``.

    Returns:
        (A,) in [0, 1]; 0 without detections.

    Raises:
        ValueError: there is no ground truth, or a threshold is not in (0, 1).
    """
    if wrong := [threshold for threshold in thresholds if not 0 < threshold < 1]:
        raise ValueError(f"the overlap threshold {wrong[0]:g} is not between 0 and 1; correct it")
    truths = sum(len(group.overlaps) for group in groups)
    if truths == 0:
        raise ValueError("a class without ground truth has no average precision; leave it out")
    groups = [_by_score(group) for group in groups]
    scores = np.concatenate([group.scores for group in groups])
    disputed = np.concatenate([group.disputed for group in groups])
    values = np.zeros(len(thresholds))
    for number, threshold in enumerate(thresholds):
        right = np.concatenate([matched(group.overlaps, threshold=threshold, matcher=matcher) for group in groups])
        counts = right | ~disputed
        values[number] = average_precision(scores[counts], right[counts], truths=truths)
    return values


def _by_score(group: Group) -> Group:
    order = np.argsort(-group.scores, kind="stable")
    return Group(group.scores[order], group.overlaps[:, order], group.disputed[order])


def temporal_average_precisions(
    detections: Iterable[Detection],
    truth: Truth,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    matcher: Matcher = "th14",
) -> dict[str, NDArray[np.float64]]:
    """Average precision of every class that has ground truth, by name.

    Detections of other classes have no average precision and are left out, as in the official evaluation; those in
    videos without ground truth are wrong.

    Args:
        detections: in any order, which equal scores in one video keep.
        truth: ground truth of the videos.
        thresholds: (A,) overlaps in (0, 1).
        matcher: how detections and ground truths find each other, see above.

    Returns:
        (A,) values for each class, in the order of the names; ``mean_over_classes`` takes them.

    Raises:
        ValueError: there is no ground truth at all, or a threshold is not in (0, 1).
    """
    found: dict[str, dict[str, list[Detection]]] = defaultdict(lambda: defaultdict(list))
    for detection in detections:
        found[detection.label][detection.video].append(detection)
    own: dict[str, dict[str, list[Segment]]] = defaultdict(lambda: defaultdict(list))
    disputed: dict[str, list[Segment]] = {}
    for video, segments in truth.items():
        disputed[video] = [segment for segment in segments if segment.label is None]
        for segment in segments:
            if segment.label is not None:
                own[segment.label][video].append(segment)
    if not own:
        raise ValueError("no video has an annotated interval; give the ground truth of the videos")
    values = {}
    for label in sorted(own):
        groups = [
            _group(found[label].get(video, ()), own[label].get(video, ()), disputed.get(video, ()))
            for video in sorted({*own[label], *found[label]})
        ]
        values[label] = pooled_average_precisions(groups, thresholds=thresholds, matcher=matcher)
    return values


def _group(detections: Sequence[Detection], own: Sequence[Segment], disputed: Sequence[Segment]) -> Group:
    found = _intervals(detections)
    return Group(
        scores=np.array([detection.score for detection in detections], dtype=np.float64),
        overlaps=temporal_iou(_intervals(own), found),
        disputed=np.any(temporal_iou(_intervals(disputed), found) > 0, axis=0),
    )


def _intervals(of: Sequence[Detection] | Sequence[Segment]) -> NDArray[np.float64]:
    """(N, 2) starts and ends."""
    return np.array([(one.start, one.end) for one in of], dtype=np.float64).reshape(-1, 2)


def mean_over_classes(values: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """(A,) mean average precision of the average precisions of classes."""
    return np.mean(list(values.values()), axis=0)


def suppress(detections: Sequence[Detection], *, iou: float) -> list[Detection]:
    """Drop what overlaps a detection of the same class in the same video that has a higher score and stays.

    S-CNN (Shou et al., CVPR 2016) drops above the overlap threshold of the evaluation less 0.1, R-C3D (Xu et al., ICCV
    2017) above 0.4.

    Args:
        detections: of equal scores the first goes first.
        iou: overlap up to which both stay, in [0, 1].

    Returns:
        Those that stay, in the order given.

    Raises:
        ValueError: ``iou`` is not in [0, 1].
    """
    if not 0 <= iou <= 1:
        raise ValueError(f"the overlap {iou:g} for suppression is not in [0, 1]; correct it")
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, detection in enumerate(detections):
        groups[detection.video, detection.label].append(number)
    stays = np.zeros(len(detections), dtype=bool)
    for numbers in groups.values():
        numbers.sort(key=lambda number: -detections[number].score)
        intervals = _intervals([detections[number] for number in numbers])
        left = np.arange(len(numbers))
        while left.size:
            best, left = left[0], left[1:]
            stays[numbers[best]] = True
            left = left[temporal_iou(intervals[best : best + 1], intervals[left])[0] <= iou]
    return [detection for detection, stay in zip(detections, stays, strict=True) if stay]


def write_detections(path: Path, detections: Iterable[Detection], *, numbers: Mapping[str, int]) -> None:
    """Write lines ``video t1 t2 class score`` for the official evaluation, atomically; numbers are exact.

    Args:
        path: of the file.
        detections: to write; the order is kept.
        numbers: number of each class, as in ``detclasslist.txt``.

    Raises:
        ValueError: a class has no number, or a video's name starts or ends with white space.
    """
    lines = []
    for one in detections:
        if one.label not in numbers:
            raise ValueError(f"the class {one.label!r} of a detection in {one.video} has no number; add it to the list")
        if one.video != one.video.strip():
            raise ValueError(f"the video id {one.video!r} starts or ends with white space; rename the video")
        lines.append(f"{one.video} {float(one.start)!r} {float(one.end)!r} {numbers[one.label]} {float(one.score)!r}\n")
    write_text(path, "".join(lines))


def read_detections(path: Path, *, numbers: Mapping[str, int]) -> list[Detection]:
    """Read what ``write_detections`` or another program wrote, in the order of the file.

    Args:
        path: of the file.
        numbers: number of each class, as in ``detclasslist.txt``.

    Raises:
        ValueError: the file is missing, or a line is not ``video t1 t2 class score`` with a known class.
    """
    labels = {number: label for label, number in numbers.items()}
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"there is no file of detections {path}; run the detection first") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file of detections; expected lines 'video t1 t2 class score'") from None
    detections = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            video, start, end, label, score = line.rsplit(maxsplit=4)  # a video's name may have spaces in it
            detections.append(Detection(video, float(start), float(end), labels[int(label)], float(score)))
        except KeyError:
            raise ValueError(f"line {number} of {path} has the class {label}, which the class list lacks") from None
        except ValueError as error:
            reason = f"{error}; expected 'video t1 t2 class score'"
            raise ValueError(f"line {number} of {path} is not a detection: {line!r} ({reason})") from None
    return detections
