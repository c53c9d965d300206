"""The report's figures: accuracies beside the papers', attention beside uniform attention, and the cards at the top.

Pure functions from ``results.json`` and the configuration to what the template shows. Shares are 0 to 1; what a paper
gives is per cent, a difference to it is in points.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipeline.config import ATWConfig, ExperimentConfig, STACNNConfig
from pipeline.report.formats import number, percent

CARDS = 6
"""Accuracies shown at the top; the table has all."""

ADDED_AS = {"logits": "scores before the softmax", "prob": "probabilities", "exp": "probabilities, not normalised"}
"""What a fusion adds up."""

BEGIN_AS = {"gauss": "Gaussian", "one": "at 1", "inv_n": "at 1/N"}
"""How ATW's attention weights begin."""


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


def model_text(experiment: ExperimentConfig) -> str:
    """An experiment's model in few words: backbone, segments, attention, what it begins with, prediction."""
    model, segments = experiment.model, experiment.sampling.segments
    if isinstance(model, STACNNConfig):
        network = [f"{model.backbone}, {_selection_text(model, segments)}", *_spatial_text(model)]
        network += ["mean of losses"] if model.select_loss == "mean_loss" else []
    else:
        network = [f"{model.backbone}, {model.consensus}, N = {segments}", *_attention_text(model)]
    begins = [f"begins with {experiment.initial}"] if experiment.initial else []
    return "; ".join([*network, *begins, *_prediction_text(experiment)])


def _attention_text(model: ATWConfig) -> list[str]:
    """What decides the weights of ATW's segments; nothing does with avg and max."""
    if model.consensus not in ("softmax_att", "segment_linear"):
        return []
    looks = " of features" if (model.consensus, model.att_input) == ("softmax_att", "features") else ""
    return [f"{model.activation}{looks}, weights begin {BEGIN_AS[model.init]}"]


def _selection_text(model: STACNNConfig, segments: int) -> str:
    """As the paper writes it."""
    groups, part = model.groups, segments // model.groups
    top = part if model.top is None else model.top
    return f"TS({segments}, {top})" if groups == 1 else f"TS({groups}×{part}, {groups}×{top})"


def _spatial_text(model: STACNNConfig) -> list[str]:
    if model.spatial == "none":
        return []
    own = "SAN from scratch" if model.san.targets == "none" and model.san.encoder is None else "SAN"
    words = [own if model.spatial == "san" else "spatial attention"]
    words += [] if model.aux_lambda else ["no auxiliary loss"]
    words += ["auxiliary scores summed"] if model.aux_lambda and model.aux_pool == "sum" else []
    words += ["shared weights"] if model.sal_weights == "shared" else []
    words += ["pools with raw weights, of which the map shown is the softmax"] if model.pool_weights == "raw" else []
    words += ["pooled features / K²"] if model.pool_scale == "mean" else []
    return [", ".join(words)]


def _prediction_text(experiment: ExperimentConfig) -> list[str]:
    tested, model = experiment.sampling.test_segments, experiment.model
    whole = [] if experiment.prediction.normalise else ["not normalised"]
    match experiment.predicts:
        case "dcw":
            return [", ".join([f"DCW {experiment.prediction.top or tested} of {tested}", *whole])]
        case "average":
            return [", ".join(["average of probabilities", *whole])]
        case "model" if isinstance(model, STACNNConfig):
            chooses = model.top is not None and model.top < tested // model.groups
            return ["average of the logits that the model selects" if chooses else "average of logits"]
        case _:
            return []  # ATW's consensus, which is named first


def fusion_text(weights: Mapping[str, float], *, on: str) -> str:
    """A fusion as a sum."""
    return " + ".join(f"{weight:g} × {name}" for name, weight in weights.items()) + f", of {ADDED_AS[on]}"


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
