"""Camera motion and warped flow on rendered scenes whose camera and object motions are known.

A scene is a large texture at twice the resolution; a view of it through a homography is drawn by cubic interpolation,
which is not how the code under test warps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, get_args

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.config import WarpedFlowConfig
from pipeline.optical_flow.camera import (
    DEFECTS,
    NO_KEYPOINTS,
    CameraParams,
    Defect,
    Mode,
    camera_motion,
    find_keypoints,
    mean_displacement_px,
    warp_into,
)
from pipeline.optical_flow.pairs import spaced_pairs
from pipeline.optical_flow.solve import Solver, choose_solver, solve
from pipeline.optical_flow.warped import WarpedFlow, warped_flow

WIDTH, HEIGHT = 340, 256
MARGIN = 60
OBJECT = (slice(90, 170), slice(140, 220))
"""Rows and columns of the object in the first frame."""
CENTRE = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])


def similarity(
    *, zoom: float = 1.0, degrees: float = 0.0, pan: tuple[float, float] = (0.0, 0.0)
) -> NDArray[np.float64]:
    """Homography of a camera that turns, zooms about the centre and pans."""
    angle = np.deg2rad(degrees)
    homography = np.eye(3)
    homography[:2, :2] = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    homography[:2, 2] = CENTRE - homography[:2, :2] @ CENTRE + pan
    return homography


SHAKE = similarity(degrees=-1.5, pan=(-9.0, 12.0))
SHAKE[2, :2] = 3e-5, -2e-5
CAMERAS = {
    "slow pan": similarity(pan=(1.3, 0.4)),
    "pan": similarity(pan=(-7.6, 4.2)),
    "fast pan": similarity(pan=(31.0, -6.0)),
    "zoom": similarity(zoom=1.04),
    "rotation": similarity(degrees=2.5),
    "shake": SHAKE,
}


@pytest.fixture(scope="module")
def texture() -> NDArray[np.float32]:
    """Noise of several scales, twice the resolution of a frame, with a margin."""
    random = np.random.default_rng(3)
    shape = (2 * (HEIGHT + 2 * MARGIN), 2 * (WIDTH + 2 * MARGIN))
    layers = [cv2.GaussianBlur(random.normal(size=shape), (0, 0), sigma) * sigma for sigma in (2.5, 5, 10, 30)]
    total = np.sum(layers, axis=0)
    return np.clip(127 + 40 * (total - total.mean()) / total.std(), 0, 255).astype(np.float32)


def view(scene: NDArray[np.float32], camera: NDArray[np.float64], *, noise: int = 0) -> NDArray[np.uint8]:
    """The frame in which what `np.eye(3)` shows at x is at `camera` x."""
    to_scene = np.array([[2, 0, 2 * MARGIN + 0.5], [0, 2, 2 * MARGIN + 0.5], [0, 0, 1]]) @ np.linalg.inv(camera)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    frame = cv2.warpPerspective(scene, to_scene, (WIDTH, HEIGHT), flags=flags)
    grain = np.random.default_rng(noise).normal(0, 1, frame.shape)
    return np.clip(np.rint(frame + grain), 0, 255).astype(np.uint8)


def with_object(scene: NDArray[np.float32], moved: tuple[int, int]) -> NDArray[np.float32]:
    """The scene with a piece of other texture on it, moved by half pixels (x, y)."""
    rows, columns = (slice(2 * (part.start + MARGIN), 2 * (part.stop + MARGIN)) for part in OBJECT)
    placed = scene.copy()
    piece = scene[-(rows.stop - rows.start) :, : columns.stop - columns.start]
    placed[rows.start + moved[1] : rows.stop + moved[1], columns.start + moved[0] : columns.stop + moved[0]] = piece
    return placed


def transform(homography: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return cv2.perspectiveTransform(points.reshape(-1, 1, 2), homography).reshape(-1, 2)


def corner_error_px(found: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    corners = np.array([[0, 0], [WIDTH - 1, 0], [0, HEIGHT - 1], [WIDTH - 1, HEIGHT - 1]], float)
    return float(np.hypot(*(transform(found, corners) - transform(truth, corners)).T).max())


def seen(camera: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(H, W): pixels of the first frame that are in the second one, too."""
    grid = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), -1).reshape(-1, 2).astype(float)
    x, y = transform(camera, grid).T
    return ((x >= 0) & (x <= WIDTH - 1) & (y >= 0) & (y <= HEIGHT - 1)).reshape(HEIGHT, WIDTH)


def grown(part: slice, by: int) -> slice:
    """The interval, longer at either end."""
    return slice(part.start - by, part.stop + by)


def warped(*frames: NDArray[np.uint8], **options: object) -> list[WarpedFlow]:
    return list(warped_flow(frames, choose_solver(), **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CAMERAS)
def test_a_still_background_has_no_flow(texture: NDArray[np.float32], name: str) -> None:
    camera = CAMERAS[name]
    (pair,) = warped(view(texture, np.eye(3)), view(texture, camera, noise=1))
    assert corner_error_px(pair.homography, camera) < 0.3
    assert pair.motion_px == pytest.approx(mean_displacement_px(camera, (HEIGHT, WIDTH)), abs=0.1)
    assert np.median(np.hypot(*pair.flow)[seen(camera)]) < 0.1
    assert pair.residual_px < 0.1
    assert pair.inliers > 200


@pytest.mark.parametrize("name", CAMERAS)
def test_a_moving_object_keeps_its_motion(texture: NDArray[np.float32], name: str) -> None:
    camera, moved = CAMERAS[name], (7, -4)  # half pixels
    first, second = with_object(texture, (0, 0)), with_object(texture, moved)
    (pair,) = warped(view(first, np.eye(3)), view(second, camera, noise=1))
    background = seen(camera)
    background[grown(OBJECT[0], 10), grown(OBJECT[1], 10)] = False
    inner = pair.flow[:, grown(OBJECT[0], -15), grown(OBJECT[1], -15)]
    assert corner_error_px(pair.homography, camera) < 0.4
    assert np.median(np.hypot(*pair.flow)[background]) < 0.1
    assert np.median(inner, axis=(1, 2)) == pytest.approx(np.array(moved) / 2, abs=0.15)


def test_small_frames(texture: NDArray[np.float32]) -> None:
    """The demo's size, where no keypoint is found at half size."""
    cut = (slice(80, 176), slice(120, 216))
    camera = similarity(pan=(2.4, -1.5))
    (pair,) = warped(view(texture, np.eye(3))[cut], view(texture, camera, noise=1)[cut])
    assert pair.homography[:2, 2] == pytest.approx([2.4, -1.5], abs=0.3)
    assert pair.residual_px < 0.1


def test_a_standing_camera_is_left_alone(texture: NDArray[np.float32]) -> None:
    """Also where an object moves: then warped flow is plain flow to the last bit, and nothing is solved twice."""
    one, two = (view(with_object(texture, moved), np.eye(3), noise=moved[0]) for moved in ((0, 0), (7, -4)))
    solver, calls = choose_solver(), []

    def counted(prev: Sequence[Any], next: Sequence[Any]) -> NDArray[np.float32]:
        calls.append(prev)
        return solver.solve_prepared(prev, next)

    (pair,) = warped_flow((one, two), solver._replace(solve_prepared=counted))
    assert (pair.homography == np.eye(3)).all()
    assert pair.inliers > 200
    assert pair.motion_px == 0
    assert (pair.flow == solve(one, two)).all()
    assert len(calls) == 1


@pytest.mark.parametrize("reverse", [False, True])
def test_batches_of_pairs_are_solved_as_pairs_are(texture: NDArray[np.float32], reverse: bool) -> None:
    """Of six pairs the camera stands in the second and the fifth."""
    pans = (0, 3, 3, 7, 12, 12, 10)
    frames = [view(texture, np.array([[1, 0, pan], [0, 1, 0], [0, 0, 1.0]]))[:120, :160] for pan in pans]
    one_by_one = warped(*frames, reverse=reverse)
    solver, sizes, prepared = choose_solver(), [], []

    def noted(prev: Sequence[Any], next: Sequence[Any]) -> NDArray[np.float32]:
        sizes.append(len(prev))
        return solver.solve_prepared(prev, next)

    def counted(frames: NDArray[np.uint8]) -> Sequence[Any]:
        prepared.append(len(frames))
        return solver.prepare(frames)

    by_four = Solver(counted, noted, lambda height, width: 4)
    batched = list(warped_flow(frames, by_four, reverse=reverse))
    assert sizes == [4, 3, 2, 1]
    assert sum(prepared) == len(frames) + 3 + 1, "each frame once, and each warped frame"
    for one, other in zip(one_by_one, batched, strict=True):
        assert (one.flow == other.flow).all()
        assert (one.homography == other.homography).all()
        assert one[2:] == other[2:]


def test_an_object_before_a_plain_wall_keeps_its_motion(texture: NDArray[np.float32]) -> None:
    """All that can be matched lies on the object; its motion must not be taken for the camera's."""
    shading = 60 + 140 * np.hypot(*(np.mgrid[:HEIGHT, :WIDTH] - CENTRE[::-1, None, None])) / WIDTH
    piece = view(texture, np.eye(3))[70:200, 150:280]
    frames = []
    for left in (150, 156):
        frame = np.rint(shading).astype(np.uint8)
        frame[70:200, left : left + 130] = piece
        frames.append(frame)
    (pair,) = warped(*frames)
    assert pair.inliers > 100
    assert (pair.homography == np.eye(3)).all()
    assert np.median(pair.flow[:, 95:175, 175:255], axis=(1, 2)) == pytest.approx([6, 0], abs=0.2)


@pytest.mark.parametrize("level", [0, 127, 255])
def test_frames_without_texture_give_the_identity(level: int) -> None:
    frame = np.full((64, 80), level, np.uint8)
    (pair,) = warped(frame, frame)
    assert (pair.homography == np.eye(3)).all()
    assert pair.inliers == pair.motion_px == pair.residual_px == 0
    assert not pair.flow.any()


@pytest.mark.parametrize("shape", [(3, 3), (3, 40), (16, 16), (17, 31)])
@pytest.mark.parametrize("mode", ["correct", "dense_flow"])
def test_tiny_frames(shape: tuple[int, int], mode: str, rng: np.random.Generator) -> None:
    frames = rng.integers(0, 256, (3, *shape), np.uint8)
    pairs = warped(*frames, params=CameraParams(mode=mode))  # type: ignore[arg-type]
    assert [pair.flow.shape for pair in pairs] == [(2, *shape)] * 2
    assert all(np.isfinite(pair.flow).all() and np.isfinite(pair.homography).all() for pair in pairs)


def test_too_few_inliers_give_the_identity(texture: NDArray[np.float32]) -> None:
    frames = view(texture, np.eye(3)), view(texture, CAMERAS["pan"], noise=1)
    (pair,) = warped(*frames)
    (strict,) = warped(*frames, params=CameraParams(min_inliers=pair.inliers + 1))
    assert strict.inliers == pair.inliers
    assert (strict.homography == np.eye(3)).all()
    assert (strict.flow == solve(*frames)).all()


@pytest.mark.parametrize("mode", ["correct", "dense_flow"])
def test_equal_input_gives_equal_output(texture: NDArray[np.float32], mode: str) -> None:
    """Whatever state OpenCV's own random numbers are in."""
    frames = view(texture, np.eye(3)), view(texture, SHAKE, noise=1)
    params = CameraParams(mode=mode)  # type: ignore[arg-type]
    cv2.setRNGSeed(1)
    (one,) = warped(*frames, params=params)
    cv2.setRNGSeed(99)
    (other,) = warped(*frames, params=params)
    assert (one.homography == other.homography).all()
    assert (one.flow == other.flow).all()


def test_the_mask_is_honoured(texture: NDArray[np.float32]) -> None:
    """Two halves that move apart: the camera's motion is that of the half that may be looked at."""
    still, moved = view(texture, np.eye(3)), view(texture, similarity(pan=(5.0, 0.0)), noise=1)
    next = np.where(np.arange(WIDTH) < WIDTH // 2, moved, view(texture, similarity(pan=(0.0, -4.0)), noise=1))
    left = np.broadcast_to(np.arange(WIDTH) < WIDTH // 2 - 10, still.shape)
    for mask, pan in ((left, (5.0, 0.0)), (~left, (0.0, -4.0))):
        params = CameraParams()
        points = find_keypoints(still, params=params, mask=mask).points.round().astype(int)
        assert len(points) > 50
        inside = mask[points[:, 1].clip(0, HEIGHT - 1), points[:, 0].clip(0, WIDTH - 1)]
        assert inside.mean() > 0.97  # the others lie on the edge of the halved mask
        (pair,) = warped(still, next, masks=[mask, mask])
        assert pair.homography[:2, 2] == pytest.approx(pan, abs=0.3)


def test_each_pair_is_matched_on_its_own(texture: NDArray[np.float32]) -> None:
    """A long pan: against the first frame, which the peer keeps, keypoints would soon say something else."""
    cameras = [similarity(pan=(6.0 * t, -3.0 * t)) for t in range(6)]
    frames = [view(texture, camera, noise=t) for t, camera in enumerate(cameras)]
    pairs = warped(*frames)
    for pair, (prev, next) in zip(pairs, pairwise(cameras), strict=True):
        assert corner_error_px(pair.homography, next @ np.linalg.inv(prev)) < 0.3
        assert pair.residual_px < 0.1
    (last,) = warped(*frames[-2:])
    assert (pairs[-1].homography == last.homography).all()
    assert (pairs[-1].flow == last.flow).all()


def test_step_and_direction(texture: NDArray[np.float32]) -> None:
    assert list(spaced_pairs("abcd", step=1)) == [("a", "b"), ("b", "c"), ("c", "d")]
    assert list(spaced_pairs("abcd", step=2)) == [("a", "c"), ("b", "d")]
    assert list(spaced_pairs("abcd", step=2, reverse=True)) == [("c", "a"), ("d", "b")]
    assert list(spaced_pairs("ab", step=2)) == []
    with pytest.raises(ValueError, match="the step is 0; it must be a whole number of 1 or more"):
        list(spaced_pairs("ab", step=0))
    cameras = [similarity(pan=(3.0 * t, 0.0)) for t in range(3)]
    frames = [view(texture, camera, noise=t) for t, camera in enumerate(cameras)]
    (pair,) = warped(*frames, step=2, reverse=True)
    assert pair.homography[0, 2] == pytest.approx(-6.0, abs=0.2)
    assert (pair.flow == warped(frames[2], frames[0])[0].flow).all()


def test_the_border_is_filled_from_prev(rng: np.random.Generator) -> None:
    """By the definition: out(x) = next(Hx) where Hx is inside, prev(x) elsewhere."""
    prev, next = rng.integers(0, 256, (2, 20, 30), np.uint8)
    homography = np.array([[1.0, 0, 4], [0, 1, -3], [0, 0, 1]])
    rows, columns = np.mgrid[:20, :30]
    for border_px in (0, 5):
        x, y = columns + 4, rows - 3
        inside = (x >= border_px) & (x < 30 - border_px) & (y >= border_px) & (y < 20 - border_px)
        expected = np.where(inside, next[y.clip(0, 19), x.clip(0, 29)], prev)
        assert (warp_into(prev, next, homography, border_px=border_px) == expected).all()


def test_the_mean_displacement_is_that_of_the_pixels() -> None:
    grid = np.stack(np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT)), -1).reshape(-1, 2).astype(float)
    expected = np.hypot(*(transform(SHAKE, grid) - grid).T).mean()
    assert mean_displacement_px(SHAKE, (HEIGHT, WIDTH)) == pytest.approx(expected, rel=0.02)


def dense_flow(*frames: NDArray[np.uint8], defects: tuple[Defect, ...] = ()) -> list[WarpedFlow]:
    return warped(*frames, params=CameraParams(mode="dense_flow", defects=frozenset(defects)))


def test_dense_flow_without_its_defects_is_right(texture: NDArray[np.float32]) -> None:
    frames = view(texture, np.eye(3)), view(texture, CAMERAS["pan"], noise=1)
    (pair,) = dense_flow(*frames)
    assert corner_error_px(pair.homography, CAMERAS["pan"]) < 0.5
    filled = ~seen(CAMERAS["pan"])
    assert np.median(np.hypot(*pair.flow)[filled]) < 0.1


def test_first_frame_keypoints_are_never_updated(texture: NDArray[np.float32]) -> None:
    """Pans back and forth: with the defect the last pair, which ends where the video began, is matched as no motion."""
    pans = [(0.0, 0.0), (9.0, 4.0), (0.0, 0.0)]
    frames = [view(texture, similarity(pan=pan), noise=t) for t, pan in enumerate(pans)]
    right = dense_flow(*frames)
    wrong = dense_flow(*frames, defects=("first_frame_keypoints",))
    assert (right[0].flow == wrong[0].flow).all()
    assert right[1].homography[:2, 2] == pytest.approx([-9, -4], abs=0.3)
    kept = find_keypoints(frames[0], params=CameraParams(mode="dense_flow"))
    after = find_keypoints(frames[2], params=CameraParams(mode="dense_flow"))
    flow = solve(frames[1], frames[2])
    expected = camera_motion(
        frames[1], frames[2], flow, before=kept, after=after, params=CameraParams(mode="dense_flow")
    )
    assert (wrong[1].homography == expected.homography).all()
    assert wrong[1].inliers != right[1].inliers


def corners_followed(
    prev: NDArray[np.uint8], next: NDArray[np.uint8], flow: NDArray[np.float32], *defects: Defect
) -> NDArray[np.float64]:
    """The homography where there is no keypoint, only corners and the flow."""
    params = CameraParams(mode="dense_flow", defects=frozenset(defects))
    homography: NDArray[np.float64] = camera_motion(
        prev, next, flow, before=NO_KEYPOINTS, after=NO_KEYPOINTS, params=params
    ).homography
    return homography


def test_corners_of_the_next_frame(texture: NDArray[np.float32]) -> None:
    """With the defect it does not matter what `prev` shows."""
    one, two = view(texture, np.eye(3)), view(texture, CAMERAS["zoom"], noise=1)
    flow, blank = solve(one, two), np.full_like(one, 90)
    assert (corners_followed(blank, two, flow) == np.eye(3)).all()
    assert (corners_followed(one, blank, flow, "corners_of_next_frame") == np.eye(3)).all()
    assert corner_error_px(corners_followed(one, blank, flow), CAMERAS["zoom"]) < 0.5
    assert corner_error_px(corners_followed(blank, two, flow, "corners_of_next_frame"), CAMERAS["zoom"]) < 3


def test_the_y_component_of_a_wrong_column(texture: NDArray[np.float32]) -> None:
    """A flow that rotates: y at (y, y) is not y at (x, y), and no homography fits what comes out but the vertical."""
    frame = view(texture, np.eye(3))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    flow = np.stack([np.zeros_like(rows), 0.02 * columns])  # a shear
    right = corners_followed(frame, frame, flow)
    wrong = corners_followed(frame, frame, flow, "flow_y_of_wrong_column")
    assert right == pytest.approx(np.array([[1, 0, 0], [0.02, 1, 0], [0, 0, 1]]), abs=1e-3)
    assert wrong == pytest.approx(np.array([[1, 0, 0], [0, 1.02, 0], [0, 0, 1]]), abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mode": "denseflow"}, "there is no mode 'denseflow'"),
        ({"min_inliers": 3}, "min_inliers is 3; a homography takes 4 points at least"),
        ({"mode": "dense_flow", "defects": frozenset({"all"})}, "dense_flow has no defect 'all'; it has first_frame"),
        ({"defects": frozenset(DEFECTS)}, "defects belong to mode 'dense_flow'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        CameraParams(**settings)  # type: ignore[arg-type]


def test_the_configuration_names_the_same_modes_and_defects() -> None:
    fields = WarpedFlowConfig.model_fields
    assert set(get_args(fields["mode"].annotation)) == set(get_args(Mode))
    literals, _ = get_args(fields["defects"].annotation)
    assert get_args(get_args(literals)[0]) == DEFECTS
    assert fields["min_inliers"].default == CameraParams().min_inliers
