"""Progress: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

LOG_INTERVAL_SECONDS = 10.0


def track(
    items: Iterable[Item], *, total: int, label: str, unit: str = "video", note: Callable[[], str] = str
) -> Iterator[Item]:
    """Yield ``items``, telling standard error how far along they are.

    Args:
        items: what is worked on.
        total: how many there are.
        label: what is being done, in a word or two.
        unit: what an item is called.
        note: what else there is to tell now.
    """
    if sys.stderr.isatty():
        with tqdm(items, total=total, desc=label, unit=unit, dynamic_ncols=True) as bar:
            for item in bar:
                yield item
                bar.set_postfix_str(note(), refresh=False)
        return
    start = told = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - told >= LOG_INTERVAL_SECONDS or (done == total and now - start >= 1.0):
            told = now
            also = f", {told_now}" if (told_now := note()) else ""
            print(f"{label}: {done}/{total} {unit}s in {now - start:.0f} s{also}", file=sys.stderr, flush=True)
