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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.stores.checksum import crc32c_of
from pipeline.stores.publish import atomic_folder

TAIL_BYTES = 72 << 10
"""Bytes at the end of an archive that are read at once; they hold its directory and the metadata of the array.
More than the 65,577 in which ``zipfile`` looks for the directory, or every archive would cost another request."""

_COMMENT = b"wherewhen crc32c="
_CHECKSUM_BYTES = 8  # hexadecimal digits
_BLOCK_BYTES = 96 << 10  # memory of 128 KB and more would be had from the system, and zeroed, for each block
_LOCAL_HEADER_BYTES = 30
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MODE = stat.S_IFREG | 0o644
_NAME = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9_.-]*/)*[A-Za-z0-9_-][A-Za-z0-9_.-]*")


class Member(NamedTuple):
    """Where the content of a file lies in an archive."""

    offset: int
    size: int


def file_names(folder: Path) -> list[str]:
    """Files in a folder and below it, in order, with ``/`` between folders."""
    start = len(f"{folder}/")  # os.walk over Path.rglob, which takes four times as long
    return sorted(f"{parent}/{name}"[start:] for parent, _, names in os.walk(folder) for name in names)


def pack_array(folder: Path, archive: Path) -> None:
    """Pack the files of a folder.

    Args:
        folder: of an array.
        archive: file to write; the caller sees to it that nobody reads it before it is whole.
    """
    names = file_names(folder)
    with archive.open("w+b") as file:
        with zipfile.ZipFile(file, "w") as packed:
            for name in names:  # zarr.json comes last, near the directory
                _add(packed, folder / name, name)
            packed.comment = _COMMENT + bytes(_CHECKSUM_BYTES)
        end = file.seek(0, os.SEEK_END) - _CHECKSUM_BYTES
        checksum = crc32c_of(_blocks(file.fileno(), 0, end))
        file.seek(end)
        file.write(checksum.encode())


def _add(packed: zipfile.ZipFile, path: Path, name: str) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = _MODE << 16
    info.create_system = 3
    info.file_size = path.stat().st_size  # decides before writing whether the sizes need 64 bits
    with path.open("rb") as source, packed.open(info, "w") as target:
        while block := source.read(_BLOCK_BYTES):
            target.write(block)


def check_archive(archive: Path) -> int:
    """Check every byte of an archive against its checksum.

    Returns:
        Number of bytes.

    Raises:
        ValueError: one is not as it was written, or the file was not written by ``pack_array``.
    """
    with archive.open("rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size - _CHECKSUM_BYTES
        if end < len(_COMMENT):
            raise ValueError("it is no archive of an array")
        if os.pread(file.fileno(), len(_COMMENT), end - len(_COMMENT)) != _COMMENT:
            raise ValueError("it does not end as an archive of an array does")
        checksum = crc32c_of(_blocks(file.fileno(), 0, end))
        if os.pread(file.fileno(), _CHECKSUM_BYTES, end) != checksum.encode():
            raise ValueError("its checksum is wrong")
    return end + _CHECKSUM_BYTES


def unpack_array(archive: Path, folder: Path) -> None:
    """Unpack an archive into a new folder, atomically, after a check of every byte.

    Raises:
        ValueError: it is damaged, or holds a link or a file outside of the folder; nothing is written.
    """
    with atomic_folder(folder) as temporary:
        extract(archive, temporary)


def extract(archive: Path, folder: Path) -> None:
    """Unpack an archive into an empty folder, after a check of every byte.

    Raises:
        ValueError: as ``unpack_array``.
    """
    size = check_archive(archive)
    with archive.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        for name, member in members(lambda start, stop: os.pread(descriptor, stop - start, start), size=size).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as target:
                for block in _blocks(descriptor, member.offset, member.offset + member.size):
                    target.write(block)


def members(read: Callable[[int, int], bytes], *, size: int) -> dict[str, Member]:
    """Where the content of each file lies, by name.

    Args:
        read: gives the bytes from a place to another; it is asked for the directory only, which is at the end.
        size: of the archive, bytes.

    Raises:
        ValueError: it is not as ``pack_array`` writes it.
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
