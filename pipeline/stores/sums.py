"""Checksums of the files of an array, which its attributes name: one pass over a file checks it.

The crc32 is what a ZIP of the array needs to have before the file itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import google_crc32c

from pipeline.stores.members import Files, read_spans

SUMS = "files"
"""Attribute of an array; its file of metadata is not among them."""


class Sum(NamedTuple):
    """Of one file."""

    crc32: int
    crc32c: int


def sum_up(spans: Iterable[bytes]) -> Sum:
    """The checksums of a file that is given in parts."""
    one = other = 0
    for span in spans:
        one, other = zlib.crc32(span, one), google_crc32c.extend(other, span)
    return Sum(one, other)


def told(sums: Mapping[str, Sum]) -> dict[str, dict[str, int]]:
    """As an attribute."""
    return {name: found._asdict() for name, found in sorted(sums.items())}


def known(attributes: Mapping[str, Any]) -> dict[str, Sum]:
    """From the attributes of an array; nothing for those of older versions.

    Raises:
        ValueError: they are no checksums.
    """
    try:
        return {name: Sum(int(one["crc32"]), int(one["crc32c"])) for name, one in attributes.get(SUMS, {}).items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"what it says of its files is not as this version writes it: {error!r}") from None


def checked(files: Files, name: str, expected: Sum) -> Iterator[bytes]:
    """The bytes of a file, some at a time.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: one was not as it was written; raised when all have been given.
    """
    value = 0
    for span in read_spans(files, name):
        value = google_crc32c.extend(value, span)
        yield span
    if value != expected.crc32c:
        raise ValueError(f"{name}: a checksum is wrong")
