"""Flow without the camera's motion: each pair solved, its camera motion taken out of the second frame, solved again.

Shapes: H W rows and columns. Flow is (2, H, W) float32 in pixels, channel 0 = x.
"""

from collections.abc import Iterable, Iterator
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
from pipeline.optical_flow.pairs import check_step, spaced_pairs
from pipeline.optical_flow.solve import Solver, checked

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
    solver: Solver,
    *,
    step: int = 1,
    reverse: bool = False,
    params: CameraParams = DEFAULT_PARAMS,
    masks: Iterable[Array | None] | None = None,
) -> Iterator[WarpedFlow]:
    """Warped flow of every pair of a video; as many frames are held as make one batch of pairs.

    What depends on a frame alone, its keypoints and its pyramid, is found once and serves every pair and both solves.

    Args:
        frames: grey, (H, W) uint8.
        solver: of `choose_solver`; a pair is solved twice, or once where no motion is taken out.
        step: frames from one of a pair to the other.
        reverse: from the later frame to the earlier.
        params: how camera motion is found.
        masks: for each frame (H, W) bool, True where the camera's motion may be looked for, or None for everywhere.

    Raises:
        ValueError: a bad step; or, when it is reached, a frame or mask of another kind or shape, or one without the
            other; it is named by its number.
    """
    check_step(step)
    return _warped(_seen(_with_masks(frames, masks), solver, params), solver, step=step, reverse=reverse, params=params)


class _Seen(NamedTuple):
    frame: Array
    mask: Array | None
    prepared: Any
    """The frame as the solver wants it."""
    keypoints: Keypoints


def _warped(
    seen: Iterator[_Seen], solver: Solver, *, step: int, reverse: bool, params: CameraParams
) -> Iterator[WarpedFlow]:
    first: Keypoints | None = None
    pairs = spaced_pairs(seen, step=step, reverse=reverse)
    for pair in pairs:
        batch = [pair, *islice(pairs, solver.pairs_at_once(*pair[0].frame.shape) - 1)]
        first = first or pair[0].keypoints
        flows = solver.solve_prepared(*([seen.prepared for seen in side] for side in zip(*batch, strict=True)))
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
            for (prev, next), flow in zip(batch, flows, strict=True)
        ]
        _solve_again([prev.prepared for prev, _ in batch], motions, flows, solver, params)
        for flow, motion in zip(flows, motions, strict=True):
            residual_px = float(np.median(np.hypot(*flow[:, ::2, ::2])))
            yield WarpedFlow(flow, motion.homography, motion.inliers, motion.motion_px, residual_px)


def _solve_again(
    prev: list[Any], motions: list[CameraMotion], flows: Array, solver: Solver, params: CameraParams
) -> None:
    """Replace flows (B, 2, H, W) by those from `prev`, prepared, to the warped frames, but where the camera stands."""
    moved = [
        i for i, motion in enumerate(motions) if params.mode == "dense_flow" or (motion.homography != np.eye(3)).any()
    ]
    if moved:
        warped = solver.prepare(np.stack([motions[i].warped for i in moved]))
        flows[moved] = solver.solve_prepared([prev[i] for i in moved], warped)


def _seen(framed: Iterator[tuple[Array, Array | None]], solver: Solver, params: CameraParams) -> Iterator[_Seen]:
    for first in framed:
        some = [first, *islice(framed, solver.pairs_at_once(*first[0].shape) - 1)]
        prepared = solver.prepare(np.stack([frame for frame, _ in some]))
        for (frame, mask), ready in zip(some, prepared, strict=True):
            yield _Seen(frame, mask, ready, find_keypoints(frame, params=params, mask=mask))


def _with_masks(frames: Iterable[Array], masks: Iterable[Array | None] | None) -> Iterator[tuple[Array, Array | None]]:
    """Every frame with its mask, both as they have to be."""
    given = repeat(None) if masks is None else iter(masks)
    count = 0
    for count, frame in enumerate(checked(frames), 1):
        name = f"frame {count - 1}"
        if frame.dtype != np.uint8:
            raise ValueError(f"{name} has dtype {frame.dtype}; warped flow needs uint8")
        try:
            mask = next(given)
        except StopIteration:
            raise ValueError(
                f"there is no mask for {name}; give as many masks as frames, None for everywhere"
            ) from None
        if mask is not None and (mask.shape != frame.shape or mask.dtype != np.bool_):
            raise ValueError(f"the mask of {name} is {mask.dtype} of shape {mask.shape}; it must be bool {frame.shape}")
        yield frame, mask
    if masks is not None and next(given, end := object()) is not end:
        raise ValueError(f"there are more masks than the {count} frames; give as many")
