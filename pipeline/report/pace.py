"""Where the time of training goes: what an epoch spends waiting for data, cutting pictures and computing.

Pure functions from the histories of runs to what the template shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from pipeline.report.charts import share_bar
from pipeline.report.formats import percent

MEASURED = {
    "wait": ("data_wait_seconds", "waiting for data"),
    "cut": ("cut_seconds", "cutting"),
    "forward": ("forward_seconds", "forward"),
    "backward": ("backward_seconds", "backward"),
    "update": ("update_seconds", "update"),
}
"""Columns of a history and what they are called, by their CSS class."""
PARTS = {kind: name for kind, (_, name) in MEASURED.items()} | {"rest": "everything else"}
"""What an epoch consists of, in the order in which it is drawn."""
MUCH_WAITING = 0.1
"""A larger share of waiting is worth a word."""

History = Mapping[str, Sequence[float]]
"""Columns by name."""


class Pace(NamedTuple):
    """How fast one experiment was trained, over its runs and their epochs."""

    name: str
    epochs: int
    """Those counted: of a run of several, all but the first, in which much happens for the first time."""
    seconds: float
    """An epoch."""
    samples_per_second: float
    """Videos trained on in a second of these epochs."""
    shares: dict[str, float]
    """Of the time, by the keys of ``PARTS``; the sum is 1."""
    gpu_memory_mb: float
    """The largest peak; NaN on a CPU."""
    bar: Markup


def training_pace(experiments: Mapping[str, Sequence[History]]) -> list[Pace]:
    """One row an experiment whose histories tell where the time went.

    Args:
        experiments: histories of the runs of each; those without the columns are left out.
    """
    rows = []
    for name, histories in experiments.items():
        epochs = [epoch for history in histories for epoch in _epochs(history)]
        if epochs:
            rows.append(_pace(name, epochs))
    return rows


def slow_loaders(rows: Sequence[Pace]) -> list[str]:
    """Names of the experiments that waited for data for much of their time."""
    return [row.name for row in rows if row.shares["wait"] > MUCH_WAITING]


def _epochs(history: History) -> list[dict[str, float]]:
    """The epochs of a run that count and were measured."""
    columns = ["seconds", *(column for column, _ in MEASURED.values()), "samples_per_second"]
    if not {*columns, "epoch"} <= history.keys():
        return []
    memory = history.get("gpu_memory_mb", [math.nan] * len(history["epoch"]))
    rows = [
        dict(zip([*columns, "gpu_memory_mb"], values, strict=True))
        for values in zip(*(history[column] for column in columns), memory, strict=True)
    ]
    counted = rows[1:] if len(rows) > 1 else rows
    return [row for row in counted if not any(math.isnan(row[column]) for column in columns)]


def _pace(name: str, epochs: Sequence[Mapping[str, float]]) -> Pace:
    def total(column: str) -> float:
        return sum(epoch[column] for epoch in epochs)

    seconds = total("seconds")
    spent = {kind: total(column) for kind, (column, _) in MEASURED.items()}
    spent["rest"] = max(seconds - sum(spent.values()), 0.0)
    whole = sum(spent.values()) or 1.0  # rounded parts may be a little more than the epoch
    shares = {kind: value / whole for kind, value in spent.items()}
    videos = sum(epoch["samples_per_second"] * epoch["seconds"] for epoch in epochs)
    told = ", ".join(f"{PARTS[kind]} {percent(share)}%" for kind, share in shares.items())
    return Pace(
        name=name,
        epochs=len(epochs),
        seconds=seconds / len(epochs),
        samples_per_second=videos / seconds if seconds else math.nan,
        shares=shares,
        gpu_memory_mb=max((e["gpu_memory_mb"] for e in epochs if not math.isnan(e["gpu_memory_mb"])), default=math.nan),
        bar=share_bar(shares, PARTS, title=f"an epoch of {name}: {told}"),
    )
