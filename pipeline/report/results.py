"""The report's figures: accuracies beside the papers', attention and what it located beside truth, cards at the top.

Pure functions from ``results.json`` and the configuration to what the template shows. Shares are 0 to 1; what a paper
gives is per cent, a difference to it is in points.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.config import ExperimentConfig
from pipeline.learning.localised import METRICS
from pipeline.report.formats import number, percent
from pipeline.report.wording import fusion_text, model_text

CARDS = 6
"""Accuracies shown at the top; the table has all."""


class TruthRow(NamedTuple):
    """Attention on the action of one stream, means over its runs."""

    name: str
    kinds: list[dict[str, float] | None]
    """In time and in space: inside, its deviation, uniform; None where nothing is known."""
    videos: int
    """That carry truth, in the first run."""
    runs: int


def results_section(results: Mapping[str, Any], experiments: Mapping[str, ExperimentConfig]) -> dict[str, Any]:
    """Everything that the page's section on results shows."""
    order = {row["name"]: number for number, row in enumerate(results["rows"])}
    rows = [_row(row, results["summary"], experiments, order=order) for row in results["rows"]]
    return {
        "rows": rows,
        "papers": any(row["paper"] is not None for row in rows),
        "several": any(row["runs"] > 1 for row in rows),
        "chance": results["chance"],
        "runs": sorted(results["runs"], key=lambda run: order[run["experiment"]]),
        "left_out": {split: ids for split, ids in sorted(results["left_out"].items()) if ids},
    }


def _row(
    row: Mapping[str, Any],
    summary: Mapping[str, Mapping[str, float]],
    experiments: Mapping[str, ExperimentConfig],
    *,
    order: Mapping[str, int],
) -> dict[str, Any]:
    figures, paper = summary[row["name"]], row["paper"]
    reads: str
    match row["kind"]:
        case "stream":
            experiment = experiments[row["name"]]
            reads, model = experiment.modality, model_text(experiment)
        case "fusion":
            weights = sorted(row["experiments"].items(), key=lambda item: order[item[0]])  # JSON has them by name
            reads, model = "", fusion_text(dict(weights), on=row["on"])
        case _:
            reads, model = "flow", "histogram of flow, no network"
    difference = None if paper is None else 100 * figures["top1_mean"] - paper
    return {**row, **figures, "reads": reads, "model": model, "difference": difference}


class Card(NamedTuple):
    """One of the figures at the top."""

    kind: str
    label: str
    value: str
    unit: str
    note: str


def headline(results: Mapping[str, Any], *, classes: int, usable: int, listed: int) -> list[Card]:
    """Accuracies first, then what they stand against, then the videos."""
    learnt = [row for row in results["rows"] if row["kind"] != "baseline"][:CARDS]
    baseline = [row for row in results["rows"] if row["kind"] == "baseline"]
    cards = [Card(row["kind"], row["name"], percent(row["top1_mean"]), "%", _note(row)) for row in learnt + baseline]
    lost = listed - usable
    share = f"{percent(lost / listed)}% of the videos" if lost else "none lost"
    return [
        *cards,
        Card("chance", "chance", percent(results["chance"]["uniform"]), "%", f"{classes} classes"),
        Card("count", "usable videos", number(usable), "", f"of {number(listed)}"),
        Card("count", "quarantined", number(lost), "", share),
    ]


def _note(row: Mapping[str, Any]) -> str:
    """What stands below an accuracy at the top."""
    if row["runs"] > 1:
        return f"± {percent(row['top1_std'])} over {row['runs']} runs"
    streams = len(row.get("experiments", ()))
    return "flow histogram" if row["kind"] == "baseline" else f"{streams} streams" if streams > 1 else "one stream"


def truth_rows(results: Mapping[str, Any]) -> list[TruthRow]:
    """Attention on the action of the streams for which it is known, in the order of the results."""
    videos: dict[str, int] = {}
    for run in results["attention"]:
        counted = (run.get("temporal_videos", 0), run.get("spatial_videos", 0))
        videos.setdefault(run["experiment"], max(counted))
    rows = []
    for row in results["rows"]:
        if row["name"] in videos:
            figures = results["summary"][row["name"]]
            kinds = [_kind(figures, kind) for kind in ("temporal", "spatial")]
            rows.append(TruthRow(row["name"], kinds, videos[row["name"]], int(figures["runs"])))
    return rows


def _kind(figures: Mapping[str, float], kind: str) -> dict[str, float] | None:
    if f"{kind}_inside_mean" not in figures:
        return None
    inside, uniform = figures[f"{kind}_inside_mean"], figures[f"{kind}_uniform_mean"]
    return {"inside": inside, "std": figures[f"{kind}_inside_std"], "uniform": uniform}


class LocatedRow(NamedTuple):
    """What one stream located, means over its runs, and what is located without looking."""

    name: str
    found: list[tuple[float, float]]
    """Mean and deviation of each figure."""
    baseline: list[tuple[float, float]]
    videos: int
    """That carry truth, in the first run."""
    items: int
    """Frames or intervals in them."""
    runs: int


class LocatedTable(NamedTuple):
    """Boxes, or intervals, of the streams that have some."""

    kind: str
    overlaps: list[str]
    rows: list[LocatedRow]


def located_tables(results: Mapping[str, Any]) -> list[LocatedTable]:
    """Of boxes and of intervals, each if any stream has them, in the order of the results."""
    tables = []
    for kind, baseline in (("boxes", "boxes_centre"), ("segments", "segments_uniform")):
        runs: dict[str, list[Mapping[str, Any]]] = {}
        for run in results["localisation"]:
            if kind in run:
                runs.setdefault(run["experiment"], []).append(run[kind])
        if not runs:
            continue
        overlaps = list(next(iter(runs.values()))[0]["accuracy"])
        rows = []
        for name in (row["name"] for row in results["rows"] if row["name"] in runs):
            found, anyone = (_located(results["summary"][name], one, overlaps) for one in (kind, baseline))
            first = runs[name][0]
            rows.append(LocatedRow(name, found, anyone, first["videos"], first["items"], len(runs[name])))
        tables.append(LocatedTable(kind, sorted(overlaps, key=float), rows))
    return tables


def _located(figures: Mapping[str, float], kind: str, overlaps: list[str]) -> list[tuple[float, float]]:
    """The figures of each metric, one after the other."""
    names = [f"{kind}_{metric}_{overlap}" for metric in METRICS for overlap in sorted(overlaps, key=float)]
    return [(figures[f"{name}_mean"], figures[f"{name}_std"]) for name in names]
