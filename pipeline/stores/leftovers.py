"""Temporary files of jobs that were killed: harmless, but they take space."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from pipeline.stores.publish import TEMPORARY

DAY_SECONDS = 86_400.0


def remove_leftovers(folder: Path, *, older_than_seconds: float = DAY_SECONDS) -> int:
    """Delete the temporary files and folders directly in ``folder`` in which nothing was written for a long time.

    Younger ones may belong to a job that is running, here or on another machine, and stay.

    Returns:
        How many were deleted.
    """
    deleted = 0
    try:
        names = os.listdir(folder)  # over Path.glob, which takes four times as long
    except FileNotFoundError:
        return 0
    for leftover in (folder / name for name in names if name.startswith(TEMPORARY)):
        with contextlib.suppress(FileNotFoundError):  # its job has just finished, or another job deletes it too
            newest = max(path.stat().st_mtime for path in [leftover, *leftover.rglob("*")])
            if time.time() - newest < older_than_seconds:
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
            deleted += 1
    return deleted
