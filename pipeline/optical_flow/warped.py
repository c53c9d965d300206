"""Flow without the camera's motion: each pair solved, its camera motion taken out of the second frame, solved again.

Shapes: H W rows and columns. Flow is (2, H, W) float32 in pixels, channel 0 = x.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from typing import Any, NamedTuple

import numpy as np

from pipeline.optical_flow.camera import (
    DEFAULT_PARAMS,
    CameraMotion,
    CameraParams,
    Keypoints,
    camera_motion,
    find_keypoints,
)
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


def _one(height: int, width: int) -> int:
    return 1


def warped_flow(
    frames: Iterable[Array],
    solve: Callable[[Array, Array], Array],
    *,
    step: int = 1,
    reverse: bool = False,
    params: CameraParams = DEFAULT_PARAMS,
    masks: Iterable[Array | None] | None = None,
    pairs_at_once: Callable[[int, int], int] = _one,
) -> Iterator[WarpedFlow]:
    """Warped flow of every pair of a video; as many frames are held as make one batch of pairs.

    Args:
        frames: grey, (H, W) uint8.
        solve: flow (B, 2, H, W) of pairs (B, H, W); called twice for each pair, once where no motion is taken out.
        step: frames from one of a pair to the other.
        reverse: from the later frame to the earlier.
        params: how camera motion is found.
        masks: for each frame (H, W) bool, True where the camera's motion may be looked for, or None for everywhere.
        pairs_at_once: pairs of frames of H, W that are given to `solve` together.
    """
    seen = _seen(frames, masks, params)
    first: Keypoints | None = None
    pairs = spaced_pairs(seen, step=step, reverse=reverse)
    for pair in pairs:
        batch = [pair, *islice(pairs, pairs_at_once(*pair[0].frame.shape) - 1)]
        first = first or pair[0].keypoints
        plain = solve(*(np.stack([seen.frame for seen in side]) for side in zip(*batch, strict=True)))
        motions = [
            camera_motion(
                prev.frame,
                next.frame,
                flow,
                before=first if "first_frame_keypoints" in params.defects else prev.keypoints,
                after=next.keypoints,
                params=params,
                mask=prev.mask,
            )
            for (prev, next), flow in zip(batch, plain, strict=True)
        ]
        flows = _solved_again([prev.frame for prev, _ in batch], motions, plain, solve, params)
        for flow, motion in zip(flows, motions, strict=True):
            residual_px = float(np.median(np.hypot(*flow[:, ::2, ::2])))
            yield WarpedFlow(flow, motion.homography, motion.inliers, motion.motion_px, residual_px)


def _solved_again(
    prev: list[Array],
    motions: list[CameraMotion],
    plain: Array,
    solve: Callable[[Array, Array], Array],
    params: CameraParams,
) -> Array:
    """Flow (B, 2, H, W) from `prev` to the warped frames; plain flow where the camera stands."""
    moved = [
        i for i, motion in enumerate(motions) if params.mode == "dense_flow" or (motion.homography != np.eye(3)).any()
    ]
    if moved:
        plain[moved] = solve(np.stack([prev[i] for i in moved]), np.stack([motions[i].warped for i in moved]))
    return plain


class _Seen(NamedTuple):
    frame: Array
    keypoints: Keypoints
    mask: Array | None


def _seen(frames: Iterable[Array], masks: Iterable[Array | None] | None, params: CameraParams) -> Iterator[_Seen]:
    pairs = zip(frames, repeat(None)) if masks is None else zip(frames, masks, strict=True)
    for frame, mask in pairs:
        yield _Seen(frame, find_keypoints(frame, params=params, mask=mask), mask)
