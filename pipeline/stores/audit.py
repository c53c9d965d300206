"""Check every byte of stores against its checksum, and delete what is damaged so that it is made anew.

Nothing is decompressed: checksums are of the bytes as they lie.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config
from pipeline.dataset.plan import stage_recipes
from pipeline.stores.archive import check_archive
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.feature_needs import feature_needs
from pipeline.stores.features import FeatureStore
from pipeline.stores.flow import FlowStore
from pipeline.stores.frames import check_shard
from pipeline.stores.heal import discard, leave_out
from pipeline.stores.inventory import LocalStore, Need, forget_tar, in_place, objects, receipts
from pipeline.stores.parallel import through_dask
from pipeline.stores.provenance import check_address
from pipeline.stores.shared import Kind, SharedStore

_ADVICE = "; run again"


@dataclass(frozen=True)
class Array:
    """Flow of one key in a folder."""

    root: Path
    key: str


@dataclass(frozen=True)
class Features:
    """Features of one key in a folder."""

    root: Path
    key: str


@dataclass(frozen=True)
class Tar:
    """A shard of frames."""

    path: Path
    expected: frozenset[tuple[str, str]] = frozenset()
    """Id and key of each video for which a receipt vouches."""


@dataclass(frozen=True)
class Object:
    """An artifact in a shared store."""

    store: SharedStore
    kind: Kind
    key: str


Piece = Array | Features | Tar | Object


@dataclass(frozen=True)
class Checked:
    """What was found out about a piece."""

    piece: Piece
    bytes: int
    wrong: tuple[str, ...]
    """A sentence for each thing that is damaged or missing."""

    def told(self, videos: Mapping[str, Sequence[str]]) -> Iterator[str]:
        """What is wrong, with the ids of the videos.

        Args:
            videos: by artifact key, as far as a plan knows them; the samples of a tar know their own.
        """
        names = () if isinstance(self.piece, Tar) else videos.get(self.piece.key, ())
        whose = f"video {', '.join(map(repr, names))}: " if names else ""
        yield from (f"{whose}{text.partition(_ADVICE)[0]}" for text in self.wrong)


def of_local(store: LocalStore, config: Config | None = None) -> list[Piece]:
    """Everything in a local store, and what is missing of that which the receipts of a configuration vouch for."""
    keys, tars = set(store.array_keys()), {tar: frozenset[tuple[str, str]]() for tar in store.tars()}
    features = set(store.feature_keys())
    if config is not None:
        keys |= _vouched_keys(config)
        tars |= _vouched_tars(config)
        features |= {need.key for need in feature_needs(config)}
    arrays = store.arrays.absolute()  # a worker of a scheduler may be in another folder
    maps = store.features.root.absolute()
    return [
        *(Array(arrays, key) for key in sorted(keys)),
        *(Features(maps, key) for key in sorted(features)),
        *(Tar(tar.absolute(), tars[tar]) for tar in sorted(tars)),
    ]


def of_shared(store: SharedStore, *, found: Iterable[Need] = ()) -> list[Piece]:
    """Everything in a shared store; of one that lists nothing, a web server, what ``found`` names and is there."""
    store = anywhere(store)
    return [Object(store, kind, key) for kind, key, _ in objects(store, of=found)]


def anywhere(store: SharedStore) -> SharedStore:
    """The same store, whatever folder a process is in, to read only: what looks for a store must not make it."""
    return SharedStore(store.url if store.folder is None else str(store.folder.absolute()))


def _vouched_keys(config: Config) -> set[str]:
    if config.store.access == "in-place":  # an array that is not here may be in the shared store
        return set()
    recipes = stage_recipes(config)
    found = [receipts(config, stage, recipes[stage]) for stage in config.stores if stage != "frames"]
    return {facts["key"] for group in found for receipt in group.values() for facts in receipt.usable().values()}


def _vouched_tars(config: Config) -> dict[Path, frozenset[tuple[str, str]]]:
    recipe = stage_recipes(config)["frames"]
    folder = config.store_folder("frames", recipe)
    return {
        folder / f"{shard}.tar": frozenset((video, facts["key"]) for video, facts in receipt.usable().items())
        for shard, receipt in receipts(config, "frames", recipe).items()
        if receipt.usable()
    }


def verify(pieces: Sequence[Piece], *, threads: int, scheduler: str | None = None) -> Iterator[Checked]:
    """Check every byte of all pieces, in parallel through dask.

    Args:
        pieces: of ``of_local`` or ``of_shared``.
        threads: of this process, without a scheduler.
        scheduler: address of a running dask scheduler whose workers see the same stores.

    Raises:
        OSError: a store cannot be read.
        ValueError: the scheduler does not answer.
    """
    for batch in through_dask(check, pieces, threads=threads, scheduler=scheduler, label="verify"):
        yield from batch


def check(pieces: Sequence[Piece]) -> list[Checked]:
    """Check every byte of some pieces."""
    return [_check(piece) for piece in pieces]


def _check(piece: Piece) -> Checked:
    try:
        match piece:
            case Array(root, key):
                return Checked(piece, FlowStore(root).verify(key), ())
            case Features(root, key):
                return Checked(piece, FeatureStore(root).verify(key), ())
            case Tar(path, expected):
                return _check_tar(piece, path, expected)
            case Object(store, kind, key):
                return Checked(piece, _check_object(store, kind, key), ())
    except DamagedArtifact as error:
        return Checked(piece, 0, (str(error),))


def _check_tar(piece: Tar, path: Path, expected: frozenset[tuple[str, str]]) -> Checked:
    try:
        whole, damage = check_shard(path)
        size = path.stat().st_size
    except FileNotFoundError:
        return Checked(piece, 0, (f"there are no frames {path}",))
    lacking = expected - {(sample.id, sample.artifact_key) for sample in whole}
    told = [str(error) for error in damage]
    for video, key in sorted(lacking):
        if not any(repr(video) in text for text in told):
            told.append(f"the frames of video {video!r} ({key}) are not whole in {path}")
    return Checked(piece, size, tuple(told))


def _check_object(store: SharedStore, kind: Kind, key: str) -> int:
    """Check an object; returns its bytes."""
    try:
        with tempfile.TemporaryDirectory() as folder, store.local(kind, key, folder=Path(folder)) as path:
            if kind == "frames":
                return _check_one_sample(path, key)
            size = check_archive(path)
            check_address(key, in_place(store).attributes(key))
            return size
    except FileNotFoundError:
        reason: object = "it is gone"
    except ValueError as error:
        reason = error
    raise DamagedArtifact(f"{store.where(kind, key)} is damaged ({reason})")


def _check_one_sample(path: Path, key: str) -> int:
    whole, wrong = check_shard(path)
    if wrong:
        raise wrong[0]
    if [sample.artifact_key for sample in whole] != [key]:
        raise ValueError("it holds other frames")
    return path.stat().st_size


def remove(piece: Piece, *, config: Config | None) -> bool:
    """Delete what is damaged. Of a tar the whole samples stay; of a local store the receipts go too.

    It is checked once more, in this process: a worker elsewhere may lack the mount and miss what is whole, and what
    was damaged may have been replaced meanwhile.

    Args:
        piece: in which damage was found.
        config: of a local store; the caller holds the lock of its work folder.

    Returns:
        False if it is whole, and stays.

    Raises:
        OSError: the store cannot be read.
        ValueError: a shared store cannot be written to.
    """
    if isinstance(piece, Object):  # opened anew, so that a store that is gone is an error and not damage
        piece = Object(SharedStore(piece.store.url), piece.kind, piece.key)
    if not _check(piece).wrong:
        return False
    match piece:
        case Object(store, kind, key):
            SharedStore(store.url, writable=True).remove(kind, key)
        case Array(_, key):
            assert config is not None
            for stage in ("flow", "warped_flow"):
                discard(config, stage, key)
        case Features(_, key):
            assert config is not None
            discard(config, "features", key)
        case Tar(path, _):
            assert config is not None
            leave_out(path, "")
            forget_tar(config, path)
    return True
