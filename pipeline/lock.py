"""A lock on a work folder that dies with its process, so that ``kill -9`` leaves nothing to unlock."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

_held: list[IO[str]] = []  # an open file holds the lock until the process ends


def hold(path: Path) -> None:
    """Hold ``path`` as this process's lock until it ends. Children do not inherit it.

    Raises:
        ValueError: another process holds it.
    """
    if any(Path(file.name) == path for file in _held):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise ValueError(f"another run holds {path} ({file.read().strip()}); wait for it to end") from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    _held.append(file)


def _forget() -> None:
    """In a forked child, as a loader's, which may live on when the process that it loads for is dead."""
    while _held:
        _held.pop().close()


os.register_at_fork(after_in_child=_forget)
