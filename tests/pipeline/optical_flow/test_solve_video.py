"""Flow of a stream of frames: the pairs that are asked for, each as `solve` has it, read no earlier than needed."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from pipeline.optical_flow import tvl1_torch
from pipeline.optical_flow.params import TVL1Params
from pipeline.optical_flow.solve import solve, solve_video
from tests.pipeline.optical_flow.motions import endpoint_error, moved, texture


@pytest.fixture
def clip() -> np.ndarray:
    """Eight frames (8, 36, 44) of a texture under a changing pan."""
    prev = texture(36, 44)
    return np.stack([moved(prev, np.full((36, 44), 0.7 * t), np.full((36, 44), 0.05 * t * t)) for t in range(8)])


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(tvl1_torch, "pairs_at_once", lambda height, width: 3)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("step", [1, 2, 5, 7])
@pytest.mark.parametrize("backend", ["numba", "opencv"])
def test_pairs_are_those_of_solve(clip, backend, step, reverse):
    flows = list(solve_video(iter(clip), backend=backend, step=step, reverse=reverse))
    assert len(flows) == len(clip) - step
    for t, flow in enumerate(flows):
        first, second = (t + step, t) if reverse else (t, t + step)
        np.testing.assert_array_equal(flow, solve(clip[first], clip[second], backend=backend))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("step", [1, 2, 4, 7])
@pytest.mark.usefixtures("small_batches")
def test_batches_of_pairs_are_those_of_solve(clip, step, reverse):
    flows = list(solve_video(iter(clip), backend="torch", step=step, reverse=reverse))
    assert len(flows) == len(clip) - step
    for t, flow in enumerate(flows):
        first, second = (t + step, t) if reverse else (t, t + step)
        assert endpoint_error(flow, solve(clip[first], clip[second], backend="torch")).mean() <= 1e-3


@pytest.mark.parametrize("variant", ["opencv-cuda", "opencv24-cuda"])
def test_parameters_reach_the_solver(clip, variant):
    params = TVL1Params(variant=variant)
    flows = solve_video(clip, backend="numba", params=params)
    for flow, (prev, next) in zip(flows, pairwise(clip), strict=True):
        np.testing.assert_array_equal(flow, solve(prev, next, backend="numba", params=params))


def test_backward_flow_is_the_opposite_of_forward_flow(clip):
    there = np.stack(list(solve_video(clip, step=2)))
    back = np.stack(list(solve_video(clip, step=2, reverse=True)))
    inside = (..., slice(10, -10), slice(10, -10))
    assert there[inside][:, 0].mean() == pytest.approx(1.4, abs=0.1)
    assert back[inside][:, 0].mean() == pytest.approx(-1.4, abs=0.1)


@pytest.mark.parametrize(("step", "needed"), [(1, 2), (3, 4)])
def test_one_by_one_no_frame_is_read_ahead(clip, step, needed):
    taken = []

    def frames():
        for frame in clip:
            taken.append(len(taken))
            yield frame

    flows = solve_video(frames(), backend="numba", step=step)
    assert taken == []
    next(flows)
    assert taken == list(range(needed))
    next(flows)
    assert taken == list(range(needed + 1))


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize(("count", "step"), [(0, 1), (1, 1), (3, 3), (2, 5)])
def test_short_videos_have_no_flow(clip, backend, count, step):
    assert list(solve_video(clip[:count], backend=backend, step=step)) == []


@pytest.mark.parametrize("change_at", [1, 3])
def test_a_video_whose_size_changes_is_refused_at_that_frame(clip, change_at):
    flows = solve_video([*clip[:change_at], clip[0][:, :-1]], backend="numba")
    for _ in range(change_at - 1):
        next(flows)
    with pytest.raises(ValueError, match=f"frame {change_at} has shape"):
        next(flows)


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_bad_frames_are_refused(clip, backend):
    with pytest.raises(ValueError, match="frame 0 has shape"):
        next(solve_video([np.zeros((20, 30, 3), np.uint8)], backend=backend))
    with pytest.raises(ValueError, match="frame 1 has shape"):
        next(solve_video([clip[0], clip[0][:-1]], backend=backend))
    with pytest.raises(ValueError, match="frame 1 holds values"):
        next(solve_video([clip[0], clip[1] * np.float32(2)], backend=backend))


@pytest.mark.parametrize("step", [0, -1, 1.5, True, None])
def test_bad_steps_are_refused(clip, step):
    with pytest.raises(ValueError, match="the step is"):
        solve_video(clip, step=step)
