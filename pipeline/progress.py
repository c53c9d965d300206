"""Progress: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

LOG_INTERVAL_SECONDS = 10.0


def track(items: Iterable[Item], *, total: int, label: str, unit: str = "video") -> Iterator[Item]:
    """Yield ``items``, telling standard error how far along they are.

    Args:
        items: what is worked on.
        total: how many there are.
        label: what is being done, in a word or two.
        unit: what an item is called.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=label, unit=unit, dynamic_ncols=True)
        return
    start = told = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - told >= LOG_INTERVAL_SECONDS or (done == total and now - start >= 1.0):
            told = now
            print(f"{label}: {done}/{total} {unit}s in {now - start:.0f} s", file=sys.stderr, flush=True)
