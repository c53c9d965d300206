"""TV-L1 flow against OpenCV, against ground truth and against motions known in closed form."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.optical_flow.solve import TVL1Params, jobs_share_a_gpu, solve, solve_video
from tests.pipeline.optical_flow.motions import endpoint_error, grey_clip, moved, read_flo, texture

OURS = ("numba", "torch")  # triton, which needs CUDA or an interpreter, has a test file of its own
MEAN_DIFFERENCE_PX = 0.06  # what all backends keep to; numba, whose values should not move, keeps to 0.02

# --- agreement with OpenCV -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width"),
    [(96, 128), (61, 83), (16, 16), (17, 47), (40, 21), (20, 20)],
    ids=lambda side: str(side),
)
@pytest.mark.parametrize("backend", OURS)
def test_agrees_with_opencv_on_synthetic_pairs(backend, height, width):
    prev = texture(height, width, seed=height)
    y, x = np.mgrid[:height, :width]
    next = moved(prev, 1.5 + np.sin(y / 9), 0.8 * np.cos(x / 7))
    difference = endpoint_error(solve(prev, next, backend=backend), solve(prev, next, backend="opencv"))
    assert difference.mean() <= 0.02
    assert np.quantile(difference, 0.99) <= 0.25


@settings(max_examples=25, deadline=None)
@given(backend=st.sampled_from(OURS), height=st.integers(3, 40), width=st.integers(3, 40), seed=st.integers(0, 1000))
def test_agrees_with_opencv_at_any_size(backend, height, width, seed):
    prev = texture(height, width, seed=seed, blur_px=1.0)
    next = moved(prev, np.full((height, width), 0.6), np.full((height, width), -0.4))
    difference = endpoint_error(solve(prev, next, backend=backend), solve(prev, next, backend="opencv"))
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
@pytest.mark.parametrize("backend", OURS)
def test_every_parameter_means_what_it_means_in_opencv(backend, changed):
    prev = texture(72, 90)
    next = moved(prev, np.full(prev.shape, 2.3), np.full(prev.shape, -1.2))
    params = TVL1Params(**changed)
    ours = solve(prev, next, backend=backend, params=params)
    difference = endpoint_error(ours, solve(prev, next, backend="opencv", params=params)).mean()
    assert difference <= (0.02 if backend == "numba" else MEAN_DIFFERENCE_PX)
    assert np.abs(ours - solve(prev, next, backend=backend)).max() > 1e-3, "the parameter changes nothing here"


@pytest.mark.parametrize("first", [0, 40], ids=["still", "moving"])
def test_agrees_with_opencv_on_a_real_clip(shared_data, first):
    frames = grey_clip(shared_data / "clips/ucf101/v_ApplyEyeMakeup_g01_c01.avi", first, 3)
    for prev, next in pairwise(frames):
        opencv = solve(prev, next, backend="opencv")
        assert endpoint_error(solve(prev, next, backend="numba"), opencv).mean() <= 0.02
    assert endpoint_error(solve(prev, next, backend="torch"), opencv).mean() <= MEAN_DIFFERENCE_PX


# --- ground truth ----------------------------------------------------------------------------------------------------


def assert_as_accurate_as_opencv(prev: np.ndarray, next: np.ndarray, truth: np.ndarray) -> None:
    known = np.abs(truth).max(axis=0) < 1e6
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


# --- what goes in and out --------------------------------------------------------------------------------------------


@pytest.fixture
def clip() -> np.ndarray:
    """Six frames (6, 48, 60) of a texture under a changing pan."""
    prev = texture(48, 60)
    steps = [moved(prev, np.full(prev.shape, 0.7 * t), np.full(prev.shape, 0.1 * t * t)) for t in range(6)]
    return np.stack(steps)


@pytest.mark.parametrize("backend", OURS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_input_equals_uint8(clip, backend, dtype):
    expected = solve(clip[0], clip[1], backend=backend)
    flow = solve(clip[0].astype(dtype), clip[1].astype(dtype), backend=backend)
    np.testing.assert_array_equal(flow, expected)
    assert expected.dtype == np.float32


@pytest.mark.parametrize("backend", OURS)
def test_views_of_any_layout_equal_copies(clip, backend):
    expected = solve(clip[0, ::-1, ::2].copy(), clip[1, ::-1, ::2].copy(), backend=backend)
    np.testing.assert_array_equal(solve(clip[0, ::-1, ::2], clip[1, ::-1, ::2], backend=backend), expected)


@pytest.mark.parametrize("backend", ["numba", "opencv"])
def test_batch_and_video_equal_pairs(clip, backend):
    pairs = np.stack([solve(a, b, backend=backend) for a, b in pairwise(clip)])
    np.testing.assert_array_equal(solve(clip[:-1], clip[1:], backend=backend), pairs)
    np.testing.assert_array_equal(np.stack(list(solve_video(iter(clip), backend=backend))), pairs)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, so auto is triton")
def test_auto_is_numba_without_a_gpu(clip):
    np.testing.assert_array_equal(solve(clip[0], clip[1]), solve(clip[0], clip[1], backend="numba"))


def test_threads_give_the_same_flow(clip):
    on_cpu = partial(solve, backend="numba")
    expected = [on_cpu(a, b) for a, b in pairwise(clip)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            flows = pool.map(on_cpu, clip[:-1], clip[1:])
            assert all(np.array_equal(flow, wanted) for flow, wanted in zip(flows, expected, strict=True))


@pytest.mark.parametrize("backend", OURS)
def test_inputs_stay_as_they_are(clip, backend):
    before = clip.astype(np.float32)
    given = before.copy()
    solve(given[0], given[1], backend=backend)
    np.testing.assert_array_equal(given, before)


def test_importing_the_entry_loads_no_solver(root):
    code = "import sys, pipeline.optical_flow.solve; print([m for m in ('numba', 'cv2', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("backend", "others"), [("numba", ["torch", "cv2"]), ("torch", ["numba", "cv2"])])
def test_a_backend_loads_no_other(root, backend, others):
    code = (
        "import sys, numpy; from pipeline.optical_flow.solve import solve\n"
        f"zeros = numpy.zeros((20, 20)); solve(zeros, zeros, backend={backend!r})\n"
        f"print([module for module in {others} if module in sys.modules])"
    )
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


def test_parameters_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="params is None; give TVL1Params"):
        solve(GREY, GREY, params=None)


def test_opencv_without_its_contributed_modules_is_refused(monkeypatch):
    monkeypatch.delattr(cv2, "optflow")
    with pytest.raises(ValueError, match="install opencv-contrib-python-headless, or use 'numba'"):
        solve(GREY, GREY, backend="opencv")


def test_numpy_numbers_are_numbers():
    given = TVL1Params(tau=np.float32(0.25), epsilon=np.float64(0.02), nscales=np.int64(3), warps=np.uint8(2))
    assert given == TVL1Params(epsilon=0.02, nscales=3, warps=2)
    assert type(given.tau) is float
    assert type(given.nscales) is int
    with pytest.raises(ValueError, match="nscales is 3.0; it must be an integer"):
        TVL1Params(nscales=np.float32(3))


@pytest.mark.parametrize("backend", OURS)
def test_frames_that_cannot_be_written_to_are_taken_without_a_warning(clip, backend, recwarn):
    frames = clip[:2].astype(np.float32)
    frames.flags.writeable = False
    np.testing.assert_array_equal(solve(*frames, backend=backend), solve(clip[0], clip[1], backend=backend))
    assert not recwarn.list


# --- what the workflow asks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "triton", "cuda", "promised", "devices", "share"),
    [
        ("auto", True, True, False, ["nvidia3", "nvidiactl"], True),
        ("auto", True, True, False, ["nvidiactl"], False),
        ("auto", True, False, False, ["nvidia0"], False),
        ("auto", False, True, False, ["nvidia0"], False),
        ("auto", False, False, True, [], False),
        ("auto", True, False, True, [], True),
        ("torch", False, True, False, ["nvidia0"], True),
        ("torch", False, False, False, [], False),
        ("numba", True, True, True, ["nvidia0"], False),
        ("opencv", True, True, True, ["nvidia0"], False),
    ],
)
def test_jobs_share_a_gpu_where_they_will_solve_on_one(
    monkeypatch, tmp_path, backend, triton, cuda, promised, devices, share
):
    """Devices stand in for those that are not here, as does torch's answer."""
    for name in devices:
        (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, "triton", sys.modules[__name__] if triton else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert jobs_share_a_gpu(backend, promised=promised, devices=tmp_path) is share


@pytest.mark.parametrize("changed", [{"gamma": 0.1}, {"median_filtering": 3}])
def test_what_only_opencv_has_is_refused_by_the_others_and_done_by_opencv(changed):
    params = TVL1Params(**changed)
    for backend in ("auto", "numba", "torch", "triton"):
        with pytest.raises(ValueError, match="backend='opencv'"):
            solve(GREY, GREY, backend=backend, params=params)
    assert not solve(GREY, GREY, backend="opencv", params=params).any()


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
