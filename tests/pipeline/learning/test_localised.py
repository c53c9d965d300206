"""Localisation of a run: score files of few videos whose boxes and intervals can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.dataset.manifest import Box, Segment, Tube, Video
from pipeline.learning import localised
from pipeline.learning.scores import Scores

LEFT: Box = (0.0, 0.0, 100.0, 100.0)
RIGHT: Box = (100.0, 0.0, 200.0, 100.0)
LEFT_MAP = np.array([[1.0, 1.0, 0.0, 0.0]] * 2)
"""Of 4 cells a row, 50 pixels each: bilinearly 0.5 at pixel 100."""


def video(name: str = "v", *, label: str = "run", **truth: Any) -> Video:
    """100 frames of 200 x 100 pixels, 25 a second."""
    facts = {"frames": 100, "fps": 25.0, "width": 200, "height": 100}
    return Video(id=name, path=name, digest="", bytes=1, labels=(label,), **facts, **truth)


def tube(boxes: dict[int, Box], *, frames: int = 100, label: str = "run") -> Tube:
    """In frames that are not told, the actor is one pixel in a corner."""
    return Tube(label, 0, tuple(boxes.get(frame, (199.0, 99.0, 200.0, 100.0)) for frame in range(frames)))


def scores(
    weights: list[list[float]],
    positions: list[list[int]],
    *,
    maps: Any = None,
    view: Any = None,
    logits: list[list[float]] | None = None,
) -> Scores:
    return Scores(
        ids=np.array(list("vwxyz")[: len(weights)]),
        logits=np.array(logits or [[0.0, 1.0]] * len(weights), np.float32),
        weights=np.array(weights, np.float32),
        positions=np.array(positions),
        classes=np.array(["jump", "run"]),
        maps=None if maps is None else np.array(maps, np.float16),
        view=None if view is None else np.array(view, np.float32),
    )


def found(of: Scores, *videos: Video, frames: int = 20, fps: float = 5.0, **reading: Any) -> dict[str, Any]:
    """In a store of 20 frames, 5 a second, if not told otherwise."""
    stored = {one.id: {"frames": frames, "fps": fps} for one in videos}
    by_id = {one.id: one for one in videos}
    reading = {"snippet": 1, "stride": 1, "family": "sta_cnn"} | reading
    return dict(localised.located(of, videos=by_id, stored=stored, **reading))


def every(values: list[float], overlaps: str) -> dict[str, float]:
    return dict(zip(overlaps.split(), values, strict=True))


BOXES, TIMES = "0.05 0.1 0.2 0.3", "0.1 0.2 0.3 0.4 0.5"
TWO = scores([[0.5, 0.5]], [[0, 5]], maps=[[LEFT_MAP, LEFT_MAP]])
"""Seen at 0.1 and 1.1 seconds: in frames 2 and 27 of the video, which has five times the rate of the store."""


def test_boxes_are_held_against_the_frames_of_the_video_beside_the_centre_box() -> None:
    """The actor is on the left, then on the right; the map stays left. Centre: 50 x 50 px of 50 x 100 + 50 x 100."""
    result = found(TWO, video(tubes=(tube({2: LEFT, 27: RIGHT}),)))
    assert set(result) == {"boxes", "boxes_centre"}
    assert result["boxes"] == {
        "accuracy": every([0.5] * 4, BOXES),
        "map": every([0.5] * 4, BOXES),  # of equally sure boxes the earlier goes first: 1/1 of 2 truths
        "videos": 1,
        "items": 2,
    }
    fits = every([1.0, 1.0, 1.0, 0.0], BOXES)  # 2500 / 12500 is 0.2
    assert result["boxes_centre"] == {"accuracy": fits, "map": fits, "videos": 1, "items": 2}


def test_surer_videos_and_wrong_classes_decide_the_precision() -> None:
    """The boxes of "v" and "x" are right, that of "w" is wrong; each is found as a run and as a jump."""
    sure = scores([[1.0]] * 3, [[0]] * 3, maps=[[LEFT_MAP]] * 3, logits=[[0.0, 1.0], [0.0, 3.0], [0.0, 2.0]])
    result = found(
        sure,
        video("v", tubes=(tube({2: LEFT}),)),
        video("w", tubes=(tube({2: RIGHT}),)),
        video("x", label="jump", tubes=(tube({2: LEFT}, label="jump"),)),
    )
    run = (1 / 3) / 2  # runs by sureness: w wrong, x nobody runs, v right
    jump = 1 / 2  # jumps by sureness: v nobody jumps, x right
    assert result["boxes"]["map"]["0.3"] == pytest.approx((run + jump) / 2)
    assert result["boxes"]["accuracy"]["0.3"] == pytest.approx(2 / 3)


def test_masks_mean_what_they_say_and_other_maps_are_stretched() -> None:
    marked = video(tubes=(tube({2: LEFT, 27: LEFT}),))
    dim = scores([[0.5, 0.5]], [[0, 5]], maps=[[0.4 * LEFT_MAP, 0.4 * LEFT_MAP]])
    bright = scores([[0.5, 0.5]], [[0, 5]], maps=[[0.6 + 0.3 * LEFT_MAP] * 2])
    centre = found(dim, marked)["boxes_centre"]
    for of, mask, stretched in ((dim, None, LEFT), (bright, (0.0, 0.0, 200.0, 100.0), LEFT)):
        assert of.maps is not None
        assert localised.found_box(of.maps[0, 0], (0.0, 0.0, 200.0, 100.0), family="where_when") == mask
        assert localised.found_box(of.maps[0, 0], (0.0, 0.0, 200.0, 100.0), family="jsta") == stretched
        result = found(of, marked, family="where_when")
        assert result["boxes"]["accuracy"]["0.3"] == (1.0 if mask else 0.0)  # all of the frame: 0.5
        assert result["boxes_centre"] == centre
        assert found(of, marked)["boxes"]["accuracy"]["0.3"] == 1.0


def test_a_map_lies_on_its_view() -> None:
    """The right half of the view 50 to 150 is 100 to 150, where the actor is once; its centre is 75 to 125."""
    seen = scores([[0.5, 0.5]], [[0, 5]], maps=[[LEFT_MAP[:, ::-1]] * 2], view=[[0.25, 0.0, 0.75, 1.0]])
    result = found(seen, video(tubes=(tube({2: (100.0, 0.0, 150.0, 100.0), 27: (150.0, 0.0, 200.0, 100.0)}),)))
    assert result["boxes"]["accuracy"] == every([0.5] * 4, BOXES)
    assert result["boxes_centre"]["accuracy"] == every([0.5, 0.5, 0.5, 0.0], BOXES)  # 1250 / 6250
    assert localised.centre_box((50.0, 0.0, 150.0, 100.0)) == (75.0, 25.0, 125.0, 75.0)


def test_only_frames_with_an_actor_count() -> None:
    short = video(tubes=(tube({2: LEFT}, frames=27),))
    assert found(TWO, short)["boxes"] == {
        "accuracy": every([1.0] * 4, BOXES),
        "map": every([1.0] * 4, BOXES),
        "videos": 1,
        "items": 1,
    }


@pytest.mark.parametrize("family", ["jsta", "where_when"])
def test_padding_changes_nothing(family: str) -> None:
    marked = (
        video("v", tubes=(tube({2: LEFT, 27: RIGHT}),), segments=(Segment("run", 1.0, 4.0),)),
        video("w", tubes=(tube({2: LEFT}),), segments=(Segment("run", 0.0, 1.0),)),
    )
    weights, positions = [[0.1, 0.6], [0.6, 0.1]], [[0, 5], [0, 5]]
    plain = scores(weights, positions, maps=[[LEFT_MAP] * 2] * 2)
    nothing = np.zeros_like(LEFT_MAP)
    padded = scores(
        [[*row, 0.0] for row in weights], [[*row, -1] for row in positions], maps=[[LEFT_MAP] * 2 + [nothing]] * 2
    )
    expected = found(plain, *marked, family=family)
    assert set(expected) == set(localised.KINDS)
    assert found(padded, *marked, family=family) == expected


def test_a_stride_moves_the_middle() -> None:
    """3 frames, 10 apart, from frame 0: 0 to 21 of the store, in its middle frame 10."""
    whole = scores([[1.0]], [[0]], maps=[[LEFT_MAP]])
    marked = video(tubes=(tube({10: LEFT}),))
    assert found(whole, marked, frames=100, fps=25.0, snippet=3, stride=10)["boxes"]["accuracy"]["0.3"] == 1.0
    assert found(whole, marked, frames=100, fps=25.0, snippet=3)["boxes"]["accuracy"]["0.3"] == 0.0  # frame 1


FOUR = scores([[0.1, 0.4, 0.4, 0.1]], [[0, 1, 2, 3]])
"""A frame a second: weights of [0, 1), [1, 2), ..."""


def test_intervals_beside_the_whole_video() -> None:
    """Found is [1, 3) of 4 seconds, and all of them without looking, which overlaps by half: not by more than half."""
    result = found(FOUR, video(segments=(Segment("run", 1.0, 3.0),)), frames=4, fps=1.0)
    full, half = every([1.0] * 5, TIMES), every([1.0, 1.0, 1.0, 1.0, 0.0], TIMES)
    assert result == {
        "segments": {"accuracy": full, "map": full, "videos": 1, "items": 1},
        "segments_uniform": {"accuracy": half, "map": half, "videos": 1, "items": 1},
    }
    # [2, 4) and [1, 3) have a third in common, and so have the snippets
    result = found(FOUR, video(segments=(Segment("run", 2.0, 4.0),)), frames=4, fps=1.0)
    third = every([1.0, 1.0, 1.0, 0.0, 0.0], TIMES)
    assert (result["segments"]["accuracy"], result["segments"]["map"]) == (third, third)


def test_edges_are_halfway_between_snippets_and_at_the_ends_of_the_store() -> None:
    """Middles 0.5, 2.5, 9.5 of 10 s: the last snippet has [6, 10); an action in [6, 10) is found exactly."""
    late = scores([[0.1, 0.1, 0.8]], [[0, 2, 9]])
    result = found(late, video(segments=(Segment("run", 6.0, 10.0),)), frames=10, fps=1.0)
    assert result["segments"]["map"]["0.5"] == 1.0
    shorter = found(late, video(segments=(Segment("run", 6.0, 8.0),)), frames=10, fps=1.0)
    assert [shorter["segments"]["map"][overlap] for overlap in ("0.4", "0.5")] == [1.0, 0.0]  # [6, 8) of [6, 10)


def test_what_is_found_in_disputed_action_does_not_count() -> None:
    """The surer video is attended to in a disputed interval alone; without it the precision would be 1/2."""
    two = scores([[0.4, 0.1, 0.1], [0.1, 0.4, 0.1]], [[0, 1, 2]] * 2, logits=[[0.0, 5.0], [0.0, 1.0]])
    acted = video("w", segments=(Segment("run", 1.0, 2.0),))
    disputed = video("v", segments=(Segment(None, 0.0, 1.0), Segment("run", 2.9, 3.0)))
    result = found(two, disputed, acted, frames=3, fps=1.0)
    assert result["segments"]["map"]["0.5"] == pytest.approx(
        1 / 2
    )  # the one of two that is found, surest of what counts
    certain = video("v", segments=(Segment("run", 2.9, 3.0),))
    assert found(two, certain, acted, frames=3, fps=1.0)["segments"]["map"]["0.5"] == pytest.approx(1 / 4)


def test_several_actions_in_one_video_are_found_by_class() -> None:
    """The interval that is found is looked for in both classes; it is that of the jump."""
    both = replace(video(segments=(Segment("jump", 1.0, 3.0), Segment("run", 3.5, 4.0))), labels=("jump", "run"))
    result = found(FOUR, both, frames=4, fps=1.0)
    assert result["segments"]["map"]["0.5"] == pytest.approx((1.0 + 0.0) / 2)
    assert result["segments"]["items"] == 2


def test_nothing_is_said_without_truth_or_attention() -> None:
    marked = video(segments=(Segment("run", 1.0, 3.0),), tubes=(tube({2: LEFT}),))
    assert found(FOUR, video(), frames=4, fps=1.0) == {}
    assert found(TWO, video()) == {}
    assert found(FOUR, video(segments=(Segment(None, 0.0, 1.0),)), frames=4, fps=1.0) == {}
    assert set(found(TWO, marked)) == {"boxes", "boxes_centre"}  # its weights are uniform
    padded = scores([[0.5, 0.5, 0.0], [1 / 3] * 3], [[0, 5, -1], [0, 5, 9]])
    assert found(padded, marked, replace(marked, id="w")) == {}
    assert set(found(FOUR, marked, frames=4, fps=1.0)) == {"segments", "segments_uniform"}  # it has no maps


def test_snippets_that_are_shown_as_found() -> None:
    assert localised.attended_snippets(np.array([0.1, 0.4, 0.19, 0.21])).tolist() == [False, True, False, True]
    assert not localised.attended_snippets(np.full(3, 1 / 3, np.float32)).any()
    assert not localised.attended_snippets(np.array([-0.2, -0.1])).any()


@pytest.mark.parametrize("seed", range(8))
def test_shares_are_those_of_brute_force(seed: int) -> None:
    """Random videos: frames and snippets are counted one by one, pixels and thousandths of seconds on a grid."""
    rng = np.random.default_rng(seed)
    videos = [_random_video(rng, name) for name in "vwxyz"]
    counts, fps, frames = rng.integers(2, 7, size=5), 4.0, 16
    weights, positions = np.zeros((5, 6)), np.full((5, 6), -1)
    for row, count in enumerate(counts):
        weights[row, :count] = rng.dirichlet(np.ones(count))
        positions[row, :count] = np.sort(rng.integers(frames, size=count))
    maps = rng.random((5, 6, 3, 4))
    result = found(scores(weights.tolist(), positions.tolist(), maps=maps), *videos, frames=frames, fps=fps)
    shares, windows = [], []
    for row, one in enumerate(videos):
        middles = [(position + 0.5) / fps for position in positions[row, : counts[row]]]
        for frame, first in {int(m * 25): i for i, m in reversed(list(enumerate(middles)))}.items():
            if frame < len(one.tubes[0].boxes):
                box = localised.found_box(maps[row, first].astype(np.float16), (0, 0, 200, 100), family="jsta")
                shares.append(_pixels_in_common(box, one.tubes[0].boxes[frame]))
        windows.append(_snippets_in_common(weights[row, : counts[row]], middles, one))
    for name, overlap in zip(BOXES.split(), (0.05, 0.1, 0.2, 0.3), strict=True):
        assert result["boxes"]["accuracy"][name] == pytest.approx(np.mean(np.array(shares) >= overlap))
    for name, overlap in zip(TIMES.split(), (0.1, 0.2, 0.3, 0.4, 0.5), strict=True):
        assert result["segments"]["accuracy"][name] == pytest.approx(np.mean(np.array(windows) > overlap))


def _random_video(rng: np.random.Generator, name: str) -> Video:
    corners = np.sort(rng.integers(0, 50, size=(80, 2, 2)), axis=1) * 2
    boxes = tuple((float(x0), float(y0), float(x1 + 10), float(y1 + 2)) for (x0, y0), (x1, y1) in corners)
    start, disputed = rng.uniform(0, 3, size=2)
    segments = (Segment("run", start, start + 1.0), Segment(None, disputed, disputed + 0.5))
    return video(name, segments=segments, tubes=(Tube("run", 0, boxes),))


def _pixels_in_common(box: Box | None, true: Box) -> float:
    masks: list[NDArray[np.bool_]] = []
    for one in (box, true):
        mask = np.zeros((110, 210), bool)
        if one is not None:
            x0, y0, x1, y1 = (round(value) for value in one)
            mask[y0:y1, x0:x1] = True
        masks.append(mask)
    return float((masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum())


def _snippets_in_common(weights: NDArray[Any], middles: list[float], one: Video) -> float:
    """Of the snippets attended to or annotated, those that are both; -1 where none is annotated."""
    common = whole = annotated = 0
    for weight, middle in zip(weights.tolist(), middles, strict=True):
        inside, disputed = (segment.start <= middle < segment.end for segment in one.segments)
        attended = weight / max(weights) > 0.5 and (inside or not disputed)
        common, whole = common + (attended and inside), whole + (attended or inside)
        annotated += inside
    return common / whole if annotated else -1.0
