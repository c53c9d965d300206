"""Flow without the camera's motion: each pair solved, its camera motion taken out of the second frame, solved again.

Shapes: H W rows and columns. Flow is (2, H, W) float32 in pixels, channel 0 = x.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np

from pipeline.optical_flow.camera import DEFAULT_PARAMS, CameraParams, Keypoints, camera_motion, find_keypoints
from pipeline.optical_flow.pairs import spaced_pairs

Array = np.ndarray[Any, np.dtype[Any]]


class WarpedFlow(NamedTuple):
    """Flow of one pair, and what was taken out of it."""

    flow: Array
    homography: Array
    """(3, 3) float64, from `prev` to `next`."""
    inliers: int
    motion_px: float
    """Mean displacement of the frame's points by the camera."""
    residual_px: float
    """Median length of the flow: of the background, if most of the frame is background."""


def warped_flow(
    frames: Iterable[Array],
    solve: Callable[[Array, Array], Array],
    *,
    step: int = 1,
    reverse: bool = False,
    params: CameraParams = DEFAULT_PARAMS,
    masks: Iterable[Array | None] | None = None,
) -> Iterator[WarpedFlow]:
    """Warped flow of every pair of a video; no more than `step` + 1 frames are held.

    Args:
        frames: grey, (H, W) uint8.
        solve: flow (2, H, W) of a pair; it is called twice a pair, once where no motion is taken out.
        step: frames from one of a pair to the other.
        reverse: from the later frame to the earlier.
        params: how camera motion is found.
        masks: for each frame (H, W) bool, True where the camera's motion may be looked for, or None for everywhere.
    """
    seen = _seen(frames, masks, params)
    first: Keypoints | None = None
    for prev, next in spaced_pairs(seen, step=step, reverse=reverse):
        first = first or prev.keypoints
        before = first if "first_frame_keypoints" in params.defects else prev.keypoints
        plain = solve(prev.frame, next.frame)
        motion = camera_motion(
            prev.frame, next.frame, plain, before=before, after=next.keypoints, params=params, mask=prev.mask
        )
        same = params.mode == "correct" and (motion.homography == np.eye(3)).all()
        flow = plain if same else solve(prev.frame, motion.warped)
        residual_px = float(np.median(np.hypot(*flow[:, ::2, ::2])))
        yield WarpedFlow(flow, motion.homography, motion.inliers, motion.motion_px, residual_px)


class _Seen(NamedTuple):
    frame: Array
    keypoints: Keypoints
    mask: Array | None


def _seen(frames: Iterable[Array], masks: Iterable[Array | None] | None, params: CameraParams) -> Iterator[_Seen]:
    pairs = zip(frames, repeat(None)) if masks is None else zip(frames, masks, strict=True)
    for frame, mask in pairs:
        yield _Seen(frame, find_keypoints(frame, params=params, mask=mask), mask)
