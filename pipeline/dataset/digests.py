"""Digests of videos, cached: a second scan costs one stat a file, and one for each image of a folder of images."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from pipeline.media.errors import UnusableVideo
from pipeline.progress import track

COMMIT_EVERY = 256
"""Digests after which the cache is saved, so that a kill in a first scan of terabytes loses little."""
READ_AHEAD = 4096
"""Videos that wait for a thread at a time: a million waiting ones would take gigabytes."""
STAT_THREADS = 32
"""Videos looked at in parallel: on a network disk that is mostly waiting."""
STAT_CHUNK = 256
"""Videos that a thread takes at a time: on a local disk, handing out a video costs more than looking at it."""


class Source(NamedTuple):
    """What is known of a video before it is decoded."""

    digest: str
    """32 hexadecimal digits."""
    bytes: int
    """Of the file, or of all files in the folder."""
    is_folder: bool
    """Whether it is a folder of images."""


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's bytes, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def folder_digest(folder: Path, *, image_fps: float) -> str:
    """BLAKE2b of a folder of images: the frame rate, and each file's name and bytes. 32 hexadecimal digits.

    Every file counts that is not hidden, so that taking out one that does not belong there is a change.

    Args:
        folder: holds the images.
        image_fps: frames per second.

    Raises:
        OSError: a file cannot be read.
    """
    return _at_rate(_content_digest(folder), image_fps)


def _content_digest(folder: Path) -> str:
    """``folder_digest`` but for the rate, and kept apart from it: another rate reads no image again."""
    digest = hashlib.blake2b(digest_size=16)
    for name, status in _entries(folder):
        content = file_digest(folder / name) if stat.S_ISREG(status.st_mode) else "not a file"
        digest.update(os.fsencode(name) + b"\0" + content.encode() + b"\0")
    return digest.hexdigest()


def _at_rate(content: str, image_fps: float) -> str:
    return hashlib.blake2b(f"{content} {float(image_fps)!r}".encode(), digest_size=16).hexdigest()


def _entries(folder: Path) -> list[tuple[str, os.stat_result]]:
    """What is in a folder and not hidden, by name; a link is what it leads to, if anything."""
    with os.scandir(folder) as entries:
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    return [(entry.name, _status(entry)) for entry in visible]


def _status(entry: os.DirEntry[str]) -> os.stat_result:
    try:
        return entry.stat()
    except FileNotFoundError:
        return entry.stat(follow_symlinks=False)


@contextlib.contextmanager
def planned_source(path: Path, *, digest: str, image_fps: float | None = None) -> Iterator[None]:
    """A block that reads a video which must be, when the block ends or finds it unusable, what the plan says it is.

    Otherwise results would be stored under the address of bytes that they do not come from, or a file that was away for
    a moment would stay quarantined.

    Args:
        path: a file or a folder of images.
        digest: as ``digest_files`` gave it.
        image_fps: frames per second of a folder of images; not read for a file.

    Raises:
        OSError: the video has vanished, cannot be read or has changed since the plan was made.
    """
    try:
        yield
    except UnusableVideo:
        _check_source(path, digest, image_fps)
        raise
    _check_source(path, digest, image_fps)


def _check_source(path: Path, digest: str, image_fps: float | None) -> None:
    try:
        if image_fps is not None and path.is_dir():
            found = folder_digest(path, image_fps=image_fps)
        else:
            found = file_digest(path)
    except OSError as error:
        raise OSError(f"cannot read {path} any more: {error.strerror}; see to it and run again") from None
    if found != digest:
        raise OSError(f"{path} changed while the run was reading it; run again")


def digest_files(paths: Sequence[Path], *, cache: Path, image_fps: float) -> list[Source]:
    """Digest and size of each video, in the order given.

    Args:
        paths: files and folders of images. A file is read only where its size, modification time or inode is not as
            cached; a folder, where that holds for a file in it, or where a file came, went or was renamed.
        cache: SQLite file, made if absent; deleting it costs one reading.
        image_fps: frames per second of folders of images.

    Raises:
        ValueError: a video cannot be read, or the cache is damaged.
    """
    looks = _look_at(paths)
    cache.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(cache, timeout=60)
    try:
        contents = _contents(looks, database)
    except sqlite3.DatabaseError as error:
        raise ValueError(f"the digest cache {cache} cannot be used ({error}); delete it and run again") from None
    finally:
        database.close()
    return [
        Source(_at_rate(content, image_fps) if look.is_folder else content, look.bytes, look.is_folder)
        for look, content in zip(looks, contents, strict=True)
    ]


class _Look(NamedTuple):
    """A video from outside."""

    path: str
    """Absolute."""
    signature: str
    """As long as this stays, so do the bytes."""
    bytes: int
    is_folder: bool


def _contents(looks: list[_Look], database: sqlite3.Connection) -> list[str]:
    """Digests of what the videos hold: those that are cached; the others are read, in parallel, and cached."""
    database.execute("create table if not exists digests (path text primary key, signature text, digest text)")
    known = {path: (signature, digest) for path, signature, digest in database.execute("select * from digests")}
    stale = [look for look in looks if known.get(look.path, ("",))[0] != look.signature]
    digests = track(_read(stale), total=len(stale), label="digest")
    for count, (look, digest) in enumerate(zip(stale, digests, strict=True), 1):
        known[look.path] = (look.signature, digest)
        row = (look.path, look.signature, digest)
        database.execute("insert or replace into digests values (?, ?, ?)", row)
        if count % COMMIT_EVERY == 0:
            database.commit()
    database.commit()
    return [known[look.path][1] for look in looks]


def _read(looks: list[_Look]) -> Iterator[str]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the GIL
        for start in range(0, len(looks), READ_AHEAD):
            yield from pool.map(_readable_digest, looks[start : start + READ_AHEAD])


def _readable_digest(look: _Look) -> str:
    path = Path(look.path)
    try:
        return _content_digest(path) if look.is_folder else file_digest(path)
    except OSError as error:
        raise ValueError(f"cannot read the video {path}: {error.strerror}; check its permissions") from None


def _look_at(paths: Sequence[Path]) -> list[_Look]:
    chunks = [paths[start : start + STAT_CHUNK] for start in range(0, len(paths), STAT_CHUNK)]
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        looks = (look for chunk in pool.map(lambda chunk: [_look(path) for path in chunk], chunks) for look in chunk)
        return list(track(looks, total=len(paths), label="look for changes"))


def _look(path: Path) -> _Look:
    absolute = os.path.abspath(path)  # os.path over pathlib: a dataset has up to a million files
    try:
        status = os.stat(absolute)
        if stat.S_ISREG(status.st_mode):
            return _Look(absolute, _signature(status), status.st_size, is_folder=False)
        entries = _entries(path) if stat.S_ISDIR(status.st_mode) else None
    except OSError as error:
        raise ValueError(f"cannot read the video {path}: {error.strerror}; restore it or unlist it") from None
    if entries is None:
        raise ValueError(f"the video {path} is not a regular file; take it out of the dataset")
    listing = "".join(f"{name!r} {_signature(status)}\n" for name, status in entries)
    signature = hashlib.blake2b(listing.encode(), digest_size=16).hexdigest()
    return _Look(absolute, f"folder:{signature}", sum(status.st_size for _, status in entries), is_folder=True)


def _signature(status: os.stat_result) -> str:
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ino}"
