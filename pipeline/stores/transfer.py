"""Pull from the shared store and push to it: whole artifacts, those that are there left out, several at a time.

Killed halfway, both leave whole artifacts and temporary files; the same command goes on where it was. A tar of frames
is one file for a bucket of videos, so a killed pull begins that bucket again.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pipeline.config import Config
from pipeline.dataset.plan import stage_recipes
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.flow import FlowStore
from pipeline.stores.frames import Sample, ShardWriter, check_shard, samples
from pipeline.stores.inventory import Need, forget_tar
from pipeline.stores.leftovers import remove_leftovers
from pipeline.stores.parallel import in_threads
from pipeline.stores.provenance import check_address
from pipeline.stores.publish import atomic_file
from pipeline.stores.ready import make_local
from pipeline.stores.shared import SharedStore
from pipeline.stores.sharing import Sharing

REQUESTS = 8
"""Artifacts that are copied to or from a server at a time."""
Outcome = Literal["copied", "there", "absent", "damaged"]


@dataclass(frozen=True)
class Moved:
    """What became of one video's result."""

    need: Need
    outcome: Outcome
    """copied; there: nothing was to be done; absent: not where it should come from; damaged: not copied."""
    bytes: int = 0
    reason: str = ""


def pull(config: Config, found: Sequence[Need], *, shared: SharedStore, threads: int | None = None) -> list[Moved]:
    """Copy from the shared store to the local one. The caller holds the lock of the work folder.

    Args:
        config: of the local store.
        found: what to copy.
        shared: where from.
        threads: artifacts, or shards of frames, at a time; None takes as many as suit the store.

    Raises:
        OSError: the shared store cannot be reached, or the disk is full.
    """
    arrays, threads = FlowStore(config.store_folder("flow", "")), threads or _at_a_time(shared)
    make_local(config)
    arrays.root.mkdir(parents=True, exist_ok=True)
    flows = [need for need in found if need.kind == "flow"]
    moved = _of_arrays(partial(_pull_array, arrays, shared), flows, threads=threads, label="pull flow")
    buckets = _buckets(found)
    done = in_threads(
        partial(_pull_bucket, config, shared), buckets, threads=threads, label="pull frames", unit="shard"
    )
    return moved + [one for bucket in done for one in bucket]


def push(config: Config, found: Sequence[Need], *, shared: SharedStore, threads: int | None = None) -> list[Moved]:
    """Copy from the local store to the shared one, with a check of every byte; arguments as of ``pull``.

    Raises:
        OSError: the shared store cannot be reached, or is full.
        ValueError: it is opened to be read only.
    """
    arrays, threads = FlowStore(config.store_folder("flow", "")), threads or _at_a_time(shared)
    flows = [need for need in found if need.kind == "flow"]
    moved = _of_arrays(partial(_push_array, arrays, shared), flows, threads=threads, label="push flow")
    buckets = _buckets(found)
    done = in_threads(
        partial(_push_bucket, config, shared), buckets, threads=threads, label="push frames", unit="shard"
    )
    return moved + [one for bucket in done for one in bucket]


def _at_a_time(shared: SharedStore) -> int:
    """To a folder as many copies as there are cores, because they compute; to a server more, because they wait."""
    return REQUESTS if shared.folder is None else min(REQUESTS, os.cpu_count() or 1)


def _of_arrays(move: partial[Moved], found: Sequence[Need], *, threads: int, label: str) -> list[Moved]:
    """Each array once, however many videos have it."""
    once = list({need.key: need for need in found}.values())
    by_key = {one.need.key: one for one in in_threads(move, once, threads=threads, label=label, unit="array")}
    done = ((need, by_key[need.key]) for need in found)
    return [one if one.need == need else Moved(need, _again(one.outcome)) for need, one in done]


def _again(outcome: Outcome) -> Outcome:
    return "there" if outcome == "copied" else outcome


def _buckets(found: Sequence[Need]) -> list[list[Need]]:
    """The frames among them, by bucket."""
    buckets: dict[str, list[Need]] = defaultdict(list)
    for need in found:
        if need.kind == "frames":
            buckets[need.shard].append(need)
    return [buckets[shard] for shard in sorted(buckets)]


def _pull_array(arrays: FlowStore, shared: SharedStore, need: Need) -> Moved:
    if arrays.has(need.key):
        return Moved(need, "there")
    arrays.remove_broken(need.key)
    remove_leftovers(arrays.path(need.key).parent)
    try:
        with shared.local("flow", need.key, folder=arrays.root) as archive:
            arrays.adopt(need.key, archive)
            return Moved(need, "copied", archive.stat().st_size)
    except FileNotFoundError:
        return Moved(need, "absent")
    except DamagedArtifact as error:
        return Moved(need, "damaged", reason=f"{shared.where('flow', need.key)} is not used: {error}")


def _push_array(arrays: FlowStore, shared: SharedStore, need: Need) -> Moved:
    if not arrays.path(need.key).is_dir():
        return Moved(need, "absent")
    try:
        size = Sharing(shared).give_flow(arrays, need.key)
    except DamagedArtifact as error:
        return Moved(need, "damaged", reason=str(error))
    return Moved(need, "copied" if size else "there", size)


def _tar(config: Config, shard: str) -> Path:
    return config.store_folder("frames", stage_recipes(config)["frames"]) / f"{shard}.tar"


def _push_bucket(config: Config, shared: SharedStore, bucket: list[Need]) -> list[Moved]:
    tar, moved = _tar(config, bucket[0].shard), []
    wanted = {(need.video, need.key): need for need in bucket}
    with contextlib.suppress(FileNotFoundError), tar.open("rb") as file:
        try:
            for sample in samples(tar):
                if need := wanted.pop((sample.id, sample.artifact_key), None):
                    there = shared.has("frames", need.key)
                    Sharing(shared).give_frames(file, sample, folder=tar.parent)
                    moved.append(Moved(need, "there" if there else "copied", 0 if there else sample.length))
        except DamagedArtifact as error:
            return moved + [Moved(need, "damaged", reason=str(error)) for need in wanted.values()]
    return moved + [Moved(need, "absent") for need in wanted.values()]


def _pull_bucket(config: Config, shared: SharedStore, bucket: list[Need]) -> list[Moved]:
    """Bring a tar up to date; it is written again only if the shared store has something for it."""
    tar = _tar(config, bucket[0].shard)
    tar.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(tar.parent)
    old = {sample.id: sample for sample in _whole(tar)}
    lacking = [need for need in bucket if need.video not in old or old[need.video].artifact_key != need.key]
    wanted = {need.video: need for need in lacking if shared.has("frames", need.key)}
    moved = [Moved(need, "there" if need not in lacking else "absent") for need in bucket if need.video not in wanted]
    if not wanted:
        return moved
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(tar.open("rb")).fileno() if old else -1
        writer = ShardWriter(stack.enter_context(atomic_file(tar)), folder=tar.parent)
        for video in sorted({*old, *wanted}):
            if video in wanted:
                moved.append(_take(writer, shared, wanted[video], folder=tar.parent))
            else:
                writer.copy(source, old[video])
        writer.finish()
    forget_tar(config, tar)
    return moved


def _whole(tar: Path) -> list[Sample]:
    """What can be kept of a tar."""
    try:
        return list(samples(tar))
    except FileNotFoundError:
        return []
    except DamagedArtifact:
        return check_shard(tar)[0]


def _take(writer: ShardWriter, shared: SharedStore, need: Need, *, folder: Path) -> Moved:
    try:
        with shared.local("frames", need.key, folder=folder) as found, found.open("rb") as file:
            (sample,) = samples(found)
            check_address(need.key, sample.metadata)
            written = writer.repack(file.fileno(), sample, video_id=need.video)
            return Moved(need, "copied", written.length)
    except FileNotFoundError:
        return Moved(need, "absent")
    except ValueError as error:
        return Moved(need, "damaged", reason=f"{shared.where('frames', need.key)} is not used: {error}")
