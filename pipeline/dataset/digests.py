"""Digests of video files, cached: a second scan costs one stat a file."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.media.errors import UnusableVideo
from pipeline.progress import track

COMMIT_EVERY = 256
"""Digests after which the cache is saved, so that a kill in a first scan of terabytes loses little."""


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's bytes, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


@contextlib.contextmanager
def planned_source(path: Path, *, digest: str) -> Iterator[None]:
    """A block that reads a file which must be, when the block ends or finds it unusable, what the plan says it is.

    Otherwise results would be stored under the address of bytes that they do not come from, or a file that was away for
    a moment would stay quarantined.

    Raises:
        OSError: the file has vanished, cannot be read or has changed since the plan was made.
    """
    try:
        yield
    except UnusableVideo:
        _check_source(path, digest)
        raise
    _check_source(path, digest)


def _check_source(path: Path, digest: str) -> None:
    try:
        found = file_digest(path)
    except OSError as error:
        raise OSError(f"cannot read {path} any more: {error.strerror}; see to it and run again") from None
    if found != digest:
        raise OSError(f"{path} changed while the run was reading it; run again")


def digest_files(paths: Sequence[Path], *, cache: Path) -> list[tuple[str, int]]:
    """Digest and size in bytes of each file, in the order given.

    Args:
        paths: files; read only where path, size, modification time or inode is not as cached.
        cache: SQLite file, made if absent. A damaged one is an error of sqlite3; deleting it costs one reading.

    Raises:
        ValueError: a file cannot be read.
    """
    # os.path over pathlib: a dataset has up to a million files
    stats = [_regular(path) for path in paths]
    absolute = [os.path.abspath(path) for path in paths]
    signatures = [f"{found.st_size}:{found.st_mtime_ns}:{found.st_ino}" for found in stats]
    cache.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(cache, timeout=60)
    try:
        database.execute("create table if not exists digests (path text primary key, signature text, digest text)")
        known = {path: (signature, digest) for path, signature, digest in database.execute("select * from digests")}
        stale = [i for i, path in enumerate(absolute) if known.get(path, ("",))[0] != signatures[i]]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the GIL
            found = track(pool.map(lambda i: _readable_digest(paths[i]), stale), total=len(stale), label="digest")
            for count, (i, digest) in enumerate(zip(stale, found, strict=True), 1):
                known[absolute[i]] = (signatures[i], digest)
                row = (absolute[i], signatures[i], digest)
                database.execute("insert or replace into digests values (?, ?, ?)", row)
                if count % COMMIT_EVERY == 0:
                    database.commit()
        database.commit()
    except sqlite3.DatabaseError as error:
        raise ValueError(f"the digest cache {cache} cannot be used ({error}); delete it and run again") from None
    finally:
        database.close()
    return [(known[path][1], found.st_size) for path, found in zip(absolute, stats, strict=True)]


def _regular(path: Path) -> os.stat_result:
    try:
        found = os.stat(path)
    except OSError as error:
        raise ValueError(f"cannot read the video {path}: {error.strerror}; restore it or unlist it") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"the video {path} is not a regular file; take it out of the dataset")
    return found


def _readable_digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise ValueError(f"cannot read the video {path}: {error.strerror}; check its permissions") from None
