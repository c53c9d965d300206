"""The course of a training: one row an epoch, as a line to read and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from pipeline.learning.clock import PARTS

COLUMNS = (
    *("epoch", "lr", "train_loss", "train_top1", "test_top1", "seconds"),
    *(f"{part}_seconds" for part in PARTS),
    *("samples_per_second", "gpu_memory_mb"),
)
"""``epoch`` counts from 1. ``test_top1`` is empty where the test videos were not scored. ``seconds`` leave that scoring
out and hold those of the parts of its steps, which are those of the first process; samples are those of all processes.
``gpu_memory_mb`` is the most that tensors took so far, empty on a CPU."""

Row = dict[str, float | int | None]
"""A value for each of ``COLUMNS``, or of another table's."""


def epoch_line(row: Row, *, epochs: int) -> str:
    """A row of the history as a line to read."""
    tested = "" if row["test_top1"] is None else f", test {row['test_top1']:.3f}"
    waited = 100 * (row["data_wait_seconds"] or 0) / (row["seconds"] or 1)
    memory = "" if row["gpu_memory_mb"] is None else f", {row['gpu_memory_mb']:.0f} MB of GPU memory"
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.4f}, accuracy {row['train_top1']:.3f}{tested}, "
        f"lr {row['lr']:.3g}, {row['seconds']:.1f} s, {row['samples_per_second']:.1f} videos/s, "
        f"{waited:.0f}% of the time waiting for data{memory}"
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
