"""What one run located, in space and in time, against the truth and beside what anyone locates without looking.

A run was told classes only. Its maps become boxes and its weights intervals as ``pipeline.learning.localisation`` has
it, in whole videos, with the class probabilities of the video:

- **In space**, one box for each snippet at whose moment an actor is annotated: the tightest around what is above 0.5 of
  the map, which is stretched to [0, 1] unless it is a mask already. Beside it the centre box: half the sides of the
  view, in its middle.
- **In time**, the runs of snippets whose weight is above half of the video's largest. A snippet reaches halfway to its
  neighbours, the first and the last to the ends of the video as it is stored. Beside it the whole video as one
  interval. Runs whose weights are uniform in every video have none of it.

Shapes: V videos, C classes, T snippets of one video without padding, h w cells of a map.
Units: seconds; a view is parts of the frame; boxes are pixels of the video, frames numbers of the video's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.manifest import Box, Video
from pipeline.learning.detection import THRESHOLDS, Detection, mean_over_classes, temporal_average_precisions
from pipeline.learning.localisation import (
    BOX_THRESHOLDS,
    WINDOW_THRESHOLDS,
    AttendedInterval,
    attended_intervals,
    box_detections,
    box_of_map,
    frame_accuracy,
    frame_average_precisions,
    normalised_weights,
    snippet_edges,
    temporal_detections,
    window_accuracy,
)
from pipeline.learning.metrics import softmax
from pipeline.learning.scores import Scores
from pipeline.learning.truth import WHOLE_FRAME, frame_at, middle_seconds

Floats = NDArray[np.floating[Any]]

THRESHOLD = 0.5
"""Exceeded by a map where the box is, and by weights over their maximum in an interval."""
MASK_FAMILIES = ("where_when",)
"""Their maps are masks in 0 to 1 that mean something as they are."""
KINDS = ("boxes", "boxes_centre", "segments", "segments_uniform")
METRICS = ("accuracy", "map")


class Located(TypedDict):
    """How well the boxes, or the intervals, of one run fit."""

    accuracy: dict[str, float]
    """By overlap: of boxes the share of frames, of intervals the share of videos, whatever the class."""
    map: dict[str, float]
    """By overlap: mean average precision, of frames or of THUMOS14."""
    videos: int
    """That carry truth."""
    items: int
    """Frames or annotated intervals in them."""


class Looked(NamedTuple):
    """Where and when the model looked in one video."""

    video: Video
    middles: NDArray[np.float64]
    """(T,) moments of the snippets."""
    weights: Floats
    """(T,)"""
    seconds: float
    """Duration of the video in the store."""
    maps: Floats | None
    """(T, h, w)"""
    view: Floats
    """(4,)"""
    probabilities: NDArray[np.float64]
    """(C,)"""


def located(
    scores: Scores,
    *,
    videos: Mapping[str, Video],
    stored: Mapping[str, Mapping[str, Any]],
    snippet: int,
    stride: int,
    family: str,
) -> dict[str, Located]:
    """How well a run located the action, and how well one would without looking.

    Args:
        scores: of one run.
        videos: by id, with what is marked in them.
        stored: frames and fps by id, of the store that the run read.
        snippet: frames a snippet.
        stride: from one frame of a snippet to its next.
        family: of the model.

    Returns:
        ``boxes`` and ``boxes_centre`` if there are maps and annotated boxes at moments of snippets; ``segments`` and
        ``segments_uniform`` if the weights are not uniform and there are annotated intervals.
    """
    seen = looks(scores, videos=videos, stored=stored, snippet=snippet, stride=stride)
    classes = [str(name) for name in scores.classes]
    return _in_space(seen, classes, family=family) | _in_time(seen, classes)


def looks(
    scores: Scores,
    *,
    videos: Mapping[str, Video],
    stored: Mapping[str, Mapping[str, Any]],
    snippet: int,
    stride: int,
) -> list[Looked]:
    """Each scored video without its padding; the arguments are those of ``located``."""
    probabilities, found = softmax(scores.logits.astype(np.float64)), []
    for row, name in enumerate(scores.ids.tolist()):
        frames, fps, real = stored[name]["frames"], stored[name]["fps"], scores.positions[row] >= 0
        found.append(
            Looked(
                video=videos[name],
                middles=middle_seconds(
                    scores.positions[row][real], snippet=snippet, stride=stride, frames=frames, fps=fps
                ),
                weights=scores.weights[row][real],
                seconds=frames / fps,
                maps=None if scores.maps is None else scores.maps[row][real],
                view=WHOLE_FRAME if scores.view is None else scores.view[row],
                probabilities=probabilities[row],
            )
        )
    return found


def found_box(map_: Floats, region: Box, *, family: str) -> Box | None:
    """The box of a map that covers a region, in the units of the region; None if nothing stands out.

    Args:
        map_: (h, w).
        region: x0, y0, x1, y1 in pixels.
        family: of the model.
    """
    return box_of_map(map_, region, threshold=THRESHOLD, mask_norm="none" if family in MASK_FAMILIES else "minmax")


def centre_box(region: Box) -> Box:
    """Half the sides of a region, in its middle."""
    x0, y0, x1, y1 = region
    across, down = (x1 - x0) / 4, (y1 - y0) / 4
    return x0 + across, y0 + down, x1 - across, y1 - down


def is_uniform(weights: Floats) -> bool:
    """Whether all snippets of a video weigh the same."""
    return bool(np.allclose(weights, weights[:1], atol=1e-6))


def attended_snippets(weights: Floats) -> NDArray[np.bool_]:
    """(T,) which snippets are in an interval that was found; none where all weigh the same."""
    if is_uniform(weights):
        return np.zeros(len(weights), bool)
    return normalised_weights(weights) > THRESHOLD


def _in_space(seen: Sequence[Looked], classes: Sequence[str], *, family: str) -> dict[str, Located]:
    """Boxes at the moments of snippets, and centre boxes there."""
    frames = {one.video.id: found for one in seen if one.maps is not None and (found := _annotated_frames(one))}
    if not frames:
        return {}

    def attended(one: Looked, snippet: int) -> Box | None:
        assert one.maps is not None
        return found_box(one.maps[snippet], _region(one), family=family)

    def centre(one: Looked, snippet: int) -> Box | None:
        return centre_box(_region(one))

    marked = [one for one in seen if one.video.id in frames]
    return {
        "boxes": _fit_of_boxes(marked, frames, attended, classes),
        "boxes_centre": _fit_of_boxes(marked, frames, centre, classes),
    }


def _annotated_frames(one: Looked) -> dict[int, int]:
    """The video's frames at the moments of snippets in which an actor is annotated: frame -> the first such snippet."""
    video, frames = one.video, dict[int, int]()
    if not (video.fps and video.width and video.height):
        return frames
    for snippet, seconds in enumerate(one.middles.tolist()):
        frame = frame_at(seconds, fps=video.fps)
        if any(0 <= frame - tube.first_frame < len(tube.boxes) for tube in video.tubes):
            frames.setdefault(frame, snippet)
    return frames


def _region(one: Looked) -> Box:
    """The view in pixels of the video."""
    width, height = one.video.width, one.video.height
    assert width is not None  # it has annotated frames, so that it was probed
    assert height is not None
    x0, y0, x1, y1 = (float(value) for value in one.view)
    return x0 * width, y0 * height, x1 * width, y1 * height


def _fit_of_boxes(
    marked: Sequence[Looked],
    frames: Mapping[str, Mapping[int, int]],
    box_of: Callable[[Looked, int], Box | None],
    classes: Sequence[str],
) -> Located:
    boxes = {
        one.video.id: {frame: box_of(one, snippet) for frame, snippet in frames[one.video.id].items()} for one in marked
    }
    truth = {one.video.id: one.video.tubes for one in marked}
    detections = box_detections(boxes, {one.video.id: one.probabilities for one in marked}, classes)
    precisions = mean_over_classes(frame_average_precisions(detections, truth, frames=boxes))
    return {
        "accuracy": _by_overlap(BOX_THRESHOLDS, frame_accuracy(boxes, truth)),
        "map": _by_overlap(BOX_THRESHOLDS, precisions),
        "videos": len(marked),
        "items": sum(map(len, boxes.values())),
    }


def _in_time(seen: Sequence[Looked], classes: Sequence[str]) -> dict[str, Located]:
    """Intervals attended to, and whole videos."""
    marked = [one for one in seen if any(segment.label is not None for segment in one.video.segments)]
    if all(is_uniform(one.weights) for one in marked):
        return {}

    def attended(one: Looked) -> list[AttendedInterval]:
        return attended_intervals(one.weights, snippet_edges(one.middles, duration=one.seconds), threshold=THRESHOLD)

    def whole(one: Looked) -> list[AttendedInterval]:
        return [AttendedInterval(0.0, one.seconds, 1.0)]

    return {
        "segments": _fit_of_intervals(marked, attended, [normalised_weights(one.weights) for one in marked], classes),
        "segments_uniform": _fit_of_intervals(marked, whole, [np.ones(len(one.weights)) for one in marked], classes),
    }


def _fit_of_intervals(
    marked: Sequence[Looked],
    intervals_of: Callable[[Looked], list[AttendedInterval]],
    weights: Sequence[NDArray[np.float64]],
    classes: Sequence[str],
) -> Located:
    """Against the annotated intervals of all labels; ``weights``, of each video, have a maximum of 1."""
    detections: list[Detection] = []
    for one in marked:
        detections += temporal_detections(one.video.id, intervals_of(one), one.probabilities, classes)
    truth = {one.video.id: one.video.segments for one in marked}
    precisions = mean_over_classes(temporal_average_precisions(detections, truth, thresholds=THRESHOLDS))
    return {
        "accuracy": _by_overlap(WINDOW_THRESHOLDS, _window_accuracy(marked, weights)),
        "map": _by_overlap(THRESHOLDS, precisions),
        "videos": len(marked),
        "items": sum(segment.label is not None for one in marked for segment in one.video.segments),
    }


def _window_accuracy(marked: Sequence[Looked], weights: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """With each whole video as a window; disputed snippets count neither for nor against.

    A video between whose snippets the action fits has none inside, and is wrong.
    """
    longest = max(map(len, weights))
    padded, annotated = np.zeros((len(marked), longest)), np.zeros((len(marked), longest), bool)
    for row, (one, own) in enumerate(zip(marked, weights, strict=True)):
        inside, disputed = _inside(one, disputed=False), _inside(one, disputed=True)
        annotated[row, : len(own)] = inside
        padded[row, : len(own)] = np.where(disputed & ~inside, 0.0, own)
    known = annotated.any(axis=1)
    if not known.any():
        return np.zeros(len(WINDOW_THRESHOLDS))
    right = window_accuracy(padded, annotated, weight_threshold=THRESHOLD, time_norm="raw")
    return right * known.mean()


def _inside(one: Looked, *, disputed: bool) -> NDArray[np.bool_]:
    """(T,) whether an annotated, or a disputed, interval holds each snippet's moment."""
    inside = np.zeros(len(one.middles), bool)
    for segment in one.video.segments:
        if (segment.label is None) == disputed:
            inside |= (segment.start <= one.middles) & (one.middles < segment.end)
    return inside


def _by_overlap(thresholds: Sequence[float], values: NDArray[np.float64]) -> dict[str, float]:
    return {f"{threshold:g}": float(value) for threshold, value in zip(thresholds, values, strict=True)}
