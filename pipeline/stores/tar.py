"""Members of the tars of frames: the bytes that ``tarfile`` would write, for a run of images in a tenth of its time."""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK = tarfile.BLOCKSIZE
Jpeg = tuple[int, int, str]
"""Offset, size and checksum of an image."""

_RUN_BYTES = 1 << 20
_AT_ONCE = 1024
"""Headers that are made at a time."""
_DIGITS = 6
_SIZE, _CHECKSUM = slice(124, 135), slice(148, 154)
"""Where numbers stand in a header, as octal digits."""
_LARGEST = 8**11


def image_name(key: str, number: int) -> str:
    """File name of an image of the sample ``key``."""
    return f"{key}.{number:0{_DIGITS}d}.jpg"


def header(name: str, size: int) -> bytes:
    """The header of a file; a name over 100 characters takes a pax header in front."""
    info = tarfile.TarInfo(name)  # time 0, user 0, group 0, mode 644
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def told_by(header: bytes) -> tuple[bytes, int]:
    """Type and size of the member of a header, in a tenth of ``tarfile``'s time.

    Raises:
        tarfile.HeaderError: it is none, or damaged.
    """
    try:
        size, checksum = int(header[_SIZE], 8), int(header[_CHECKSUM], 8)
    except ValueError:
        raise tarfile.HeaderError("not a header") from None
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != checksum:
        raise tarfile.HeaderError("bad checksum")
    return header[156:157], size


@functools.cache
def header_length(name_length: int) -> int:
    """Bytes of the header of a file whose name has this many characters."""
    return len(header("x" * name_length, 0))


def padded(size: int) -> int:
    """Bytes that a content takes up."""
    return -(-size // BLOCK) * BLOCK


def member(name: str, content: bytes) -> bytes:
    """Header, content, padding."""
    return header(name, len(content)) + content + bytes(padded(len(content)) - len(content))


def image_headers(key: str, sizes: Sequence[int]) -> Iterator[bytes]:
    """Headers of the images of a sample, in their order."""
    for first in range(0, len(sizes), _AT_ONCE):
        yield from _headers(key, first, sizes[first : first + _AT_ONCE])


def _headers(key: str, first: int, sizes: Sequence[int]) -> list[bytes]:
    count = len(sizes)
    if len(image_name(key, 0)) > tarfile.LENGTH_NAME or first + count > 10**_DIGITS or max(sizes) >= _LARGEST:
        return [header(image_name(key, first + index), size) for index, size in enumerate(sizes)]
    headers = np.tile(np.frombuffer(header(image_name(key, 0), 0), np.uint8), (count, 1))
    numbers = np.arange(first, first + count)[:, None]
    headers[:, len(key) + 1 : len(key) + 1 + _DIGITS] = ord("0") + numbers // 10 ** np.arange(_DIGITS - 1, -1, -1) % 10
    headers[:, _SIZE] = _octal(np.array(sizes), digits=11)
    headers[:, _CHECKSUM] = ord(" ")
    # the checksum is of a header with eight blanks for it; seven, and the one that is there
    sums = headers.sum(axis=1, dtype=np.int64) + ord(" ")
    headers[:, _CHECKSUM] = _octal(sums, digits=6)
    data = headers.tobytes()
    return [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]


def _octal(numbers: NDArray[np.int64], *, digits: int) -> NDArray[np.int64]:
    """(n,) -> (n, digits), ASCII."""
    return ord("0") + (numbers[:, None] >> np.arange(3 * digits - 3, -3, -3) & 7)


def laid_out(key: str, sums: Iterable[tuple[int, str]]) -> list[Jpeg]:
    """Where the images of a sample lie, from the first one's header on; sizes and checksums are given."""
    jpegs, end, before = [], 0, header_length(len(image_name(key, 0)))
    for number, (size, checksum) in enumerate(sums):
        if number >= 10**_DIGITS:  # whose names are longer
            before = header_length(len(image_name(key, number)))
        jpegs.append((end + before, size, checksum))
        end += before + padded(size)
    return jpegs


def runs(sums: Sequence[tuple[int, str]]) -> Iterator[tuple[int, int]]:
    """As many images at a time as should be held: the first, and the end of the half-open interval."""
    first = held = 0
    for number, (size, _) in enumerate(sums):
        if held and held + size > _RUN_BYTES:
            yield first, number
            first, held = number, 0
        held += size
    if sums:
        yield first, len(sums)
