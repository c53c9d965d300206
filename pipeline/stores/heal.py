"""What a run does, before it plans, about damage that the one before has met: it makes room for the artifact anew.

Only what is really damaged or absent is touched. Its own file goes, and the receipts and indexes that vouch for it, so
that their shards run again; there all other videos are found. What is damaged in the shared store is not deleted,
because it is not ours alone: its note stays, the video is computed, and in read-write mode the object is replaced.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from pipeline.config import Config
from pipeline.dataset.receipts import Receipt
from pipeline.stores.damage import DamagedArtifact, Note, Notes
from pipeline.stores.flow import FlowStore
from pipeline.stores.frames import ShardWriter, check_shard
from pipeline.stores.publish import atomic_file
from pipeline.stores.shared import SharedStore, kind_of


def heal(config: Config) -> Iterator[str]:
    """Act on the notes in the work folder, which the caller has locked; yields a sentence for each artifact.

    Raises:
        OSError: the shared store cannot be reached.
    """
    for path, note in Notes(config.work_dir / "damaged"):
        try:
            told, done = _act(config, note)
        except ValueError as error:
            told, done = str(error), False
        if done:
            path.unlink()
        if told:
            yield f"video {note.video!r}: {told}"


def discard(config: Config, stage: str, key: str) -> list[Path]:
    """Delete an artifact from the local store, and the receipts and indexes that vouch for it.

    Args:
        config: whose stores and receipts.
        stage: whose artifact: frames, flow or warped_flow.
        key: artifact key. Of a frames shard everything that is damaged is left out with it.

    Returns:
        The receipts and indexes that are gone.
    """
    indexes = [path for path in config.work_dir.glob(f"index/{stage}-*.json") if _vouches(path, key)]
    receipts = [path for path in sorted(config.work_dir.glob(f"receipts/{stage}-*/*.json")) if _vouches(path, key)]
    if kind_of(stage) == "flow":
        FlowStore(config.store_folder(stage, "")).remove(key)
    else:
        for receipt in receipts:
            recipe = receipt.parent.name.removeprefix(f"{stage}-")
            leave_out(config.store_folder(stage, recipe) / f"{receipt.stem}.tar", key)
    for index in indexes:
        index.unlink()
    return [*forget(config, receipts), *indexes]


def forget(config: Config, receipts: Collection[Path]) -> list[Path]:
    """Delete receipts, so that their shards run again, and the indexes that were made of them, or no run would notice.

    Returns:
        What was there and is gone.
    """
    folders = {receipt.parent.name for receipt in receipts}
    gone = []
    for path in (*receipts, *(config.work_dir / "index" / f"{folder}.json" for folder in sorted(folders))):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
            gone.append(path)
    return gone


def _act(config: Config, note: Note) -> tuple[str, bool]:
    """What was done about a note, and whether it is settled."""
    if kind_of(note.made_by) == "frames":
        if _frames_are_whole(config, note):
            return "", True
        discard(config, note.made_by, note.key)
        return f"its frames {note.key} were damaged and are made anew ({note.reason})", True
    local = FlowStore(config.store_folder(note.made_by, ""))
    try:
        local.verify(note.key)
    except DamagedArtifact as error:
        was_here = local.has(note.key)
        discard(config, note.made_by, note.key)
        if was_here or config.store.shared is None:
            return f"its flow {note.key} was damaged or gone and is made anew ({error})", True
        return _act_on_shared(config, note)
    return "", True


def _act_on_shared(config: Config, note: Note) -> tuple[str, bool]:
    assert config.store.shared is not None
    shared = SharedStore(config.store.shared)
    if not shared.has("flow", note.key):
        return f"its flow {note.key} is gone and is made anew", True
    try:
        FlowStore(config.store_folder(note.made_by, ""), shared=shared).verify(note.key)
    except DamagedArtifact as error:
        return f"its flow is not taken from the shared store but computed: {error}", False
    return "", True


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
