"""Stage evaluate: accuracies of every run, of fused streams, of chance, and of attention as a way to find the action.

Means and deviations are over splits and seeds.

Shapes: S streams, V videos, C classes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.fusions import EvaluationSettings, FuseOn, FusionRow, Reading
from pipeline.learning.localised import KINDS, METRICS, located
from pipeline.learning.metrics import confusion, mean_class_accuracy, softmax, top1
from pipeline.learning.readers import Index, index_argument, read_index
from pipeline.learning.scores import Scores, read_scores
from pipeline.learning.truth import attention_truth
from pipeline.stores.publish import write_text

AVERAGED = ("top1", "mean_class", "temporal_inside", "temporal_uniform", "spatial_inside", "spatial_uniform")
"""What the summary gives mean and deviation of, beside what was located."""


class Run(TypedDict):
    """One score file to evaluate."""

    experiment: str
    split: str
    seed: int
    scores: str
    """Path of the score file."""
    recipe: NotRequired[str]
    folder: NotRequired[str]


RunKey = tuple[str, str, int]
"""Experiment, split and seed."""


def evaluate(
    manifest: Manifest, runs: list[Run], *, settings: EvaluationSettings, indexes: Mapping[str, Index]
) -> dict[str, Any]:
    """Everything that ``results.json`` holds.

    Args:
        manifest: labels, splits and ground truth.
        runs: the score files.
        settings: which streams are fused, and what the papers give.
        indexes: of the stores that the experiments read, by modality: attention has moments in their frames.

    Raises:
        ValueError: a score file is missing, damaged, of other classes or of other videos.
    """
    loaded = {(run["experiment"], run["split"], run["seed"]): _checked_scores(run, manifest) for run in runs}
    rows = [_row(*key, scores.ids, scores.logits, manifest) for key, scores in loaded.items()]
    left_out: dict[str, set[str]] = {run["split"]: set() for run in runs}
    for fusion in settings["fusions"]:
        for split, seed, streams in _streams(fusion, loaded):
            weights = [fusion["experiments"][name] for name in streams]
            ids, total, missing = fuse(list(streams.values()), weights=weights, on=fusion["on"])
            left_out[split] |= set(missing)
            rows.append(_row(fusion["name"], split, seed, ids, total, manifest))
    attending = list(_attending(loaded, settings=settings, indexes=indexes))
    attention, localisation = _attention(manifest, attending), _localisation(manifest, attending)
    return {
        "classes": list(manifest.classes),
        "chance": chance(manifest, splits=sorted(left_out)),
        "rows": _names(loaded, settings),
        "runs": rows,
        "attention": attention,
        "localisation": localisation,
        "summary": summary(rows, attention, localisation),
        "left_out": {split: sorted(ids) for split, ids in left_out.items()},
    }


def _names(runs: Iterable[RunKey], settings: EvaluationSettings) -> list[dict[str, Any]]:
    """What there are results of, in the order of the configuration: fusions first, then streams, then the baseline."""
    fusions: list[dict[str, Any]] = [{"kind": "fusion", **fusion} for fusion in settings["fusions"]]
    rows = fusions
    for name in dict.fromkeys(name for name, _, _ in runs):
        known = settings["experiments"].get(name)
        kind, paper = ("stream", known["paper"]) if known else ("baseline", None)
        rows.append({"kind": kind, "name": name, "paper": paper})
    return rows


def _streams(fusion: FusionRow, loaded: Mapping[RunKey, Scores]) -> Iterable[tuple[str, int, dict[str, Scores]]]:
    """Split, seed and the streams of a fusion, by name, wherever all of them ran."""
    for split, seed in dict.fromkeys((split, seed) for _, split, seed in loaded):
        keys = [(name, split, seed) for name in fusion["experiments"]]
        if all(key in loaded for key in keys):
            yield split, seed, {key[0]: loaded[key] for key in keys}


def fuse(
    streams: list[Scores], *, weights: list[float], on: FuseOn
) -> tuple[NDArray[np.str_], NDArray[np.float64], list[str]]:
    """Weighted sum of the scores of several streams.

    Args:
        streams: of one split and seed, at least one; classes equal.
        weights: one a stream.
        on: what is added up: "logits", the scores as they are; "prob", their softmax; "exp", their exponentials, which
            are the probabilities of a prediction that was not normalised. Those are divided by one number a video,
            common to streams and classes, so that none is too large; it changes no order.

    Returns:
        Sorted ids of the V videos that all streams have scored; their (V, C) sums; ids that only some have scored.

    Raises:
        ValueError: no video is scored by all streams.
    """
    ids = sorted(set.intersection(*(set(stream.ids.tolist()) for stream in streams)))
    missing = sorted(set.union(*(set(stream.ids.tolist()) for stream in streams)) - set(ids))
    if not ids:
        raise ValueError("no test video is scored by all fused streams; take one of them out of the fusion")
    scores = np.stack([_of(stream, ids) for stream in streams])  # S V C
    match on:
        case "logits":
            terms = scores
        case "prob":
            terms = softmax(scores)
        case "exp":
            terms = np.exp(scores - scores.max(axis=(0, 2), keepdims=True))
    return np.array(ids), np.tensordot(np.asarray(weights, np.float64), terms, axes=1), missing


def _of(stream: Scores, ids: list[str]) -> NDArray[np.float64]:
    """(len(ids), C) scores of some videos."""
    place = {name: row for row, name in enumerate(stream.ids.tolist())}
    return stream.logits[[place[name] for name in ids]].astype(np.float64)


def chance(manifest: Manifest, *, splits: list[str]) -> dict[str, float]:
    """Accuracy without looking: a random class, and always the class that is most frequent in training."""
    shares = []
    for split in splits:
        counts = Counter(video.labels[0] for video in manifest.part(split, "train"))
        guess = min(counts, key=lambda name: (-counts[name], name))
        test = manifest.part(split, "test")
        shares.append(sum(video.labels[0] == guess for video in test) / len(test))
    return {"uniform": 1 / len(manifest.classes), "majority": float(np.mean(shares))}


def summary(
    rows: list[dict[str, Any]], attention: list[dict[str, Any]], localisation: list[dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (of a sample; 0 for one run) over the runs of each experiment and fusion.

    Args:
        rows: accuracies, one a run.
        attention: what falls on the action, for the runs for which that is known.
        localisation: what was located, likewise; ``boxes.map`` at 0.3 is called ``boxes_map_0.3``.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in [*rows, *attention]:
        for quantity in AVERAGED:
            if quantity in row:
                found[row["experiment"]][quantity].append(row[quantity])
    for row in localisation:
        for kind, metric in product(KINDS, METRICS):
            for overlap, value in row.get(kind, {}).get(metric, {}).items():
                found[row["experiment"]][f"{kind}_{metric}_{overlap}"].append(value)
    return {
        name: {
            **{f"{quantity}_mean": float(np.mean(values)) for quantity, values in quantities.items()},
            **{f"{quantity}_std": _deviation(values) for quantity, values in quantities.items()},
            "runs": len(quantities["top1"]),
        }
        for name, quantities in found.items()
    }


class Attending(NamedTuple):
    """A run whose attention can be held against truth."""

    key: RunKey
    scores: Scores
    reading: Reading
    stored: Mapping[str, Mapping[str, Any]]
    """Facts of the store that it read, by video."""


def _attending(
    loaded: Mapping[RunKey, Scores], *, settings: EvaluationSettings, indexes: Mapping[str, Index]
) -> Iterator[Attending]:
    for key, scores in loaded.items():
        reading = settings["experiments"].get(key[0])
        if reading is None:  # the baseline attends to nothing
            continue
        stored = indexes[reading["modality"]]["videos"]
        if strangers := set(scores.ids.tolist()) - stored.keys():
            raise ValueError(f"{key[0]} scores {min(strangers)!r}, which its store does not hold; predict again")
        yield Attending(key, scores, reading, stored)


def _attention(manifest: Manifest, attending: Iterable[Attending]) -> list[dict[str, Any]]:
    """How much attention falls on the action, one row a run; none for a run of whose videos no truth is known."""
    videos = {video.id: video for video in manifest.videos}
    rows = []
    for (name, split, seed), scores, reading, stored in attending:
        sampling = {"snippet": reading["snippet"], "stride": reading["stride"]}
        if found := attention_truth(scores, videos=videos, stored=stored, **sampling):
            rows.append({"experiment": name, "split": split, "seed": seed, **found})
    return rows


def _localisation(manifest: Manifest, attending: Iterable[Attending]) -> list[dict[str, Any]]:
    """How well the runs located the action, one row a run; none for a run of which nothing is known."""
    videos = {video.id: video for video in manifest.videos}
    rows = []
    for (name, split, seed), scores, reading, stored in attending:
        sampling = {"snippet": reading["snippet"], "stride": reading["stride"]}
        if found := located(scores, videos=videos, stored=stored, family=reading["family"], **sampling):
            rows.append({"experiment": name, "split": split, "seed": seed, **found})
    return rows


def _deviation(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _checked_scores(run: Run, manifest: Manifest) -> Scores:
    """The scores of a run, if they are of this manifest's classes and of the test part of its split."""
    path = Path(run["scores"])
    scores = read_scores(path)
    if tuple(scores.classes.tolist()) != manifest.classes:
        odd = sorted(set(scores.classes.tolist()) ^ set(manifest.classes))
        difference = f"they differ in {', '.join(odd[:3])}" if odd else "they are in another order"
        raise ValueError(f"{path} scores other classes than the manifest ({difference}); predict again")
    strangers = sorted(set(scores.ids.tolist()) - {video.id for video in manifest.part(run["split"], "test")})
    if strangers:
        raise ValueError(f"{path} scores {strangers[0]!r}, which is no test video of {run['split']}; predict again")
    return scores


def _row(
    experiment: str, split: str, seed: int, ids: NDArray[np.str_], scores: NDArray[Any], manifest: Manifest
) -> dict[str, Any]:
    number = {name: i for i, name in enumerate(manifest.classes)}
    label = {video.id: number[video.labels[0]] for video in manifest.part(split, "test")}
    labels = np.array([label[name] for name in ids.tolist()], dtype=np.int64)
    return {
        "experiment": experiment,
        "split": split,
        "seed": seed,
        "top1": top1(scores, labels),
        "mean_class": mean_class_accuracy(scores, labels),
        "videos": len(labels),
        "confusion": confusion(scores, labels).tolist(),
    }


def read_runs(path: Path) -> list[Run]:
    """Read the list of runs that the plan wrote.

    Raises:
        ValueError: the file is no such list.
    """
    needed = {"experiment", "split", "seed", "scores"}
    try:
        runs: list[Run] = json.loads(path.read_text())
        whole = all(needed <= run.keys() for run in runs)
    except (AttributeError, OSError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is not a list of runs with {', '.join(sorted(needed))}; run snakemake again")
    return runs


def main(argv: list[str] | None = None) -> None:
    """Evaluate and fuse score files, and hold attention against ground truth."""
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description=main.__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="the dataset's manifest")
    parser.add_argument("--runs", type=Path, required=True, help="JSON file: list of the runs and their score files")
    parser.add_argument(
        "--index", type=index_argument, action="append", default=[], help="STORE=FILE, of what was read"
    )
    parser.add_argument("--settings", type=json.loads, required=True, help="experiments and fusions as JSON")
    parser.add_argument("--out", type=Path, required=True, help="results to write")
    arguments = parser.parse_args(argv)
    try:
        indexes = {name: read_index(path, stage=name) for name, path in arguments.index}
        manifest, runs = read_manifest(arguments.manifest), read_runs(arguments.runs)
        results = evaluate(manifest, runs, settings=arguments.settings, indexes=indexes)
    except (OSError, ValueError) as error:
        sys.exit(f"evaluate: {error}")
    write_text(arguments.out, json.dumps(results, sort_keys=True, indent=1) + "\n")


if __name__ == "__main__":
    main()
