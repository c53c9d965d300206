"""Boxes of maps against pixels, and their scores against counting pixels, frames and ranks."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.dataset.manifest import Box, Tube
from pipeline.learning.detection import box_iou
from pipeline.learning.localisation import (
    RELEASED_MASK_THRESHOLD,
    BoxDetection,
    box_detections,
    box_of_map,
    frame_accuracy,
    frame_average_precisions,
)

ALPHAS = (0.1, 0.3, 0.5)


def bilinear(map_: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
    """Each pixel's middle looked up between the middles of the four cells around it, the border continued."""
    rows, columns = map_.shape
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * rows / height - 0.5, 0), rows - 1)
            u = min(max((x + 0.5) * columns / width - 0.5, 0), columns - 1)
            i, j = int(v), int(u)
            k, m = min(i + 1, rows - 1), min(j + 1, columns - 1)
            top = map_[i, j] * (j + 1 - u) + map_[i, m] * (u - j)
            bottom = map_[k, j] * (j + 1 - u) + map_[k, m] * (u - j)
            out[y, x] = top * (i + 1 - v) + bottom * (v - i)
    return out


def parts(above: NDArray[np.bool_]) -> list[set[tuple[int, int]]]:
    """8-connected parts, as sets of (x, y), by filling."""
    left = {(int(x), int(y)) for y, x in zip(*np.nonzero(above), strict=True)}
    found = []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            x, y = edge.pop()
            part.add((x, y))
            near = {(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        found.append(part)
    return found


def around(pixels: set[tuple[int, int]]) -> Box:
    """The half-open box around pixels."""
    xs, ys = zip(*pixels, strict=True)
    return float(min(xs)), float(min(ys)), float(max(xs) + 1), float(max(ys) + 1)


@st.composite
def maps(draw: st.DrawFn) -> tuple[NDArray[np.float64], int, int]:
    """A map in [0, 1], some of it in islands, and the size of a frame."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    map_ = rng.random((draw(st.integers(1, 7)), draw(st.integers(1, 7)))) ** draw(st.sampled_from([1, 3]))
    return map_, draw(st.integers(1, 24)), draw(st.integers(1, 24))


@settings(deadline=None)
@given(maps(), st.sampled_from([0.3, 0.5, 0.8]))
def test_boxes_lie_around_the_pixels_above(case: tuple[NDArray[np.float64], int, int], threshold: float) -> None:
    map_, width, height = case
    resized = bilinear(map_, width, height)
    assume((np.abs(resized - threshold) > 1e-5).all())
    islands = parts(resized > threshold)
    frame = (0.0, 0.0, float(width), float(height))
    tight = box_of_map(map_, frame, threshold=threshold)
    largest = box_of_map(map_, frame, threshold=threshold, box="largest_contour")
    if not islands:
        assert tight is largest is None
        return
    assert tight == around(set.union(*islands))
    sizes = {box: (box[2] - box[0]) * (box[3] - box[1]) for box in map(around, islands)}
    assert largest in [box for box, size in sizes.items() if size == max(sizes.values())]


def test_a_stretched_map_is_above_where_the_map_is_above_a_part_of_its_range(rng: np.random.Generator) -> None:
    map_ = 0.1 + 0.2 * rng.random((7, 7))
    low, high = map_.min(), map_.max()
    frame = (0.0, 0.0, 320.0, 240.0)
    assert box_of_map(map_, frame) is None
    for part in (0.2, 0.5, 0.9):
        expected = box_of_map(map_, frame, threshold=low + part * (high - low))
        assert box_of_map(map_, frame, threshold=part, mask_norm="minmax") == expected is not None


def test_a_constant_map_has_no_contrast_to_stretch() -> None:
    frame = (0.0, 0.0, 8.0, 8.0)
    assert box_of_map(np.full((7, 7), 0.9), frame, mask_norm="minmax") is None
    assert box_of_map(np.full((7, 7), 0.9), frame) == frame


def test_half_precision_maps_are_taken_as_they_are() -> None:
    map_ = np.zeros((7, 7), np.float16)
    map_[2:4, 3] = 1
    frame = (0.0, 0.0, 70.0, 70.0)
    expected = box_of_map(map_.astype(np.float64), frame)
    assert expected is not None
    assert box_of_map(map_, frame) == box_of_map(map_, frame, mask_norm="minmax") == expected


@pytest.mark.parametrize("centre", [(1.2, 2.0), (3.0, 3.0), (5.5, 4.1)])
def test_the_released_way_gives_the_box_of_the_released_steps(centre: tuple[float, float]) -> None:
    """Those steps are in 8 bits, which cut off up to 2/255: two pixels where the map is as steep as this one."""
    rows, columns = np.mgrid[:7, :7]
    map_ = 0.2 + 0.1 * np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / 4)
    map_[6, 0] = map_.max()  # a second, smaller island
    stretched = (map_ - map_.min()) / (map_ - map_.min()).max()
    grey = cv2.resize(np.uint8(255 * stretched), (320, 240))
    expected = around(max(parts(grey > 200), key=len))
    found = box_of_map(
        map_, (0, 0, 320, 240), threshold=RELEASED_MASK_THRESHOLD, box="largest_contour", mask_norm="minmax"
    )
    np.testing.assert_allclose(found, expected, atol=2)


def test_the_box_of_a_crop_lies_where_the_crop_lies(rng: np.random.Generator) -> None:
    """The crop is twice as large and moved; with half a pixel left over, the resized map is stretched to fit."""
    map_ = rng.random((7, 7))
    x0, y0, x1, y1 = box_of_map(map_, (0, 0, 32, 32), threshold=0.8) or (0, 0, 0, 0)
    assert (x0, y0, x1, y1) != (0, 0, 0, 0)
    assert box_of_map(map_, (58, 16, 90, 48), threshold=0.8) == (58 + x0, 16 + y0, 58 + x1, 16 + y1)
    assert box_of_map(np.ones((7, 7)), (58.25, 16, 89.75, 48.5)) == (58.25, 16, 89.75, 48.5)


@pytest.mark.parametrize(
    ("map_", "region", "message"),
    [
        (np.zeros((1, 7, 7)), (0, 0, 9, 9), "not a finite"),
        (np.zeros((0, 7)), (0, 0, 9, 9), "not a finite"),
        (np.full((7, 7), np.nan), (0, 0, 9, 9), "not a finite"),
        (np.zeros((7, 7)), (0, 0, 0, 9), "is empty"),
    ],
)
def test_maps_that_mean_nothing_are_refused(map_: NDArray[np.float64], region: Box, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        box_of_map(map_, region)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """Half-open, of whole pixels."""
    x, y = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    return float(x), float(y), float(x + draw(st.integers(1, 6))), float(y + draw(st.integers(1, 6)))


def pixels(box: Box, *, last_pixel: bool = False) -> set[tuple[int, int]]:
    """The pixels of a box."""
    x0, y0, x1, y1 = map(int, box)
    return {(x, y) for x in range(x0, x1 + last_pixel) for y in range(y0, y1 + last_pixel)}


def iou(one: Box, other: Box, *, last_pixel: bool = False) -> float:
    """By counting pixels."""
    a, b = pixels(one, last_pixel=last_pixel), pixels(other, last_pixel=last_pixel)
    return len(a & b) / len(a | b)


@settings(deadline=None)
@given(st.lists(boxes(), min_size=1, max_size=3), st.lists(boxes(), max_size=3), st.booleans())
def test_iou_of_boxes_counts_pixels(one: list[Box], other: list[Box], last_pixel: bool) -> None:
    found = box_iou(np.array(one), np.array(other).reshape(-1, 4), last_pixel=last_pixel)
    expected = [[iou(a, b, last_pixel=last_pixel) for b in other] for a in one]
    np.testing.assert_allclose(found, np.reshape(expected, (len(one), len(other))))


def test_boxes_apart_in_both_directions_do_not_score() -> None:
    """The released code multiplies -9 and -9 to an intersection of 81 pixels, a third of the union."""
    one, other = np.array([[0.0, 0, 9, 9]]), np.array([[19.0, 19, 29, 29]])
    sides = np.minimum(one, other)[0, 2:] - np.maximum(one, other)[0, :2] + 1
    assert sides.prod() / (100 + 121 - sides.prod()) > 0.5
    assert box_iou(one, other, last_pixel=True) == 0


TUBES = st.dictionaries(
    st.sampled_from("abc"),
    st.lists(
        st.builds(
            Tube,
            st.sampled_from(["run", "jump"]),
            st.integers(0, 3),
            st.lists(boxes(), min_size=1, max_size=4).map(tuple),
        ),
        max_size=3,
    ),
)
FOUND = st.dictionaries(st.sampled_from("abcd"), st.dictionaries(st.integers(0, 6), st.none() | boxes(), max_size=5))


def truth_at(truth: Mapping[str, list[Tube]], video: str, frame: int) -> list[tuple[str, Box]]:
    """Labels and boxes in a frame."""
    return [
        (tube.label, box)
        for tube in truth.get(video, [])
        for number, box in enumerate(tube.boxes, tube.first_frame)
        if number == frame
    ]


@settings(deadline=None)
@given(FOUND, TUBES, st.booleans())
def test_frame_accuracy_counts_frames(
    found: dict[str, dict[int, Box | None]], truth: dict[str, list[Tube]], official: bool
) -> None:
    if official:
        truth = {video: tubes[:1] for video, tubes in truth.items()}
    best = [
        max(iou(box, actor, last_pixel=official) if box else 0.0 for _, actor in actors)
        for video, frames in found.items()
        for frame, box in frames.items()
        if (actors := truth_at(truth, video, frame))
    ]
    if not best:
        with pytest.raises(ValueError, match="no sampled frame has an annotated box"):
            frame_accuracy(found, truth, thresholds=ALPHAS, official=official)
        return
    expected = [sum(value >= alpha for value in best) / len(best) for alpha in ALPHAS]
    np.testing.assert_allclose(frame_accuracy(found, truth, thresholds=ALPHAS, official=official), expected)


def test_only_the_first_tube_counts_officially() -> None:
    tubes = [Tube("run", 0, ((0, 0, 4, 4),)), Tube("run", 0, ((20, 20, 30, 30),) * 2)]
    found: dict[str, dict[int, Box | None]] = {"a": {0: (20, 20, 30, 30), 1: (20, 20, 30, 30), 2: None}}
    assert frame_accuracy(found, {"a": tubes}).tolist() == [1] * 4
    assert frame_accuracy(found, {"a": tubes}, official=True).tolist() == [0] * 4


def test_an_overlap_of_boxes_equal_to_the_threshold_is_right() -> None:
    """Half of the actor; with a pixel more a side 3 * 5 of 5 * 5 pixels."""
    truth = {"a": [Tube("run", 0, ((0, 0, 4, 4),))]}
    half: Box = (0, 0, 2, 4)
    assert frame_accuracy({"a": {0: half}}, truth, thresholds=[0.5, 0.51]).tolist() == [1, 0]
    assert frame_accuracy({"a": {0: half}}, truth, thresholds=[0.6, 0.61], official=True).tolist() == [1, 0]
    found = [BoxDetection("a", 0, "run", half, 0.5)]
    values = frame_average_precisions(found, truth, frames={"a": {0}}, thresholds=[0.5, 0.51])
    assert values["run"].tolist() == [1, 0]


def slow_frame_ap(
    detections: list[BoxDetection],
    truth: dict[str, list[Tube]],
    frames: Mapping[str, set[int]],
    label: str,
    alpha: float,
) -> float:
    """PASCAL VOC's matching over all frames in one list."""
    ranked = sorted((d for d in detections if d.label == label), key=lambda d: (-d.score, d.video, d.frame))
    positives = sum(
        box_label == label
        for video, numbers in frames.items()
        for n in numbers
        for box_label, _ in truth_at(truth, video, n)
    )
    taken: set[tuple[str, int, int]] = set()
    hits, total = 0, 0.0
    for rank, one in enumerate(ranked, 1):
        own = [box for box_label, box in truth_at(truth, one.video, one.frame) if box_label == label]
        overlaps = [iou(one.box, box) for box in own]
        if overlaps and max(overlaps) >= alpha:
            place = (one.video, one.frame, overlaps.index(max(overlaps)))
            if place not in taken:
                taken.add(place)
                hits += 1
                total += hits / rank
    return total / positives


@settings(deadline=None)
@given(FOUND, TUBES, st.lists(st.tuples(st.integers(0, 9), boxes(), st.sampled_from(["run", "sit"])), max_size=6))
def test_frame_ap_is_what_the_loops_say(
    found: dict[str, dict[int, Box | None]], truth: dict[str, list[Tube]], more: list[tuple[int, Box, str]]
) -> None:
    """Boxes of all classes, and some more in the same frames."""
    places = [(video, frame) for video, frames in found.items() for frame in frames]
    probabilities = {video: np.array([0.25, 0.5 if video < "c" else 0.25, 0.125]) for video in found}
    detections = box_detections(found, probabilities, ["jump", "run", "sit"])
    assert len(detections) == 3 * sum(box is not None for frames in found.values() for box in frames.values())
    if places:
        detections += [BoxDetection(*places[k % len(places)], label, box, k / 8) for k, box, label in more]
    sampled = {video: set(frames) for video, frames in found.items()}
    labels = sorted({label for video, frame in places for label, _ in truth_at(truth, video, frame)})
    if not labels:
        with pytest.raises(ValueError, match="no sampled frame has an annotated box"):
            frame_average_precisions(detections, truth, frames=sampled, thresholds=ALPHAS)
        return
    values = frame_average_precisions(detections, truth, frames=sampled, thresholds=ALPHAS)
    assert list(values) == labels
    for label in labels:
        expected = [slow_frame_ap(detections, truth, sampled, label, alpha) for alpha in ALPHAS]
        np.testing.assert_allclose(values[label], expected, rtol=1e-12)


def test_frame_ap_of_perfect_boxes_is_one_and_of_none_zero() -> None:
    truth = {"a": [Tube("run", 1, ((0, 0, 4, 4), (1, 0, 5, 4))), Tube("run", 2, ((9, 9, 12, 12),))]}
    frames = {"a": {0, 1, 2}}
    found = [BoxDetection("a", *one) for one in ((1, "run", (0, 0, 4, 4), 0.3), (2, "run", (1, 0, 5, 4), 0.2))]
    found += [BoxDetection("a", 2, "run", (9, 9, 12, 12), 0.2)]
    assert frame_average_precisions(found, truth, frames=frames)["run"].tolist() == [1] * 4
    assert frame_average_precisions([], truth, frames=frames)["run"].tolist() == [0] * 4
    early = BoxDetection("a", 0, "run", (0, 0, 4, 4), 0.9)  # where nothing is annotated
    expected = (1 / 2 + 2 / 3 + 3 / 4) / 3
    assert frame_average_precisions([early, *found], truth, frames=frames)["run"].tolist() == pytest.approx(
        [expected] * 4
    )
    with pytest.raises(ValueError, match="frame 0 of a, which is not sampled"):
        frame_average_precisions([early], truth, frames={"a": {1}})
    with pytest.raises(ValueError, match="no sampled frame"):
        frame_average_precisions([], truth, frames={"a": {0}, "b": {1}})
