"""Optical flow in a zarr v3 store: one array a video, addressed by its artifact key, written whole or not at all.

The array of key ``k`` is ``<store>/<k[:2]>/<k>``: (T-1, 2, H, W) uint8, channel 0 = x, ``flow[t]`` from frame t to
frame t+1 in resized pixels, quantised as the attributes say. One chunk is one field (blosc-zstd, then crc32c); chunks
lie together in shard files, one for an ordinary video, several for a long one so that writing needs bounded memory.

Any zarr reads it. ``FlowStore.read`` finds the chunks in a shard by itself, which takes about half the CPU time of
zarr's fastest codec pipeline and, unlike that one's thread pool, works in the forked workers of a data loader.

Warped flow has a file ``pairs.npz`` in the array's folder, which plain zarr does not look at: what was found out about
each pair, one row a field.

Shapes: T frames of the video; H W height and width of the flow.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from pipeline.stores.publish import atomic_folder

SHARD_BYTES = 96 << 20
"""Uncompressed bytes of the fields in one shard file: 578 fields of 340x256. Bounds the memory of a writer."""

_ENTRY_BYTES = 16  # of the index at a shard's end: offset and size of each chunk
_CHECKSUM_BYTES = 4
_CACHED_LAYOUTS = 20_000
_PAIRS = "pairs.npz"


@dataclass(frozen=True)
class _Layout:
    """What reading needs to know of an array."""

    fields: int
    height: int
    width: int
    fields_per_shard: int


class FlowStore:
    """Flow arrays in a folder. Holds no file open and starts no thread: safe to fork and to pickle.

    Args:
        root: the folder of the store.
        parameters: settings that every array read must have been made with; the flow section of the configuration.
            A store that only writes needs none.
    """

    def __init__(self, root: Path, *, parameters: dict[str, Any] | None = None) -> None:
        self._root = root
        self._parameters = parameters
        self._layouts: dict[str, _Layout] = {}

    def path(self, key: str) -> Path:
        """Folder of the array of a key."""
        return self._root / key[:2] / key

    def has(self, key: str) -> bool:
        """True if the array is there; what is there is whole."""
        return (self.path(key) / "zarr.json").is_file()

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
            fields: quantised flow, each (2, H, W) uint8; taken one at a time, at most ``SHARD_BYTES`` are held. If it
                raises, nothing is written.
            describe: called after the last field with their number; returns the attributes, JSON values only.
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
        capacity = max(1, SHARD_BYTES // first.nbytes)
        block = list(islice(chain([first], fields), capacity))
        with atomic_folder(self.path(key)) as folder:
            array = _create(folder, block[0].shape, fields_per_shard=len(block))
            count = 0
            while block:
                array.resize((count + len(block), *first.shape))
                array[count : count + len(block)] = np.stack(block)
                count += len(block)
                block = list(islice(fields, capacity))
            attributes = describe(count)
            array.update_attributes(attributes)
            if found := pairs():
                np.savez(folder / _PAIRS, **found)  # type: ignore[arg-type]
        return attributes

    def pairs(self, key: str) -> dict[str, NDArray[Any]]:
        """What is kept beside the flow of a key, arrays with one row a field; nothing for plain flow.

        Raises:
            ValueError: there is no such array, or the file beside it is damaged.
        """
        self._metadata(key)
        path = self.path(key) / _PAIRS
        try:
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        except FileNotFoundError:
            return {}
        except (EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is damaged ({error}); delete its array and run the flow stage again") from None

    def attributes(self, key: str) -> dict[str, Any]:
        """What is known of an array: how, from what and with what it was made.

        Raises:
            ValueError: there is no such array.
        """
        attributes: dict[str, Any] = self._metadata(key)["attributes"]
        return attributes

    def read(self, key: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Read some consecutive fields.

        Args:
            key: artifact key.
            start: first field, >= 0.
            stop: end of the half-open interval, start < stop <= T-1.

        Returns:
            (stop-start, 2, H, W) uint8.

        Raises:
            ValueError: the array is missing, damaged, made with other parameters than this store was opened for, or
                does not have these fields.
        """
        layout = self._layouts.get(key) or self._open(key)
        if not 0 <= start < stop <= layout.fields:
            raise ValueError(f"fields {start} to {stop} were asked for; flow {key} has fields 0 to {layout.fields}")
        flow = np.empty((stop - start, 2, layout.height, layout.width), np.uint8)
        for shard in range(start // layout.fields_per_shard, (stop - 1) // layout.fields_per_shard + 1):
            begin = shard * layout.fields_per_shard
            low, high = max(start, begin), min(stop, begin + layout.fields_per_shard)
            path = self.path(key) / "c" / str(shard) / "0" / "0" / "0"
            _read_shard(path, low - begin, flow[low - start : high - start], chunks=layout.fields_per_shard)
        return flow

    def _open(self, key: str) -> _Layout:
        """Check an array's parameters and remember its layout."""
        metadata = self._metadata(key)
        made_with = metadata["attributes"].get("parameters", {})
        wanted = self._parameters if self._parameters is not None else made_with
        if made_with != wanted:
            names = [n for n in sorted({*made_with, *wanted}) if made_with.get(n) != wanted.get(n)]
            told = ", ".join(f"{n} {made_with.get(n)!r} where {wanted.get(n)!r} is wanted" for n in names)
            raise ValueError(f"flow {key} was made with {told}; use the index of this experiment's own flow")
        if len(self._layouts) >= _CACHED_LAYOUTS:
            self._layouts.clear()
        self._layouts[key] = _layout(metadata, key)
        return self._layouts[key]

    def _metadata(self, key: str) -> dict[str, Any]:
        path = self.path(key) / "zarr.json"
        try:
            metadata: dict[str, Any] = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError):
            raise ValueError(f"there is no flow {key} in {self._root}; run the flow stage again") from None
        return metadata


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


def _layout(metadata: dict[str, Any], key: str) -> _Layout:
    """Sizes from zarr's own metadata; refuses an array whose bytes are not laid out as ``_create`` asks."""
    try:
        fields, _, height, width = metadata["shape"]
        fields_per_shard = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        (sharding,) = metadata["codecs"]
        inner = sharding["configuration"]
        names = [codec["name"] for codec in inner["codecs"]]
        index = [codec["name"] for codec in inner["index_codecs"]]
        ours = (
            metadata["data_type"] == "uint8"
            and inner["chunk_shape"] == [1, 2, height, width]
            and names == ["bytes", "blosc", "crc32c"]
            and index == ["bytes", "crc32c"]
            and inner.get("index_location", "end") == "end"
        )
    except (KeyError, TypeError, ValueError):
        ours = False
    if not ours:
        raise ValueError(f"flow {key} is not laid out as this version writes it; delete it and run the flow stage")
    return _Layout(fields, height, width, fields_per_shard)


def _read_shard(path: Path, start: int, out: NDArray[np.uint8], *, chunks: int) -> None:
    """Fill ``out`` with the fields from ``start`` on of a shard file that has room for ``chunks`` of them.

    Zarr's sharding codec: chunks, then offset and size of each as little-endian uint64, then a checksum of that index.
    A wrong index entry is noticed by the checksum of the chunk that it leads to.
    """
    blosc.use_threads = False  # decode in the caller: a thread pool would not survive a fork
    try:
        with path.open("rb", buffering=0) as file:
            descriptor = file.fileno()
            index = os.fstat(descriptor).st_size - _CHECKSUM_BYTES - chunks * _ENTRY_BYTES
            entries = os.pread(descriptor, len(out) * _ENTRY_BYTES, index + start * _ENTRY_BYTES)
            for field, (offset, size) in zip(out, np.frombuffer(entries, "<u8").reshape(-1, 2).tolist(), strict=True):
                if offset + size > index:
                    raise ValueError("its index leads nowhere")
                blosc.decompress(_checked(os.pread(descriptor, size, offset)), field)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete its array and run the flow stage again") from None


def _checked(chunk: bytes) -> bytes:
    """The content of a chunk, without the CRC32C after it."""
    content, checksum = chunk[:-_CHECKSUM_BYTES], chunk[-_CHECKSUM_BYTES:]
    if google_crc32c.value(content) != int.from_bytes(checksum, "little"):
        raise ValueError("a checksum is wrong")
    return content
