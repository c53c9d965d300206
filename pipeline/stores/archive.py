"""The folder of an array as one file: an uncompressed ZIP, of equal bytes for equal content, with a checksum of it all.

``zarr.storage.ZipStore`` opens it, and any part of any member can be read from where it lies. The ZIP's comment ends
with the CRC32C of every byte before it.
"""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import google_crc32c

from pipeline.stores.checksum import crc32c_of

TAIL_BYTES = 72 << 10
"""Bytes at the end of an archive that are read at once; they hold its directory and the metadata of the array.
More than the 65,577 in which ``zipfile`` looks for the directory, or every archive would cost another request."""

_COMMENT = b"wherewhen crc32c="
_CHECKSUM_BYTES = 8  # hexadecimal digits
_BLOCK_BYTES = 1 << 20
_LOCAL_HEADER_BYTES = 30
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MODE = stat.S_IFREG | 0o644
_UNIX = 3
_NAME = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*")


class Member(NamedTuple):
    """Where the content of a file lies in an archive."""

    offset: int
    size: int


def file_names(folder: Path) -> list[str]:
    """Files in a folder and below it, in order, with ``/`` between folders."""
    start = len(f"{folder}/")  # os.walk over Path.rglob, which takes four times as long
    return sorted(f"{parent}/{name}"[start:] for parent, _, names in os.walk(folder) for name in names)


class ArchiveWriter:
    """Writes an archive, one file after the other; each byte is read, summed and written once.

    Args:
        file: empty and buffered; nobody reads it before ``finish`` has returned.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._out = _Summed(file)
        self._infos: list[zipfile.ZipInfo] = []

    def add(self, name: str, spans: Iterable[bytes], *, size: int, crc32: int) -> None:
        """Write a file.

        Args:
            name: of it, with ``/`` between folders.
            spans: its content.
            size: of that, bytes.
            crc32: of that, as ZIP has it; like the size it stands in front.

        Raises:
            ValueError: the content is of another size.
        """
        info = zipfile.ZipInfo(name, _EPOCH)
        info.external_attr, info.create_system = _MODE << 16, _UNIX
        info.CRC, info.file_size, info.compress_size = crc32, size, size
        info.header_offset = self._out.tell()
        self._out.write(info.FileHeader(zip64=False))
        for span in spans:
            self._out.write(span)
        if self._out.tell() != info.header_offset + _LOCAL_HEADER_BYTES + len(name) + size:
            raise ValueError(f"{name} has changed while it was read")
        self._infos.append(info)

    def finish(self) -> int:
        """Write the directory and the checksum; returns the size of the archive, bytes."""
        with zipfile.ZipFile(self._out, "w") as packed:  # which writes the directory where the file is at
            packed.filelist = self._infos
            packed.comment = _COMMENT + bytes(_CHECKSUM_BYTES)
        return self._out.finish()


class _Summed:
    """A file that is written from begin to end, and knows the checksum of all but its last bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._checksum = self._position = 0
        self._last = b""

    def write(self, data: bytes) -> int:
        self._sum(self._last)
        self._last = data
        self._position += len(data)
        return len(data)

    def _sum(self, data: bytes) -> None:
        self._checksum = google_crc32c.extend(self._checksum, data)
        self._file.write(data)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        """Nothing waits but what the checksum takes the place of."""

    def close(self) -> None:
        """The file is its owner's."""

    def finish(self) -> int:
        self._sum(self._last[:-_CHECKSUM_BYTES])
        self._file.write(f"{self._checksum:08x}".encode())
        return self._position


def check_archive(archive: Path) -> int:
    """Check every byte of an archive against its checksum.

    Returns:
        Number of bytes.

    Raises:
        ValueError: one is not as it was written, or ``ArchiveWriter`` did not write it.
    """
    with archive.open("rb", buffering=0) as file:
        size, expected = _ending(file.fileno())
        if crc32c_of(_blocks(file.fileno(), 0, size - _CHECKSUM_BYTES)) != expected:
            raise ValueError("its checksum is wrong")
    return size


def _ending(descriptor: int) -> tuple[int, str]:
    """Size of an archive and the checksum that it ends with."""
    size = os.fstat(descriptor).st_size
    start = size - len(_COMMENT) - _CHECKSUM_BYTES
    if start < 0:
        raise ValueError("it is no archive of an array")
    ending = os.pread(descriptor, size - start, start)
    if not ending.startswith(_COMMENT):
        raise ValueError("it does not end as an archive of an array does")
    return size, ending.removeprefix(_COMMENT).decode("ascii", "replace")


def extract(archive: Path, folder: Path) -> set[str]:
    """Unpack an archive into an empty folder, checking every byte on its way.

    Returns:
        Names of the files.

    Raises:
        ValueError: it is damaged, or holds a link or a file outside of the folder. Nothing was written outside, and
            what was written in the folder is not to be used.
    """
    with archive.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        size, expected = _ending(descriptor)
        found = members(lambda start, stop: os.pread(descriptor, stop - start, start), size=size)
        checksum = crc32c_of(_unpacking(descriptor, found, folder, stop=size - _CHECKSUM_BYTES))
    if checksum != expected:
        raise ValueError("its checksum is wrong")
    return set(found)


def _unpacking(descriptor: int, found: dict[str, Member], folder: Path, *, stop: int) -> Iterator[bytes]:
    """Every byte of an archive up to ``stop``, of which those of members have been written."""
    position, made = 0, {str(folder)}
    for name, (offset, size) in sorted(found.items(), key=itemgetter(1)):
        if offset < position:
            raise ValueError(f"it holds {name!r} where another file lies")
        yield from _blocks(descriptor, position, offset)
        position = offset + size
        if (parent := os.path.dirname(f"{folder}/{name}")) not in made:
            os.makedirs(parent, exist_ok=True)
            made.add(parent)
        with open(f"{folder}/{name}", "wb") as target:
            for block in _blocks(descriptor, offset, position):
                target.write(block)
                yield block
    yield from _blocks(descriptor, position, stop)


def members(read: Callable[[int, int], bytes], *, size: int) -> dict[str, Member]:
    """Where the content of each file lies, by name.

    Args:
        read: gives the bytes from a place to another; it is asked for the directory only, which is at the end.
        size: of the archive, bytes.

    Raises:
        ValueError: it is not as ``ArchiveWriter`` writes it.
        OSError: ``read`` raised it.
    """
    ranges = _Ranges(read, size)
    try:
        with zipfile.ZipFile(ranges) as packed:
            infos = packed.infolist()
    except (EOFError, NotImplementedError, ValueError, zipfile.BadZipFile) as error:
        if ranges.failure is not None:  # which zipfile takes for a damaged file
            raise ranges.failure from None
        raise ValueError(f"it is no readable ZIP: {error}") from None
    found: dict[str, Member] = {}
    for info in infos:
        plain = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        if not plain or info.flag_bits or info.external_attr >> 16 != _MODE or not _NAME.fullmatch(info.filename):
            raise ValueError(f"it holds {info.filename!r}, which is no plain file of an array")
        offset = info.header_offset + _LOCAL_HEADER_BYTES + len(info.filename)
        if info.filename in found or offset + info.file_size > size:
            raise ValueError(f"it holds {info.filename!r} twice, or not whole")
        found[info.filename] = Member(offset, info.file_size)
    for name in found:
        if any(str(folder) in found for folder in PurePosixPath(name).parents):
            raise ValueError(f"it holds {name!r} in what is a file")
    return found


class _Ranges(io.RawIOBase):
    """A file whose bytes come from a function."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size, self._position = read, size, 0
        self.failure: OSError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("a place before the start")
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._size, self._position + size)
        try:
            data = self._read(self._position, stop) if stop > self._position else b""
        except OSError as error:
            self.failure = error
            raise
        self._position += len(data)
        return data


def _blocks(descriptor: int, start: int, stop: int) -> Iterator[bytes]:
    while start < stop:
        block = os.pread(descriptor, min(_BLOCK_BYTES, stop - start), start)
        if not block:
            raise ValueError(f"the file ends inside bytes {start} to {stop}")
        start += len(block)
        yield block
