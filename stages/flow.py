"""Stage flow: TV-L1 optical flow between the frames of every video of a shard, in a zarr store.

The store is addressed by content: a video whose flow is there, from whatever run or dataset, is not solved again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import FlowConfig
from pipeline.dataset.receipts import Receipt
from pipeline.optical_flow.solve import solve_video
from pipeline.stores.flow_shards import Solved, fill_shard, run_command
from pipeline.stores.sharing import Sharing


def solve_shard(
    probed: Receipt,
    *,
    shard: str,
    store: Path,
    config: FlowConfig,
    on_error: Literal["quarantine", "fail"] = "quarantine",
    sharing: Sharing | None = None,
) -> Receipt:
    """Make sure that the flow of every video of a shard is in the store.

    Args:
        probed: receipt of the probe stage on this shard.
        shard: its name.
        store: folder of the arrays.
        config: geometry, rate, solver and quantisation.
        on_error: what to do about an unusable video.
        sharing: the team's store; None for none.

    Raises:
        UnusableVideo: ``on_error`` is ``fail`` and a video is unusable.
    """

    def solved(frames: Iterable[NDArray[np.uint8]]) -> Iterator[Solved]:
        flows = solve_video(
            frames, step=config.step, reverse=config.reverse, backend=config.backend, params=config.tvl1
        )
        return map(Solved, flows)

    return fill_shard(
        probed,
        stage="flow",
        shard=shard,
        store=store,
        config=config,
        solve=solved,
        attributes={},
        on_error=on_error,
        sharing=sharing,
    )


def main(argv: list[str] | None = None) -> None:
    """Solve the flow of one shard."""
    cv2.setNumThreads(1)  # the workflow counts on one core a job
    run_command(argv, stage="flow", description=main.__doc__, section=FlowConfig, job=solve_shard)


if __name__ == "__main__":
    main()
