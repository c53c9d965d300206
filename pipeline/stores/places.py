"""Where the objects of a store lie: a folder, S3 or a web server, each with the same few methods.

``read`` and ``read_ranges`` give bytes [start, stop), the latter several at once; they are fewer if the object ends
before. ``put`` makes an object visible whole and leaves one that is there; ``list`` gives names, sizes and times of
last change (seconds since 1970); ``size`` is None, and the other methods raise FileNotFoundError, for an object that is
not there. Every other failure is an exception of the library beneath.
"""

from __future__ import annotations

import bisect
import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec.asyn

from pipeline.stores.connections import again_if_broken, connect
from pipeline.stores.publish import make_folder, temporary_file

MARKER = "wherewhen.json"
_GAP_BYTES = 4096
"""Between two ranges that are worth no two requests: tar headers and padding, for one."""
_PREFIX_LENGTH = 2
"""Of the names of the folders between a kind and its objects."""


def place(url: str, *, writable: bool) -> Folder | Remote:
    """What a URL leads to.

    Raises:
        ValueError: another protocol, an address that leads nowhere, a library that is not installed, or a web server
            that is to be written to.
    """
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise ValueError("the address of a store holds a user or password; give them by the environment instead")
    if parts.scheme and (parts.query or parts.fragment):
        raise ValueError(f"{url} has a ? or #, which an address of a store cannot have; write it as %3F or %23")
    match parts.scheme:
        case "":
            return Folder(Path(url).expanduser())
        case "file" if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise ValueError(f"{url} is no folder of this machine; write file:///folder, or the folder alone")
        case "file":
            return Folder(Path(unquote(parts.path)))
        case "s3" | "http" | "https" if not parts.hostname:
            raise ValueError(f"{url} names no bucket or server; write {parts.scheme}://name/prefix")
        case "s3":
            return Remote(url, library="s3fs", extra="s3")
        case "http" | "https" if writable:
            raise ValueError(
                f"{url} cannot be written to, only read; set store.mode to read, or give its folder or s3://"
            )
        case "http" | "https":
            return Remote(url, library="aiohttp", extra="http")
        case other:
            raise ValueError(f"{url} begins with {other}://; a folder, s3:// and http(s):// are known")


class Folder:
    """A folder, often of a network file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def size(self, name: str) -> int | None:
        try:
            return os.stat(self.root / name).st_size
        except FileNotFoundError:
            return None

    def list(self, kind: str) -> Iterator[tuple[str, int, float]]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root / kind) as prefixes:
            for prefix in prefixes:
                if len(prefix.name) != _PREFIX_LENGTH or not prefix.is_dir():  # as .DS_Store
                    continue
                with contextlib.suppress(FileNotFoundError), os.scandir(prefix) as entries:
                    for entry in entries:
                        with contextlib.suppress(FileNotFoundError):  # a temporary file that became an object
                            yield entry.name, entry.stat().st_size, entry.stat().st_mtime

    def read(self, name: str, start: int, stop: int) -> bytes:
        return self.read_ranges(name, [(start, stop)])[0]

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        descriptor = os.open(f"{self.root}/{name}", os.O_RDONLY)  # a third of the time that a file object takes
        try:
            return [os.pread(descriptor, stop - start, start) for start, stop in ranges]
        finally:
            os.close(descriptor)

    def file(self, name: str) -> Path:
        path = self.root / name
        path.stat()
        return path

    def fetch(self, name: str, path: Path) -> None:
        shutil.copyfile(self.root / name, path)

    def folder(self, name: str) -> Path:
        """Where a file must lie to take its place by a rename; never a store that is not there."""
        folder = (self.root / name).parent
        if not folder.is_dir():
            (self.root / MARKER).stat()  # no folder is made in a mount point whose store is not mounted
            make_folder(folder, root=self.root)
        return folder

    def put(self, path: Path, name: str) -> None:
        os.chmod(path, 0o644)
        try:
            os.link(path, self.root / name)  # fails if another has published it
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            os.replace(path, self.root / name)

    def start(self, name: str, content: bytes) -> None:
        """Make the store. Only its last folder, so that what is not mounted is not made up."""
        self.root.mkdir(exist_ok=True)
        with temporary_file(self.root) as temporary:
            temporary.write_bytes(content)
            self.put(temporary, name)

    def remove(self, name: str) -> None:
        (self.root / name).unlink()


class Remote:
    """Objects of a file system of fsspec."""

    def __init__(self, url: str, *, library: str, extra: str) -> None:
        if importlib.util.find_spec(library) is None:
            raise ValueError(f"{url} needs the library {library}; pip install 'wherewhen[{extra}]'")
        self._url, self._http = url, extra == "http"
        self._fs: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fs": None}

    @property
    def fs(self) -> Any:
        """The file system; a new one after a fork, because its connections and its thread are the parent's."""
        if self._fs is None or self._fs[0] != os.getpid():
            self._fs = os.getpid(), connect(http=self._http)
        return self._fs[1]

    def size(self, name: str) -> int | None:
        if self._http:
            return again_if_broken(lambda: _http_size(self.fs, f"{self._url}/{name}"))
        try:
            return int(self.fs.info(f"{self._url}/{name}", refresh=True)["size"])
        except FileNotFoundError:
            return None

    def list(self, kind: str) -> Iterator[tuple[str, int, float]]:
        if self._http:
            raise OSError("a web server does not list what it has")
        with contextlib.suppress(FileNotFoundError):
            for prefix in self.fs.ls(f"{self._url}/{kind}", detail=False, refresh=True):
                if len(prefix.rstrip("/").rsplit("/", 1)[-1]) != _PREFIX_LENGTH:
                    continue
                for entry in self.fs.ls(prefix, detail=True, refresh=True):
                    modified = entry["LastModified"].timestamp() if "LastModified" in entry else 0.0
                    yield entry["name"].rsplit("/", 1)[-1], entry["size"], modified

    def read(self, name: str, start: int, stop: int) -> bytes:
        return self.read_ranges(name, [(start, stop)])[0]

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        spans = merged(ranges)
        data = self._read(lambda: self._spans(f"{self._url}/{name}", spans)) if spans else []
        starts = [start for start, _ in spans]
        found = []
        for start, stop in ranges:
            number = bisect.bisect_right(starts, start) - 1
            found.append(data[number][start - starts[number] : stop - starts[number]] if start < stop else b"")
        return found

    def _spans(self, url: str, spans: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """All at once; an empty one if the object ends before it."""
        starts, stops = map(list, zip(*spans, strict=True))
        found = self.fs.cat_ranges([url] * len(spans), starts, stops, on_error="return")
        for error in found:
            if isinstance(error, Exception) and not _is_past_the_end(error):
                raise error
        whole = [b"" if isinstance(data, Exception) else data for data in found]
        # a server that knows no ranges sends everything
        return [
            data if len(data) <= stop - start else data[start:stop]
            for data, (start, stop) in zip(whole, spans, strict=True)
        ]

    def _read(self, read: Callable[[], Any]) -> Any:
        return again_if_broken(read) if self._http else read()

    def file(self, name: str) -> None:
        return None

    def fetch(self, name: str, path: Path) -> None:
        self._read(lambda: self.fs.get_file(f"{self._url}/{name}", str(path)))

    def folder(self, name: str) -> None:
        return None

    def put(self, path: Path, name: str) -> None:
        try:
            self.fs.put_file(str(path), f"{self._url}/{name}", mode="create")
        except (OSError, ValueError) as error:
            if not (isinstance(error, FileExistsError) or _s3_code(error) in _IS_THERE):
                raise
            if self.size(name) is None:  # and gone again, or never was
                raise

    def start(self, name: str, content: bytes) -> None:
        """Make the store; the bucket must be there."""
        self.fs.pipe_file(f"{self._url}/{name}", content)

    def remove(self, name: str) -> None:
        self.fs.rm_file(f"{self._url}/{name}")


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Half-open intervals of bytes that cover all of ``ranges``, in order; neighbours are one, empty ones are none."""
    spans: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if spans and start - spans[-1][1] <= _GAP_BYTES:
            spans[-1] = spans[-1][0], max(stop, spans[-1][1])
        elif start < stop:
            spans.append((start, stop))
    return spans


_IS_THERE = ("PreconditionFailed", "ConditionalRequestConflict")
"""S3's codes for an object that must not be there and is, or is just being written."""


def _s3_code(error: Exception) -> str | None:
    """The code of a server's answer, which s3fs translates only for AWS's wording."""
    response = getattr(error.__cause__, "response", None) or {}
    code: str | None = response.get("Error", {}).get("Code")
    return code


def _is_past_the_end(error: Exception) -> bool:
    """Whether a server says that an object has no such bytes."""
    status = getattr(error, "status", None)
    return status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or _s3_code(error) == "InvalidRange"


def _http_size(fs: Any, url: str) -> int | None:
    """Content length, None for 404. fsspec's own question takes every failure for an absent file."""

    async def head() -> int | None:
        session = await fs.set_session()
        async with session.head(url, allow_redirects=True) as response:
            if response.status == HTTPStatus.NOT_FOUND:
                return None
            response.raise_for_status()
            return int(response.headers["Content-Length"])

    return fsspec.asyn.sync(fs.loop, head)
