"""Reading flow as training does, five consecutive fields at random places: ``python -m benchmarks.flow_store``.

Compared: ``FlowStore.read``, and the same array through zarr with its own codec pipeline and with that of ``zarrs``.
Wall and CPU milliseconds a read (all threads of the process), alternating, median over rounds; the page cache is warm,
so this is the cost of finding and decoding. The flow is TV-L1 of a real clip where there is one, else of a synthetic.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from benchmarks.frames import REAL_CLIP, make_clip
from pipeline.media.decode import gray_frames
from pipeline.optical_flow.quantise import quantise
from pipeline.optical_flow.solve import solve_video
from pipeline.stores.flow import FlowStore

KEY = "0" * 32
SNIPPET = 5
PIPELINES = {"zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs": "zarrs.ZarrsCodecPipeline"}


def build(root: Path, *, fields: int) -> int:
    """Write a store of one array of 340x256; returns its size in bytes."""
    clip = REAL_CLIP if REAL_CLIP.exists() else make_clip(root)
    frames = islice(gray_frames(clip, width=340, height=256), fields + 1)
    store = FlowStore(root)
    store.write(KEY, (quantise(flow) for flow in solve_video(frames)), describe=lambda count: {"frames": count})
    return sum(path.stat().st_size for path in store.path(KEY).rglob("*") if path.is_file())


def readers(root: Path) -> dict[str, Callable[[int], Any]]:
    """Ways to read a snippet from its first field on, by name."""
    store = FlowStore(root)
    arrays = {}
    for name, pipeline in PIPELINES.items():
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            arrays[name] = zarr.open_array(store.path(KEY), mode="r")
    ways: dict[str, Callable[[int], Any]] = {"ours": lambda start: store.read(KEY, start, start + SNIPPET)}
    return ways | {name: partial(_slice, array) for name, array in arrays.items()}


def _slice(array: Any, start: int) -> Any:
    return array[start : start + SNIPPET]


def main(argv: list[str] | None = None) -> None:
    """Measure and print; the last line is one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flow_store", description=main.__doc__)
    parser.add_argument("--fields", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        size = build(Path(name), fields=arguments.fields)
        ways = readers(Path(name))
        starts = np.random.default_rng(0).integers(0, arguments.fields - SNIPPET, 40).tolist()
        wall: dict[str, list[float]] = {way: [] for way in ways}
        cpu: dict[str, list[float]] = {way: [] for way in ways}
        for round_number in range(arguments.rounds + 1):
            for way, read in ways.items():
                begun = time.perf_counter(), time.process_time()
                for start in starts:
                    read(start)
                if round_number:  # the first warms up
                    wall[way].append((time.perf_counter() - begun[0]) / len(starts) * 1e3)
                    cpu[way].append((time.process_time() - begun[1]) / len(starts) * 1e3)
    result: dict[str, Any] = {"benchmark": "flow_store", "bytes_per_field": round(size / arguments.fields)}
    for way in ways:
        result[f"{way}_wall_ms"] = round(statistics.median(wall[way]), 3)
        result[f"{way}_cpu_ms"] = round(statistics.median(cpu[way]), 3)
        print(f"{way:6} {result[f'{way}_wall_ms']:.3f} ms wall, {result[f'{way}_cpu_ms']:.3f} ms CPU a read")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
