"""Stage warped_flow: TV-L1 optical flow without the camera's motion, in the same store as plain flow.

Plain flow that is in the store is not used: it is rounded to 8 bits, and what a key holds must not depend on what else
has been computed. Beside the flow stand, for each pair, the homography and what it was worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import WarpedFlowConfig
from pipeline.dataset.receipts import Receipt
from pipeline.optical_flow.camera import DEFECTS, CameraParams
from pipeline.optical_flow.solve import choose_solver
from pipeline.optical_flow.warped import warped_flow
from pipeline.stores.flow_shards import Solved, fill_shard, run_command
from pipeline.stores.sharing import Sharing


def solve_shard(
    probed: Receipt,
    *,
    shard: str,
    store: Path,
    config: WarpedFlowConfig,
    on_error: Literal["quarantine", "fail"] = "quarantine",
    sharing: Sharing | None = None,
) -> Receipt:
    """Make sure that the warped flow of every video of a shard is in the store.

    Args:
        probed: receipt of the probe stage on this shard.
        shard: its name.
        store: folder of the arrays.
        config: geometry, rate, solver, quantisation, and how camera motion is found.
        on_error: what to do about an unusable video.
        sharing: the team's store; None for none.

    Raises:
        UnusableVideo: ``on_error`` is ``fail`` and a video is unusable.
    """
    camera = camera_params(config)

    def solved(frames: Iterable[NDArray[np.uint8]]) -> Iterator[Solved]:
        pairs = warped_flow(
            frames,
            choose_solver(backend=config.backend, params=config.tvl1),
            step=config.step,
            reverse=config.reverse,
            params=camera,
        )
        for pair in pairs:
            yield Solved(
                pair.flow,
                {
                    "homography": pair.homography.astype(np.float32),
                    "inliers": np.int32(pair.inliers),
                    "motion_px": np.float32(pair.motion_px),
                    "residual_px": np.float32(pair.residual_px),
                },
            )

    return fill_shard(
        probed,
        stage="warped_flow",
        shard=shard,
        store=store,
        config=config,
        solve=solved,
        attributes=_attributes(camera),
        summarise=summarise,
        on_error=on_error,
        sharing=sharing,
    )


def camera_params(config: WarpedFlowConfig) -> CameraParams:
    """How camera motion is found, from the configuration."""
    defects = config.defects
    if defects is None:
        defects = DEFECTS if config.mode == "dense_flow" else ()
    return CameraParams(mode=config.mode, min_inliers=config.min_inliers, defects=frozenset(defects))


def summarise(pairs: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """The video's camera motion in three numbers."""
    moved = (pairs["homography"] != np.eye(3, dtype=np.float32)).any(axis=(1, 2))
    return {
        "camera": {
            "motion_px": float(pairs["motion_px"].mean(dtype=np.float64)),
            "residual_px": float(pairs["residual_px"].mean(dtype=np.float64)),
            "moved": float(moved.mean()),
        }
    }


def _attributes(camera: CameraParams) -> dict[str, Any]:
    return {
        "artifact": "optical flow without camera motion",
        "algorithm": "TV-L1 from each frame to the other one warped into it",
        "camera_defects": sorted(camera.defects),
        "pairs": "pairs.npz: homography (frame to frame, pixels), inliers, motion_px (mean displacement by the "
        "homography), residual_px (median length of the flow)",
        "border": "where the other frame does not reach, the frame itself is put, so that flow is zero"
        + ("; also where it is less than 6 px from its edge" if camera.mode == "dense_flow" else ""),
        "keypoints": {
            "detector": "SIFT",
            "descriptor": "SIFT" if camera.mode == "dense_flow" else "BEBLID",
            "opencv-contrib-python-headless": version("opencv-contrib-python-headless"),
        },
    }


def main(argv: list[str] | None = None) -> None:
    """Solve the warped flow of one shard."""
    cv2.setNumThreads(1)  # the workflow counts on one core a job
    run_command(argv, stage="warped_flow", description=main.__doc__, section=WarpedFlowConfig, job=solve_shard)


if __name__ == "__main__":
    main()
