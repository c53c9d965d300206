"""Camera motion between two frames: a homography from point matches, and the next frame seen from where the first was.

After Wang and Schmid, "Action Recognition with Improved Trajectories", ICCV 2013, section 3.1, which `mode="correct"`
follows with other point matches; `mode="dense_flow"` repeats what the tool of that name computes, its defects included
if asked for (docs/warped_flow.md).

Shapes: H W rows and columns; N points (N, 2), x then y, in pixels, pixel centres at whole numbers; a homography is
(3, 3) float64 with a 1 in its last place and leads from a point of `prev` to the same scene point in `next`.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import cv2
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Mode = Literal["correct", "dense_flow"]
Defect = Literal["first_frame_keypoints", "corners_of_next_frame", "flow_y_of_wrong_column"]
DEFECTS: tuple[Defect, ...] = get_args(Defect)

AGREES_PX = 1.0
"""A match this near to where the homography puts it is an inlier."""
STILL_PX = 0.1
"""A camera that moves no corner of the frame by as much is taken to stand: less than one step of 8-bit flow."""

_KEYPOINTS = 400
_BEBLID_SCALE = 6.75  # for SIFT's points, as its authors have it
_RATIO = 0.85  # of the distances to the nearest and the second nearest descriptor: Lowe, IJCV 2004, section 7.1
_HALVED_FROM_PX = 200
_CORNERS, _CORNER_QUALITY, _CORNER_DISTANCE_PX = 1000, 0.001, 8
_CLOSELY_PX = 0.3
_REFINEMENTS, _REFINED_PX, _NARROWEST_PX = 4, 0.5, 0.1
_MATCHES_LEAST = 8
_NEARER_LEAST = 0.1
"""Of the pixels seen, more that come nearer than get farther. Where a tripod was found to move it is 0.1 at most, of
cameras that move 0.4 on the median (docs/warped_flow.md)."""

_NEXT_CORNER = [1, 2, 3, 0]

_DENSE_FLOW_WINDOW_PX, _DENSE_FLOW_CORNER_DISTANCE_PX = 25, 3
_DENSE_FLOW_BORDER_PX, _DENSE_FLOW_MATCHES_LEAST = 6, 51
"""Its conditions are x > 5 and x < width - 1 - 5, so columns 0 to 5 are border; and more than 50 matches."""


@dataclass(frozen=True, kw_only=True)
class CameraParams:
    """How camera motion is found."""

    mode: Mode = "correct"
    min_inliers: int = 26
    """With fewer matches that agree the camera is taken to stand."""
    defects: frozenset[Defect] = frozenset()
    """What dense_flow does wrong and is repeated; only in that mode.

    first_frame_keypoints: keypoints of the video's first frame stand for those of `prev`, in every pair.
    corners_of_next_frame: corners are found in `next`, and taken for points of `prev`.
    flow_y_of_wrong_column: a corner (x, y) moves by the y component at (y, y) instead of (x, y).
    """

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"there is no mode {self.mode!r} of camera motion; use 'correct' or 'dense_flow'")
        if self.min_inliers < 4:
            raise ValueError(f"min_inliers is {self.min_inliers}; a homography takes 4 points at least")
        if unknown := sorted(self.defects - set(DEFECTS)):
            raise ValueError(f"dense_flow has no defect {unknown[0]!r}; it has {', '.join(DEFECTS)}")
        if self.defects and self.mode == "correct":
            raise ValueError("defects belong to mode 'dense_flow'; leave them out, or set the mode")


DEFAULT_PARAMS = CameraParams()


class Keypoints(NamedTuple):
    """What can be found again of a frame."""

    points: Array
    """(N, 2) float32."""
    descriptors: Array
    """One row a point: (N, 32) uint8 bits in correct mode, (N, 128) float32 in dense_flow mode."""


NO_KEYPOINTS = Keypoints(np.empty((0, 2), np.float32), np.empty((0, 0), np.float32))


class Matches(NamedTuple):
    """Points of one kind in both frames."""

    prev: Array
    """(N, 2) float32."""
    next: Array
    """(N, 2) float32."""


class CameraMotion(NamedTuple):
    """What the camera did between two frames."""

    homography: Array
    """(3, 3); the identity where the camera stands or too few matches agree."""
    inliers: int
    """Matches that agree within 1 px with what was found, also if that is too few to believe it."""
    motion_px: float
    """Mean displacement of the frame's points by the homography."""
    warped: Array
    """(H, W) uint8: `next` as `prev`'s camera would have seen it."""


def find_keypoints(frame: Array, *, params: CameraParams, mask: Array | None = None) -> Keypoints:
    """Keypoints of a grey frame (H, W) uint8; of a video each frame needs this once.

    In correct mode they are SIFT's points with BEBLID descriptors (Suárez et al., "BEBLID: Boosted efficient binary
    local image descriptor", 2020), and a frame with a short side of 200 px or more is halved before: SIFT doubles what
    it is given, so its first octave is then the frame itself. Both together take an eighth of the time of plain SIFT,
    which dense_flow mode uses for want of SURF.

    mask: (H, W) bool, True where points may lie; None is everywhere.
    """
    height, width = frame.shape
    exact = params.mode == "dense_flow"
    small = frame
    if not exact and min(height, width) >= _HALVED_FROM_PX:
        small = cv2.resize(frame, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    allowed = None if mask is None else cv2.resize(_bytes(mask), small.shape[::-1], interpolation=cv2.INTER_NEAREST)
    detector = cv2.SIFT.create(0 if exact else _KEYPOINTS)
    describer = (
        detector if exact else cv2.xfeatures2d.BEBLID.create(_BEBLID_SCALE, cv2.xfeatures2d.BEBLID_SIZE_256_BITS)
    )
    found, descriptors = describer.compute(small, detector.detect(small, allowed))
    if not found:
        return NO_KEYPOINTS
    scale = np.array([width, height], np.float32) / small.shape[::-1]
    points = (np.asarray(cv2.KeyPoint.convert(found)) + 0.5) * scale - 0.5
    return Keypoints(points.astype(np.float32), np.asarray(descriptors))


def camera_motion(
    prev: Array,
    next: Array,
    flow: Array,
    *,
    before: Keypoints,
    after: Keypoints,
    params: CameraParams,
    mask: Array | None = None,
) -> CameraMotion:
    """Find the camera's motion and take it out of `next`. Equal input gives equal output.

    prev, next: grey frames (H, W) uint8. flow: (2, H, W) from `prev` to `next`. before, after: keypoints of `prev` and
    of `next`. mask: (H, W) bool, True where `prev` may be looked at for corners; people are what one leaves out.

    Raises ValueError for frames of another rank or dtype, or whose shapes, or flow's, differ.
    """
    _check(prev, next, flow)
    correct = params.mode == "correct"
    if correct:
        kinds = (_match(before, after), _follow(prev, flow, distance_px=_CORNER_DISTANCE_PX, mask=mask))
        found = _estimate(*kinds)
    else:
        kinds = (_match_like_dense_flow(before, after), _follow_like_dense_flow(prev, next, flow, params, mask))
        found = _estimate_like_dense_flow(*kinds)
    inliers = 0 if found is None else sum(_inliers(found, matches) for matches in kinds)
    if found is None or inliers < params.min_inliers or (correct and not _believable(found, prev.shape)):
        found = np.eye(3)
    seen = _seen(found, prev.shape, border_px=0 if correct else _DENSE_FLOW_BORDER_PX)
    warped = np.where(seen, _warp(next, found), prev)
    if correct and not _nearer(prev, next, warped, seen):
        found, warped = np.eye(3), next
    return CameraMotion(found, inliers, mean_displacement_px(found, prev.shape), warped)


def warp_into(prev: Array, next: Array, homography: Array, *, border_px: int = 0) -> Array:
    """(H, W) uint8: `next` at the places where the homography puts the pixels of `prev`, bilinear.

    Where that is outside `next`, or nearer than `border_px` to its edge, nothing was seen: there `prev` stays, and flow
    from `prev` is zero.
    """
    return np.where(_seen(homography, next.shape, border_px=border_px), _warp(next, homography), prev)


def mean_displacement_px(homography: Array, shape: tuple[int, ...]) -> float:
    """How far the homography moves the points of a frame (H, W), mean over a grid of 16 x 16."""
    points = _grid(*shape)
    return float(np.hypot(*(_transform(homography, points) - points).T).mean())


@lru_cache(maxsize=16)
def _grid(height: int, width: int) -> Array:
    """(256, 2): points spread evenly over a frame."""
    x, y = (np.linspace(0, side - 1, 16) for side in (width, height))
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _check(prev: Array, next: Array, flow: Array) -> None:
    for name, frame in (("prev", prev), ("next", next)):
        if frame.ndim != 2 or frame.dtype != np.uint8:
            raise ValueError(f"{name} is {frame.dtype} of shape {frame.shape}; camera motion needs (H, W) uint8")
    if prev.shape != next.shape or flow.shape != (2, *prev.shape):
        raise ValueError(f"prev {prev.shape}, next {next.shape} and flow {flow.shape} are not of one size")


def _bytes(mask: Array) -> Array:
    """A mask as OpenCV has it."""
    return np.asarray(mask, bool).astype(np.uint8)


def _warp(image: Array, homography: Array, *, border: int = cv2.BORDER_REPLICATE) -> Array:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpPerspective(image, homography, image.shape[::-1], flags=flags, borderMode=border)


def _seen(homography: Array, shape: tuple[int, ...], *, border_px: int = 0) -> Array:
    """(H, W) bool: whether the homography puts the pixel inside the frame, `border_px` or more from the edge."""
    height, width = shape
    inside = np.zeros(shape, np.uint8)
    inside[border_px : height - border_px, border_px : width - border_px] = 255
    return _warp(inside, homography, border=cv2.BORDER_CONSTANT) == 255  # all the weight of the interpolation inside


def _match(before: Keypoints, after: Keypoints) -> Matches:
    """Keypoints that are each other's nearest, and clearly so (the ratio test)."""
    if min(len(before.points), len(after.points)) < 2:
        return Matches(before.points[:0], after.points[:0])
    one, other = before.descriptors, after.descriptors
    distance, nearest = cv2.batchDistance(one, other, cv2.CV_32S, normType=cv2.NORM_HAMMING, K=2)
    _, back = cv2.batchDistance(other, one, cv2.CV_32S, normType=cv2.NORM_HAMMING, K=1)
    mutual = back[nearest[:, 0], 0] == np.arange(len(nearest))
    kept = mutual & (distance[:, 0] < _RATIO * distance[:, 1])
    return Matches(before.points[kept], after.points[nearest[kept, 0]])


def _match_like_dense_flow(before: Keypoints, after: Keypoints) -> Matches:
    """For each keypoint of `next` the nearest descriptor of `prev` in a window; neither mutual nor clear."""
    if not min(len(before.points), len(after.points)):
        return Matches(before.points[:0], after.points[:0])
    apart = np.abs(after.points[:, None] - before.points).max(axis=-1)
    squares = (np.square(keypoints.descriptors).sum(axis=1) for keypoints in (after, before))
    distance = np.add.outer(*squares) - 2 * after.descriptors @ before.descriptors.T
    distance[apart >= _DENSE_FLOW_WINDOW_PX] = np.inf
    nearest = distance.argmin(axis=1)
    found = np.isfinite(distance.min(axis=1))
    return Matches(before.points[nearest[found]], after.points[found])


def _follow(frame: Array, flow: Array, *, distance_px: int, mask: Array | None, wrong_column: bool = False) -> Matches:
    """Corners (Shi and Tomasi, CVPR 1994) of a frame, and where the flow takes them."""
    allowed = None if mask is None else _bytes(mask)
    corners = cv2.goodFeaturesToTrack(frame, _CORNERS, _CORNER_QUALITY, distance_px, mask=allowed)
    if corners is None:
        return Matches(np.empty((0, 2), np.float32), np.empty((0, 2), np.float32))
    corners = corners.reshape(-1, 2)
    x, y = np.rint(corners).astype(np.intp).T
    column = np.minimum(y, frame.shape[1] - 1) if wrong_column else x
    return Matches(corners, corners + np.stack([flow[0, y, x], flow[1, y, column]], axis=1))


def _follow_like_dense_flow(prev: Array, next: Array, flow: Array, params: CameraParams, mask: Array | None) -> Matches:
    """Corners, nearer to each other, with the defects that are asked for."""
    frame = next if "corners_of_next_frame" in params.defects else prev
    wrong = "flow_y_of_wrong_column" in params.defects
    return _follow(frame, flow, distance_px=_DENSE_FLOW_CORNER_DISTANCE_PX, mask=mask, wrong_column=wrong)


def _estimate(by_keypoints: Matches, by_flow: Matches) -> Array | None:
    """RANSAC for each kind of match, the one that both kinds agree on better, then least squares over all.

    Apart, because either kind can be wrong in a way that is consistent: flow where motion is too large for it,
    keypoints where they crowd on one moving object. Each kind counts by the share of its matches that agree closely.
    """
    kinds = (by_keypoints, by_flow)
    candidates = [found for matches in kinds if (found := _ransac(matches)) is not None]
    if not candidates:
        return None
    best = max(candidates, key=lambda found: sum(_share(found, matches) for matches in kinds))
    return _refined(best, Matches(*(np.concatenate(points) for points in zip(*kinds, strict=True))))


def _refined(homography: Array, matches: Matches) -> Array:
    """Least squares over the matches that fit, again and again; what fits gets as narrow as most of them allow.

    With a slow camera 1 px, or even half, would take in objects that move as slowly in another direction.
    """
    errors, reach_px = _errors_px(homography, matches), _REFINED_PX
    fitted = np.zeros(len(errors), bool)
    for _ in range(_REFINEMENTS):
        near = errors < reach_px
        if near.sum() < _MATCHES_LEAST or (near == fitted).all():  # too few, or nothing would change any more
            break
        fitted = near
        refined, _ = cv2.findHomography(matches.prev[near], matches.next[near], 0)
        if refined is None:
            break
        homography, errors = refined, _errors_px(refined, matches)
        close = errors[errors < _REFINED_PX]
        reach_px = float(np.clip(2.5 * np.median(close), _NARROWEST_PX, _REFINED_PX)) if close.size else 0.0
    return homography


def _estimate_like_dense_flow(by_keypoints: Matches, by_flow: Matches) -> Array | None:
    """Plain RANSAC over all matches together, those of the flow first."""
    prev, next = (np.concatenate(points) for points in zip(by_flow, by_keypoints, strict=True))
    if len(prev) < _DENSE_FLOW_MATCHES_LEAST:
        return None
    found, _ = cv2.findHomography(prev, next, cv2.RANSAC, AGREES_PX)
    return found


def _ransac(matches: Matches) -> Array | None:
    """A homography that many matches agree on; samples are drawn with a fixed seed."""
    if len(matches.prev) < _MATCHES_LEAST:
        return None
    params = cv2.UsacParams()
    params.threshold, params.confidence, params.maxIterations = AGREES_PX, 0.995, 2000
    params.score, params.sampler = cv2.SCORE_METHOD_MSAC, cv2.SAMPLING_UNIFORM
    params.loMethod, params.loIterations, params.loSampleSize = cv2.LOCAL_OPTIM_INNER_LO, 5, 14
    params.final_polisher, params.final_polisher_iterations = cv2.LSQ_POLISHER, 3
    params.randomGeneratorState, params.isParallel = 0, False
    found, _ = cv2.findHomography(matches.prev, matches.next, params)
    return found


def _inliers(homography: Array, matches: Matches, *, within_px: float = AGREES_PX) -> int:
    return int((_errors_px(homography, matches) <= within_px).sum())


def _share(homography: Array, matches: Matches) -> float:
    return _inliers(homography, matches, within_px=_CLOSELY_PX) / max(len(matches.prev), 1)


def _errors_px(homography: Array, matches: Matches) -> Array:
    return np.hypot(*(_transform(homography, matches.prev) - matches.next).T)


def _transform(homography: Array, points: Array) -> Array:
    """Points (N, 2) -> (N, 2) float64; infinite where the plane ends."""
    x, y, w = homography[:, :2] @ points.T.astype(np.float64) + homography[:, 2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([x / w, y / w], axis=1)


def _nearer(prev: Array, next: Array, warped: Array, seen: Array) -> bool:
    """Whether clearly more pixels come nearer to `prev`, in grey levels, than get farther with the motion taken out.

    Not so where the matches lie on a moving object before a plain background: then the object's motion was found, and
    the many pixels of the background would be moved instead. Each pixel has one vote, however strong its texture. The
    margin is for a camera that stands: what compression and people do to its pictures is found to move a little, and
    interpolation, which smooths, brings a few pixels nearer whatever the motion.
    """
    before, after = cv2.absdiff(prev, next), cv2.absdiff(prev, warped)
    nearer, farther = (np.count_nonzero(pixels & seen) for pixels in (after < before, after > before))
    return bool(nearer - farther > _NEARER_LEAST * np.count_nonzero(seen))


def _believable(homography: Array, shape: tuple[int, ...]) -> bool:
    """Whether a camera can have done this from one frame to the next, and has moved at all.

    The corners of the frame keep their order round it, and its area changes by less than a factor of four.
    """
    height, width = shape
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], np.float64)
    if not (np.c_[corners, np.ones(4)] @ homography[2] > 0).all():
        return False
    moved = _transform(homography, corners)
    if np.hypot(*(moved - corners).T).max() < STILL_PX:
        return False
    sides = moved[_NEXT_CORNER] - moved
    turns = _cross(sides, sides[_NEXT_CORNER])
    area = _cross(moved, moved[_NEXT_CORNER]).sum() / 2
    whole = (height - 1) * (width - 1)
    return bool((turns > 0).all() and whole / 4 < area < whole * 4)


def _cross(one: Array, other: Array) -> Array:
    """Of each row of the one, (N, 2), with that of the other."""
    return one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]
