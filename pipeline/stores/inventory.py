"""What configurations refer to, what stores hold, and the difference of the two."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config import Config, canonical
from pipeline.dataset.keys import artifact_key, maker
from pipeline.dataset.plan import read_rows, shard_of, stage_recipes
from pipeline.dataset.receipts import Receipt
from pipeline.stores.archive import file_names
from pipeline.stores.checksum import unseal
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.features import FeatureStore
from pipeline.stores.flow import FlowStore
from pipeline.stores.frames import Sample, samples
from pipeline.stores.parallel import in_threads
from pipeline.stores.shared import MARKER, Kind, SharedStore, kind_of

WAITING = 16
"""Requests to a store that wait at a time."""
_KEY = re.compile(r"[0-9a-f]{32}")
_HEAD_BYTES = 64 << 10  # of a tar; holds the JSON of some 2,000 frames


@dataclass(frozen=True)
class Need:
    """One video's result that a configuration refers to."""

    stage: str
    """frames, flow, warped_flow, or features, which are not shared."""
    video: str
    key: str
    shard: str
    """Bucket of the video."""

    @property
    def kind(self) -> Kind:
        return kind_of(self.stage)


def needs(config: Config, *, stages: Iterable[str] | None = None) -> list[Need]:
    """What the configuration refers to, by its plan.

    Args:
        config: with a plan.
        stages: some of those that it computes; None takes all.

    Raises:
        ValueError: there is no plan.
    """
    rows, found = read_rows(config.work_dir / "plan", "media"), []
    for stage in config.stores if stages is None else stages:
        parameters = json.loads(canonical(getattr(config, stage)))  # once, not for each video
        name = maker(stage, parameters)
        for row in rows:
            key = artifact_key(name, parameters, row["digest"])
            found.append(Need(stage, row["id"], key, shard_of(row["id"], config.shards)))
    return found


def select(
    config: Config, found: Sequence[Need], *, split: str | None = None, videos: Iterable[str] | None = None
) -> list[Need]:
    """Of some videos only.

    Args:
        config: with a plan.
        found: what ``needs`` gives.
        split: ``NAME`` for the videos that a split uses, ``NAME:PART`` for a part of it, as ``split1:test``.
        videos: ids; None takes all.

    Raises:
        ValueError: there is no such split, part or video.
    """
    chosen = {need.video for need in found}
    if split is not None:
        name, _, part = split.partition(":")
        parts = {row["id"]: row["splits"].get(name) for row in read_rows(config.work_dir / "plan", "labels")}
        of_split = {video for video, own in parts.items() if own is not None and part in ("", own)}
        if not of_split:
            raise ValueError(f"no video of {config.name} is in {split}; give the name of a split, or NAME:train")
        chosen &= of_split
    if videos is not None:
        asked = set(videos)
        if unknown := sorted(asked - {need.video for need in found}):
            raise ValueError(f"{config.name} has no video {unknown[0]!r}; ids are those of the plan")
        chosen &= asked
    return [need for need in found if need.video in chosen]


@dataclass(frozen=True)
class LocalStore:
    """Folders of the local stores."""

    arrays: Path
    """Flow, plain and warped."""
    frames: tuple[Path, ...]
    """One for each recipe, and dataset."""

    @property
    def features(self) -> FeatureStore:
        return FeatureStore(self.arrays.parent / "features")

    @classmethod
    def of(cls, config: Config) -> LocalStore:
        """Those that a configuration uses, with frames of all its recipes."""
        parent = config.store_folder("frames", "").parent
        return cls(config.store_folder("flow", ""), tuple(sorted(parent.glob("frames-*"))))

    def array_keys(self) -> list[str]:
        """Of the arrays, whole or not."""
        return _keys(self.arrays)

    def feature_keys(self) -> list[str]:
        """Of the features, whole or not."""
        return _keys(self.features.root)

    def tars(self) -> list[Path]:
        return [tar for folder in self.frames for tar in sorted(folder.glob("[!.]*.tar"))]


def _keys(root: Path) -> list[str]:
    return sorted(path.name for path in root.glob("??/*") if _KEY.fullmatch(path.name))


def open_store(place: str) -> LocalStore | SharedStore:
    """The store at a URL or in a folder: a shared one, or the local one of a run (``<work>/stores``, ``store.local``).

    Raises:
        ValueError: it is neither.
    """
    folder = Path(place).expanduser()
    if "://" in place or (folder / MARKER).is_file():
        return SharedStore(place)
    frames = tuple(sorted([*folder.glob("frames-*"), *folder.glob("*/frames-*")]))
    if not frames and not (folder / "flow").is_dir():
        raise ValueError(f"{place} is no store: it has neither {MARKER} nor the folders flow or frames-*")
    return LocalStore(folder / "flow", frames)


@dataclass(frozen=True)
class Entry:
    """What an artifact says of itself."""

    key: str
    bytes: int
    stage: str
    """Empty if it is damaged."""
    version: int
    parameters: str
    """Canonical JSON."""


def list_local(store: LocalStore) -> list[Entry]:
    """Every artifact of a local store; one entry for each sample of a tar."""
    stores = ((FlowStore(store.arrays), store.array_keys()), (store.features, store.feature_keys()))
    arrays = [
        entry
        for folder, keys in stores
        for entry in in_threads(partial(_local_array, folder), keys, threads=WAITING, label="list", unit="artifact")
    ]
    return arrays + [entry for tar in store.tars() for entry in _samples(tar)]


def list_shared(store: SharedStore, *, of: Iterable[Need] = ()) -> list[Entry]:
    """Every artifact of a shared store; of one that lists nothing, a web server, those of ``of``.

    Raises:
        OSError: the store cannot be reached.
    """
    jobs = list(objects(store, of=of))
    found = in_threads(partial(_object, store), jobs, threads=WAITING, label="list", unit="artifact")
    return [entry for entry in found if entry is not None]


def objects(store: SharedStore, *, of: Iterable[Need]) -> Iterator[tuple[Kind, str, int]]:
    """Kind, key and bytes of the objects of a shared store; of a web server those of ``of`` that are there."""
    kinds: tuple[Kind, ...] = ("flow", "frames")
    if not store.url.startswith(("http://", "https://")):
        for kind in kinds:
            yield from ((kind, key, size) for key, size in sorted(store.keys(kind)))
        return
    asked = sorted({(need.kind, need.key) for need in of})
    if not asked:
        raise ValueError(f"{store.url} does not list what it has; give --configfile, and its artifacts are asked for")
    for (kind, key), size in zip(asked, _sizes(store, asked), strict=True):
        if size is not None:
            yield kind, key, size


def _sizes(store: SharedStore, asked: Sequence[tuple[Kind, str]]) -> list[int | None]:
    return in_threads(lambda one: store.size(*one), asked, threads=WAITING, label="look", unit="artifact")


def _local_array(arrays: FlowStore | FeatureStore, key: str) -> Entry:
    try:
        found = arrays.attributes(key)
    except DamagedArtifact:
        found = {}
    return _entry(key, folder_bytes(arrays.path(key)), found)


def _samples(tar: Path) -> Iterator[Entry]:
    try:
        for sample in samples(tar):
            yield _entry(sample.artifact_key, sample.length, sample.metadata)
    except DamagedArtifact:
        yield _entry("", 0, {})


def _object(store: SharedStore, one: tuple[Kind, str, int]) -> Entry | None:
    """None if it has been removed since it was listed."""
    kind, key, size = one
    try:
        found = _frames_metadata(store, key) if kind == "frames" else in_place(store).attributes(key)
    except (FileNotFoundError, ValueError):
        if not store.has(kind, key):
            return None
        found = {}
    return _entry(key, size, found)


def in_place(store: SharedStore) -> FlowStore:
    """Arrays of a shared store, and of no folder."""
    return FlowStore(Path(os.devnull), shared=store)


def _frames_metadata(store: SharedStore, key: str) -> dict[str, Any]:
    """The JSON of the only sample of an object, by its first bytes."""
    head = store.read("frames", key, 0, _HEAD_BYTES)
    try:
        with tarfile.open(fileobj=io.BytesIO(head)) as tar:
            info = tar.next()
    except tarfile.TarError:
        info = None
    if info is None:
        raise ValueError("it is no tar")
    end = info.offset_data + info.size
    if end > len(head):
        head += store.read("frames", key, len(head), end)
    return unseal(head[info.offset_data : end])


def _entry(key: str, size: int, found: Mapping[str, Any]) -> Entry:
    parameters = canonical(found.get("parameters", {}))
    return Entry(key, size, found.get("stage", ""), found.get("stage_version", 0), parameters)


def folder_bytes(folder: Path) -> int:
    """Of all files in a folder."""
    return sum(os.lstat(folder / name).st_size for name in file_names(folder))


@dataclass(frozen=True)
class Presence:
    """Where one video's result is."""

    need: Need
    local: bool
    shared: bool
    quarantined: bool
    """The last run could not use the video, so nothing is to be expected."""


def presence(config: Config, found: Sequence[Need], *, shared: SharedStore | None) -> list[Presence]:
    """Look for everything in the local and in the shared store.

    Raises:
        OSError: the shared store cannot be reached.
    """
    recipes, arrays = stage_recipes(config), FlowStore(config.store_folder("flow", ""))
    packed = {
        (shard, sample.id, sample.artifact_key)
        for shard in {need.shard for need in found if need.kind == "frames"}
        for sample in readable_samples(config.store_folder("frames", recipes["frames"]) / f"{shard}.tar")
    }
    asked = sorted({(need.kind, need.key) for need in found})
    sizes = [None] * len(asked) if shared is None else _sizes(shared, asked)
    there = {one for one, size in zip(asked, sizes, strict=True) if size is not None}
    unusable = quarantined(config)
    return [
        Presence(
            need,
            local=arrays.has(need.key) if need.kind == "flow" else (need.shard, need.video, need.key) in packed,
            shared=(need.kind, need.key) in there,
            quarantined=(need.stage, need.video) in unusable,
        )
        for need in found
    ]


def readable_samples(tar: Path) -> list[Sample]:
    """The samples of a shard up to where it is damaged; none if there is no such file."""
    found = []
    try:
        for sample in samples(tar):
            found.append(sample)
    except (DamagedArtifact, FileNotFoundError):
        pass
    return found


def quarantined(config: Config) -> set[tuple[str, str]]:
    """Stage and id of what the last run could not use."""
    recipes = stage_recipes(config)
    return {
        (stage, video)
        for stage in config.stores
        for receipt in receipts(config, stage, recipes[stage]).values()
        for video in receipt.quarantined()
    }


def receipts(config: Config, stage: str, recipe: str) -> dict[str, Receipt]:
    """What the last run wrote of a stage, by shard."""
    folder = config.work_dir / "receipts" / f"{stage}-{recipe}"
    return {path.stem: Receipt.read(path) for path in sorted(folder.glob("[!.]*.json"))}


def forget_tar(config: Config, tar: Path) -> None:
    """Delete the receipt that vouches for a tar, and the index, so that a run looks at the tar again."""
    recipe = tar.parent.name
    for path in (f"receipts/{recipe}/{tar.stem}.json", f"index/{recipe}.json"):
        (config.work_dir / path).unlink(missing_ok=True)
