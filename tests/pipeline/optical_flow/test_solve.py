"""TV-L1 flow against OpenCV, against ground truth and against motions known in closed form."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.optical_flow.solve import TVL1Params, solve, solve_video

MARGIN_PX = 16  # analytic motions are compared away from the frame, across which content enters and leaves


def texture(height: int, width: int, *, seed: int = 0, blur_px: float = 2.0) -> np.ndarray:
    """Smooth random grey texture over the whole range 0-255, uint8."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), blur_px) + 2 * cv2.GaussianBlur(noise, (0, 0), 3 * blur_px)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def moved(frame: np.ndarray, flow_x: np.ndarray, flow_y: np.ndarray) -> np.ndarray:
    """The frame after motion given where it arrives: next(p) = frame(p - flow(p))."""
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
    at_x, at_y = (x - flow_x).astype(np.float32), (y - flow_y).astype(np.float32)
    return cv2.remap(frame, at_x, at_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def affine_pair(
    matrix: np.ndarray, *, height: int = 160, width: int = 200
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pair under p' = matrix p about the centre, and its exact flow p' - p at the pixels of the first frame."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    points = np.stack([x - width / 2, y - height / 2])
    forward = np.einsum("ij,jhw->ihw", matrix, points) - points
    arriving = points - np.einsum("ij,jhw->ihw", np.linalg.inv(matrix), points)
    prev = texture(height, width)
    return prev, moved(prev, arriving[0], arriving[1]), forward


def endpoint_error(flow: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.hypot(flow[0] - truth[0], flow[1] - truth[1])


def inner_error(flow: np.ndarray, truth: np.ndarray) -> float:
    inside = (slice(MARGIN_PX, -MARGIN_PX), slice(MARGIN_PX, -MARGIN_PX))
    return float(endpoint_error(flow, truth)[inside].mean())


def read_flo(path: Path) -> np.ndarray:
    """Middlebury .flo -> (2, H, W); unknown flow has components above 1e9."""
    raw = path.read_bytes()
    assert raw[:4] == b"PIEH"
    width, height = np.frombuffer(raw, "<i4", 2, 4)
    return np.moveaxis(np.frombuffer(raw, "<f4", 2 * width * height, 12).reshape(height, width, 2), -1, 0)


def grey_clip(path: Path, first: int, count: int) -> list[np.ndarray]:
    """Frames [first, first + count) in grey at 340x256."""
    video = cv2.VideoCapture(str(path))
    frames = [video.read()[1] for _ in range(first + count)][first:]
    video.release()
    return [cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), (340, 256)) for frame in frames]


# --- agreement with OpenCV -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width"),
    [(96, 128), (61, 83), (16, 16), (17, 47), (40, 21), (20, 20)],
    ids=lambda side: str(side),
)
def test_agrees_with_opencv_on_synthetic_pairs(height, width):
    prev = texture(height, width, seed=height)
    y, x = np.mgrid[:height, :width]
    next = moved(prev, 1.5 + np.sin(y / 9), 0.8 * np.cos(x / 7))
    difference = endpoint_error(solve(prev, next), solve(prev, next, backend="opencv"))
    assert difference.mean() <= 0.02
    assert np.quantile(difference, 0.99) <= 0.25


@settings(max_examples=25, deadline=None)
@given(height=st.integers(3, 40), width=st.integers(3, 40), seed=st.integers(0, 1000))
def test_agrees_with_opencv_at_any_size(height, width, seed):
    prev = texture(height, width, seed=seed, blur_px=1.0)
    next = moved(prev, np.full((height, width), 0.6), np.full((height, width), -0.4))
    difference = endpoint_error(solve(prev, next), solve(prev, next, backend="opencv"))
    # the median: where content enters a small frame, OpenCV's own flow jumps by pixels when grey values change by 1e-4
    assert np.median(difference) <= 0.03


@pytest.mark.parametrize(
    "changed",
    [
        {"tau": 0.1},
        {"lambda_": 0.05},
        {"theta": 0.5},
        {"nscales": 2},
        {"warps": 2},
        {"epsilon": 0.001},
        {"inner_iterations": 7, "outer_iterations": 3},
        {"scale_step": 0.5},
        {"median_filtering": 1},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_parameter_means_what_it_means_in_opencv(changed):
    prev = texture(72, 90)
    next = moved(prev, np.full(prev.shape, 2.3), np.full(prev.shape, -1.2))
    params = TVL1Params(**changed)
    ours = solve(prev, next, params=params)
    assert endpoint_error(ours, solve(prev, next, backend="opencv", params=params)).mean() <= 0.02
    assert np.abs(ours - solve(prev, next)).max() > 1e-3, "the parameter changes nothing here"


@pytest.mark.parametrize("first", [0, 40], ids=["still", "moving"])
def test_agrees_with_opencv_on_a_real_clip(shared_data, first):
    frames = grey_clip(shared_data / "clips/ucf101/v_ApplyEyeMakeup_g01_c01.avi", first, 4)
    for prev, next in pairwise(frames):
        difference = endpoint_error(solve(prev, next), solve(prev, next, backend="opencv"))
        assert difference.mean() <= 0.02


# --- ground truth ----------------------------------------------------------------------------------------------------


def assert_as_accurate_as_opencv(prev: np.ndarray, next: np.ndarray, truth: np.ndarray) -> None:
    known = np.abs(truth).max(axis=0) < 1e9
    errors = {
        backend: endpoint_error(solve(prev, next, backend=backend), truth)[known].mean()
        for backend in ("numba", "opencv")
    }
    assert errors["numba"] <= 1.02 * errors["opencv"], errors


def middlebury(shared_data: Path, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    folder = shared_data / "flow/middlebury" / name
    prev, next = (cv2.imread(str(folder / f"frame{i}.png"), cv2.IMREAD_GRAYSCALE) for i in (10, 11))
    return prev, next, read_flo(folder / "flow10.flo")


@pytest.mark.parametrize("name", ["RubberWhale", "Venus", pytest.param("Grove2", marks=pytest.mark.slow)])
def test_middlebury_truth(shared_data, name):
    assert_as_accurate_as_opencv(*middlebury(shared_data, name))


@pytest.mark.parametrize("number", ["0000001", pytest.param("0000003", marks=pytest.mark.slow)])
def test_flying_chairs_truth(shared_data, number):
    folder = shared_data / "flow/flyingchairs"
    prev, next = (cv2.imread(str(folder / f"{number}-img{i}.ppm"), cv2.IMREAD_GRAYSCALE) for i in (0, 1))
    assert_as_accurate_as_opencv(prev, next, read_flo(folder / f"{number}-gt.flo"))


@pytest.mark.parametrize(("name", "dx", "dy"), [("ShiftR2", 2, 0), ("ShiftR5U5", 5, -5)])
def test_a_shifted_centre(shared_data, name, dx, dy):
    """The middle of a still frame moves by whole pixels."""
    folder = shared_data / "flow/shift"
    prev, next = (cv2.imread(str(folder / f"{frame}.png"), cv2.IMREAD_GRAYSCALE) for frame in ("Shift0", name))
    rows, columns = np.nonzero(prev != next)
    flow = solve(prev, next)
    inside = flow[:, rows.min() + 10 : rows.max() - 9, columns.min() + 10 : columns.max() - 9]
    assert np.median(inside[0]) == pytest.approx(dx, abs=0.05)
    assert np.median(inside[1]) == pytest.approx(dy, abs=0.05)
    assert np.median(np.abs(flow[:, :30])) < 0.01


# --- motions known in closed form ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dx", "dy"), [(3.0, 0.0), (0.0, -2.0), (1.5, 2.25), (-6.0, 4.0)])
def test_translation(dx, dy):
    prev = texture(160, 200)
    flow = solve(prev, moved(prev, np.full(prev.shape, dx), np.full(prev.shape, dy)))
    truth = np.broadcast_to(np.array([dx, dy])[:, None, None], flow.shape)
    assert inner_error(flow, truth) < 0.15


def test_zoom():
    prev, next, truth = affine_pair(np.diag([1.03, 1.03]))
    assert inner_error(solve(prev, next), truth) < 0.12


def test_rotation():
    angle = np.deg2rad(2)
    prev, next, truth = affine_pair(np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]))
    assert inner_error(solve(prev, next), truth) < 0.12


def test_channel_zero_is_x():
    prev = texture(64, 80)
    flow = solve(prev, np.roll(prev, 2, axis=1))
    assert flow.shape == (2, 64, 80)
    assert np.median(flow[0]) == pytest.approx(2, abs=0.1)
    assert np.median(flow[1]) == pytest.approx(0, abs=0.1)


def test_no_motion_is_exactly_zero():
    frame = texture(50, 70)
    assert not solve(frame, frame).any()


@pytest.mark.parametrize("values", [(0, 0), (255, 255), (10, 200)])
def test_constant_frames_have_no_flow(values):
    prev, next = (np.full((33, 45), value, np.uint8) for value in values)
    assert not solve(prev, next).any()


@pytest.mark.parametrize("backend", ["numba", "opencv"])
def test_unrelated_frames_give_finite_flow(backend, rng):
    prev, next = rng.integers(0, 256, (2, 37, 53)).astype(np.uint8)
    assert np.isfinite(solve(prev, next, backend=backend)).all()


# --- what goes in and out --------------------------------------------------------------------------------------------


@pytest.fixture
def clip() -> np.ndarray:
    """Six frames (6, 48, 60) of a texture under a changing pan."""
    prev = texture(48, 60)
    steps = [moved(prev, np.full(prev.shape, 0.7 * t), np.full(prev.shape, 0.1 * t * t)) for t in range(6)]
    return np.stack(steps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_input_equals_uint8(clip, dtype):
    expected = solve(clip[0], clip[1])
    np.testing.assert_array_equal(solve(clip[0].astype(dtype), clip[1].astype(dtype)), expected)
    assert expected.dtype == np.float32


def test_views_of_any_layout_equal_copies(clip):
    expected = solve(clip[0, ::-1, ::2].copy(), clip[1, ::-1, ::2].copy())
    np.testing.assert_array_equal(solve(clip[0, ::-1, ::2], clip[1, ::-1, ::2]), expected)


@pytest.mark.parametrize("backend", ["numba", "opencv"])
def test_batch_and_video_equal_pairs(clip, backend):
    pairs = np.stack([solve(a, b, backend=backend) for a, b in pairwise(clip)])
    np.testing.assert_array_equal(solve(clip[:-1], clip[1:], backend=backend), pairs)
    np.testing.assert_array_equal(np.stack(list(solve_video(iter(clip), backend=backend))), pairs)


def test_auto_is_numba(clip):
    np.testing.assert_array_equal(solve(clip[0], clip[1]), solve(clip[0], clip[1], backend="numba"))


def test_threads_give_the_same_flow(clip):
    expected = [solve(a, b) for a, b in pairwise(clip)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            flows = pool.map(solve, clip[:-1], clip[1:])
            assert all(np.array_equal(flow, wanted) for flow, wanted in zip(flows, expected, strict=True))


def test_inputs_stay_as_they_are(clip):
    before = clip.astype(np.float32)
    given = before.copy()
    solve(given[0], given[1])
    np.testing.assert_array_equal(given, before)


def test_video_is_lazy_and_short_videos_have_no_flow(clip):
    taken = []

    def frames():
        for frame in clip:
            taken.append(len(taken))
            yield frame

    flows = solve_video(frames())
    assert taken == []
    next(flows)
    assert taken == [0, 1]
    assert list(solve_video([])) == []
    assert list(solve_video([clip[0]])) == []


def test_importing_the_entry_loads_no_solver(root):
    code = "import sys, pipeline.optical_flow.solve; print([m for m in ('numba', 'cv2', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- bad input -------------------------------------------------------------------------------------------------------

GREY = np.zeros((20, 30), np.uint8)


@pytest.mark.parametrize(
    ("prev", "next", "message"),
    [
        (GREY, np.zeros((20, 31), np.uint8), "one shape"),
        (np.zeros((2, 20, 30), np.uint8), GREY, "one shape"),
        (np.zeros(20, np.uint8), np.zeros(20, np.uint8), "grey frames"),
        (np.zeros((1, 1, 20, 30), np.uint8), np.zeros((1, 1, 20, 30), np.uint8), "grey frames"),
        (np.zeros((20, 30, 3), np.uint8)[:, :, :2], np.zeros((20, 30, 2), np.uint8), "at least 3x3"),
        (np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8), "at least 3x3"),
        (np.zeros((2, 30), np.uint8), np.zeros((2, 30), np.uint8), "at least 3x3"),
        (np.zeros((0, 0), np.uint8), np.zeros((0, 0), np.uint8), "at least 3x3"),
        (GREY.astype(np.int32), GREY.astype(np.int32), "dtype int32"),
        (GREY, GREY.astype(bool), "next has dtype bool"),
        (np.full((20, 30), np.nan), GREY, "NaN"),
        (GREY, np.full((20, 30), np.inf), "next holds values"),
        (np.full((20, 30), 256.0), GREY, "outside 0-255"),
        (np.full((20, 30), -1.0), GREY, "outside 0-255"),
    ],
)
def test_bad_frames_are_refused(prev, next, message):
    with pytest.raises(ValueError, match=message):
        solve(prev, next)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="backend 'cuda'"):
        solve(GREY, GREY, backend="cuda")
    with pytest.raises(ValueError, match="algorithm 'farneback'"):
        solve(GREY, GREY, algorithm="farneback")
    with pytest.raises(ValueError, match="backend 'cuda'"):
        solve_video([], backend="cuda")


@pytest.mark.parametrize("changed", [{"gamma": 0.1}, {"median_filtering": 3}])
def test_what_only_opencv_has_is_refused_by_numba_and_done_by_opencv(changed):
    params = TVL1Params(**changed)
    with pytest.raises(ValueError, match="backend='opencv'"):
        solve(GREY, GREY, params=params)
    assert not solve(GREY, GREY, backend="opencv", params=params).any()


@pytest.mark.parametrize("change_at", [1, 3])
def test_a_video_whose_size_changes_is_refused_at_that_frame(clip, change_at):
    frames = [*clip[:change_at], clip[0][:, :-1]]
    flows = solve_video(frames)
    for _ in range(change_at - 1):
        next(flows)
    with pytest.raises(ValueError, match=f"frame {change_at} has shape"):
        next(flows)


def test_a_video_of_colour_frames_is_refused():
    with pytest.raises(ValueError, match="frame 0 has shape"):
        next(solve_video([np.zeros((20, 30, 3), np.uint8)]))


@pytest.mark.parametrize(
    "wrong",
    [
        {"tau": 0},
        {"tau": float("nan")},
        {"lambda_": -0.1},
        {"theta": "0.3"},
        {"nscales": 0},
        {"nscales": 2.0},
        {"warps": 0},
        {"warps": True},
        {"epsilon": -1},
        {"epsilon": float("inf")},
        {"inner_iterations": 0},
        {"outer_iterations": 1.5},
        {"scale_step": 1},
        {"scale_step": 0},
        {"gamma": -1},
        {"median_filtering": 4},
        {"median_filtering": 0},
    ],
)
def test_bad_parameters_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"parameter {name} is"):
        TVL1Params(**wrong)
