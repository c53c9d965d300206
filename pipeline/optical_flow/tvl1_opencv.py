"""TV-L1 optical flow by OpenCV's CPU `DualTVL1OpticalFlow`: the reference for our own solvers, and slow."""

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from pipeline.optical_flow.params import TVL1Params

Array = np.ndarray[Any, np.dtype[Any]]


def check_installed() -> None:
    """Raise ValueError where OpenCV has come without its contributed modules."""
    if not hasattr(cv2, "optflow"):
        raise ValueError(
            "the opencv backend cannot run here: this OpenCV has no cv2.optflow; install "
            "opencv-contrib-python-headless, or use 'numba'"
        )


def prepare(frame: Array, *, params: "TVL1Params") -> Array:
    """The frame as OpenCV wants it: float32 in 0-1, which it multiplies by 255 (it takes uint8 in 0-255 as well)."""
    return np.ascontiguousarray(frame, dtype=np.float32) / np.float32(255)


def solve_prepared(prev: Array, next: Array, *, params: "TVL1Params") -> np.ndarray[Any, np.dtype[np.float32]]:
    """Flow (2, H, W) float32 in pixels, channel 0 = x. A new solver a pair, for it keeps a shortened pyramid."""
    solver = cv2.optflow.DualTVL1OpticalFlow_create(  # type: ignore[attr-defined]
        tau=params.tau,
        lambda_=params.lambda_,
        theta=params.theta,
        nscales=params.nscales,
        warps=params.warps,
        epsilon=params.epsilon,
        innnerIterations=params.inner_iterations,  # OpenCV's own spelling
        outerIterations=params.outer_iterations,
        scaleStep=params.scale_step,
        gamma=params.gamma,
        medianFiltering=params.median_filtering,
    )
    return np.ascontiguousarray(np.moveaxis(solver.calc(prev, next, None), -1, 0))
