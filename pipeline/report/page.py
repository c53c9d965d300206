"""The values that the report's template shows, section by section.

``build_context`` turns what the stages left into plain numbers, texts, pictures and charts. Nothing here reads a file
but the pictures' readers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.config import Config
from pipeline.dataset.manifest import Manifest, Video
from pipeline.dataset.plan import predict_recipe, stage_recipes
from pipeline.learning.scores import Scores
from pipeline.learning.truth import WHOLE_FRAME, acting, middle_seconds
from pipeline.report.card import MUCH_CLIPPED, dataset_card
from pipeline.report.charts import Line, line_chart
from pipeline.report.formats import percent, seconds
from pipeline.report.maps import map_pictures
from pipeline.report.pace import PARTS, slow_loaders, training_pace
from pipeline.report.pictures import LEAST_SCALE_PX, matrix_uri, wheel_uri
from pipeline.report.results import headline, located_tables, results_section, truth_rows
from pipeline.report.strips import Reader, attention_strip, sample_strip
from pipeline.report.summaries import (
    RuleTiming,
    attention_examples,
    attentive,
    most_confused,
    pooled_confusion,
    predicted,
    row_shares,
    sample_videos,
)
from pipeline.report.wording import scored_text

SAMPLES = 8
ATTENTION_VIDEOS = 6
ATTENTION_STREAMS = 4
"""Streams whose attention is shown."""
READABLE_CLASSES = 20
"""A confusion matrix of more classes is a picture, its numbers left to the eye."""
MATRIX_PX, LEAST_CELL_PX, MOST_CELL_PX = 800, 12, 22
"""Side of that picture, and of its cells: names stand beside it, one a cell."""
SMALL_MATRICES = 11
CONFUSED_PAIRS = 12


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """One pre-training job of a Spatial Attention Network, and what it left."""

    recipe: str
    folder: str
    history: dict[str, list[float]]
    """Columns by name."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training job, or one split of the baseline, and what it left."""

    experiment: str
    split: str
    seed: int
    recipe: str
    scores: Scores
    history: dict[str, list[float]] = field(default_factory=dict)
    """Columns by name; empty for the baseline."""
    san: Pretraining | None = None


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
    results = results_section(inputs.results, inputs.config.experiments)
    dataset = dataset_card(inputs.manifest, indexes=inputs.indexes, splits=inputs.config.splits, notes=inputs.notes)
    usable, listed = dataset["table"][-1].videos
    return {
        "name": inputs.config.name,
        "versions": inputs.versions,
        "headline": headline(results, classes=dataset["classes"], usable=usable, listed=listed),
        "results": results,
        "dataset": dataset,
        "much_clipped": MUCH_CLIPPED,
        "samples": _samples(inputs),
        "curves": [*_curves(inputs), *_san_curves(inputs)],
        "pace": _training_pace(inputs),
        "confusion": _confusion(inputs, results),
        "attention": _attention(inputs),
        "truth": truth_rows(inputs.results),
        "located": located_tables(inputs.results),
        "timings": _timings(inputs),
        "made": _made(inputs),
    }


def _streams(inputs: Inputs) -> list[str]:
    """Experiments that ran, in the order of the runs: the configuration's keys come sorted."""
    return [name for name in dict.fromkeys(run.experiment for run in inputs.runs) if name in inputs.config.experiments]


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
                    "charts": [("Loss", loss), ("Accuracy (top-1)", accuracy)],
                    "note": f"{_pace([run.history for run in runs])}. {scored_text(inputs.config.experiments[name])}",
                }
            )
    return cards


def _san_curves(inputs: Inputs) -> list[dict[str, Any]]:
    """Loss and endpoint error by epoch for each pre-training of a SAN, one line a job, whoever begins with it."""
    jobs: dict[str, dict[str, Pretraining]] = {}
    users: dict[str, list[str]] = {}
    for run in inputs.runs:
        if run.san and run.san.history.get("epoch"):
            jobs.setdefault(run.san.recipe, {})[run.san.folder] = run.san
            users.setdefault(run.san.recipe, []).append(run.experiment)
    cards = []
    for recipe, found in jobs.items():
        name = f"SAN of {', '.join(dict.fromkeys(users[recipe]))}"
        charts = []
        for caption, column in (("Loss", "train_loss"), ("Endpoint error, px", "endpoint_error_px")):
            lines = [
                Line("train", Path(job.folder).name, job.history["epoch"], job.history[column])
                for job in found.values()
            ]
            charts.append((caption, line_chart(lines, title=f"{caption} of the {name} by epoch")))
        note = f"Pre-training, which predicts optical flow. {_pace([job.history for job in found.values()])}."
        cards.append({"name": name, "runs": len(found), "charts": charts, "note": note})
    return cards


def _pace(histories: Sequence[dict[str, list[float]]]) -> str:
    """How fast training went."""
    spent = sum(sum(history["seconds"]) for history in histories)
    waited = sum(sum(history["data_wait_seconds"]) for history in histories)
    epochs = sum(len(history["epoch"]) for history in histories)
    share = f", {percent(waited / spent)}% of it waiting for data" if spent else ""
    return f"{len(histories[0]['epoch'])} epochs of {seconds(spent / epochs)}{share}"


def _lines(runs: Sequence[Run], quantity: str) -> list[Line]:
    return [
        Line(part, f"{part}, {run.split}, seed {run.seed}", run.history["epoch"], run.history[f"{part}_{quantity}"])
        for part in ("train", "test")
        for run in runs
        if f"{part}_{quantity}" in run.history
    ]


def _training_pace(inputs: Inputs) -> dict[str, Any]:
    """Where the time of training went, of the experiments whose histories tell."""
    rows = training_pace(
        {name: [run.history for run in inputs.runs if run.experiment == name] for name in _streams(inputs)}
    )
    on_gpu = any(not math.isnan(row.gpu_memory_mb) for row in rows)
    return {"rows": rows, "parts": PARTS, "waiting": slow_loaders(rows), "on_gpu": on_gpu}


def _confusion(inputs: Inputs, results: dict[str, Any]) -> dict[str, Any]:
    """The matrix of the first row of the results in full, those of others small."""
    classes, matrices = inputs.results["classes"], []
    for row in results["rows"][: 1 + SMALL_MATRICES]:
        shares = row_shares(pooled_confusion(inputs.results, row["name"]))
        picture = matrix_uri(shares, side_px=640)
        matrices.append({"name": row["name"], "top1": row["top1_mean"], "picture": picture})
    if not matrices:
        return {}
    main = results["rows"][0]
    matrix = pooled_confusion(inputs.results, main["name"])
    pairs = zip(matrix.tolist(), row_shares(matrix).tolist(), strict=True)
    readable = len(classes) <= READABLE_CLASSES
    return {
        **matrices[0],
        "runs": main["runs"],
        "classes": classes,
        "cells": [list(zip(*pair, strict=True)) for pair in pairs] if readable else [],
        "cell_px": min(max(MATRIX_PX // len(classes), LEAST_CELL_PX), MOST_CELL_PX),
        "confused": most_confused(matrix, classes, limit=CONFUSED_PAIRS),
        "others": matrices[1:],
        "left_out": len(results["rows"]) - len(matrices),
    }


def _attention(inputs: Inputs) -> dict[str, Any]:
    """Videos with the attention of a few streams, of the first split and seed that streams ran on."""
    config, videos = inputs.config, {video.id: video for video in inputs.manifest.videos}
    scored: dict[tuple[str, int], dict[str, Scores]] = {}
    for run in inputs.runs:
        known = config.experiments.get(run.experiment)
        if known and known.modality in inputs.indexes:
            scored.setdefault((run.split, run.seed), {})[run.experiment] = run.scores
    if not scored:
        return {"run": "", "streams": [], "absent": [], "videos": []}
    first = min(scored, key=lambda run: (config.splits.index(run[0]), config.seeds.index(run[1])))
    streams = attentive(scored[first], limit=ATTENTION_STREAMS)
    cards = []
    for name, right in attention_examples(streams, {v.id: v.labels for v in videos.values()}, limit=ATTENTION_VIDEOS):
        strips = [_attention_strip(inputs, stream, scores, videos[name]) for stream, scores in streams.items()]
        cards.append({"id": name, "label": " / ".join(videos[name].labels), "right": right, "streams": strips})
    absent = [name for name in _streams(inputs) if name not in scored[first]]
    return {"run": f"{first[0]}, seed {first[1]}", "streams": list(streams), "absent": absent, "videos": cards}


def _attention_strip(inputs: Inputs, name: str, scores: Scores, video: Video) -> dict[str, Any]:
    experiment = inputs.config.experiments[name]
    stored = inputs.indexes[experiment.modality]["videos"][video.id]
    row = int(np.flatnonzero(scores.ids == video.id)[0])
    real = scores.positions[row] >= 0
    positions, snippet, stride = scores.positions[row][real], experiment.sampling.snippet, experiment.sampling.stride
    middles = middle_seconds(positions, snippet=snippet, stride=stride, frames=stored["frames"], fps=stored["fps"])
    strip = attention_strip(
        video.id,
        scores.weights[row][real],
        positions,
        snippet=snippet,
        stride=stride,
        length=stored["frames"],
        read=inputs.readers[experiment.modality],
        is_flow=experiment.modality != "frames",
        acting=acting(middles, video=video),
    )
    frames = inputs.indexes.get("frames", {"videos": {}})["videos"].get(video.id)
    heats = []
    if scores.maps is not None and frames:
        shown = [cell["snippet"] for cell in strip["cells"]]
        view = WHOLE_FRAME if scores.view is None else scores.view[row]
        heats = map_pictures(
            video,
            scores.maps[row][real][shown],
            middles[shown].tolist(),
            view=view,
            family=experiment.model.family,
            frames=frames,
            read=inputs.readers["frames"],
        )
    said = predicted(scores, row)
    return {"name": name, "predicted": said, "right": said in video.labels, "heats": heats, **strip}


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
    """How to make it again; recipes are of stages, and of what each experiment has of its own."""
    experiments: dict[str, str] = {}
    for run in inputs.runs:
        if (experiment := inputs.config.experiments.get(run.experiment)) is None:
            experiments[run.experiment] = run.recipe  # the baseline
            continue
        if run.san:
            experiments[f"pretrain_san of {run.experiment}"] = run.san.recipe
        experiments[f"train of {run.experiment}"] = run.recipe
        experiments[f"predict of {run.experiment}"] = predict_recipe(experiment, train=run.recipe)
    return {
        "yaml": yaml.safe_dump(inputs.config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110),
        "recipes": [*stage_recipes(inputs.config).items(), *experiments.items()],
    }
