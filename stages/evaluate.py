"""Stage evaluate: accuracies of every run, of the fused streams, of chance; means over splits and seeds.

Shapes: V videos, C classes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.learning.metrics import confusion, mean_class_accuracy, softmax, top1
from pipeline.learning.scores import Scores, read_scores
from pipeline.stores.publish import write_text


class Run(TypedDict):
    """One score file to evaluate."""

    experiment: str
    split: str
    seed: int
    weight: float
    """Of its scores in the fusion; 0 leaves it out."""
    scores: str
    """Path of the score file."""
    recipe: NotRequired[str]
    folder: NotRequired[str]


def evaluate(manifest: Manifest, runs: list[Run], *, fuse_on: Literal["logits", "prob"]) -> dict[str, Any]:
    """Everything that ``results.json`` holds.

    Args:
        manifest: labels and splits.
        runs: the score files; those of one split and seed with a weight above 0 are fused.
        fuse_on: what is added up over streams: scores before the softmax, or probabilities.

    Raises:
        ValueError: a score file is missing, damaged, of other classes or of other videos.
    """
    loaded = [(run, _checked_scores(run, manifest)) for run in runs]
    rows = [_row(run["experiment"], run["split"], run["seed"], s.ids, s.logits, manifest) for run, s in loaded]
    groups: dict[tuple[str, int], list[tuple[Run, Scores]]] = defaultdict(list)
    for run, scores in loaded:
        if run["weight"] > 0:
            groups[run["split"], run["seed"]].append((run, scores))
    left_out: dict[str, set[str]] = {run["split"]: set() for run in runs}
    for (split, seed), streams in groups.items():
        ids, fused, missing = fuse(
            [scores for _, scores in streams], weights=[run["weight"] for run, _ in streams], on=fuse_on
        )
        left_out[split] |= set(missing)
        rows.append(_row("fused", split, seed, ids, fused, manifest))
    return {
        "classes": list(manifest.classes),
        "chance": chance(manifest, splits=sorted(left_out)),
        "runs": rows,
        "summary": summary(rows),
        "left_out": {split: sorted(ids) for split, ids in left_out.items()},
    }


def fuse(
    streams: list[Scores], *, weights: list[float], on: Literal["logits", "prob"]
) -> tuple[NDArray[np.str_], NDArray[np.float64], list[str]]:
    """Weighted sum of the scores of several streams.

    Args:
        streams: of one split and seed, at least one; classes equal.
        weights: one a stream.
        on: scores before the softmax, or probabilities.

    Returns:
        Sorted ids of the V videos that all streams have scored; their (V, C) sums; ids that only some have scored.

    Raises:
        ValueError: no video is scored by all streams.
    """
    ids = sorted(set.intersection(*(set(stream.ids.tolist()) for stream in streams)))
    missing = sorted(set.union(*(set(stream.ids.tolist()) for stream in streams)) - set(ids))
    if not ids:
        raise ValueError("no test video is scored by all fused streams; set the weight of one of them to 0")
    total = np.zeros((len(ids), len(streams[0].classes)))
    for stream, weight in zip(streams, weights, strict=True):
        place = {name: row for row, name in enumerate(stream.ids.tolist())}
        scores = stream.logits[[place[name] for name in ids]].astype(np.float64)
        total += weight * (softmax(scores) if on == "prob" else scores)
    return np.array(ids), total, missing


def chance(manifest: Manifest, *, splits: list[str]) -> dict[str, float]:
    """Accuracy without looking: a random class, and always the class that is most frequent in training."""
    shares = []
    for split in splits:
        counts = Counter(video.labels[0] for video in manifest.part(split, "train"))
        guess = min(counts, key=lambda name: (-counts[name], name))
        test = manifest.part(split, "test")
        shares.append(sum(video.labels[0] == guess for video in test) / len(test))
    return {"uniform": 1 / len(manifest.classes), "majority": float(np.mean(shares))}


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation (of a sample; 0 for one run) over the runs of each experiment."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["experiment"]].append(row)
    return {
        name: {
            "top1_mean": float(np.mean([row["top1"] for row in group])),
            "top1_std": _deviation([row["top1"] for row in group]),
            "mean_class_mean": float(np.mean([row["mean_class"] for row in group])),
            "mean_class_std": _deviation([row["mean_class"] for row in group]),
            "runs": len(group),
        }
        for name, group in found.items()
    }


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
    needed = {"experiment", "split", "seed", "weight", "scores"}
    try:
        runs: list[Run] = json.loads(path.read_text())
        whole = all(needed <= run.keys() for run in runs)
    except (AttributeError, OSError, TypeError, ValueError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is not a list of runs with {', '.join(sorted(needed))}; run snakemake again")
    return runs


def main(argv: list[str] | None = None) -> None:
    """Evaluate and fuse score files."""
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate", description=main.__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="the dataset's manifest")
    parser.add_argument("--runs", type=Path, required=True, help="JSON file: list of the runs and their score files")
    parser.add_argument("--fuse-on", choices=("logits", "prob"), required=True, help="what is added up over streams")
    parser.add_argument("--out", type=Path, required=True, help="results to write")
    arguments = parser.parse_args(argv)
    try:
        runs = read_runs(arguments.runs)
        results = evaluate(read_manifest(arguments.manifest), runs, fuse_on=arguments.fuse_on)
    except (OSError, ValueError) as error:
        sys.exit(f"evaluate: {error}")
    write_text(arguments.out, json.dumps(results, sort_keys=True, indent=1) + "\n")


if __name__ == "__main__":
    main()
