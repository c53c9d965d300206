"""Reading, verifying and sharing the stores beside plain ways of keeping the same: ``python -m benchmarks.stores``.

Flow of 340x256 (TV-L1 of a real clip where there is one, else of a synthetic), in five ways:

    ours      ``FlowStore.read``, checksums checked
    zarr      the same array through zarr with its own codec pipeline
    zarrs     the same array through zarr with the pipeline of ``zarrs``
    npy       one uncompressed ``.npy`` a video, mapped into memory
    jpeg      two JPEG files a field, as denseflow writes them (quality 95, lossy), read with OpenCV
    hdf5      one dataset a video, a field a chunk, gzip level 4 with shuffle; if h5py is installed

Measured for each: a random stack of five consecutive fields, and all fields in order, by 5. Wall and CPU milliseconds
(all threads of the process), ways alternating, medians over rounds; the page cache is warm, so this is the cost of
finding and decoding. ``sequential_frames_per_s`` and ``stack_read_ms`` are ours, by CPU time, so of one core.

Then ``FlowStore.verify`` and ``check_shard`` over every byte, MB a CPU second, and push to and pull from a shared
folder (all checks in both directions, threads as the command has) beside ``cp -r`` of the same files to an empty
folder. ``push_vs_cp`` and ``pull_vs_cp`` are of flow, those of frames have their names: the median over rounds of wall
seconds of ``cp`` divided by those of push or pull in the same round, because what a file system does a second varies;
``_best`` compares the fastest of all rounds, ``_cpu`` the least CPU seconds. A folder in memory (``--folder /dev/shm``)
shows what we compute; a disk shows what its file system takes for folders and files, too.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zarr
from numpy.typing import NDArray

from benchmarks.frames import REAL_CLIP, make_clip
from pipeline.config import Config, load
from pipeline.dataset.keys import artifact_key
from pipeline.dataset.plan import stage_recipes
from pipeline.media.decode import gray_frames, jpeg_frames
from pipeline.optical_flow.quantise import quantise
from pipeline.optical_flow.solve import solve_video
from pipeline.stores.flow import FlowStore
from pipeline.stores.frames import ShardWriter, check_shard
from pipeline.stores.inventory import Need
from pipeline.stores.provenance import provenance
from pipeline.stores.publish import atomic_file
from pipeline.stores.shared import SharedStore
from pipeline.stores.transfer import pull, push

WIDTH, HEIGHT = 340, 256
SNIPPET = 5
READS = 40
SHARDS = 4
PIPELINES = {"zarr": "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs": "zarrs.ZarrsCodecPipeline"}
Read = Callable[[int], Any]
"""Gives the five fields from one on."""


def source(folder: Path, *, fields: int) -> tuple[NDArray[np.uint8], list[bytes]]:
    """Quantised flow (fields, 2, H, W), and the JPEG files of the same frames."""
    clip = REAL_CLIP if REAL_CLIP.exists() else make_clip(folder)
    frames = islice(gray_frames(clip, width=WIDTH, height=HEIGHT), fields + 1)
    flow = np.stack([quantise(flow) for flow in solve_video(frames)])
    return flow, list(islice(jpeg_frames(clip, width=WIDTH, height=HEIGHT), fields + 1))


def write_flow(store: FlowStore, flow: NDArray[np.uint8], *, video: int = 0) -> str:
    """Write an array as the flow stage would; returns its key."""
    digest = f"{video:032x}"
    own, key = _own("flow", digest), artifact_key("flow", {}, digest)
    store.write(key, iter(flow), describe=lambda count: {**own, "frames": count})
    return key


def readers(folder: Path, flow: NDArray[np.uint8]) -> dict[str, Read]:
    """Ways to read a snippet, by name; all of the same flow."""
    store = FlowStore(folder / "flow")
    key = write_flow(store, flow)
    ways: dict[str, Read] = {"ours": lambda start: store.read(key, start, start + SNIPPET)}
    for name, pipeline in PIPELINES.items():
        if name == "zarr" or importlib.util.find_spec(name):
            with zarr.config.set({"codec_pipeline.path": pipeline}):
                ways[name] = partial(_slice, zarr.open_array(store.path(key), mode="r"))
    np.save(folder / "flow.npy", flow)
    ways["npy"] = lambda start: np.array(np.load(folder / "flow.npy", mmap_mode="r")[start : start + SNIPPET])
    ways["jpeg"] = _jpegs(folder / "jpeg", flow)
    if importlib.util.find_spec("h5py"):
        import h5py

        with h5py.File(folder / "flow.h5", "w") as file:
            chunk = {"chunks": (1, *flow.shape[1:]), "compression": "gzip", "shuffle": True}
            file.create_dataset("flow", data=flow, **chunk)
        # without its cache of decoded chunks, in which one short video would have room
        ways["hdf5"] = partial(_slice, h5py.File(folder / "flow.h5", rdcc_nbytes=0)["flow"])
    return ways


def _slice(array: Any, start: int) -> Any:
    return array[start : start + SNIPPET]


def _jpegs(folder: Path, flow: NDArray[np.uint8]) -> Read:
    folder.mkdir()
    for number, field in enumerate(flow):
        for component, plane in zip("xy", field, strict=True):
            cv2.imwrite(f"{folder}/flow_{component}_{number:05d}.jpg", plane)

    def read(start: int) -> Any:
        names = [f"{folder}/flow_{c}_{n:05d}.jpg" for n in range(start, start + SNIPPET) for c in "xy"]
        return [cv2.imread(name, cv2.IMREAD_GRAYSCALE) for name in names]

    return read


def reading(ways: dict[str, Read], *, fields: int, rounds: int) -> dict[str, Any]:
    """Milliseconds a random stack and fields a second in order, by way: wall and CPU."""
    starts = np.random.default_rng(0).integers(0, fields - SNIPPET, READS).tolist()
    result: dict[str, Any] = {}
    for what, places in (("stack", starts), ("sequential", range(0, fields - SNIPPET + 1, SNIPPET))):
        spent: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for round_number in range(rounds + 1):
            for way, read in ways.items():
                one = clocked(lambda read=read, places=places: [read(start) for start in places])  # type: ignore[misc]
                if round_number:  # the first warms up
                    spent[way].append((one[0] / len(places), one[1] / len(places)))
        for way, times in spent.items():
            wall, cpu = (statistics.median(one) for one in zip(*times, strict=True))
            if what == "stack":
                result[f"{way}_wall_ms"], result[f"{way}_cpu_ms"] = round(wall * 1e3, 3), round(cpu * 1e3, 3)
            else:
                result[f"{way}_frames_per_cpu_s"] = round(SNIPPET / cpu)
    return result


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    begun = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun[0], time.process_time() - begun[1]


class Team:
    """Local stores of some videos, and how long they take to a shared folder and back."""

    def __init__(self, folder: Path, flow: NDArray[np.uint8], images: list[bytes], *, videos: int) -> None:
        self.folder = folder
        self.local, self.other = self._config("local"), self._config("other")
        self.arrays = FlowStore(self.local.store_folder("flow", ""))
        self.tars = self.local.store_folder("frames", stage_recipes(self.local)["frames"])
        self.needs: dict[str, list[Need]] = {"flow": [], "frames": []}
        for shard in range(SHARDS):
            name = f"{shard:05d}"
            with atomic_file(self.tars / f"{name}.tar") as file:
                writer = ShardWriter(file, folder=self.tars)
                for video in range(shard, videos, SHARDS):
                    key = write_flow(self.arrays, np.roll(flow, video, axis=0), video=video)
                    self.needs["flow"].append(Need("flow", f"v{video:05d}", key, name))
                    digest = f"{video:032x}"
                    own, key = _own("frames", digest), artifact_key("frames", {}, digest)
                    writer.add(images, metadata={"id": f"v{video:05d}", "artifact_key": key, **own})
                    self.needs["frames"].append(Need("frames", f"v{video:05d}", key, name))
                writer.finish()

    def _config(self, local: str) -> Config:
        """Of a run with its stores in a folder."""
        store = {"local": str(self.folder / local), "shared": str(self.folder / "shared"), "mode": "read-write"}
        return load({"name": "team", "dataset": "demo", "store": store, "work": str(self.folder / "work")})

    def mb(self, what: str) -> float:
        """Of all arrays, or of all tars."""
        root = self.arrays.root if what == "flow" else self.tars
        return sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 1e6

    def verify(self) -> tuple[float, float]:
        """MB that were checked a CPU second, of flow and of frames."""
        _, flow = clocked(lambda: [self.arrays.verify(need.key) for need in self.needs["flow"]])
        _, frames = clocked(lambda: [check_shard(tar) for tar in self.tars.iterdir()])
        return self.mb("flow") / flow, self.mb("frames") / frames

    def round_trip(self, what: str) -> dict[str, tuple[float, float]]:
        """Wall and CPU seconds of ``cp -r``, push and pull."""
        for name in ("copied", "shared", "other"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        shared = SharedStore(str(self.folder / "shared"), writable=True)
        needs, cp = self.needs[what], ["cp", "-r", str(self.arrays.root if what == "flow" else self.tars)]
        before = _children_seconds()
        copied, _ = clocked(lambda: subprocess.run([*cp, str(self.folder / "copied")], check=True))
        copied_cpu = _children_seconds() - before
        pushed = clocked(lambda: push(self.local, needs, shared=shared))
        pulled = clocked(lambda: pull(self.other, needs, shared=shared))
        return {"cp": (copied, copied_cpu), "push": pushed, "pull": pulled}


def _own(stage: str, digest: str) -> dict[str, Any]:
    return provenance(stage, parameters={}, digest=digest, software={})


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def sharing(team: Team, what: str, *, rounds: int) -> dict[str, float]:
    """Speed of push and pull, and as parts of that of ``cp``."""
    trips = [team.round_trip(what) for _ in range(rounds)]
    suffix, size = "" if what == "flow" else f"_{what}", team.mb(what)
    best = {way: [min(trip[way][clock] for trip in trips) for clock in (0, 1)] for way in trips[0]}
    told: dict[str, float] = {f"cp{suffix}_mb_per_s": round(size / best["cp"][0])}
    for way in ("push", "pull"):
        ratios = [trip["cp"][0] / trip[way][0] for trip in trips]
        told[f"{way}{suffix}_vs_cp"] = round(statistics.median(ratios), 2)
        told[f"{way}{suffix}_vs_cp_best"] = round(best["cp"][0] / best[way][0], 2)
        told[f"{way}{suffix}_vs_cp_cpu"] = round(best["cp"][1] / best[way][1], 2)
        told[f"{way}{suffix}_mb_per_s"] = round(size / best[way][0])
    return told


def main(argv: list[str] | None = None) -> None:
    """Measure and print; the last line is one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stores", description=main.__doc__)
    parser.add_argument("--fields", type=int, default=120, help="of a video")
    parser.add_argument("--videos", type=int, default=40, help="that are verified, pushed and pulled")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where the stores are written; by default that of temporary files")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        flow, images = source(Path(name), fields=arguments.fields)
        ways = readers(Path(name), flow)
        result = reading(ways, fields=arguments.fields, rounds=arguments.rounds)
        team = Team(Path(name) / "team", flow, images, videos=arguments.videos)
        verified = list(zip(*(team.verify() for _ in range(arguments.rounds)), strict=True))
        shared = sharing(team, "flow", rounds=arguments.rounds) | sharing(team, "frames", rounds=arguments.rounds)
        sizes = stored(Path(name))
    told = {
        "benchmark": "stores",
        "stack_read_ms": result["ours_cpu_ms"],
        "sequential_frames_per_s": result["ours_frames_per_cpu_s"],
        "verify_mb_per_s": round(statistics.median(verified[0])),
        "verify_frames_mb_per_s": round(statistics.median(verified[1])),
        **shared,
        **result,
        **{f"{way}_bytes_per_field": round(bytes_ / arguments.fields) for way, bytes_ in sizes.items()},
    }
    for way in ways:
        times = f"{told[f'{way}_wall_ms']:7.3f} ms wall, {told[f'{way}_cpu_ms']:7.3f} ms CPU a stack"
        print(f"{way:5} {times}, {told[f'{way}_frames_per_cpu_s']:6} fields a CPU second in order")
    print(json.dumps(told))


def stored(folder: Path) -> dict[str, int]:
    """Bytes of one video, by way."""
    places = {"ours": "flow", "npy": "flow.npy", "jpeg": "jpeg", "hdf5": "flow.h5"}
    return {way: sum(_bytes(folder / name)) for way, name in places.items() if (folder / name).exists()}


def _bytes(path: Path) -> Iterator[int]:
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            yield file.stat().st_size


if __name__ == "__main__":
    main()
