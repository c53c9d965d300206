"""What no configuration refers to any more, and temporary files of jobs that were killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config
from pipeline.dataset.plan import read_shards, stage_recipes
from pipeline.stores.feature_needs import feature_needs, feature_receipts
from pipeline.stores.features import FeatureStore
from pipeline.stores.flow import FlowStore
from pipeline.stores.heal import flow_receipts, forget, mark_gone
from pipeline.stores.inventory import LocalStore, folder_bytes, forget_tar, needs
from pipeline.stores.leftovers import DAY_SECONDS
from pipeline.stores.publish import TEMPORARY, remove_folder
from pipeline.stores.shared import Kind, SharedStore

HOUR_SECONDS = 3600.0
"""What is younger stays: a run whose configuration was not given may have just made it."""
ADDRESSED = ("flow", "features")
"""What lies in folders by its key."""


@dataclass(frozen=True)
class Garbage:
    """Something that can go."""

    what: str
    """flow, features, frames or temporary."""
    where: str
    bytes: int
    age_seconds: float
    key: str = ""
    """Of flow and features, and of an object."""

    @property
    def old_enough(self) -> bool:
        return self.age_seconds >= (DAY_SECONDS if self.what == "temporary" else HOUR_SECONDS)


def local_garbage(configs: Sequence[Config]) -> list[Garbage]:
    """What lies in the local stores of configurations and belongs to none of them.

    Raises:
        ValueError: a configuration has no plan, so nobody knows what it refers to.
    """
    keys = {need.key for config in configs for need in needs(config)}
    vouched = {need.key for config in configs for need in feature_needs(config)}
    kept = {tar for config in configs for tar in _tars(config)}
    stores = [LocalStore.of(config) for config in configs]
    found = [
        _garbage("flow", arrays.path(key), key)
        for arrays in map(FlowStore, sorted({store.arrays for store in stores}))
        for key in LocalStore(arrays.root, ()).array_keys()
        if key not in keys
    ]
    found += [
        _garbage("features", FeatureStore(root).path(key), key)
        for root, keys_there in sorted({store.features.root: store.feature_keys() for store in stores}.items())
        for key in keys_there
        if key not in vouched
    ]
    tars = sorted({tar for store in stores for tar in store.tars()} - kept)
    temporary = sorted({path for root in _roots(configs) for path in _leftovers(root)})
    return [*found, *(_garbage("frames", tar) for tar in tars), *(_garbage("temporary", path) for path in temporary)]


def shared_garbage(configs: Sequence[Config], store: SharedStore) -> list[Garbage]:
    """What lies in a shared store and belongs to none of the configurations.

    Raises:
        OSError: the store cannot be listed.
        ValueError: a configuration has no plan.
    """
    keys = {(need.kind, need.key) for config in configs for need in needs(config)}
    kinds: tuple[Kind, ...] = ("flow", "frames")
    store, now = SharedStore(store.url), time.time()  # to read only: what looks for a store must not make it
    found = [
        Garbage(kind, store.where(kind, key), size, now - modified, key)
        for kind in kinds
        for key, size, modified in sorted(store.listing(kind))
        if (kind, key) not in keys
    ]
    leftovers = (
        () if store.folder is None else _leftovers(store.folder)
    )  # what was not put whole is no object elsewhere
    return found + [_garbage("temporary", path) for path in sorted(leftovers)]


def _tars(config: Config) -> Iterator[Path]:
    folder = config.store_folder("frames", stage_recipes(config)["frames"])
    return (folder / f"{shard}.tar" for shard in read_shards(config.work_dir / "plan"))


def _roots(configs: Sequence[Config]) -> set[Path]:
    """Folders in which jobs of these configurations write."""
    local = {config.store.local for config in configs if config.store.local is not None}
    return {config.work_dir for config in configs} | local


def _leftovers(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            if name.startswith(TEMPORARY):
                yield Path(folder) / name
        folders[:] = [name for name in folders if not name.startswith(TEMPORARY)]


def _garbage(what: str, path: Path, key: str = "") -> Garbage:
    try:
        newest = max(one.lstat().st_mtime for one in [path, *path.rglob("*")])
        size = folder_bytes(path) if path.is_dir() else path.lstat().st_size
    except FileNotFoundError:  # a job is at work in it, or has just finished
        newest, size = time.time(), 0
    return Garbage(what, str(path), size, time.time() - newest, key)


def delete_local(found: Sequence[Garbage], configs: Sequence[Config]) -> None:
    """Delete what is old enough, and the receipts and indexes that vouch for it.

    The caller holds the locks of all work folders.
    """
    gone = [one for one in found if one.old_enough]
    for config in {config.store.local: config for config in configs}.values():
        folders = {stage: config.store_folder(stage, "") for stage in ADDRESSED}
        own = [one for one in gone if one.what in folders and Path(one.where).is_relative_to(folders[one.what])]
        mark_gone(config, [one.key for one in own])
    for one in gone:
        path = Path(one.where)
        if one.what in ADDRESSED:
            remove_folder(path)
        else:
            _delete(path)
        if one.what == "frames":
            for config in configs:
                if config.store_folder("frames", "").parent == path.parent.parent:
                    forget_tar(config, path)
            with contextlib.suppress(OSError):  # the last one takes its folder with it
                path.parent.rmdir()
    keys = {one.key for one in gone if one.what in ADDRESSED}
    for config in configs:  # of other parameters than today's, or their videos would be missed when they come back
        forget(config, flow_receipts(config, keys) + feature_receipts(config, keys))


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def delete_shared(found: Sequence[Garbage], store: SharedStore) -> None:
    """Delete what is old enough.

    Raises:
        ValueError: the store is opened to be read only.
    """
    for one in found:
        if not one.old_enough:
            continue
        if one.what == "temporary":
            _delete(Path(one.where))
        else:
            store.remove("flow" if one.what == "flow" else "frames", one.key)
