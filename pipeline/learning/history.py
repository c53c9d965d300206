"""The course of a training: one row an epoch, as a line to read and as a table."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

COLUMNS = ("epoch", "lr", "train_loss", "train_top1", "test_top1", "seconds", "data_wait_seconds")
"""``epoch`` counts from 1. ``test_top1`` is empty where the test videos were not scored; ``seconds`` leave that scoring
out and hold ``data_wait_seconds``, those spent waiting for the loader."""

Row = dict[str, float | int | None]
"""A value for each of ``COLUMNS``."""
Item = TypeVar("Item")


class Timed(Generic[Item]):
    """Items, and the seconds spent waiting for them; not what ``then``, which is called on each, takes."""

    def __init__(self, items: Iterable[Any], *, then: Callable[[Any], Item] = lambda item: item) -> None:
        self.items = iter(items)
        self.then = then
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        asked = time.perf_counter()
        try:
            item = next(self.items)
        finally:
            self.seconds += time.perf_counter() - asked
        return self.then(item)


def epoch_line(row: Row, *, epochs: int) -> str:
    """A row of the history as a line to read."""
    tested = "" if row["test_top1"] is None else f", test {row['test_top1']:.3f}"
    waited = 100 * (row["data_wait_seconds"] or 0) / (row["seconds"] or 1)
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.4f}, accuracy {row['train_top1']:.3f}{tested}, "
        f"lr {row['lr']:.3g}, {row['seconds']:.1f} s, {waited:.0f}% of it waiting for data"
    )


def history_table(history: list[Row], *, columns: Sequence[str] = COLUMNS) -> str:
    """CSV of the history; empty where the test videos were not scored."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _rounded(row[name]) for name in columns} for row in history)
    return text.getvalue()


def _rounded(value: float | int | None) -> float | int | str:
    return "" if value is None else float(f"{value:.6g}") if isinstance(value, float) else value
