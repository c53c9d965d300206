"""Zarr's sharding codec as our arrays use it: many chunks in one file, each findable and checked by itself.

A shard is its chunks, then offset and size of each as little-endian uint64, then the CRC32C of that index. A chunk is
blosc's output and its CRC32C. Format: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed

Shapes: n chunks asked for; F the shape of what one chunk holds, a field of flow or a map of features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from pipeline.stores.members import SPAN_BYTES, Files, OpenFile

_ENTRY_BYTES = 16
_CHECKSUM_BYTES = 4
_WITH_ITS_OWN = google_crc32c.value(bytes(_CHECKSUM_BYTES))
"""CRC32C of anything that is followed by its own CRC32C; of nothing that is 0."""
_ABSENT = (1 << 64) - 1
"""Offset and size of a chunk that was never written."""


@dataclass(frozen=True)
class Layout:
    """What reading needs to know of an array whose chunks are one entry of the first axis each."""

    count: int
    """Length of the first axis."""
    chunk: tuple[int, ...]
    """Shape of a chunk without the first axis (F)."""
    per_shard: int
    """Chunks that a shard has room for."""

    @property
    def shards(self) -> int:
        return -(-self.count // self.per_shard)

    def file(self, shard: int) -> str:
        """Name of the file of a shard."""
        return f"c/{shard}" + "/0" * len(self.chunk)


def layout(metadata: dict[str, Any], *, data_type: str) -> Layout:
    """Sizes from zarr's own metadata.

    Raises:
        ValueError: the bytes lie otherwise than ``read_shard`` reads them.
    """
    try:
        count, *chunk = metadata["shape"]
        per_shard = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        (sharding,) = metadata["codecs"]
        inner = sharding["configuration"]
        ours = (
            metadata["data_type"] == data_type
            and inner["chunk_shape"] == [1, *chunk]
            and [codec["name"] for codec in inner["codecs"]] == ["bytes", "blosc", "crc32c"]
            and [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
            and inner.get("index_location", "end") == "end"
        )
    except (KeyError, TypeError, ValueError):
        ours = False
    if not ours:
        raise ValueError("it is not laid out as this version writes it")
    return Layout(count, tuple(chunk), per_shard)


def read_chunks(files: Files, start: int, out: NDArray[Any], *, layout: Layout) -> None:
    """Fill ``out``, (n, *F), with the chunks from ``start`` on.

    Raises:
        ValueError: a chunk is missing or damaged; the message names the file in the array.
    """
    stop = start + len(out)
    for shard in range(start // layout.per_shard, (stop - 1) // layout.per_shard + 1):
        begin = shard * layout.per_shard
        low, high = max(start, begin), min(stop, begin + layout.per_shard)
        name = layout.file(shard)
        try:
            with files.open(name) as file:
                _read_shard(file, low - begin, out[low - start : high - start], capacity=layout.per_shard)
        except FileNotFoundError:
            raise ValueError(f"it has no {name}") from None
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from None


def _read_shard(file: OpenFile, start: int, out: NDArray[Any], *, capacity: int) -> None:
    blosc.use_threads = False  # decode in the caller: a thread pool would not survive a fork
    index = _parsed(file.end(_index_bytes(capacity)), capacity=capacity)
    entries = index[start : start + len(out)].tolist()
    data_end = file.size - _index_bytes(capacity)
    if any(offset + size > data_end for offset, size in entries):
        raise ValueError("its index leads nowhere")
    ends = [offset + size for offset, size in entries]
    if all(offset == end for (offset, _), end in zip(entries[1:], ends[:-1], strict=True)):
        begin = entries[0][0]  # one after the other, as they were written: one read for all
        data = file.read(begin, ends[-1])
        chunks = [data[offset - begin : offset - begin + size] for offset, size in entries]
    else:
        chunks = [file.read(offset, offset + size) for offset, size in entries]
    for chunk, target in zip(chunks, out, strict=True):
        blosc.decompress(_checked(chunk), target)


def checked_spans(files: Files, shard: int, *, layout: Layout) -> Iterator[bytes]:
    """Every byte of a shard, each checked before it is given.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: a byte is not as it was written; the message names the file in the array.
    """
    name = layout.file(shard)
    with files.open(name) as file:
        try:
            held = min(layout.per_shard, layout.count - shard * layout.per_shard)
            yield from _checked_spans(file, chunks=held, capacity=layout.per_shard)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _checked_spans(file: OpenFile, *, chunks: int, capacity: int) -> Iterator[bytes]:
    end = file.end(_index_bytes(capacity))
    index = _parsed(end, capacity=capacity)
    if (index[chunks:] != np.uint64(_ABSENT)).any():
        raise ValueError("it holds more than the array has")
    data_end = file.size - len(end)
    sizes: list[int] = []
    begin = stop = 0
    for offset, size in sorted(index[:chunks].tolist()):
        if offset != stop or offset + size > data_end:
            raise ValueError("a chunk is missing, or does not lie after the one before")
        stop += size
        sizes.append(size)
        if stop - begin >= SPAN_BYTES:
            yield _all_checked(file.read(begin, stop), sizes)
            begin, sizes = stop, []
    if stop != data_end:
        raise ValueError("it holds bytes that are no chunk's")
    yield _all_checked(file.read(begin, stop), sizes)
    yield end


def _all_checked(data: bytes, sizes: Sequence[int]) -> bytes:
    """Chunks that lie one after the other."""
    begin = 0
    for size in sizes:
        _checked(data[begin : begin + size])  # google_crc32c takes bytes only, no view of them
        begin += size
    return data


def end_bytes(layout: Layout) -> int:
    """Of a shard's file: what every read of it needs."""
    return _index_bytes(layout.per_shard)


def _parsed(end: bytes, *, capacity: int) -> NDArray[np.uint64]:
    """(capacity, 2): offset and size of each chunk."""
    if len(end) != _index_bytes(capacity):
        raise ValueError("it is cut short")
    return np.frombuffer(_checked(end), "<u8").reshape(-1, 2)


def _index_bytes(capacity: int) -> int:
    return capacity * _ENTRY_BYTES + _CHECKSUM_BYTES


def _checked(data: bytes) -> memoryview:
    """What stands before a CRC32C."""
    if google_crc32c.value(data) != _WITH_ITS_OWN:
        raise ValueError("a checksum is wrong")
    return memoryview(data)[:-_CHECKSUM_BYTES]
