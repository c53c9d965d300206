"""Attention against truth: cases whose answer is plain, and brute force on a fine grid."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.dataset.manifest import Box, Segment, Tube, Video
from pipeline.learning import truth
from pipeline.learning.scores import Scores

WHOLE = np.array([0.0, 0.0, 1.0, 1.0])


def video(*, segments: tuple[Segment, ...] = (), tubes: tuple[Tube, ...] = (), name: str = "v") -> Video:
    """100 frames of 200 x 100 pixels, 25 a second."""
    facts = {"frames": 100, "fps": 25.0, "width": 200, "height": 100}
    return Video(id=name, path=name, digest="", bytes=1, labels=("run",), segments=segments, tubes=tubes, **facts)


def tube(box: Box, *, first: int = 0, frames: int = 100, label: str = "run") -> Tube:
    return Tube(label, first, (box,) * frames)


def test_a_snippet_is_seen_in_its_middle() -> None:
    """At 10 frames a second, snippets of 5 from frames 0 and 4; the last one has frames 18 and 19 alone."""
    middles = truth.middle_seconds(np.array([0, 4, 18]), snippet=5, frames=20, fps=10.0)
    np.testing.assert_allclose(middles, [0.25, 0.65, 1.9], rtol=1e-12)


def test_a_stride_lengthens_a_snippet() -> None:
    """3 frames at stride 4 reach over 9 frames; from frame 15 on only 15 and 19 are there."""
    middles = truth.middle_seconds(np.array([0, 15]), snippet=3, stride=4, frames=20, fps=10.0)
    np.testing.assert_allclose(middles, [0.45, 1.75], rtol=1e-12)


def test_weight_in_the_segments_of_the_class_beside_uniform_weight() -> None:
    """Moments 0.5, 1.5, 2.5, 3.5; the class holds the second and the fourth, its end is not in it."""
    marked = video(segments=(Segment("run", 1.0, 2.0), Segment("jump", 0.0, 1.0), Segment("run", 3.5, 9.0)))
    middles = np.array([0.5, 1.5, 2.5, 3.5])
    share = truth.temporal_share(np.array([0.1, 0.2, 0.3, 0.4]), middles, video=marked)
    assert share == pytest.approx((0.6, 0.5))
    assert truth.temporal_share(np.array([1.0, 1.0]), np.array([2.0, 3.4999]), video=marked) == (0.0, 0.0)


def test_weights_of_any_sum_and_sign_count_by_their_size() -> None:
    marked = video(segments=(Segment("run", 1.0, 2.0),))
    share = truth.temporal_share(np.array([-1.0, 3.0]), np.array([0.0, 1.0]), video=marked)
    assert share == pytest.approx((0.75, 0.5))
    assert truth.temporal_share(np.zeros(2), np.array([0.0, 1.0]), video=marked) is None


def test_disputed_moments_count_neither_for_nor_against() -> None:
    marked = video(segments=(Segment("run", 1.0, 2.0), Segment(None, 1.5, 4.0)))
    share = truth.temporal_share(np.array([0.2, 0.1, 0.3, 0.4]), np.array([0.0, 1.0, 1.7, 3.0]), video=marked)
    assert share == pytest.approx((0.4 / 0.6, 2 / 3))


def test_no_segment_of_the_class_is_no_truth() -> None:
    weights, middles = np.array([0.5, 0.5]), np.array([0.0, 1.0])
    assert truth.temporal_share(weights, middles, video=video()) is None
    assert truth.temporal_share(weights, middles, video=video(segments=(Segment("jump", 0.0, 1.0),))) is None


def test_all_mass_in_the_box_is_one_and_a_uniform_map_is_the_boxes_area() -> None:
    boxes = np.array([[0.5, 0.0, 0.75, 1.0]])
    map_ = np.zeros((3, 4))
    map_[:, 2] = [1, 5, 2]
    assert truth.box_share(map_, view=WHOLE, boxes=boxes) == pytest.approx((1.0, 0.25))
    assert truth.box_share(np.ones((3, 4)), view=WHOLE, boxes=boxes) == pytest.approx((0.25, 0.25))
    assert truth.box_share(np.ones((7, 7)), view=WHOLE, boxes=np.array([[0.1, 0.2, 0.4, 0.9]])).inside == pytest.approx(
        0.3 * 0.7
    )


def test_a_box_counts_once_and_only_inside_the_view() -> None:
    view = np.array([0.25, 0.0, 0.75, 1.0])
    boxes = np.array([[0.0, 0.0, 0.5, 1.0], [0.375, 0.0, 0.5, 0.5], [0.8, 0.0, 1.0, 1.0]])
    assert truth.box_share(np.ones((2, 2)), view=view, boxes=boxes) == pytest.approx((0.5, 0.5))
    assert truth.box_share(np.ones((2, 2)), view=view, boxes=boxes[2:]) == (0.0, 0.0)


@pytest.mark.parametrize("seed", range(20))
def test_the_share_is_that_of_a_fine_grid(seed: int) -> None:
    """Boxes and a view on a grid of 240: each cell of the map is many points, each in or out of every box."""
    rng, fine = np.random.default_rng(seed), 240
    height, width = rng.choice([1, 2, 3, 5, 6, 8], size=2)
    map_ = rng.random((height, width))
    view = np.array([60, 120, 60 + 120, 120 + 120]) / fine
    corners = rng.integers(0, fine + 1, size=(rng.integers(1, 4), 2, 2))
    boxes = np.sort(corners, axis=1).reshape(-1, 4).astype(float)  # x0 y0 x1 y1
    boxes[:, 2:] += boxes[:, :2] == boxes[:, 2:]
    points = (np.arange(fine) + 0.5)[:, None], (np.arange(fine) + 0.5)[None, :]
    inside = np.zeros((fine, fine), bool)
    for x0, y0, x1, y1 in boxes:
        inside |= (points[0] >= y0) & (points[0] < y1) & (points[1] >= x0) & (points[1] < x1)
    seen = inside[120:240, 60:180]
    mass = np.repeat(np.repeat(map_, 120 // height, axis=0), 120 // width, axis=1)
    expected = (mass * seen).sum() / mass.sum(), seen.mean()
    assert truth.box_share(map_, view=view, boxes=boxes / fine) == pytest.approx(expected, abs=1e-12)


def test_boxes_are_those_of_the_class_in_the_frame_of_that_moment() -> None:
    """A box is in pixels of the video, its frame that of the video's own rate."""
    moving = Tube("run", 10, tuple((float(i), 0.0, float(i) + 20.0, 50.0) for i in range(5)))
    marked = video(
        tubes=(moving, tube((0.0, 0.0, 1.0, 1.0), label="jump"), tube((100.0, 50.0, 200.0, 100.0), first=12))
    )
    assert truth.boxes_at(marked, 9.9 / 25).shape == (0, 4)
    np.testing.assert_allclose(truth.boxes_at(marked, 11 / 25), [[1 / 200, 0, 21 / 200, 0.5]])
    np.testing.assert_allclose(truth.boxes_at(marked, 12.7 / 25), [[0.01, 0, 0.11, 0.5], [0.5, 0.5, 1, 1]])


def test_a_moment_that_division_has_put_before_its_frame_is_in_it() -> None:
    marked = Video(
        id="v", path="v", digest="", bytes=1, labels=("run",), frames=200, fps=29.97, width=10, height=10,
        tubes=(Tube("run", 0, tuple((0.0, 0.0, 1.0 + i / 100, 1.0) for i in range(200))),),
    )  # fmt: skip
    found = [truth.boxes_at(marked, frame / 29.97)[0, 2] * 10 for frame in range(200)]
    np.testing.assert_allclose(found, 1 + np.arange(200) / 100)


def test_maps_are_held_against_boxes_inside_the_action_alone() -> None:
    """The actor is in the left half throughout; the action is in the first second."""
    acting = video(segments=(Segment("run", 0.0, 1.0),), tubes=(tube((0.0, 0.0, 100.0, 100.0)),))
    maps = np.array([[[1.0, 0.0]], [[3.0, 1.0]], [[0.0, 1.0]]])
    middles = np.array([0.2, 0.8, 2.0])
    assert truth.spatial_share(maps, middles, view=WHOLE, video=acting) == pytest.approx((0.875, 0.5))
    unmarked = video(tubes=(tube((0.0, 0.0, 100.0, 100.0)),))
    assert truth.spatial_share(maps, middles, view=WHOLE, video=unmarked) == pytest.approx((1.75 / 3, 0.5))
    late = video(segments=(Segment("run", 3.0, 4.0),), tubes=(tube((0.0, 0.0, 100.0, 100.0)),))
    assert truth.spatial_share(maps, middles, view=WHOLE, video=late) is None
    assert truth.spatial_share(maps, middles, view=WHOLE, video=video()) is None


def scores(*, maps: np.ndarray | None = None) -> Scores:  # type: ignore[type-arg]
    view = None if maps is None else np.tile(WHOLE, (3, 1)).astype(np.float32)
    return Scores(
        ids=np.array(["a", "b", "c"]),
        logits=np.zeros((3, 2), np.float32),
        weights=np.array([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]], np.float32),
        positions=np.array([[0, 5]] * 3),
        classes=np.array(["jump", "run"]),
        maps=maps,
        view=view,
    )


def test_means_are_over_the_videos_that_carry_truth() -> None:
    """The store has 5 frames a second, so that the snippets of one frame are at 0.1 and 1.1 seconds."""
    marked = {
        "a": video(segments=(Segment("run", 1.0, 2.0),)),
        "b": video(segments=(Segment("run", 0.0, 5.0),), tubes=(tube((0.0, 0.0, 200.0, 25.0)),)),
        "c": video(),
    }
    stored = {name: {"frames": 20, "fps": 5.0} for name in "abc"}
    found = truth.attention_truth(scores(), videos=marked, stored=stored, snippet=1)
    assert found == {"temporal_inside": (0.75 + 1) / 2, "temporal_uniform": (0.5 + 1) / 2, "temporal_videos": 2}
    maps = np.zeros((3, 2, 2, 1), np.float16)
    maps[:, :, 0] = 1
    found = truth.attention_truth(scores(maps=maps), videos=marked, stored=stored, snippet=1)
    assert {name: found[name] for name in found if "spatial" in name} == {
        "spatial_inside": 0.5,
        "spatial_uniform": 0.25,
        "spatial_videos": 1,
    }
    assert truth.attention_truth(scores(), videos=dict.fromkeys("abc", video()), stored=stored, snippet=1) == {}


def test_padding_and_maps_of_zeros_count_for_nothing() -> None:
    """The second snippet of "a" looks nowhere; its third, and the last two of "b", are padding."""
    left = tube((0.0, 0.0, 100.0, 100.0))
    marked = {name: video(name=name, segments=(Segment("run", 1.0, 2.0),), tubes=(left,)) for name in "ab"}
    maps = np.zeros((2, 3, 1, 2), np.float16)
    maps[0, 0], maps[1, 0] = [[1.0, 3.0]], [[1.0, 1.0]]
    padded = Scores(
        ids=np.array(["a", "b"]),
        logits=np.zeros((2, 2), np.float32),
        weights=np.array([[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]], np.float32),
        positions=np.array([[5, 6, -1], [5, -1, -1]]),
        classes=np.array(["jump", "run"]),
        maps=maps,
    )
    stored = {name: {"frames": 20, "fps": 5.0} for name in "ab"}
    assert truth.attention_truth(padded, videos=marked, stored=stored, snippet=1) == {
        **{"temporal_inside": 1.0, "temporal_uniform": 1.0, "temporal_videos": 2},
        **{"spatial_inside": (0.25 + 0.5) / 2, "spatial_uniform": 0.5, "spatial_videos": 2},
    }
    moved = {name: video(name=name, segments=(Segment("run", 1.2, 2.0),)) for name in "ab"}
    found = truth.attention_truth(padded, videos=moved, stored=stored, snippet=1)
    assert (found["temporal_inside"], found["temporal_uniform"]) == (0.75 / 2, 0.5 / 2)
