"""Counting for the report, on datasets small enough to count by hand."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.dataset.manifest import Manifest, Video
from pipeline.learning.scores import Scores
from pipeline.report.summaries import (
    attention_examples,
    attentive,
    class_table,
    lost_videos,
    most_confused,
    pooled_confusion,
    read_benchmarks,
    read_history,
    row_shares,
    sample_videos,
    spread,
)


def _video(name: str, label: str, part: str, reason: str | None = None) -> Video:
    stage = "probe" if reason else None
    return Video(
        id=name, path=name, digest="0", bytes=1, labels=(label,), splits={"s": part}, stage=stage, reason=reason
    )


MANIFEST = Manifest(
    (
        _video("a1", "jump", "train"),
        _video("a2", "jump", "test", "it is empty"),
        _video("a3", "jump", "test"),
        _video("b1", "run", "train"),
        _video("b2", "run", "train"),
    )
)


def test_quarantine_is_gathered_from_manifest_and_indexes_once() -> None:
    probe = {"stage": "probe", "reason": "it is empty"}
    frames = {"quarantined": {"a2": probe, "b1": {"stage": "frames", "reason": "damaged"}}}
    flow = {"quarantined": {"a2": probe, "b1": {"stage": "flow", "reason": "damaged too"}}}
    lost = lost_videos(MANIFEST, [frames, flow])
    assert [(video.id, video.stage, video.reason) for video in lost] == [
        ("a2", "probe", "it is empty"),
        ("b1", "flow", "damaged too"),
        ("b1", "frames", "damaged"),
    ]
    assert lost[0].labels == ("jump",)


def test_class_table_counts_usable_and_listed() -> None:
    jump, run, total = class_table(MANIFEST, {"a2", "b1"}, [("s", "train"), ("s", "test")])
    assert (jump.name, jump.videos, jump.parts) == ("jump", (2, 3), ((1, 1), (1, 2)))
    assert (run.name, run.videos, run.parts) == ("run", (1, 2), ((1, 2), (0, 0)))
    assert (total.videos, total.parts) == ((3, 5), ((2, 3), (1, 2)))


def test_a_video_with_two_labels_counts_once_in_the_total() -> None:
    both = Video(id="x", path="x", digest="0", bytes=1, labels=("jump", "run"), splits={"s": "test"})
    jump, run, total = class_table(Manifest((both,)), set(), [("s", "test")])
    assert jump.videos == run.videos == total.videos == (1, 1)


def test_spread() -> None:
    assert spread([5, 1, 3]) == (1, 3, 5, 9)
    assert spread([]) is None


def test_confusion_is_added_up_over_runs_of_one_experiment() -> None:
    runs = [
        {"experiment": "rgb", "confusion": [[1, 2], [3, 4]]},
        {"experiment": "rgb", "confusion": [[10, 0], [0, 10]]},
        {"experiment": "flow", "confusion": [[100, 0], [0, 0]]},
    ]
    matrix = pooled_confusion({"classes": ["a", "b"], "runs": runs}, "rgb")
    assert matrix.tolist() == [[11, 2], [3, 14]]
    assert pooled_confusion({"classes": ["a", "b"], "runs": runs}, "none").tolist() == [[0, 0], [0, 0]]


def test_shares_of_a_class_without_videos_are_zero() -> None:
    assert row_shares(np.array([[1, 3], [0, 0]])).tolist() == [[0.25, 0.75], [0, 0]]


def test_most_confused_pairs() -> None:
    matrix = np.array([[9, 1, 2], [0, 5, 0], [2, 0, 2]])
    pairs = most_confused(matrix, ["a", "b", "c"], limit=2)
    assert pairs == [("c", "a", 2, 0.5), ("a", "c", 2, 2 / 12)]
    assert len(most_confused(matrix, ["a", "b", "c"], limit=9)) == 3
    assert most_confused(np.eye(3, dtype=int), ["a", "b", "c"], limit=9) == []


def _benchmark(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["s\th:m:s\tmax_rss\tcpu_time", *rows]) + "\n")


def test_benchmarks_are_added_up_by_rule(tmp_path: Path) -> None:
    old, new = "0123456789ab", "ba9876543210"
    _benchmark(tmp_path / "flow" / f"00000-{new}.tsv", "4.0\t0:00:04\t100.0\t3.5")
    _benchmark(tmp_path / "flow" / f"00001-{new}.tsv", "6.5\t0:00:06\t50.0\t6.0")
    _benchmark(tmp_path / "flow" / f"00002-{old}.tsv", "99\t0:01:39\t999\t99")
    _benchmark(tmp_path / "evaluate" / "all.tsv", "0.1\t0:00:00\tNA\t-")
    _benchmark(tmp_path / "train" / "deep" / f"rgb-{new}-split1-seed0.tsv", "20\t0:00:20\t700\t19")
    _benchmark(tmp_path / "probe" / "00000.tsv")
    train, flow, evaluate = read_benchmarks(tmp_path, recipes={new})
    assert flow == ("flow", 2, 10.5, "00001", 6.5, 9.5, 100.0)
    assert (train.rule, train.slowest) == ("train", "deep/rgb-split1-seed0")
    assert evaluate[:5] == ("evaluate", 1, 0.1, "all", 0.1)
    assert math.isnan(evaluate.cpu_seconds)
    assert math.isnan(evaluate.peak_mib)
    assert read_benchmarks(tmp_path / "missing", recipes={new}) == []


def test_history_has_nan_where_nothing_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("epoch,test_top1\n1,\n2,0.5\n")
    history = read_history(path)
    assert history["epoch"] == [1, 2]
    assert math.isnan(history["test_top1"][0])
    assert history["test_top1"][1] == 0.5
    path.write_text("epoch\nx\n")
    with pytest.raises(ValueError, match="not a training history"):
        read_history(path)


def test_samples_are_one_a_class_and_from_the_test_part() -> None:
    usable = {video.id for video in MANIFEST.videos if video.usable}
    assert [video.id for video in sample_videos(MANIFEST, usable, "s", limit=8)] == ["a3"]
    many = Manifest(tuple(_video(f"{i:02d}{k}", f"class {i:02d}", "test") for i in range(20) for k in "ab"))
    chosen = sample_videos(many, {video.id for video in many.videos} - {"00a"}, "s", limit=4)
    assert [video.id for video in chosen] == ["00b", "05a", "10a", "15a"]


def _scores(rows: dict[str, tuple[int, float]]) -> Scores:
    """Predicted class and largest weight of four, by id."""
    weights = [[peak, *3 * [(1 - peak) / 3]] for _, peak in rows.values()]
    return Scores(
        ids=np.array(list(rows)),
        logits=np.eye(2, dtype=np.float32)[[label for label, _ in rows.values()]],
        weights=np.array(weights, np.float32),
        positions=np.zeros((len(rows), 4), np.int64),
        classes=np.array(["jump", "run"]),
    )


def test_attention_examples_are_sharp_hits_and_worst_errors_of_different_classes() -> None:
    labels = {name: ("jump",) if name[0] == "j" else ("run",) for name in ("j1", "j2", "j3", "r1", "r2", "r3", "r4")}
    rgb = {"j1": (0, 0.9), "j2": (0, 0.8), "j3": (1, 0.3), "r1": (1, 0.5), "r2": (0, 0.6), "r3": (0, 0.4)}
    flow = {
        "j1": (0, 0.3),
        "j2": (0, 0.3),
        "j3": (0, 0.9),
        "r1": (1, 0.3),
        "r2": (0, 0.3),
        "r3": (0, 0.7),
        "r4": (1, 1),
    }
    chosen = attention_examples({"rgb": _scores(rgb), "flow": _scores(flow)}, labels, limit=4)
    # hits: j1 before j2, but r1 first for its class; errors: r3 sharper than r2, both streams wrong; j3 another class
    assert chosen == [("j1", True), ("r1", True), ("r3", False), ("j3", False)]
    assert attention_examples({"rgb": _scores(rgb)}, labels, limit=2) == [("j1", True), ("r2", False)]
    assert attention_examples({}, labels, limit=4) == []


def test_places_that_errors_leave_are_filled_with_hits() -> None:
    labels = {"j1": ("jump",), "j2": ("jump",), "r1": ("run",)}
    rows = {"j1": (0, 0.9), "j2": (0, 0.8), "r1": (1, 0.4)}
    chosen = attention_examples({"rgb": _scores(rows)}, labels, limit=4)
    assert chosen == [("j1", True), ("r1", True), ("j2", True)]


def test_streams_that_look_somewhere_and_streams_that_look_sometime_are_shown() -> None:
    def stream(weights: list[float], maps: bool = False) -> Scores:
        return Scores(
            ids=np.array(["a"]),
            logits=np.zeros((1, 2), np.float32),
            weights=np.array([weights], np.float32),
            positions=np.zeros((1, 2), np.int64),
            classes=np.array(["jump", "run"]),
            maps=np.ones((1, 2, 1, 1), np.float16) if maps else None,
        )

    flat, sharp, where = stream([0.5, 0.5]), stream([0.1, 0.9]), stream([0.5, 0.5], maps=True)
    streams = {"flat": flat, "sharp": sharp, "where": where}
    assert list(attentive(streams, limit=3)) == ["flat", "sharp", "where"]
    assert list(attentive(streams, limit=2)) == ["sharp", "where"]
    many = {f"{kind}{n}": scores for kind, scores in streams.items() for n in range(5)}
    assert list(attentive(many, limit=4)) == ["sharp0", "sharp1", "where0", "where1"]
    one_sharp = many | {f"sharp{n}": flat for n in range(1, 5)}
    assert list(attentive(one_sharp, limit=4)) == ["sharp0", "where0", "where1", "where2"]


def test_padding_is_no_contrast() -> None:
    padded = Scores(
        ids=np.array(["a", "b"]),
        logits=np.zeros((2, 2), np.float32),
        weights=np.array([[0.5, 0.5, 0.0], [1 / 3] * 3], np.float32),
        positions=np.array([[0, 4, -1], [0, 4, 8]]),
        classes=np.array(["jump", "run"]),
    )
    sharper = dataclasses.replace(padded, weights=np.array([[0.4, 0.6, 0.0], [1 / 3] * 3], np.float32))
    assert list(attentive({"padded": padded, "sharper": sharper}, limit=1)) == ["sharper"]
