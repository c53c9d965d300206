"""What a run does, before it plans, about damage that the one before has met: it makes room for the artifact anew.

Only what is really damaged or absent is touched. Its own file goes, and the receipts and indexes that vouch for it, so
that their shards run again; there all other videos are found. What is damaged in the shared store is not deleted,
because it is not ours alone: its note stays, the video is computed, and in read-write mode the object is replaced.

A local store may be common to several datasets (``store.local``), and receipts of each vouch for its flow. Who removes
an array from it leaves a mark, ``<local>/gone/<key>``, until the array is there again or for 90 days; a run of another
dataset that finds the mark forgets its own receipts for it.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from pipeline.config import Config
from pipeline.dataset.receipts import Receipt
from pipeline.stores.damage import DamagedArtifact, Note, Notes
from pipeline.stores.feature_needs import feature_receipts
from pipeline.stores.features import FeatureStore
from pipeline.stores.flow import FlowStore
from pipeline.stores.frames import ShardWriter, check_shard
from pipeline.stores.inventory import in_place
from pipeline.stores.leftovers import DAY_SECONDS
from pipeline.stores.publish import atomic_file, make_folder, write_bytes
from pipeline.stores.shared import SharedStore, kind_of

_GONE = "gone"
_REMEMBERED_SECONDS = 90 * DAY_SECONDS
"""Age of a mark that no run looks at any more."""


def heal(config: Config, *, dry_run: bool = False) -> Iterator[str]:
    """Act on the notes in the work folder, which the caller has locked; yields a sentence for each artifact.

    Args:
        config: whose notes, stores and receipts.
        dry_run: whether to change nothing, and only say what would be done.

    Raises:
        OSError: the shared store cannot be reached.
    """
    for path, note in Notes(config.work_dir / "damaged"):
        try:
            told, done = _act(config, note, dry_run=dry_run)
        except ValueError as error:
            told, done = str(error), False
        if done and not dry_run:
            path.unlink()
        if told:
            yield f"video {note.video!r}: {told}"
    yield from _forget_what_others_removed(config, dry_run=dry_run)


def mark_gone(config: Config, keys: Iterable[str]) -> None:
    """Tell the other datasets that use a local store what was removed from it."""
    if config.store.local is not None:
        make_folder(config.store.local / _GONE, root=config.store.local)
        for key in keys:
            write_bytes(config.store.local / _GONE / key, b"")


def _forget_what_others_removed(config: Config, *, dry_run: bool) -> Iterator[str]:
    if config.store.local is None or config.store.access == "in-place":  # what is not here may be in the shared store
        return
    flow, features, gone = FlowStore(config.store_folder("flow", "")), _features(config), set()
    for mark in (config.store.local / _GONE).glob("[!.]*"):
        is_there = flow.has(mark.name) or features.has(mark.name)
        if not is_there and _age_seconds(mark) < _REMEMBERED_SECONDS:
            gone.add(mark.name)
        elif not dry_run:  # made anew, it makes every receipt right again
            mark.unlink(missing_ok=True)
    for what, receipts in (("flow", flow_receipts(config, gone)), ("features", feature_receipts(config, gone))):
        if not receipts:
            continue
        if not dry_run:
            forget(config, receipts)
        yield f"another run has removed {what} from {config.store.local}; what is needed of it is made anew"


def _age_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return math.inf


def flow_receipts(config: Config, keys: Collection[str]) -> list[Path]:
    """Receipts of flow, of today's parameters and of others, that vouch for one of some arrays."""
    found = sorted(config.work_dir.glob("receipts/*flow-*/[!.]*.json")) if keys else []
    return [path for path in found if any(facts["key"] in keys for facts in Receipt.read(path).usable().values())]


def discard(config: Config, stage: str, key: str) -> None:
    """Delete an artifact from the local store, and the receipts and indexes that vouch for it.

    Args:
        config: whose stores and receipts.
        stage: whose artifact: frames, flow, warped_flow or features.
        key: artifact key. Of a frames shard everything that is damaged is left out with it.
    """
    if stage == "features":
        mark_gone(config, [key])
        _features(config).remove(key)
        forget(config, feature_receipts(config, [key]))
        return
    indexes = [path for path in config.work_dir.glob(f"index/{stage}-*.json") if _vouches(path, key)]
    receipts = [path for path in sorted(config.work_dir.glob(f"receipts/{stage}-*/*.json")) if _vouches(path, key)]
    if kind_of(stage) == "flow":
        mark_gone(config, [key])
        FlowStore(config.store_folder(stage, "")).remove(key)
    else:
        for receipt in receipts:
            recipe = receipt.parent.name.removeprefix(f"{stage}-")
            leave_out(config.store_folder(stage, recipe) / f"{receipt.stem}.tar", key)
    forget(config, receipts)
    for index in indexes:
        index.unlink(missing_ok=True)


def forget(config: Config, receipts: Collection[Path]) -> None:
    """Delete receipts, so that their shards run again, and the indexes made of them, or no run would notice."""
    indexes = {config.work_dir / "index" / f"{receipt.parent.name}.json" for receipt in receipts}
    for path in (*receipts, *indexes):
        path.unlink(missing_ok=True)


def _features(config: Config) -> FeatureStore:
    return FeatureStore(config.store_folder("features", ""))


def _act(config: Config, note: Note, *, dry_run: bool) -> tuple[str, bool]:
    """What is done about a note, and whether that settles it."""
    told, is_whole, settled = _look(config, note)
    if not is_whole and not dry_run:
        discard(config, note.made_by, note.key)
    return told, settled


def _look(config: Config, note: Note) -> tuple[str, bool, bool]:
    """What there is to say, whether the artifact is whole, and whether the note is settled when it is discarded."""
    if note.made_by == "features":
        try:
            _features(config).verify(note.key)
        except DamagedArtifact as error:
            return f"its features {note.key} were damaged or gone and are made anew ({error})", False, True
        return "", True, True
    if kind_of(note.made_by) == "frames":
        if _frames_are_whole(config, note):
            return "", True, True
        return f"its frames {note.key} were damaged and are made anew ({note.reason})", False, True
    local = FlowStore(config.store_folder(note.made_by, ""))
    try:
        local.verify(note.key)
    except DamagedArtifact as error:
        if local.has(note.key) or config.store.shared is None:
            return f"its flow {note.key} was damaged or gone and is made anew ({error})", False, True
        return _look_into_shared(SharedStore(config.store.shared), note)
    return "", True, True


def _look_into_shared(shared: SharedStore, note: Note) -> tuple[str, bool, bool]:
    if not shared.has("flow", note.key):
        return f"its flow {note.key} is gone and is made anew", False, True
    try:
        in_place(shared).verify(note.key)
    except DamagedArtifact as error:
        return f"its flow is not taken from the shared store but computed: {error}", False, False
    return "", True, True


def _frames_are_whole(config: Config, note: Note) -> bool:
    """Whether every shard whose receipt vouches for the frames holds them."""
    places = [path for path in config.work_dir.glob(f"receipts/{note.made_by}-*/*.json") if _vouches(path, note.key)]
    for receipt in places:
        recipe = receipt.parent.name.removeprefix(f"{note.made_by}-")
        tar = config.store_folder(note.made_by, recipe) / f"{receipt.stem}.tar"
        claimed = {
            (facts["key"], facts["offset"])
            for facts in Receipt.read(receipt).usable().values()
            if facts["key"] == note.key
        }
        try:
            whole, _ = check_shard(tar)
        except FileNotFoundError:
            return False
        if claimed - {(sample.artifact_key, sample.offset) for sample in whole}:
            return False
    return True


def _vouches(receipt: Path, key: str) -> bool:
    with contextlib.suppress(OSError):
        return f'"{key}"' in receipt.read_text()
    return False


def leave_out(tar: Path, key: str) -> None:
    """Write a shard again without what is damaged in it, and without a key."""
    try:
        whole, _ = check_shard(tar)
    except FileNotFoundError:
        return
    kept = [sample for sample in whole if sample.artifact_key != key]
    if not kept:
        os.unlink(tar)
        return
    with tar.open("rb") as source, atomic_file(tar) as file:
        writer = ShardWriter(file, folder=tar.parent)
        for sample in kept:
            writer.copy(source.fileno(), sample)
        writer.finish()
