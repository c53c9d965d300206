"""CRC32C checksums, and JSON that carries its own: a changed byte anywhere in it is noticed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import google_crc32c

CHECKSUM = "checksum"
"""Name of the value that a sealed mapping has beside its own."""


def crc32c(data: bytes) -> str:
    """CRC32C as eight hexadecimal digits."""
    return f"{google_crc32c.value(data):08x}"


def crc32c_of(blocks: Iterable[bytes]) -> str:
    """CRC32C of blocks one after the other, as eight hexadecimal digits."""
    value = 0
    for block in blocks:
        value = google_crc32c.extend(value, block)
    return f"{value:08x}"


def canonical_bytes(values: dict[str, Any]) -> bytes:
    """JSON with sorted keys and no blanks; equal values give equal bytes."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def seal(values: dict[str, Any], *, part: str | None = None) -> bytes:
    """Canonical JSON of ``values`` with a checksum of the rest among them.

    Args:
        values: JSON values; not changed.
        part: the mapping in ``values`` that takes the checksum; None puts it beside them.
    """
    checksum = {CHECKSUM: crc32c(canonical_bytes(values))}
    return canonical_bytes({**values, **checksum} if part is None else {**values, part: {**values[part], **checksum}})


def unseal(data: bytes, *, part: str | None = None) -> dict[str, Any]:
    """The values that ``seal`` was given.

    Raises:
        ValueError: a byte is not as it was written.
    """
    try:
        values: dict[str, Any] = json.loads(data)
        checksum = (values if part is None else values[part]).pop(CHECKSUM)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError("it is not JSON with a checksum, as this version writes it") from None
    # the bytes, because blanks and escapes may change without changing a value; to write them again takes longest
    before, _, after = data.partition(f'"{CHECKSUM}":"{checksum}",'.encode())
    if crc32c_of((before, after)) != checksum and data != seal(values, part=part):
        raise ValueError("its checksum is wrong")
    return values
