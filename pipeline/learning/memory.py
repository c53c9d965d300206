"""Memory of a process that loads batches, one after the other, each as large as the one before."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
KEPT_BYTES, LARGEST_BYTES = 256 << 20, 32 << 20


def keep_freed_memory() -> None:
    """Let this process, and those forked from it, keep what a batch has freed for the next.

    The C library hands large blocks back to the system at once and gets others for every batch, page by page, each
    filled with zeros first: loading frames would take half as long again. Where it is not glibc, nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
