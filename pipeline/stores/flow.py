"""Optical flow in a zarr v3 store: one array a video, addressed by its artifact key, written whole or not at all.

The array of key ``k`` is ``<store>/<k[:2]>/<k>``: (T-1, 2, H, W) uint8, channel 0 = x, ``flow[t]`` from frame t to
frame t+1 in resized pixels, quantised as the attributes say. One chunk is one field (blosc-zstd, then crc32c); chunks
lie together in shard files, one for an ordinary video, several for a long one so that writing needs bounded memory.

Any zarr reads it. ``FlowStore.read`` finds the chunks in a shard by itself, which takes about half the CPU time of
zarr's fastest codec pipeline and, unlike that one's thread pool, works in the forked workers of a data loader.

Warped flow has a file ``pairs.npz`` in the array's folder, which plain zarr does not look at: what was found out about
each pair, one row a field.

Every byte is covered by a checksum: chunks and shard indexes by zarr's crc32c, ``zarr.json`` by its attribute
``checksum`` (of the canonical JSON without it, which is how the file is written), ``pairs.npz`` by ``pairs_crc32c``;
and each file beside ``zarr.json`` as a whole by the attribute ``files``.

Shapes: T frames of the video; H W height and width of the flow.
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from pipeline.stores.archive import ArchiveWriter, extract
from pipeline.stores.checksum import crc32c, seal, unseal
from pipeline.stores.damage import DamagedArtifact, damaged
from pipeline.stores.members import ArrayArchive, ArrayFolder, Files, read_spans
from pipeline.stores.provenance import check_address, refuse_other
from pipeline.stores.publish import atomic_folder, remove_broken, remove_folder
from pipeline.stores.sharding import Layout, checked_spans, end_bytes, layout, read_chunks
from pipeline.stores.shared import SharedStore
from pipeline.stores.sums import SUMS, checked, known, sum_up, told

SHARD_BYTES = 96 << 20
"""Uncompressed bytes of the fields in one shard file: 578 fields of 340x256. Bounds the memory of a writer."""
SHARD_FIELDS = 1024
"""Most fields in one shard file: however small they are, each costs a writer some 7 KB, and a reader 16 B of index."""

_CACHED_ARRAYS = 4096
_METADATA = "zarr.json"
_PAIRS = "pairs.npz"
_PAIRS_CHECKSUM = "pairs_crc32c"


@dataclass(frozen=True)
class _Array:
    """An array that was opened and found to be what was asked for."""

    files: Files
    layout: Layout
    attributes: dict[str, Any]


class FlowStore:
    """Flow arrays in a folder. Holds no file open and starts no thread: safe to fork and to pickle.

    Args:
        root: the folder of the store.
        parameters: settings that every array read must have been made with; the flow section of the configuration.
            A store that only writes needs none.
        provenance: other attributes that every array read must have, as its stage and that stage's version.
        shared: where arrays are that are not in the folder.
        copied: whether those are copied into the folder when one is first read, and not read in place.
    """

    def __init__(
        self,
        root: Path,
        *,
        parameters: dict[str, Any] | None = None,
        provenance: dict[str, Any] | None = None,
        shared: SharedStore | None = None,
        copied: bool = False,
    ) -> None:
        self.root = root
        self._parameters = parameters
        self._provenance = provenance or {}
        self._shared = shared
        self._copied = copied
        self._arrays: dict[str, _Array] = {}

    def path(self, key: str) -> Path:
        """Folder of the array of a key."""
        return self.root / key[:2] / key

    def has(self, key: str) -> bool:
        """True if the array is in the folder; what is there is whole."""
        return (self.path(key) / _METADATA).is_file()

    def write(
        self,
        key: str,
        fields: Iterable[NDArray[np.uint8]],
        *,
        describe: Callable[[int], dict[str, Any]],
        pairs: Callable[[], dict[str, NDArray[Any]]] = dict,
    ) -> dict[str, Any]:
        """Write an array, atomically. If another process writes the same key meanwhile, either may win.

        Args:
            key: artifact key.
            fields: quantised flow, each (2, H, W) uint8; taken one at a time, at most a shard is held. If it
                raises, nothing is written.
            describe: called after the last field with their number; returns the attributes, JSON values only.
                ``artifact_key`` is added.
            pairs: called after that; returns arrays with one row a field, to be kept beside the flow. None by default.

        Returns:
            The attributes.

        Raises:
            ValueError: there is no field.
        """
        fields = iter(fields)
        first = next(fields, None)
        if first is None:
            raise ValueError(f"no flow field was given for {key}; flow needs two frames at least")
        capacity = max(1, min(SHARD_FIELDS, SHARD_BYTES // first.nbytes))
        block = list(islice(chain([first], fields), capacity))
        with atomic_folder(self.path(key), root=self.root) as folder:
            array = _create(folder, block[0].shape, fields_per_shard=len(block))
            count = 0
            while block:
                array.resize((count + len(block), *first.shape))
                array[count : count + len(block)] = np.stack(block)
                count += len(block)
                block = list(islice(fields, capacity))
            attributes = {**describe(count), "artifact_key": key}
            if found := pairs():
                attributes[_PAIRS_CHECKSUM] = _write_pairs(folder / _PAIRS, found)
            beside = ArrayFolder(folder)
            sums = {name: sum_up(read_spans(beside, name)) for name in beside.names() - {_METADATA}}
            attributes[SUMS] = told(sums)
            array.update_attributes(attributes)
            metadata = json.loads((folder / _METADATA).read_bytes())
            (folder / _METADATA).write_bytes(seal(metadata, part="attributes"))
        self._check_there(key)
        return attributes

    def pairs(self, key: str) -> dict[str, NDArray[Any]]:
        """What is kept beside the flow of a key, arrays with one row a field; nothing for plain flow.

        Raises:
            DamagedArtifact: the array or the file beside it is missing or damaged.
        """
        array = self._open(key)
        if _PAIRS_CHECKSUM not in array.attributes:
            return {}
        try:
            with np.load(io.BytesIO(_read_pairs(array)), allow_pickle=False) as archive:
                return dict(archive)
        except (EOFError, FileNotFoundError, ValueError, zipfile.BadZipFile) as error:
            raise damaged("flow", key=key, file=array.files.where, reason=error) from None

    def attributes(self, key: str) -> dict[str, Any]:
        """What is known of an array: how, from what and with what it was made.

        Raises:
            DamagedArtifact: it is missing or damaged.
            ValueError: it was made otherwise than this store was opened for.
        """
        return self._open(key).attributes

    def read(
        self, key: str, start: int, stop: int, *, source: str | None = None, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Read some consecutive fields.

        Args:
            key: artifact key.
            start: first field, >= 0.
            stop: end of the half-open interval, start < stop <= T-1.
            source: digest of the video that the flow must have been made from; None asks for none.
            out: contiguous memory for the result; None for new memory.

        Returns:
            (stop-start, 2, H, W) uint8.

        Raises:
            DamagedArtifact: the array is missing or damaged.
            ValueError: it was made otherwise than asked for, or does not have these fields.
            OSError: the shared store cannot be reached.
        """
        array = self._arrays.get(key) or self._open(key)
        if source is not None:
            refuse_other("flow", key, found=array.attributes, wanted={"source_digest": source})
        if not 0 <= start < stop <= array.layout.count:
            last = array.layout.count
            raise ValueError(f"fields {start} to {stop} were asked for; flow {key} has fields 0 to {last}")
        shape = stop - start, *array.layout.chunk
        if out is not None and out.shape != shape:
            reason = f"it is {shape} where {out.shape} is expected"
            raise damaged("flow", key=key, file=array.files.where, reason=reason)
        flow = np.empty(shape, np.uint8) if out is None else out
        try:
            read_chunks(array.files, start, flow, layout=array.layout)
        except ValueError as error:
            self._arrays.pop(key, None)
            raise damaged("flow", key=key, file=array.files.where, reason=error) from None
        return flow

    def verify(self, key: str) -> int:
        """Check every byte of an array, and that its address is the one of what it says of itself.

        Returns:
            Number of bytes.

        Raises:
            DamagedArtifact: one is not as it was written, or a file is missing or too many.
        """
        with self._checked(key) as array:
            return sum(len(span) for _, spans in _contents(array) for span in spans)

    def pack(self, key: str, archive: Path) -> int:
        """Write an array of the folder as one file, checking every byte on its way.

        Args:
            key: artifact key.
            archive: an empty file, which nobody reads before it is whole.

        Returns:
            Size of the archive, bytes.

        Raises:
            DamagedArtifact: the array is missing or damaged; the archive is not to be used.
        """
        with archive.open("wb") as file, self._checked(key) as array:
            packed, sums = ArchiveWriter(file), known(array.attributes)
            for name, spans in _contents(array):
                found = sums.get(name) or sum_up(read_spans(array.files, name))
                packed.add(name, spans, size=array.files.size(name), crc32=found.crc32)
            return packed.finish()

    def adopt(self, key: str, archive: Path) -> None:
        """Take an array that ``pack`` wrote, here or elsewhere, into the folder, atomically, after a check.

        Raises:
            DamagedArtifact: the archive is damaged, or is not the array of this key; nothing is taken.
        """
        try:
            with atomic_folder(self.path(key), root=self.root) as folder:
                names = extract(archive, folder)
                array = _load(ArrayFolder(folder), key)
                if other := names ^ _names(array):
                    raise ValueError(f"it lacks {min(other)}, or holds it without need")
        except (FileNotFoundError, ValueError) as error:
            raise damaged("flow", key=key, file=archive, reason=error) from None
        self._check_there(key)

    @contextlib.contextmanager
    def _checked(self, key: str) -> Iterator[_Array]:
        """A block that looks at every byte of an array, in which what is wrong with it becomes damage."""
        self._arrays.pop(key, None)
        array = self._open(key)
        try:
            check_address(key, array.attributes)
            if other := array.files.names() ^ _names(array):
                raise ValueError(f"{min(other)} is missing, or is none of its files")
            yield array
        except (FileNotFoundError, ValueError) as error:
            raise damaged("flow", key=key, file=array.files.where, reason=error) from None

    def _check_there(self, key: str) -> None:
        """Notice a folder that kept the place of an array and is none."""
        if not self.has(key):
            raise OSError(f"flow {key} was not stored: {self.path(key)} is no whole array; delete it and run again")

    def remove(self, key: str) -> None:
        """Delete an array from the folder, if it is there."""
        self._arrays.pop(key, None)
        remove_folder(self.path(key))

    def remove_broken(self, key: str) -> None:
        """Delete a folder that has lost its metadata, which would keep the place of the array; never a whole array."""
        remove_broken(self.path(key), needs=_METADATA)

    def _open(self, key: str) -> _Array:
        """Find an array, check what it says of itself, and remember it."""
        try:
            array = _load(self._files(key), key)
        except FileNotFoundError:
            places = str(self.root) if self._shared is None else f"{self.root} or {self._shared.url}"
            raise DamagedArtifact(f"there is no flow {key} in {places}; run again and it is made") from None
        except DamagedArtifact:
            raise
        except ValueError as error:
            raise damaged("flow", key=key, file=self.path(key), reason=error) from None
        if self._parameters is not None:
            made_with = array.attributes.get("parameters", {})
            refuse_other("flow", key, found=made_with, wanted=self._parameters, all_of=True)
        refuse_other("flow", key, found=array.attributes, wanted=self._provenance)
        if isinstance(array.files, ArrayArchive):
            array.files.forget_tail(array.layout.file(array.layout.shards - 1), end_bytes(array.layout))
        if len(self._arrays) >= _CACHED_ARRAYS:
            self._arrays.clear()
        self._arrays[key] = array
        return array

    def _files(self, key: str) -> Files:
        if self._shared is not None and not self.has(key):
            if not self._copied:
                return ArrayArchive(self._shared, "flow", key)
            with self._shared.local("flow", key, folder=self.root) as archive:
                self.adopt(key, archive)
        return ArrayFolder(self.path(key))


def _load(files: Files, key: str) -> _Array:
    """What an array says of itself. Raises FileNotFoundError or ValueError."""
    with files.open(_METADATA) as file:
        metadata = unseal(file.read(0, file.size), part="attributes")
    attributes: dict[str, Any] = metadata["attributes"]
    if attributes.get("artifact_key") != key:
        raise ValueError(f"it is the array {attributes.get('artifact_key')}")
    return _Array(files, layout(metadata, data_type="uint8"), attributes)


def _names(array: _Array) -> set[str]:
    """Of the files that it must have, and no other."""
    names = {_METADATA, *map(array.layout.file, range(array.layout.shards))}
    return names | {_PAIRS} if _PAIRS_CHECKSUM in array.attributes else names


def _contents(array: _Array) -> Iterator[tuple[str, Iterable[bytes]]]:
    """Name and bytes of each file in order; every byte is checked, those of the metadata when they were read first."""
    sums = known(array.attributes)
    shards = {array.layout.file(number): number for number in range(array.layout.shards)}
    for name in sorted(_names(array)):
        if name in sums:
            yield name, checked(array.files, name, sums[name])
        elif name in shards:
            yield name, checked_spans(array.files, shards[name], layout=array.layout)
        elif name == _PAIRS:
            yield name, [_read_pairs(array)]
        else:
            yield name, read_spans(array.files, name)


def _write_pairs(path: Path, pairs: dict[str, NDArray[Any]]) -> str:
    """Write the file and return its checksum."""
    buffer = io.BytesIO()
    np.savez(buffer, **pairs)  # type: ignore[arg-type]
    path.write_bytes(buffer.getvalue())
    return crc32c(buffer.getvalue())


def _read_pairs(array: _Array) -> bytes:
    with array.files.open(_PAIRS) as file:
        data = file.read(0, file.size)
    if crc32c(data) != array.attributes[_PAIRS_CHECKSUM]:
        raise ValueError(f"{_PAIRS}: its checksum is wrong")
    return data


def _create(folder: Path, field_shape: tuple[int, ...], *, fields_per_shard: int) -> Any:
    """An empty array that grows along its first axis."""
    return zarr.create_array(
        store=folder,
        shape=(0, *field_shape),
        # one field a chunk: a snippet of any length reads its own fields and no other
        chunks=(1, *field_shape),
        shards=(fields_per_shard, *field_shape),
        dtype="uint8",
        fill_value=0,
        # no shuffle: values are single bytes; 18.8 KB a field of 340x256 against 29.0 with bit shuffling
        compressors=[BloscCodec(cname="zstd", clevel=5, shuffle="noshuffle", typesize=1), Crc32cCodec()],
        dimension_names=("time", "channel", "height", "width"),
        config={"write_empty_chunks": True},  # a field of zeros is a field, not a hole
    )
