"""Evaluation of hand-made score files whose results can be counted by hand."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset.manifest import Manifest, Segment, Tube, Video, write_manifest
from pipeline.fusions import EvaluationSettings, FuseOn, FusionRow, Reading
from pipeline.learning.readers import Index
from pipeline.learning.scores import Scores, write_scores
from stages import evaluate

CLASSES = ("jump", "run", "walk")
TEST = {"a": "jump", "b": "run", "c": "walk", "d": "run"}
READING: Reading = {"modality": "frames", "family": "atw", "snippet": 1, "stride": 1, "paper": None}


def video(name: str, label: str, part: str) -> Video:
    return Video(id=name, path=name, digest=name, bytes=1, labels=(label,), splits={"split1": part, "split2": part})


@pytest.fixture
def manifest() -> Manifest:
    train = [video(f"t{i}", label, "train") for i, label in enumerate(("jump", "run", "run", "walk"))]
    return Manifest((*(video(name, label, "test") for name, label in TEST.items()), *train))


def write(path: Path, rows: dict[str, list[float]], classes: tuple[str, ...] = CLASSES, **more: Any) -> str:
    arrays = {
        "weights": np.ones((len(rows), 1), np.float32),
        "positions": np.zeros((len(rows), 1), np.int64),
        **more,
    }
    logits = np.array(list(rows.values()), np.float32)
    write_scores(path, Scores(ids=np.array(list(rows)), logits=logits, classes=np.array(classes), **arrays))
    return str(path)


def run(scores: str, *, name: str = "rgb", seed: int = 0, split: str = "split1") -> evaluate.Run:
    return {"experiment": name, "split": split, "seed": seed, "scores": scores}


def fusion(name: str = "fused", *, on: FuseOn = "logits", paper: float | None = None, **weights: float) -> FusionRow:
    return {"name": name, "experiments": weights, "on": on, "paper": paper}


def index(frames: int = 100) -> Index:
    videos: dict[str, dict[str, Any]] = {name: {"frames": frames, "fps": 25.0} for name in TEST}
    return {"stage": "frames", "store": "", "parameters": {}, "videos": videos, "quarantined": {}}


def evaluated(manifest: Manifest, runs: list[evaluate.Run], *fusions: FusionRow, **papers: float) -> dict[str, Any]:
    """The results; every run but the baseline's is of an experiment that reads frames one by one."""
    names = dict.fromkeys(r["experiment"] for r in runs if r["experiment"] != "baseline")
    settings: EvaluationSettings = {
        "experiments": {n: {**READING, "paper": papers.get(n)} for n in names},
        "fusions": list(fusions),
    }
    return evaluate.evaluate(manifest, runs, settings=settings, indexes={"frames": index()})


def row(results: dict, name: str, seed: int = 0) -> dict:
    (found,) = [r for r in results["runs"] if (r["experiment"], r["seed"]) == (name, seed)]
    return found


def test_accuracies_and_confusion_of_a_run(tmp_path: Path, manifest: Manifest) -> None:
    """jump right, run right and taken for walk, walk taken for run."""
    scores = write(tmp_path / "s", {"a": [3, 1, 0], "b": [0, 2, 1], "c": [0, 2, 1], "d": [0, 1, 2]})
    found = row(evaluated(manifest, [run(scores)]), "rgb")
    assert found["top1"] == 2 / 4
    assert found["mean_class"] == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert found["confusion"] == [[1, 0, 0], [0, 1, 1], [0, 1, 0]]
    assert found["videos"] == 4


def test_fusion_adds_weighted_scores_of_the_videos_that_both_streams_have(tmp_path: Path, manifest: Manifest) -> None:
    one = write(tmp_path / "1", {"d": [0, 1, 4], "b": [0, 1, 0], "a": [5, 0, 0]})
    two = write(tmp_path / "2", {"b": [0, 0, 3], "c": [0, 0, 1], "d": [0, 3, 0]})
    runs = [run(one), run(two, name="flow"), run(one, name="baseline")]
    results = evaluated(manifest, runs, fusion(rgb=1.0, flow=2.0))
    fused = row(results, "fused")
    assert fused["videos"] == 2
    assert fused["confusion"] == [[0, 0, 0], [0, 1, 1], [0, 0, 0]]  # b: 0 1 6 is walk; d: 0 7 4 is run
    assert results["left_out"] == {"split1": ["a", "c"]}


def test_what_is_added_up_can_decide(tmp_path: Path, manifest: Manifest) -> None:
    """A score of 100 outvotes any other; a probability of 1 is outvoted by 0.9 in two others."""
    sure, two, three = {"a": [0, 100, 0]}, {"a": [3, 0, 0]}, {"a": [3, 0, 0]}
    names = ("one", "two", "three")
    runs = [run(write(tmp_path / n, rows), name=n) for n, rows in zip(names, (sure, two, three), strict=True)]
    weights = dict.fromkeys(names, 1.0)
    results = evaluated(manifest, runs, fusion("raw", **weights), fusion("soft", on="prob", **weights))
    assert (row(results, "raw")["top1"], row(results, "soft")["top1"]) == (0.0, 1.0)
    probability = math.exp(3) / (math.exp(3) + 2)
    streams = [evaluate.read_scores(Path(r["scores"])) for r in runs]
    _, fused, _ = evaluate.fuse(streams, weights=[1.0, 1.0, 1.0], on="prob")
    assert fused[0, 0] == pytest.approx(2 * probability)


def test_exponentials_are_added_up_as_they_are(tmp_path: Path) -> None:
    """Probabilities that were not normalised: 0.2 0.3 0.1, and 4 1 1 of a prediction that was surer."""
    rows = ([0.2, 0.3, 0.1], [4.0, 1.0, 1.0])
    paths = [write(tmp_path / str(i), {"a": np.log(values).tolist()}) for i, values in enumerate(rows)]
    streams = [evaluate.read_scores(Path(path)) for path in paths]
    _, fused, _ = evaluate.fuse(streams, weights=[10.0, 1.0], on="exp")
    np.testing.assert_allclose(fused[0] / fused[0, 0], np.array([6.0, 4.0, 2.0]) / 6, rtol=1e-6)
    huge = [evaluate.read_scores(Path(write(tmp_path / "h", {"a": [1000.0, 999.0, 0.0]})))]
    _, fused, _ = evaluate.fuse(huge, weights=[1.0], on="exp")
    np.testing.assert_allclose(fused[0], [1.0, math.exp(-1), 0.0], atol=1e-12)


def test_named_fusions_stand_first_in_their_order_with_the_papers_numbers(tmp_path: Path, manifest: Manifest) -> None:
    one, two = (write(tmp_path / n, {"a": [1, 0, 0], "b": [0, 1, 0]}) for n in "12")
    runs = [run(one, name="rgb"), run(two, name="flow"), run(one, name="baseline")]
    both, own = fusion("z_both", paper=94.6, rgb=1.0, flow=0.5), fusion("a_own", on="prob", rgb=1.0)
    results = evaluated(manifest, runs, both, own, flow=88.3)
    assert [(r["kind"], r["name"], r["paper"]) for r in results["rows"]] == [
        ("fusion", "z_both", 94.6),
        ("fusion", "a_own", None),
        ("stream", "rgb", None),
        ("stream", "flow", 88.3),
        ("baseline", "baseline", None),
    ]
    assert results["rows"][0]["experiments"] == {"rgb": 1.0, "flow": 0.5}
    assert set(results["summary"]) == {"z_both", "a_own", "rgb", "flow", "baseline"}


def test_streams_are_fused_where_all_of_them_ran(tmp_path: Path, manifest: Manifest) -> None:
    scores = write(tmp_path / "s", {"a": [1, 0, 0]})
    runs = [run(scores, split=split) for split in ("split1", "split2")] + [run(scores, name="flow", split="split2")]
    results = evaluated(manifest, runs, fusion(rgb=1.0, flow=1.0))
    assert [(r["split"], r["seed"]) for r in results["runs"] if r["experiment"] == "fused"] == [("split2", 0)]


def test_chance_is_a_random_class_or_the_most_frequent_in_training(tmp_path: Path, manifest: Manifest) -> None:
    scores = write(tmp_path / "s", {name: [0, 0, 0] for name in TEST})
    results = evaluated(manifest, [run(scores)])
    assert results["chance"] == {"uniform": pytest.approx(1 / 3), "majority": 2 / 4}


def test_summary_is_the_mean_over_splits_and_seeds_and_seeds_are_fused_apart(
    tmp_path: Path, manifest: Manifest
) -> None:
    right = write(tmp_path / "r", {"a": [1, 0, 0], "b": [0, 1, 0]})
    wrong = write(tmp_path / "w", {"a": [0, 0, 1], "b": [0, 1, 0]})
    runs = [run(right, seed=0), run(wrong, seed=1), run(wrong, seed=0, split="split2")]
    summary = evaluated(manifest, runs, fusion(rgb=1.0))["summary"]
    assert summary["rgb"]["runs"] == summary["fused"]["runs"] == 3
    assert summary["rgb"]["top1_mean"] == pytest.approx(2 / 3)
    assert summary["rgb"]["top1_std"] == pytest.approx(math.sqrt(((1 / 3) ** 2 + 2 * (1 / 6) ** 2) / 2))


def test_attention_stands_beside_uniform_attention_for_the_runs_that_have_truth(
    tmp_path: Path, manifest: Manifest
) -> None:
    """Snippets at 0.02 and 1.02 seconds; the action of "a" is in the second one, its actor in the left half."""
    marked = {"segments": (Segment("jump", 1.0, 2.0),), "tubes": (Tube("jump", 25, ((0.0, 0.0, 5.0, 10.0),) * 25),)}
    facts = {"frames": 100, "fps": 25.0, "width": 10, "height": 10}
    videos = [dataclasses.replace(v, **marked, **facts) if v.id == "a" else v for v in manifest.videos]
    weights, positions = np.array([[0.2, 0.8]] * 2, np.float32), np.array([[0, 25]] * 2)
    maps = np.tile(np.array([0.75, 0.25], np.float16), (2, 2, 1, 1))
    view = np.tile(np.array([0, 0, 1, 1], np.float32), (2, 1))
    rows = {"a": [1.0, 0.0, 0.0], "b": [0.0, 1.0, 0.0]}
    seen = write(tmp_path / "seen", rows, weights=weights, positions=positions, maps=maps, view=view)
    blind = write(tmp_path / "blind", rows, weights=weights[:, ::-1], positions=positions)
    unmarked = write(tmp_path / "unmarked", {"b": rows["b"]}, weights=weights[:1], positions=positions[:1])
    runs = [run(seen), run(blind, seed=1), run(unmarked, name="other"), run(seen, name="baseline")]
    results = evaluated(Manifest(tuple(videos)), runs, fusion(rgb=1.0))
    temporal = {"temporal_uniform": 0.5, "temporal_videos": 1}
    assert results["attention"] == [
        {
            **{"experiment": "rgb", "split": "split1", "seed": 0, "temporal_inside": pytest.approx(0.8), **temporal},
            **{"spatial_inside": 0.75, "spatial_uniform": 0.5, "spatial_videos": 1},
        },
        {"experiment": "rgb", "split": "split1", "seed": 1, "temporal_inside": pytest.approx(0.2), **temporal},
    ]
    found, blind_found = results["localisation"]
    assert (found["experiment"], found["split"], found["seed"]) == ("rgb", "split1", 0)
    assert found["boxes"]["accuracy"] == dict.fromkeys(("0.05", "0.1", "0.2", "0.3"), 1.0)
    # the second snippet has [0.52, 4) of the store's 4 seconds, and the action one of these; the first has none
    precisions = found["segments"]["map"]
    assert [precisions["0.2"], precisions["0.3"], blind_found["segments"]["map"]["0.1"]] == [1.0, 0.0, 0.0]
    assert "boxes" not in blind_found
    summary = results["summary"]["rgb"]
    assert summary["segments_map_0.2_mean"] == pytest.approx(0.5)
    assert summary["segments_map_0.2_std"] == pytest.approx(1 / math.sqrt(2))
    assert (summary["boxes_accuracy_0.3_mean"], summary["boxes_accuracy_0.3_std"]) == (1.0, 0.0)
    assert summary["temporal_inside_mean"] == pytest.approx(0.5)
    assert summary["temporal_inside_std"] == pytest.approx(0.6 / math.sqrt(2))
    assert (summary["spatial_inside_mean"], summary["spatial_uniform_mean"]) == (0.75, 0.5)
    assert not any("temporal" in key for name in ("other", "fused", "baseline") for key in results["summary"][name])


def test_scores_of_videos_that_the_store_does_not_hold_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    scores = write(tmp_path / "s", {"a": [0, 0, 0]})
    settings: EvaluationSettings = {
        "experiments": {"rgb": READING},
        "fusions": [],
    }
    empty: Index = {**index(), "videos": {}}
    with pytest.raises(ValueError, match="rgb scores 'a', which its store does not hold"):
        evaluate.evaluate(manifest, [run(scores)], settings=settings, indexes={"frames": empty})


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
        evaluated(manifest, [run(write(tmp_path / "s", rows, classes))])


def test_streams_without_a_video_in_common_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    runs = [run(write(tmp_path / n, {n: [0, 0, 0]}), name=n) for n in ("a", "b")]
    with pytest.raises(ValueError, match="no test video is scored by all fused streams"):
        evaluated(manifest, runs, fusion(a=1.0, b=1.0))


def test_the_command_writes_the_same_bytes_twice_and_says_what_is_wrong(tmp_path: Path, manifest: Manifest) -> None:
    write_manifest(tmp_path / "m.tsv", manifest)

    def command(scores: str, out: str) -> None:
        runs = tmp_path / "runs.json"
        runs.write_text(json.dumps([run(scores)]))
        (tmp_path / "frames.json").write_text(json.dumps(index()))
        settings = {
            "experiments": {"rgb": READING},
            "fusions": [fusion(rgb=1.0)],
        }
        options = {"--manifest": tmp_path / "m.tsv", "--runs": runs, "--settings": json.dumps(settings)}
        options |= {"--index": f"frames={tmp_path / 'frames.json'}", "--out": tmp_path / out}
        evaluate.main([str(word) for pair in options.items() for word in pair])

    scores = write(tmp_path / "s", {"a": [1, 0, 0]})
    command(scores, "one")
    command(scores, "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert json.loads((tmp_path / "one").read_text())["classes"] == list(CLASSES)
    with pytest.raises(SystemExit, match="evaluate: there is no score file"):
        command(str(tmp_path / "none"), "three")
