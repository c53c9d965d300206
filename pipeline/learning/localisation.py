"""Where and when a model looked, against the truth: weakly supervised localisation in space and time.

A model that was told classes only has a spatial map for a frame and a weight for a snippet; boxes and intervals come
from thresholds. Source: Meng et al., "Interpretable Spatio-temporal Attention for Video Action Recognition" (ICCV
Workshops 2019), sections 4.2.1 and 4.2.2, and the code released with it, which does not do the same:

==================  ====================================  ========================================================
what                as the paper says, the default here   as the released code does
==================  ====================================  ========================================================
map                 as it is, above 0.5                   stretched to [0, 1], above 200/255
box                 the tightest around what is above     around the contour whose own box is largest
overlap of boxes    half-open pixels                      a pixel more a side, though the boxes are half-open too
truth in a frame    the box of any actor                  the box of the first tube
weight              "normalized" (by the maximum, here)   of the softmax, above 0.02, 0.023 or 0.025
overlap in time     over the union                        over what is annotated, which is a recall
==================  ====================================  ========================================================

The arguments ``box``, ``mask_norm``, ``time_norm``, ``overlap`` and ``official`` choose. Three faults are not offered:
the code multiplies the sides of an intersection even if both are negative, so that boxes which lie apart in both
directions score (here no side is below 0); where nothing is above the threshold it puts a box of one pixel into the
corner (here there is no box, which overlaps nothing); and it compares maps that went through 8 bits and JPEG.

What the paper calls mAP of boxes is the share of frames whose box is right, of whatever class: ``frame_accuracy``.
``frame_average_precisions`` ranks by score and class. In time, ``window_accuracy`` is the paper's, of windows cut from
the ground truth, and not comparable with the mean average precision of ``temporal_detections`` in whole videos.

Shapes: h, w of a map; T snippets a video; V windows; C classes; A overlap thresholds. Boxes are x0, y0, x1, y1 in
pixels of the video, times are seconds, both half-open.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.manifest import Box, Tube
from pipeline.learning.detection import Detection, Group, box_iou, pooled_average_precisions

BOX_THRESHOLDS = (0.05, 0.1, 0.2, 0.3)
"""Overlaps at which the paper reports boxes (Table 3)."""
WINDOW_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Overlaps at which the paper reports windows (Table 4)."""
RELEASED_MASK_THRESHOLD = 200 / 255
RELEASED_WEIGHT_THRESHOLD = 0.023
"""1.15 times the mean of the softmax over the 50 frames of a window."""

BoxOf = Literal["tight", "largest_contour"]
MaskNorm = Literal["none", "minmax"]
TimeNorm = Literal["max", "minmax", "raw"]
Overlap = Literal["iou", "recall"]
Floats = NDArray[np.floating[Any]]
Boxes = Mapping[str, Mapping[int, Box | None]]
"""By video id and number of the frame, counted from 0: the box of a model's map, None if nothing is above."""
Tubes = Mapping[str, Sequence[Tube]]
"""By video id: where the actors are."""


def box_of_map(
    map_: Floats, region: Box, *, threshold: float = 0.5, box: BoxOf = "tight", mask_norm: MaskNorm = "none"
) -> Box | None:
    """Where a map is above a threshold, once it is resized bilinearly to the pixels that it covers.

    Args:
        map_: (h, w), in [0, 1] unless it is stretched.
        region: what the map covers, pixels: 0, 0, width, height, unless the model saw only a part of the frame.
        threshold: exceeded by what the box is drawn around.
        box: ``tight`` around all of that, or around the 8-connected part of it whose own box is the largest.
        mask_norm: ``minmax`` stretches the map to [0, 1] before it is resized; a constant one becomes 0.

    Returns:
        The box, or None if nothing is above the threshold.

    Raises:
        ValueError: the map is not a finite (h, w), or the region is empty.
    """
    x0, y0, x1, y1 = region
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"the region {x0:g}, {y0:g}, {x1:g}, {y1:g} that a map covers is empty; correct it")
    if map_.ndim != 2 or not map_.size or not np.isfinite(map_).all():
        raise ValueError(f"a map of shape {map_.shape} is not a finite (height, width); check the model")
    values: Floats = map_.astype(np.float32)
    if mask_norm == "minmax":
        values = _ratio(values - values.min(), values.max() - values.min())
    width, height = max(1, round(x1 - x0)), max(1, round(y1 - y0))
    above = cv2.resize(values, (width, height), interpolation=cv2.INTER_LINEAR) > threshold
    if not above.any():
        return None
    left, top, right, bottom = _tight(above) if box == "tight" else _largest_contour(above)
    across, down = (x1 - x0) / width, (y1 - y0) / height  # 1, unless the region is not of whole pixels
    return x0 + left * across, y0 + top * down, x0 + right * across, y0 + bottom * down


def _tight(above: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(above.any(axis=0)), np.flatnonzero(above.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _largest_contour(above: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    contours, _ = cv2.findContours(above.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    x, y, width, height = max(map(cv2.boundingRect, contours), key=lambda found: found[2] * found[3])
    return x, y, x + width, y + height


def _ratio(values: Floats, scale: Any) -> NDArray[np.float64]:
    """``values / scale``, and 0 where the scale is not positive: where nothing stands out."""
    positive = np.broadcast_to(np.asarray(scale) > 0, values.shape)
    return np.divide(values, scale, out=np.zeros(values.shape), where=positive)


def _at(tubes: Iterable[Tube], frame: int) -> list[Box]:
    """The boxes of the actors that are annotated in a frame."""
    return [tube.boxes[frame - tube.first_frame] for tube in tubes if 0 <= frame - tube.first_frame < len(tube.boxes)]


def _array(boxes: Sequence[Box]) -> NDArray[np.float64]:
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def frame_accuracy(
    found: Boxes, truth: Tubes, *, thresholds: Sequence[float] = BOX_THRESHOLDS, official: bool = False
) -> NDArray[np.float64]:
    """Share of the sampled annotated frames whose box overlaps that of an actor by no less than each threshold.

    Args:
        found: box of every sampled frame; a frame without one is wrong.
        truth: frames in which no actor is annotated do not count.
        thresholds: (A,) overlaps.
        official: as the released code does: only the first tube of a video counts, and every side is longer by a pixel.

    Returns:
        (A,) in [0, 1].

    Raises:
        ValueError: no sampled frame is annotated.
    """
    overlaps = []
    for video, frames in found.items():
        tubes = truth.get(video, ())[: 1 if official else None]
        for frame, box in frames.items():
            if actors := _at(tubes, frame):
                iou = box_iou(_array([] if box is None else [box]), _array(actors), last_pixel=official)
                overlaps.append(iou.max(initial=0.0))
    if not overlaps:
        raise ValueError("no sampled frame has an annotated box; sample other frames or videos")
    return np.array([(np.array(overlaps) >= threshold).mean() for threshold in thresholds])


@dataclass(frozen=True, slots=True)
class BoxDetection:
    """An actor found in one frame."""

    video: str
    """Its id."""
    frame: int
    """Counted from 0."""
    label: str
    box: Box
    score: float
    """Larger is surer; compared between all videos."""


def box_detections(found: Boxes, probabilities: Mapping[str, Floats], classes: Sequence[str]) -> list[BoxDetection]:
    """Each box as a detection of each class, as sure as the class is in the video.

    Args:
        found: boxes by video and frame.
        probabilities: (C,) of each of these videos.
        classes: (C,) names.
    """
    return [
        BoxDetection(video, frame, label, box, float(probability))
        for video, frames in found.items()
        for frame, box in frames.items()
        if box is not None
        for label, probability in zip(classes, probabilities[video], strict=True)
    ]


def frame_average_precisions(
    detections: Iterable[BoxDetection],
    truth: Tubes,
    *,
    frames: Mapping[str, Collection[int]],
    thresholds: Sequence[float] = BOX_THRESHOLDS,
) -> dict[str, NDArray[np.float64]]:
    """Frame-AP of every class that is annotated in the sampled frames, with the matching of PASCAL VOC.

    What is found in a frame where the class is not annotated is wrong, be it annotated or not.

    Args:
        detections: in the sampled frames, of whatever class.
        truth: where the actors are.
        frames: sampled frames of each video; what is annotated elsewhere need not be found.
        thresholds: (A,) overlaps in (0, 1).

    Returns:
        (A,) values for each class, in the order of the names; ``detection.mean_over_classes`` takes them.

    Raises:
        ValueError: a detection is in no sampled frame, no sampled frame is annotated, or a threshold is not in (0, 1).
    """
    sampled = {video: frozenset(numbers) for video, numbers in frames.items()}
    actors: dict[str, dict[tuple[str, int], list[Box]]] = defaultdict(lambda: defaultdict(list))
    for video, numbers in sampled.items():
        for tube in truth.get(video, ()):
            for frame in numbers:
                if 0 <= frame - tube.first_frame < len(tube.boxes):
                    actors[tube.label][video, frame].append(tube.boxes[frame - tube.first_frame])
    if not actors:
        raise ValueError("no sampled frame has an annotated box; sample other frames or videos")
    found: dict[str, dict[tuple[str, int], list[BoxDetection]]] = defaultdict(lambda: defaultdict(list))
    for one in detections:
        if one.frame not in sampled.get(one.video, ()):
            raise ValueError(f"a detection is in frame {one.frame} of {one.video}, which is not sampled; leave it out")
        found[one.label][one.video, one.frame].append(one)
    values = {}
    for label in sorted(actors):
        groups = list(_groups(found[label], actors[label]))
        values[label] = pooled_average_precisions(groups, thresholds=thresholds, matcher="pascal")
    return values


def _groups(
    found: Mapping[tuple[str, int], Sequence[BoxDetection]], actors: Mapping[tuple[str, int], Sequence[Box]]
) -> Iterator[Group]:
    """What each frame adds, in order; frames in a row without an actor are one group: no detection in them is right."""
    for annotated, places in groupby(sorted({*actors, *found}), key=lambda place: place in actors):
        if annotated:
            yield from (_group(found.get(place, ()), actors[place]) for place in places)
        else:
            yield _group([one for place in places for one in found[place]], ())


def _group(found: Sequence[BoxDetection], actors: Sequence[Box]) -> Group:
    return Group(
        scores=np.array([one.score for one in found], dtype=np.float64),
        overlaps=box_iou(_array(actors), _array([one.box for one in found])),
        disputed=np.zeros(len(found), dtype=bool),
    )


def normalised_weights(weights: Floats, time_norm: TimeNorm = "max") -> NDArray[np.float64]:
    """Weights of the snippets of a video (or of each of several) on a scale that a threshold makes sense on.

    A softmax over 50 snippets hardly reaches 0.5 anywhere, so it is divided by its maximum if nothing else is asked.

    Args:
        weights: (..., T).
        time_norm: ``max`` divides by the maximum, ``minmax`` stretches to [0, 1], ``raw`` leaves them as they are; 0
            where there is no positive maximum, or no contrast.

    Raises:
        ValueError: a weight is not finite.
    """
    if not np.isfinite(weights).all():
        raise ValueError("temporal weights are not finite: the training diverged; lower the learning rate")
    values = weights.astype(np.float64)
    highest = values.max(axis=-1, keepdims=True)
    match time_norm:
        case "raw":
            return values
        case "max":
            return _ratio(values, highest)
        case "minmax":
            lowest = values.min(axis=-1, keepdims=True)
            return _ratio(values - lowest, highest - lowest)


def snippet_edges(middles: NDArray[np.float64], *, duration: float) -> NDArray[np.float64]:
    """Cut a video halfway between its snippets, so that each moment belongs to the nearest snippet.

    Args:
        middles: (T,) seconds, ascending; several may be the same in a short video.
        duration: seconds.

    Returns:
        (T + 1,) seconds from 0 to ``duration``; snippet k has [edge k, edge k + 1).

    Raises:
        ValueError: the middles descend or lie outside the video.
    """
    if not (len(middles) and middles[0] >= 0 and (np.diff(middles) >= 0).all() and middles[-1] <= duration):
        raise ValueError(f"the snippets at {middles.tolist()} s do not ascend in {duration:g} s; check the sampling")
    return np.concatenate([[0.0], (middles[1:] + middles[:-1]) / 2, [duration]])


class AttendedInterval(NamedTuple):
    """A run of snippets above the threshold."""

    start: float
    """Seconds, [start, end)."""
    end: float
    weight: float
    """Mean of the snippets' weights, as the model gives them."""


def attended_intervals(
    weights: Floats, edges: NDArray[np.float64], *, threshold: float = 0.5, time_norm: TimeNorm = "max"
) -> list[AttendedInterval]:
    """When a model looked: the runs of consecutive snippets whose normalised weight is above a threshold.

    Args:
        weights: (T,) of one video; where a model has one for every step of a recurrent net too, their mean.
        edges: (T + 1,) seconds, from ``snippet_edges``.
        threshold: exceeded.
        time_norm: as ``normalised_weights``.

    Returns:
        Intervals in order, none of them empty.

    Raises:
        ValueError: the shapes do not fit, or a weight is not finite.
    """
    if weights.shape != (len(edges) - 1,):
        raise ValueError(f"weights of shape {weights.shape} do not fit {len(edges) - 1} snippets")
    selected = normalised_weights(weights, time_norm) > threshold
    changes = np.flatnonzero(np.diff(selected, prepend=False, append=False))  # a run starts, a run ends, in turns
    return [
        AttendedInterval(float(edges[first]), float(edges[past]), float(weights[first:past].mean(dtype=np.float64)))
        for first, past in changes.reshape(-1, 2)
        if edges[first] < edges[past]
    ]


def temporal_detections(
    video: str, intervals: Iterable[AttendedInterval], probabilities: Floats, classes: Sequence[str]
) -> list[Detection]:
    """Each interval as a detection of each class; the score is the class's probability times the interval's weight.

    Args:
        video: its id.
        intervals: when the model looked.
        probabilities: (C,) of the video.
        classes: (C,) names.
    """
    return [
        Detection(video, interval.start, interval.end, label, float(probability) * interval.weight)
        for interval in intervals
        for label, probability in zip(classes, probabilities, strict=True)
    ]


def window_accuracy(
    weights: Floats,
    annotated: NDArray[np.bool_],
    *,
    thresholds: Sequence[float] = WINDOW_THRESHOLDS,
    correct: NDArray[np.bool_] | None = None,
    weight_threshold: float = 0.5,
    time_norm: TimeNorm = "max",
    overlap: Overlap = "iou",
) -> NDArray[np.float64]:
    """Share of windows in which what the model attends to overlaps what is annotated by more than each threshold.

    The released code is ``overlap="recall"``, ``time_norm="raw"`` and ``weight_threshold=RELEASED_WEIGHT_THRESHOLD``.

    Args:
        weights: (V, T) of the snippets of each window.
        annotated: (V, T) whether a snippet lies in the action; windows without any do not count.
        thresholds: (A,) overlaps.
        correct: (V,) whether the class is right; a window of another class is wrong. None: all count as right.
        weight_threshold: exceeded by the normalised weights that are attended to.
        time_norm: as ``normalised_weights``.
        overlap: ``iou``: over all snippets attended to or annotated; ``recall``: over those annotated.

    Returns:
        (A,) in [0, 1].

    Raises:
        ValueError: the shapes do not fit, a weight is not finite, or no window has an annotated snippet.
    """
    if weights.ndim != 2 or annotated.shape != weights.shape or not weights.size:
        raise ValueError(f"weights of shape {weights.shape} do not fit annotations of shape {annotated.shape}")
    attended = normalised_weights(weights, time_norm) > weight_threshold
    common = (attended & annotated).sum(axis=1)
    whole = (annotated if overlap == "recall" else attended | annotated).sum(axis=1)
    counts = annotated.any(axis=1)
    if not counts.any():
        raise ValueError("no window has an annotated snippet; cut the windows around annotated intervals")
    shares = _ratio(common.astype(np.float64), whole)
    if correct is not None:
        shares = np.where(correct, shares, 0.0)
    return np.array([(shares[counts] > threshold).mean() for threshold in thresholds])
