"""A store that a team shares: one object an artifact, in a folder, in S3 or behind a web server.

An artifact is ``<url>/flow/<k[:2]>/<k>.zip`` (the folder of an array as ``archive.py`` packs it) or
``<url>/frames/<k[:2]>/<k>.tar`` (one webdataset sample, its id the key). One object, because that is what every kind of
store publishes atomically: a folder by a rename, S3 by one put. A reader sees all of it or nothing.

``<url>/wherewhen.json`` says that this is such a store. Without it nothing is read, so that a folder that is not
mounted, or a mistyped address, is an error and not a store in which nothing is there yet.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pipeline.stores.places import MARKER, Folder, place
from pipeline.stores.publish import temporary_file

Kind = Literal["flow", "frames"]
SUFFIX: dict[Kind, str] = {"flow": ".zip", "frames": ".tar"}

_MARKER_BYTES = b'{"format":1,"project":"wherewhen"}\n'
_KEY = re.compile(r"[0-9a-f]{32}")


def kind_of(stage: str) -> Kind:
    """Where the artifacts of a stage lie: plain and warped flow are of one kind."""
    match stage:
        case "flow" | "warped_flow" | "imported_flow" | "imported_warped_flow":
            return "flow"
        case "frames":
            return "frames"
        case _:
            raise ValueError(f"artifacts of the stage {stage!r} are not shared; those of frames and flow are")


class SharedStore:
    """Artifacts at a URL. Holds no connection over a fork or a pickle.

    Args:
        url: a folder (``file://`` may stand before it), ``s3://bucket/prefix``, or ``http(s)://`` to read only.
        writable: whether artifacts may be published and removed.

    Raises:
        ValueError: another protocol, a library that is not installed, or a web server that is to be written to.
    """

    def __init__(self, url: str, *, writable: bool = False) -> None:
        self.url = url.rstrip("/") if url.strip("/") else url
        self.writable = writable
        self._place = place(self.url, writable=writable)
        self._ready: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "writable": self.writable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def folder(self) -> Path | None:
        """The folder of the store, None if it is none."""
        return self._place.root if isinstance(self._place, Folder) else None

    def where(self, kind: Kind, key: str) -> str:
        """Address of an object, for messages."""
        return f"{self.url}/{_name(kind, key)}"

    def has(self, kind: Kind, key: str) -> bool:
        """True if the object is there; what is there is whole.

        Raises:
            OSError: the store cannot be reached. Likewise from every other method.
        """
        return self.size(kind, key) is not None

    def size(self, kind: Kind, key: str) -> int | None:
        """Bytes of an object; None if it is not there."""
        name = _name(kind, key)
        with self._told():
            size = self._place.size(name)
            if size is None:
                self._check_still_there()
            return size

    def keys(self, kind: Kind) -> Iterator[tuple[str, int]]:
        """Key and bytes of every whole object, in no order.

        Raises:
            OSError: the store cannot be listed; web servers cannot.
        """
        return ((key, size) for key, size, _ in self.listing(kind))

    def listing(self, kind: Kind) -> Iterator[tuple[str, int, float]]:
        """As ``keys``, with the time of its publishing, seconds since 1970."""
        with self._told():
            for name, size, modified in self._place.list(kind):
                key, suffix = os.path.splitext(name)
                if suffix == SUFFIX[kind] and _KEY.fullmatch(key):
                    yield key, size, modified
            self._check_still_there()

    def read(self, kind: Kind, key: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` of an object; fewer if it ends before.

        Raises:
            FileNotFoundError: there is no such object.
        """
        name = _name(kind, key)
        with self._told():
            return self._place.read(name, start, stop)

    @contextlib.contextmanager
    def local(self, kind: Kind, key: str, *, folder: Path) -> Iterator[Path]:
        """A block in which an object is a local file: itself if the store is a folder, else a copy in ``folder``.

        Raises:
            FileNotFoundError: there is no such object.
        """
        with self._told():
            itself = self._place.file(_name(kind, key))
        if itself is not None:
            yield itself
            return
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_file(folder) as temporary:
            with self._told():
                self._place.fetch(_name(kind, key), temporary)
            yield temporary

    @contextlib.contextmanager
    def incoming(self, kind: Kind, key: str, *, folder: Path) -> Iterator[Path]:
        """A block that writes a local file, which becomes an object when the block succeeds. One that is there stays.

        Args:
            folder: where the file lies meanwhile if the store itself is no folder.
        """
        self._check_writable()
        name = _name(kind, key)
        with self._told():
            own = self._place.folder(name)
        if own is None:
            folder.mkdir(parents=True, exist_ok=True)
        with temporary_file(own or folder) as temporary:
            yield temporary
            with self._told():
                self._place.put(temporary, name)

    def remove(self, kind: Kind, key: str) -> None:
        """Delete an object, if it is there."""
        self._check_writable()
        with self._told(), contextlib.suppress(FileNotFoundError):
            self._place.remove(_name(kind, key))

    def _check_writable(self) -> None:
        if not self.writable:
            raise ValueError(f"the shared store {self.url} is opened to be read only; set store.mode to read-write")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Every failure but an absent object as one sentence that names the store."""
        try:
            try:
                self._check_marker()
            except FileNotFoundError as error:  # what should hold the store
                raise OSError(str(error)) from None
            try:
                yield
            except FileNotFoundError:
                self._check_still_there()
                raise
        except (FileNotFoundError, _NotAStore):
            raise
        except Exception as error:  # of many kinds: the libraries of S3 and HTTP have their own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"the shared store {self.url} cannot be used ({reason}); see to it and run again") from None

    def _check_marker(self) -> None:
        """Once in each process."""
        if self._ready == os.getpid():
            return
        try:
            found = self._place.read(MARKER, 0, 1024)
        except FileNotFoundError:
            if self._ready is not None:  # seen before a fork
                self._check_still_there()
            if not self.writable:
                raise _NotAStore(
                    f"{self.url} is no shared store: it has no {MARKER}; mount it, correct the address, or publish"
                ) from None
            self._place.start(MARKER, _MARKER_BYTES)
            found = _MARKER_BYTES
        if found != _MARKER_BYTES:
            raise _NotAStore(f"{self.url}/{MARKER} is not of this version; use the wherewhen that made the store")
        self._ready = os.getpid()

    def _check_still_there(self) -> None:
        """Tell an absent object from a store that was there and is not any more, as when it is unmounted."""
        try:
            self._place.read(MARKER, 0, 1)
        except FileNotFoundError:
            raise _NotAStore(f"the shared store {self.url} has gone, and its {MARKER}; mount it, run again") from None


class _NotAStore(OSError):  # noqa: N818
    """What lies at the URL is none of our stores."""


def _name(kind: Kind, key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is no artifact key; keys have 32 hexadecimal digits")
    return f"{kind}/{key[:2]}/{key}{SUFFIX[kind]}"
