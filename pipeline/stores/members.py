"""The files of one array where they lie: in a folder, or in an archive of a shared store, read in place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from pipeline.stores.archive import TAIL_BYTES, Member, file_names, members
from pipeline.stores.shared import Kind, SharedStore

SPAN_BYTES = 1 << 20
"""Read at a time where much is read."""


class OpenFile(Protocol):
    """One of the files, open."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop``.

        Raises:
            ValueError: the file ends before.
        """

    def end(self, count: int) -> bytes:
        """The last bytes, which are asked for again and again."""


class Files(Protocol):
    """The files of one array."""

    @property
    def where(self) -> str:
        """For messages."""

    def names(self) -> set[str]:
        """Of all of them, with ``/`` between folders."""

    def size(self, name: str) -> int:
        """Bytes of a file. Raises FileNotFoundError if there is no such file, as ``open`` does."""

    def open(self, name: str) -> contextlib.AbstractContextManager[OpenFile]:
        """To read parts of it."""


def read_spans(files: Files, name: str) -> Iterator[bytes]:
    """The bytes of a file, some at a time, as they are."""
    with files.open(name) as file:
        for start in range(0, file.size, SPAN_BYTES):
            yield file.read(start, min(start + SPAN_BYTES, file.size))


class ArrayFolder:
    """Files in a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def where(self) -> str:
        return str(self._path)

    def names(self) -> set[str]:
        return set(file_names(self._path))

    def size(self, name: str) -> int:
        return os.stat(f"{self._path}/{name}").st_size

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[OpenFile]:
        with open(f"{self._path}/{name}", "rb", buffering=0) as file:
            yield _Descriptor(file.fileno())


class _Descriptor:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read(self, start: int, stop: int) -> bytes:
        data = os.pread(self._descriptor, stop - start, start)
        if len(data) != stop - start:
            raise ValueError(f"it ends inside bytes {start} to {stop}")
        return data

    def end(self, count: int) -> bytes:
        return self.read(max(0, self.size - count), self.size)


class ArrayArchive:
    """Files in an archive of a shared store. Opening one costs two requests, a range of a file another.

    Raises:
        FileNotFoundError: there is no such object.
        ValueError: it is no readable archive.
    """

    def __init__(self, shared: SharedStore, kind: Kind, key: str) -> None:
        self._shared, self._kind, self._key = shared, kind, key
        size = shared.size(kind, key)
        if size is None:
            raise FileNotFoundError(self.where)
        start = max(0, size - TAIL_BYTES)
        self._tail = start, shared.read(kind, key, start, size)
        self._members = members(self._range, size=size)
        self._ends: dict[str, bytes] = {}

    @property
    def where(self) -> str:
        return self._shared.where(self._kind, self._key)

    def names(self) -> set[str]:
        return set(self._members)

    def size(self, name: str) -> int:
        if name not in self._members:
            raise FileNotFoundError(f"it holds no {name}")
        return self._members[name].size

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[OpenFile]:
        if name not in self._members:
            raise FileNotFoundError(f"it holds no {name}")
        yield _Part(self, name, self._members[name])

    def forget_tail(self, name: str, count: int) -> None:
        """Free the memory that opening took, but for the last bytes of one file if they were among it."""
        if name in self._members and sum(self._members[name]) - count >= self._tail[0]:
            with contextlib.suppress(ValueError), self.open(name) as file:  # a file that is too short
                file.end(count)
        self._tail = self._tail[0] + len(self._tail[1]), b""

    def _range(self, start: int, stop: int) -> bytes:
        begin, tail = self._tail
        if start >= begin and stop <= begin + len(tail):
            return tail[start - begin : stop - begin]
        data = self._shared.read(self._kind, self._key, start, stop)
        if len(data) != stop - start:
            raise ValueError(f"it ends inside bytes {start} to {stop}")
        return data


class _Part:
    def __init__(self, archive: ArrayArchive, name: str, member: Member) -> None:
        self._archive, self._name, self._member = archive, name, member
        self.size = member.size

    def read(self, start: int, stop: int) -> bytes:
        if not 0 <= start <= stop <= self.size:
            raise ValueError(f"it ends inside bytes {start} to {stop}")
        return self._archive._range(self._member.offset + start, self._member.offset + stop)

    def end(self, count: int) -> bytes:
        known = self._archive._ends
        if len(known.get(self._name, b"")) != count:
            known[self._name] = self.read(max(0, self.size - count), self.size)
        return known[self._name]
