"""Stage flow: TV-L1 optical flow between the consecutive frames of every video of a shard, in a zarr store.

The store is addressed by content: a video whose flow is there, from whatever run or dataset, is not solved again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FlowConfig
from pipeline.dataset.keys import artifact_key
from pipeline.dataset.receipts import Outcome, Receipt, work_through
from pipeline.media import ffmpeg
from pipeline.media.decode import counted, gray_frames, target_size
from pipeline.media.errors import UnusableVideo
from pipeline.optical_flow.quantise import clipped_fraction, quantise
from pipeline.optical_flow.solve import TVL1Params, solve_video
from pipeline.stores.flow import FlowStore
from pipeline.stores.leftovers import remove_leftovers

SOLVER_LIBRARY = {"numba": "numba", "opencv": "opencv-contrib-python-headless"}


def solve_shard(
    probed: Receipt,
    *,
    shard: str,
    store: Path,
    config: FlowConfig,
    on_error: Literal["quarantine", "fail"] = "quarantine",
) -> Receipt:
    """Make sure that the flow of every video of a shard is in the store.

    Args:
        probed: receipt of the probe stage on this shard.
        shard: its name.
        store: folder of the arrays.
        config: geometry, rate, solver and quantisation.
        on_error: what to do about an unusable video.

    Raises:
        UnusableVideo: ``on_error`` is ``fail`` and a video is unusable.
    """
    videos, arrays = probed.usable(), FlowStore(store)

    def attempt(name: str) -> Outcome:
        key = artifact_key("flow", config, videos[name]["digest"])
        if arrays.has(key):
            return Outcome(status="reused", facts=_facts(key, arrays.attributes(key)))
        remove_leftovers(arrays.path(key).parent)
        return Outcome(status="done", facts=_facts(key, _solve(arrays, key, videos[name], config)))

    return work_through(videos, attempt, stage="flow", shard=shard, on_error=on_error, earlier=probed.quarantined())


def _solve(arrays: FlowStore, key: str, facts: dict[str, Any], config: FlowConfig) -> dict[str, Any]:
    """Decode, solve, quantise and write one video, a frame at a time; returns the array's attributes."""
    width, height = target_size(facts["width"], facts["height"], size=config.size, short_side=config.short_side)
    frames = gray_frames(
        Path(facts["path"]), width=width, height=height, fps=config.fps, max_seconds=config.max_seconds
    )
    every_frame = config.fps is None and config.max_seconds is None
    solver = config.model_dump(include=set(TVL1Params.__dataclass_fields__), by_alias=False)
    flows = solve_video(
        counted(frames, at_least=2, expected=facts["frames"] if every_frame else None),
        backend=config.backend,
        params=TVL1Params(**solver),
    )
    clipped = 0.0

    def quantised() -> Iterator[NDArray[np.uint8]]:
        nonlocal clipped
        for flow in flows:
            clipped += clipped_fraction(flow, bound=config.bound)
            yield quantise(flow, bound=config.bound)

    def describe(count: int) -> dict[str, Any]:
        made = {"frames": count, "width": width, "height": height, "fps": config.fps or facts["fps"]}
        return (
            _attributes(config)
            | made
            | {
                "artifact_key": key,
                "source_digest": facts["digest"],
                "clipped_fraction": clipped / count,
            }
        )

    return arrays.write(key, quantised(), describe=describe)


def _attributes(config: FlowConfig) -> dict[str, Any]:
    """What holds for every array made with these settings."""
    library = SOLVER_LIBRARY[config.backend]
    return {
        "artifact": "optical flow",
        "algorithm": "TV-L1",
        "variant": config.backend,
        "parameters": config.model_dump(mode="json", by_alias=True),
        "alignment": "flow[t]: frame t -> t+1",
        "step": 1,
        "direction": "forward",
        "channels": ["x", "y"],
        "unit": "pixels of the resized frame",
        "bound": config.bound,
        "quantisation": "q = 0 if v < -bound, 255 if v > bound, else round_half_even(255 * (v + bound) / (2 * bound))",
        "inverse": "v = 2 * bound * q / 255 - bound",
        "software": {"ffmpeg": ffmpeg.version(), library: version(library), "zarr": version("zarr")},
    }


def _facts(key: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """What a reader needs to know of an array."""
    facts = {name: attributes[name] for name in ("frames", "width", "height", "fps")}
    return {"key": key, **facts, "clipped": attributes["clipped_fraction"]}


def main(argv: list[str] | None = None) -> None:
    """Solve the flow of one shard."""
    parser = argparse.ArgumentParser(prog="python -m stages.flow", description=main.__doc__)
    parser.add_argument("--shard", type=Path, required=True, help="receipt of the probe stage; its name is the shard's")
    parser.add_argument("--store", type=Path, required=True, help="folder of the arrays")
    parser.add_argument("--params", type=FlowConfig.model_validate_json, required=True, help="settings as JSON")
    parser.add_argument("--on-error", choices=("quarantine", "fail"), default="quarantine")
    parser.add_argument("--receipt", type=Path, required=True, help="receipt to write")
    arguments = parser.parse_args(argv)
    try:
        solve_shard(
            Receipt.read(arguments.shard),
            shard=arguments.shard.stem,
            store=arguments.store,
            config=arguments.params,
            on_error=arguments.on_error,
        ).write(arguments.receipt)
    except (ValueError, UnusableVideo, ChildProcessError) as error:
        sys.exit(f"flow: {error}")


if __name__ == "__main__":
    main()
