"""The values that the report's template shows, section by section.

``build_context`` turns what the stages left into plain numbers, texts, pictures and charts. Nothing here reads a file
but the pictures' readers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import yaml

from pipeline.config import Config
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.plan import stage_recipes
from pipeline.learning.scores import Scores
from pipeline.report.card import MUCH_CLIPPED, dataset_card
from pipeline.report.charts import Line, line_chart
from pipeline.report.pictures import LEAST_SCALE_PX, matrix_uri, wheel_uri
from pipeline.report.strips import Reader, attention_strip, sample_strip
from pipeline.report.summaries import (
    RuleTiming,
    attention_examples,
    most_confused,
    pooled_confusion,
    predicted,
    row_shares,
    sample_videos,
)

SAMPLES = 8
ATTENTION_VIDEOS = 6
READABLE_CLASSES = 20
"""A confusion matrix of more classes is drawn without text."""
CONFUSED_PAIRS = 12


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training job, or one split of the baseline, and what it left."""

    experiment: str
    split: str
    seed: int
    weight: float
    recipe: str
    scores: Scores
    history: dict[str, list[float]] = field(default_factory=dict)
    """Columns by name; empty for the baseline."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that the page is made from."""

    config: Config
    manifest: Manifest
    results: dict[str, Any]
    runs: tuple[Run, ...]
    indexes: dict[str, dict[str, Any]]
    """By modality: frames, flow, warped_flow. Any may be missing."""
    timings: list[RuleTiming]
    readers: dict[str, Reader]
    """By modality, as ``indexes``."""
    versions: dict[str, str]
    notes: dict[str, list[str]]
    """The plan's remarks, by kind; see ``pipeline.dataset.plan.write_notes``."""


def build_context(inputs: Inputs) -> dict[str, Any]:
    """The values that the template shows."""
    results = _results(inputs)
    dataset = dataset_card(inputs.manifest, indexes=inputs.indexes, splits=inputs.config.splits, notes=inputs.notes)
    return {
        "name": inputs.config.name,
        "versions": inputs.versions,
        "headline": _headline(results, dataset),
        "results": results,
        "dataset": dataset,
        "much_clipped": MUCH_CLIPPED,
        "samples": _samples(inputs),
        "curves": _curves(inputs),
        "confusion": _confusion(inputs, results),
        "attention": _attention(inputs),
        "attention_run": f"{inputs.config.splits[0]}, seed {inputs.config.seeds[0]}",
        "timings": _timings(inputs),
        "made": _made(inputs),
    }


def percent(share: float | None, digits: int = 1) -> str:
    """0.8333 -> 83.3; a dash for what is not known."""
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}"


def number(value: float | None, digits: int = 0) -> str:
    """12345.6 -> 12,346; a dash for what is not known."""
    return "–" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def mebibytes(value: float) -> str:
    """Memory; a dash where it could not be measured."""
    return "–" if math.isnan(value) else f"{value:,.0f} MiB"


def seconds(value: float) -> str:
    """A duration in the unit that suits it."""
    if math.isnan(value):
        return "–"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (math.inf, 3600, "h")):
        if value < limit:
            return f"{value / unit:,.1f} {name}"
    return "–"


def _streams(inputs: Inputs) -> list[str]:
    """Experiments that ran, in the order of the runs: the configuration's keys come sorted."""
    return [name for name in dict.fromkeys(run.experiment for run in inputs.runs) if name in inputs.config.experiments]


def _results(inputs: Inputs) -> dict[str, Any]:
    summary, streams = inputs.results["summary"], _streams(inputs)
    rows = []
    for name in [
        *(["fused"] if "fused" in summary else []),
        *streams,
        *(["baseline"] if "baseline" in summary else []),
    ]:
        experiment = inputs.config.experiments.get(name)
        kind = "stream" if experiment else name
        rows.append({"name": name, "kind": kind, "experiment": experiment, **summary[name]})
    return {
        "rows": rows,
        "chance": inputs.results["chance"],
        "runs": sorted(inputs.results["runs"], key=lambda run: [row["name"] for row in rows].index(run["experiment"])),
        "fused": [
            (name, inputs.config.experiments[name].weight) for name in streams if inputs.config.experiments[name].weight
        ],
        "fuse_on": inputs.config.fuse_on,
        "left_out": {split: ids for split, ids in sorted(inputs.results["left_out"].items()) if ids},
    }


class Card(NamedTuple):
    """One of the figures at the top."""

    kind: str
    label: str
    value: str
    unit: str
    note: str


def _headline(results: dict[str, Any], dataset: dict[str, Any]) -> list[Card]:
    """Accuracies first, then what they stand against, then the videos."""
    notes = {"fused": f"{len(results['fused'])} streams", "stream": "one stream", "baseline": "flow histogram"}
    cards = []
    for row in results["rows"]:
        several = f"± {percent(row['top1_std'])} over {row['runs']} runs"
        note = several if row["runs"] > 1 else notes[row["kind"]]
        cards.append(Card(row["kind"], row["name"], percent(row["top1_mean"]), "%", note))
    chance, videos = percent(results["chance"]["uniform"]), dataset["table"][-1].videos
    lost = videos.listed - videos.usable
    share = f"{percent(lost / videos.listed)}% of the videos" if lost else "none lost"
    return [
        *cards,
        Card("chance", "chance", chance, "%", f"{dataset['classes']} classes"),
        Card("count", "usable videos", number(videos.usable), "", f"of {number(videos.listed)}"),
        Card("count", "quarantined", number(lost), "", share),
    ]


def _samples(inputs: Inputs) -> dict[str, Any]:
    frames = inputs.indexes.get("frames")
    if not frames:
        return {"cards": []}
    kinds = [name for name in ("flow", "warped_flow") if name in inputs.indexes]
    usable = set(frames["videos"]).intersection(*(inputs.indexes[name]["videos"] for name in kinds))
    cards = []
    for video in sample_videos(inputs.manifest, usable, inputs.config.splits[0], limit=SAMPLES):
        strip = sample_strip(
            video.id,
            frames=frames["videos"][video.id],
            read_frames=inputs.readers["frames"],
            flows=[(inputs.indexes[name]["videos"][video.id], inputs.readers[name]) for name in kinds],
        )
        cards.append({"id": video.id, "label": " / ".join(video.labels), **strip})
    wheel = wheel_uri() if kinds else ""
    return {"cards": cards, "wheel": wheel, "least_px": LEAST_SCALE_PX, "warped": "warped_flow" in kinds}


def _curves(inputs: Inputs) -> list[dict[str, Any]]:
    """Loss and accuracy by epoch for each experiment, one line a run."""
    cards = []
    for name in _streams(inputs):
        runs = [run for run in inputs.runs if run.experiment == name and run.history.get("epoch")]
        if runs:
            loss = line_chart(_lines(runs, "loss"), title=f"loss of {name} by epoch")
            accuracy = line_chart(
                _lines(runs, "top1"), title=f"accuracy of {name} by epoch", percent=True, y_range=(0, 1)
            )
            cards.append(
                {
                    "name": name,
                    "runs": len(runs),
                    "loss": loss,
                    "accuracy": accuracy,
                    "note": f"{_pace(runs)}. {_scored(inputs, name)}",
                }
            )
    return cards


def _pace(runs: Sequence[Run]) -> str:
    """How fast training went."""
    spent = sum(sum(run.history["seconds"]) for run in runs)
    waited = sum(sum(run.history["data_wait_seconds"]) for run in runs)
    epochs = sum(len(run.history["epoch"]) for run in runs)
    share = f", {percent(waited / spent)}% of it waiting for data" if spent else ""
    return f"{len(runs[0].history['epoch'])} epochs of {seconds(spent / epochs)}{share}"


def _scored(inputs: Inputs, name: str) -> str:
    """Why the last point of the curve need not be the accuracy of the results."""
    sampling = inputs.config.experiments[name].sampling
    return f"Test videos are scored on {sampling.segments} snippets here, on {sampling.test_segments} for the results."


def _lines(runs: Sequence[Run], quantity: str) -> list[Line]:
    return [
        Line(part, f"{part}, {run.split}, seed {run.seed}", run.history["epoch"], run.history[f"{part}_{quantity}"])
        for part in ("train", "test")
        for run in runs
        if f"{part}_{quantity}" in run.history
    ]


def _confusion(inputs: Inputs, results: dict[str, Any]) -> list[dict[str, Any]]:
    """One matrix for each row of the results; the template shows the first in full."""
    classes = inputs.results["classes"]
    matrices = []
    for row in results["rows"]:
        matrix = pooled_confusion(inputs.results, row["name"])
        shares = row_shares(matrix)
        matrices.append(
            {
                "name": row["name"],
                "runs": row["runs"],
                "top1": row["top1_mean"],
                "classes": classes,
                "cells": [list(zip(*pair, strict=True)) for pair in zip(matrix.tolist(), shares.tolist(), strict=True)],
                "readable": len(classes) <= READABLE_CLASSES,
                "picture": matrix_uri(shares, side_px=640),
                "confused": most_confused(matrix, classes, limit=CONFUSED_PAIRS),
            }
        )
    return matrices


def _attention(inputs: Inputs) -> list[dict[str, Any]]:
    """Videos with the attention of every stream, of the first split and seed."""
    config, labels = inputs.config, {video.id: video.labels for video in inputs.manifest.videos}
    streams = {
        run.experiment: run.scores
        for run in inputs.runs
        if (run.split, run.seed) == (config.splits[0], config.seeds[0])
        and run.experiment in config.experiments
        and config.experiments[run.experiment].modality in inputs.indexes
    }
    cards = []
    for video, right in attention_examples(streams, labels, limit=ATTENTION_VIDEOS):
        strips = [_attention_strip(inputs, name, scores, video, labels[video]) for name, scores in streams.items()]
        cards.append({"id": video, "label": " / ".join(labels[video]), "right": right, "streams": strips})
    return cards


def _attention_strip(inputs: Inputs, name: str, scores: Scores, video: str, labels: tuple[str, ...]) -> dict[str, Any]:
    experiment = inputs.config.experiments[name]
    row = int(np.flatnonzero(scores.ids == video)[0])
    strip = attention_strip(
        video,
        scores.weights[row],
        scores.positions[row],
        snippet=experiment.sampling.snippet,
        length=inputs.indexes[experiment.modality]["videos"][video]["frames"],
        read=inputs.readers[experiment.modality],
        is_flow=experiment.modality != "frames",
    )
    said = predicted(scores, row)
    return {"name": name, "predicted": said, "right": said in labels, **strip}


def _timings(inputs: Inputs) -> list[dict[str, Any]]:
    """Cost of each rule, and what a second of one of its jobs did where the indexes tell."""
    probed = [video for video in inputs.manifest.videos if video.frames]
    done = {"probe": (len(probed), sum(video.frames or 0 for video in probed), "frames")}
    for name, unit in (("frames", "frames"), ("flow", "pairs"), ("warped_flow", "pairs")):
        videos = inputs.indexes.get(name, {}).get("videos", {})
        done[name] = (len(videos), sum(facts["frames"] for facts in videos.values()), unit)
    rows = []
    for timing in inputs.timings:
        videos, items, unit = done.get(timing.rule, (0, 0, ""))
        rate = f"{videos / timing.seconds:,.1f} videos/s, {items / timing.seconds:,.1f} {unit}/s"
        rows.append({**timing._asdict(), "rate": rate if videos else ""})
    return rows


def _made(inputs: Inputs) -> dict[str, Any]:
    """How to make it again."""
    runs = {run.experiment: run.recipe for run in inputs.runs}
    return {
        "yaml": yaml.safe_dump(inputs.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110),
        "recipes": [*stage_recipes(inputs.config).items(), *runs.items()],
    }
