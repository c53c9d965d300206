"""Digests of video files, cached: a second scan costs one stat a file."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.progress import track


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's bytes, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def digest_files(paths: Sequence[Path], *, cache: Path) -> list[tuple[str, int]]:
    """Digest and size in bytes of each file, in the order given.

    Args:
        paths: files; read only where path, size, modification time or inode is not as cached.
        cache: SQLite file, made if absent. A damaged one is an error of sqlite3; deleting it costs one reading.

    Raises:
        ValueError: a file cannot be read.
    """
    # os.path over pathlib: a dataset has up to a million files
    stats = [_stat(path) for path in paths]
    absolute = [os.path.abspath(path) for path in paths]
    signatures = [f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}" for stat in stats]
    cache.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(cache, timeout=60)
    try:
        database.execute("create table if not exists digests (path text primary key, signature text, digest text)")
        known = {path: (signature, digest) for path, signature, digest in database.execute("select * from digests")}
        stale = [i for i, path in enumerate(absolute) if known.get(path, ("",))[0] != signatures[i]]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the GIL
            found = track(pool.map(lambda i: _readable_digest(paths[i]), stale), total=len(stale), label="digest")
            fresh = {absolute[i]: (signatures[i], digest) for i, digest in zip(stale, found, strict=True)}
        database.executemany(
            "insert or replace into digests values (?, ?, ?)", [(path, *value) for path, value in fresh.items()]
        )
        database.commit()
    finally:
        database.close()
    known.update(fresh)
    return [(known[path][1], stat.st_size) for path, stat in zip(absolute, stats, strict=True)]


def _stat(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise ValueError(f"cannot read the video {path}: {error.strerror}; restore it or unlist it") from None


def _readable_digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise ValueError(f"cannot read the video {path}: {error.strerror}; check its permissions") from None
