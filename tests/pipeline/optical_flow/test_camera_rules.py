"""Each rule by which a camera's motion is believed, and dense_flow's thresholds, on flow and points made by hand.

No solver runs: the flow is stated, so that which side of a rule a case is on is known exactly.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.optical_flow.camera import (
    NO_KEYPOINTS,
    CameraMotion,
    CameraParams,
    Keypoints,
    Mode,
    camera_motion,
    find_keypoints,
)
from pipeline.optical_flow.solve import choose_solver
from pipeline.optical_flow.warped import WarpedFlow, warped_flow
from tests.pipeline.optical_flow.motions import grey_clip, texture

WIDTH, HEIGHT = 200, 150
GREY = np.full((24, 32), 90, np.uint8)
Frame = NDArray[np.uint8]


def pan(frame: Frame, x: int, y: int) -> Frame:
    """The frame moved by whole pixels; what leaves it comes in on the other side."""
    return np.roll(frame, (y, x), axis=(0, 1))


def constant(x: float, y: float, shape: tuple[int, ...] = (HEIGHT, WIDTH)) -> NDArray[np.float32]:
    return np.stack([np.full(shape, x, np.float32), np.full(shape, y, np.float32)])


def motion(
    prev: Frame, next: Frame, flow: NDArray[np.float32], *, mode: Mode = "correct", **options: Any
) -> CameraMotion:
    keypoints = {"before": NO_KEYPOINTS, "after": NO_KEYPOINTS} | options
    return camera_motion(prev, next, flow, params=CameraParams(mode=mode), **keypoints)


def stands(found: CameraMotion) -> bool:
    return bool((found.homography == np.eye(3)).all())


# --- what a camera can do --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("zoom", "believed"), [(1.9, True), (2.1, False), (0.55, True), (0.45, False)])
def test_a_camera_does_not_change_the_area_fourfold(zoom: float, believed: bool) -> None:
    """Every match agrees and the warped frame is right, so that nothing else speaks against it."""
    prev = texture(HEIGHT, WIDTH, blur_px=4)
    centre = np.array([WIDTH - 1, HEIGHT - 1]) / 2
    matrix = np.c_[zoom * np.eye(2), centre - zoom * centre]
    next = cv2.warpAffine(prev, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    flow = np.stack([(zoom - 1) * (x - centre[0]), (zoom - 1) * (y - centre[1])]).astype(np.float32)
    found = motion(prev, next, flow)
    assert found.inliers > 50
    assert stands(found) is not believed


@pytest.mark.parametrize(("pan_px", "believed"), [(0.09375, False), (0.125, True)])
def test_less_than_a_tenth_of_a_pixel_is_no_motion(pan_px: float, believed: bool) -> None:
    """Pans by whole 32nds of a pixel, which is how finely OpenCV warps, of hills steep enough to show them."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] * (2 * np.pi / 16)
    prev = np.rint(127 + 60 * (np.sin(x) + np.sin(y))).astype(np.uint8)
    next = cv2.warpAffine(prev, np.array([[1, 0, pan_px], [0, 1, 0]]), (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
    assert stands(motion(prev, next, constant(pan_px, 0))) is not believed


@pytest.mark.parametrize(("share", "believed"), [(0.08, False), (0.2, True)])
def test_a_few_pixels_that_come_nearer_are_not_the_camera(share: float, believed: bool) -> None:
    """An object on a wall without texture: no pixel of the wall comes nearer or gets farther."""
    side = round(float(np.sqrt(share * HEIGHT * WIDTH)))
    frames = np.full((2, HEIGHT, WIDTH), 90, np.uint8)
    frames[0, 40 : 40 + side, 60 : 60 + side] = frames[1, 40 : 40 + side, 63 : 63 + side] = texture(side, side)
    found = motion(*frames, constant(3, 0))
    assert found.inliers > 26
    assert stands(found) is not believed


def test_a_tripod_stands(shared_data: Any) -> None:
    """Two people shake hands; before there was a margin, the camera moved in a third of such pairs."""
    frames = grey_clip(shared_data / "actions/ut_interaction_set1/17_3_0.avi", 0, 31)
    small = [cv2.resize(frame, (128, 96), interpolation=cv2.INTER_AREA) for frame in frames]
    moved = [pair.motion_px > 0 for pair in warped_flow(small, choose_solver())]
    assert np.mean(moved) <= 0.1


def test_corners_keep_to_the_mask() -> None:
    prev = texture(HEIGHT, WIDTH)
    next, flow = pan(prev, 3, 0), constant(3, 0)
    everywhere = motion(prev, next, flow)
    left = np.broadcast_to(np.arange(WIDTH) < WIDTH // 2, prev.shape)
    assert motion(prev, next, flow, mask=left).inliers < 0.7 * everywhere.inliers
    nowhere = motion(prev, next, flow, mask=np.zeros(prev.shape, bool))
    assert nowhere.inliers == 0
    assert stands(nowhere)
    assert not stands(everywhere)


# --- dense_flow ------------------------------------------------------------------------------------------------------


def keypoints(count: int, *, moved: tuple[float, float]) -> dict[str, Keypoints]:
    """Points 80 px apart, in a frame of 900x600, that have nothing in common, and the same ones moved."""
    points = np.stack(np.meshgrid(np.arange(10) * 80 + 60, np.arange(7) * 80 + 60), -1).reshape(-1, 2)[:count]
    descriptors = 100 * np.eye(128, dtype=np.float32)[:count]
    before = points.astype(np.float32)
    after = before + np.array(moved, np.float32)
    return {"before": Keypoints(before, descriptors), "after": Keypoints(after, descriptors)}


@pytest.mark.parametrize(
    ("count", "moved", "found"), [(50, (3, 2), False), (51, (3, 2), True), (60, (24, 2), True), (60, (26, 2), False)]
)
def test_dense_flow_needs_51_matches_within_25_px(count: int, moved: tuple[float, float], found: bool) -> None:
    """Without texture there are no corners: keypoints alone count."""
    blank = np.full((600, 900), 90, np.uint8)
    result = motion(blank, blank, constant(0, 0, blank.shape), mode="dense_flow", **keypoints(count, moved=moved))
    assert stands(result) is not found
    if found:
        assert result.homography[:2, 2] == pytest.approx(moved, abs=1e-3)


def test_dense_flow_takes_corners_3_px_apart() -> None:
    """81 dots, 6 px apart: half of them would be left at the distance of the correct mode, too few for dense_flow."""
    prev = np.zeros((HEIGHT, WIDTH), np.uint8)
    for y in range(40, 94, 6):
        for x in range(60, 114, 6):
            prev[y : y + 2, x : x + 2] = 255
    result = motion(prev, pan(prev, 2, 1), constant(2, 1), mode="dense_flow")
    assert result.inliers >= 81
    assert result.homography[:2, 2] == pytest.approx([2, 1], abs=1e-3)


def test_dense_flow_fills_six_columns_and_rows(rng: np.random.Generator) -> None:
    """It takes a pixel of `next` if 5 < x < width - 1 - 5, and y likewise; others stay as in `prev`."""
    prev, next = rng.integers(0, 256, (2, HEIGHT, WIDTH), np.uint8)
    result = motion(prev, next, constant(4, -3), mode="dense_flow")
    assert result.homography[:2, 2] == pytest.approx([4, -3], abs=1e-4)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + np.array([-3, 4])[:, None, None]
    taken = (x > 5) & (x < WIDTH - 1 - 5) & (y > 5) & (y < HEIGHT - 1 - 5)
    expected = np.where(taken, next[y.clip(0, HEIGHT - 1), x.clip(0, WIDTH - 1)], prev)
    np.testing.assert_array_equal(result.warped, expected)


# --- bad input -------------------------------------------------------------------------------------------------------


def warped(frames: Any, **options: Any) -> list[WarpedFlow]:
    return list(warped_flow(frames, choose_solver(backend="numba"), **options))


def test_wrong_frames_are_refused(rng: np.random.Generator) -> None:
    frame, flow = rng.integers(0, 256, (20, 30), np.uint8), np.zeros((2, 20, 30), np.float32)
    found = find_keypoints(frame, params=CameraParams())
    motion = partial(camera_motion, before=found, after=found, params=CameraParams())
    with pytest.raises(ValueError, match=r"next is float32 of shape \(20, 30\); camera motion needs \(H, W\) uint8"):
        motion(frame, frame.astype(np.float32), flow)
    with pytest.raises(ValueError, match="not of one size"):
        motion(frame, frame[:-1], flow)
    with pytest.raises(ValueError, match="not of one size"):
        motion(frame, frame, flow[:, :-1])


@pytest.mark.parametrize(
    ("frames", "sentence"),
    [
        ([GREY, GREY.astype(np.float32)], "frame 1 has dtype float32; warped flow needs uint8"),
        ([GREY.astype(np.int32)], "frame 0 has dtype int32"),
        ([GREY, np.zeros((24, 32, 3), np.uint8)], r"frame 1 has shape \(24, 32, 3\)"),
        ([GREY, GREY, GREY[:-1]], r"frame 2 has shape \(23, 32\)"),
        ([GREY[:2]], "frame 0 is 32x2 px"),
    ],
)
def test_bad_frames_of_warped_flow_are_named(frames: list[Frame], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        warped(frames)
    with pytest.raises(ValueError, match=sentence):
        list(warped_flow(frames, choose_solver(backend="numba")._replace(pairs_at_once=lambda height, width: 4)))


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        ([None, np.ones((24, 31), bool)], r"the mask of frame 1 is bool of shape \(24, 31\); it must be bool \(24, 32"),
        ([np.ones((24, 32), np.uint8), None], "the mask of frame 0 is uint8"),
        ([None], "there is no mask for frame 1"),
        ([None, None, None], "there are more masks than the 2 frames"),
    ],
)
def test_bad_masks_are_named(masks: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        warped([GREY, GREY], masks=masks)


@pytest.mark.parametrize("step", [0, 1.5, True, "1"])
def test_bad_steps_are_refused_before_a_frame_is_read(step: Any) -> None:
    with pytest.raises(ValueError, match="the step is .*; it must be a whole number of 1 or more"):
        warped_flow([GREY], choose_solver(backend="numba"), step=step)
