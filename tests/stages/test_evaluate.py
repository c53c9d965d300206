"""Evaluation of hand-made score files whose results can be counted by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset.manifest import Manifest, Video, write_manifest
from pipeline.learning.scores import Scores, write_scores
from stages import evaluate

CLASSES = ("jump", "run", "walk")
TEST = {"a": "jump", "b": "run", "c": "walk", "d": "run"}


def video(name: str, label: str, part: str) -> Video:
    return Video(id=name, path=name, digest=name, bytes=1, labels=(label,), splits={"split1": part, "split2": part})


@pytest.fixture
def manifest() -> Manifest:
    train = [video(f"t{i}", label, "train") for i, label in enumerate(("jump", "run", "run", "walk"))]
    return Manifest((*(video(name, label, "test") for name, label in TEST.items()), *train))


def write(path: Path, rows: dict[str, list[float]], classes: tuple[str, ...] = CLASSES) -> str:
    scores = Scores(
        ids=np.array(list(rows)),
        logits=np.array(list(rows.values()), np.float32),
        weights=np.ones((len(rows), 1), np.float32),
        positions=np.zeros((len(rows), 1), np.int64),
        classes=np.array(classes),
    )
    write_scores(path, scores)
    return str(path)


def run(scores: str, *, name: str = "rgb", seed: int = 0, weight: float = 1.0, split: str = "split1") -> evaluate.Run:
    return {"experiment": name, "split": split, "seed": seed, "weight": weight, "scores": scores}


def row(results: dict, name: str, seed: int = 0) -> dict:
    (found,) = [r for r in results["runs"] if (r["experiment"], r["seed"]) == (name, seed)]
    return found


def test_accuracies_and_confusion_of_a_run(tmp_path: Path, manifest: Manifest) -> None:
    """jump right, run right and taken for walk, walk taken for run."""
    scores = write(tmp_path / "s", {"a": [3, 1, 0], "b": [0, 2, 1], "c": [0, 2, 1], "d": [0, 1, 2]})
    found = row(evaluate.evaluate(manifest, [run(scores)], fuse_on="logits"), "rgb")
    assert found["top1"] == 2 / 4
    assert found["mean_class"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found["confusion"] == [[1, 0, 0], [0, 1, 1], [0, 1, 0]]
    assert found["videos"] == 4


def test_fusion_adds_weighted_scores_of_the_videos_that_both_streams_have(tmp_path: Path, manifest: Manifest) -> None:
    one = write(tmp_path / "1", {"d": [0, 1, 4], "b": [0, 1, 0], "a": [5, 0, 0]})
    two = write(tmp_path / "2", {"b": [0, 0, 3], "c": [0, 0, 1], "d": [0, 3, 0]})
    runs = [run(one, weight=1.0), run(two, name="flow", weight=2.0), run(one, name="baseline", weight=0)]
    results = evaluate.evaluate(manifest, runs, fuse_on="logits")
    fused = row(results, "fused")
    assert fused["videos"] == 2
    assert fused["confusion"] == [[0, 0, 0], [0, 1, 1], [0, 0, 0]]  # b: 0 1 6 is walk; d: 0 7 4 is run
    assert results["left_out"] == {"split1": ["a", "c"]}


def test_fusing_probabilities_can_decide_otherwise_than_scores(tmp_path: Path, manifest: Manifest) -> None:
    """A score of 100 outvotes any other; a probability of 1 is outvoted by 0.9 in two others."""
    sure, two, three = {"a": [0, 100, 0]}, {"a": [3, 0, 0]}, {"a": [3, 0, 0]}
    runs = [run(write(tmp_path / str(i), rows), name=str(i)) for i, rows in enumerate((sure, two, three))]
    by_logits, by_prob = (
        row(evaluate.evaluate(manifest, runs, fuse_on=on), "fused")["top1"] for on in ("logits", "prob")
    )
    assert (by_logits, by_prob) == (0.0, 1.0)
    probability = math.exp(3) / (math.exp(3) + 2)
    _, fused, _ = evaluate.fuse(
        [evaluate.read_scores(Path(r["scores"])) for r in runs], weights=[1.0, 1.0, 1.0], on="prob"
    )
    assert fused[0, 0] == pytest.approx(2 * probability)


def test_chance_is_a_random_class_or_the_most_frequent_in_training(tmp_path: Path, manifest: Manifest) -> None:
    scores = write(tmp_path / "s", {name: [0, 0, 0] for name in TEST})
    results = evaluate.evaluate(manifest, [run(scores)], fuse_on="logits")
    assert results["chance"] == {"uniform": pytest.approx(1 / 3), "majority": 2 / 4}


def test_summary_is_the_mean_over_splits_and_seeds_and_seeds_are_fused_apart(
    tmp_path: Path, manifest: Manifest
) -> None:
    right = write(tmp_path / "r", {"a": [1, 0, 0], "b": [0, 1, 0]})
    wrong = write(tmp_path / "w", {"a": [0, 0, 1], "b": [0, 1, 0]})
    runs = [run(right, seed=0), run(wrong, seed=1), run(wrong, seed=0, split="split2")]
    summary = evaluate.evaluate(manifest, runs, fuse_on="logits")["summary"]
    assert summary["rgb"]["runs"] == summary["fused"]["runs"] == 3
    assert summary["rgb"]["top1_mean"] == pytest.approx(2 / 3)
    assert summary["rgb"]["top1_std"] == pytest.approx(math.sqrt(((1 / 3) ** 2 + 2 * (1 / 6) ** 2) / 2))


@pytest.mark.parametrize(
    ("rows", "classes", "message"),
    [
        ({"a": [0, 0, 0]}, ("jump", "run", "swim"), "other classes than the manifest .they differ in swim, walk"),
        ({"a": [0, 0, 0]}, ("run", "jump", "walk"), "another order"),
        ({"t0": [0, 0, 0]}, CLASSES, "'t0', which is no test video of split1"),
    ],
)
def test_scores_of_something_else_are_refused(
    tmp_path: Path, manifest: Manifest, rows: dict, classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate.evaluate(manifest, [run(write(tmp_path / "s", rows, classes))], fuse_on="logits")


def test_streams_without_a_video_in_common_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    runs = [run(write(tmp_path / n, {n: [0, 0, 0]}), name=n) for n in ("a", "b")]
    with pytest.raises(ValueError, match="no test video is scored by all fused streams"):
        evaluate.evaluate(manifest, runs, fuse_on="logits")


def test_the_command_writes_the_same_bytes_twice_and_says_what_is_wrong(tmp_path: Path, manifest: Manifest) -> None:
    write_manifest(tmp_path / "m.tsv", manifest)

    def command(scores: str, out: str) -> None:
        runs = tmp_path / "runs.json"
        runs.write_text(json.dumps([run(scores)]))
        options = {"--manifest": tmp_path / "m.tsv", "--runs": runs, "--fuse-on": "logits", "--out": tmp_path / out}
        evaluate.main([str(word) for pair in options.items() for word in pair])

    scores = write(tmp_path / "s", {"a": [1, 0, 0]})
    command(scores, "one")
    command(scores, "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert json.loads((tmp_path / "one").read_text())["classes"] == list(CLASSES)
    with pytest.raises(SystemExit, match="evaluate: there is no score file"):
        command(str(tmp_path / "none"), "three")
