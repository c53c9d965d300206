"""Atomic writes: a file or a folder is seen whole or not at all, whoever is killed meanwhile."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

TEMPORARY = ".tmp-"
"""Prefix of unfinished work; safe to delete when no run is active."""
_NAME_LENGTH = 50
_Made = TypeVar("_Made")
_PROCESSES = 1000
"""More than ever make one folder at the same moment."""


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` for writing; it takes the place of ``path`` when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path))
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.chmod(name, 0o644)  # mkstemp's 0600 would hide the file from the rest of a team
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def unfinished(path: Path) -> list[Path]:
    """What ``atomic_file`` has written of a file and not put in its place, because it was killed or is at work."""
    return sorted(path.parent.glob(f"{glob.escape(_prefix(path))}*"))


def _prefix(path: Path) -> str:
    """Of the temporary names of a file, cut so that they are no longer than file systems allow."""
    return f"{TEMPORARY}{path.name[:_NAME_LENGTH]}-"


@contextlib.contextmanager
def temporary_file(folder: Path) -> Iterator[Path]:
    """Yield an empty file with a temporary name; it is gone after the block, unless it was moved to its place."""
    descriptor, name = _first_in(folder, lambda: tempfile.mkstemp(dir=folder, prefix=TEMPORARY))
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically."""
    write_bytes(path, text.encode())


def write_if_changed(path: Path, text: str) -> bool:
    """Write a UTF-8 file only if its content differs, so that its modification time means something.

    Returns:
        True if the file was written.
    """
    try:
        if path.read_text() == text:
            return False
    except FileNotFoundError:
        pass
    write_text(path, text)
    return True


def make_folder(path: Path, *, root: Path) -> None:
    """Make a folder below ``root``, and those between, with the mode of ``root``: who may write there may write here.

    Raises:
        FileNotFoundError: there is no ``root``.
    """
    if path == root or path.is_dir():
        return
    make_folder(path.parent, root=root)
    # not seen before it has its mode
    made = Path(_first_in(path.parent, lambda: tempfile.mkdtemp(dir=path.parent, prefix=TEMPORARY)))
    try:
        made.chmod(stat.S_IMODE(root.stat().st_mode))
        os.rename(made, path)
    except OSError:
        made.rmdir()
        if not path.is_dir():  # which another process has made and filled meanwhile
            raise


def _first_in(folder: Path, make: Callable[[], _Made]) -> _Made:
    """Make something in a folder that may be new.

    As long as it is empty, another process in ``make_folder`` can put its own in its place: what was about to be made
    in the one before fails, once for each such process.
    """
    for _ in range(_PROCESSES):
        try:
            return make()
        except FileNotFoundError:
            if not folder.is_dir():
                raise
    return make()


@contextlib.contextmanager
def atomic_folder(path: Path, *, root: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; it becomes ``path`` when the block succeeds.

    For content-addressed folders: if another process published ``path`` meanwhile, theirs stays and ours is dropped,
    because equal addresses mean equal content.

    Args:
        path: to make.
        root: folder at or above the parent of ``path`` whose mode all new folders take; None for 0755.
    """
    (root or path.parent).mkdir(parents=True, exist_ok=True)
    make_folder(path.parent, root=root or path.parent)
    temporary = Path(_first_in(path.parent, lambda: tempfile.mkdtemp(dir=path.parent, prefix=TEMPORARY)))
    try:
        yield temporary
        mode = 0o755 if root is None else stat.S_IMODE(root.stat().st_mode)
        for folder, _, _ in os.walk(temporary):
            os.chmod(folder, mode)
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
            shutil.rmtree(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Delete what ``atomic_folder`` has made, if it is there; it is never to be seen half deleted."""
    gone = path.with_name(f"{TEMPORARY}{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def remove_broken(path: Path, *, needs: str) -> None:
    """Delete a folder that has lost the file ``needs`` and would keep the place of a whole one; never a whole one."""
    if not path.is_dir() or (path / needs).is_file():  # in this order, or one that is published between would go
        return
    gone = Path(tempfile.mkdtemp(dir=path.parent, prefix=TEMPORARY))
    with contextlib.suppress(FileNotFoundError):
        path.rename(gone)
    if (gone / needs).is_file():  # another process has published it since
        with contextlib.suppress(OSError):  # and yet another has
            gone.rename(path)
    shutil.rmtree(gone, ignore_errors=True)
