"""Rows of the results in words, and which of them stand at the top."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import ExperimentConfig
from pipeline.report.formats import percent, points
from pipeline.report.results import CARDS, fusion_text, headline, model_text, results_section, truth_rows


@pytest.mark.parametrize(
    ("model", "sampling", "prediction", "text"),
    [
        ({}, {}, {}, "tiny, softmax_att, N = 4; relu, weights begin Gaussian"),
        (
            {"activation": "tanh", "att_input": "features", "init": "inv_n"},
            {},
            {"kind": "dcw", "normalise": False},
            "tiny, softmax_att, N = 4; tanh of features, weights begin at 1/N; DCW 15 of 25, not normalised",
        ),
        (
            {"consensus": "segment_linear", "init": "one"},
            {},
            {"kind": "average"},
            "tiny, segment_linear, N = 4; relu, weights begin at 1; average of probabilities",
        ),
        ({"backbone": "bn_inception", "consensus": "avg"}, {"segments": 3}, {}, "bn_inception, avg, N = 3"),
        ({"family": "sta_cnn"}, {"segments": 9}, {}, "tiny, TS(9, 9); DCW 15 of 25"),
        ({"family": "sta_cnn", "top": 3}, {"segments": 9}, {"top": None}, "tiny, TS(9, 3); DCW 25 of 25"),
        (
            {"family": "sta_cnn", "groups": 3, "top": 1, "spatial": "shared"},
            {"segments": 9},
            {"kind": "average"},
            "tiny, TS(3×3, 3×1); spatial attention; average of probabilities",
        ),
        (
            {"family": "sta_cnn", "spatial": "san", "aux_lambda": 0, "select_loss": "mean_loss"},
            {"segments": 3, "snippet": 2},
            {"kind": "model"},
            "tiny, TS(3, 3); SAN, no auxiliary loss; mean of losses; average of logits",
        ),
        (
            {"family": "sta_cnn", "groups": 3, "top": 1},
            {"segments": 9, "test_segments": 24},
            {"kind": "model"},
            "tiny, TS(3×3, 3×1); average of the logits that the model selects",
        ),
        (
            {"family": "sta_cnn", "spatial": "shared", "sal_weights": "shared", "pool_weights": "raw"}
            | {"pool_scale": "mean", "aux_pool": "sum"},
            {"segments": 3},
            {"top": None, "normalise": False},
            "tiny, TS(3, 3); spatial attention, auxiliary scores summed, shared weights, pools with raw weights, of "
            "which the map shown is the softmax, pooled features / K²; DCW 25 of 25, not normalised",
        ),
        (
            {"family": "sta_cnn", "spatial": "san", "san": {"targets": "none"}},
            {"segments": 3, "snippet": 2},
            {"kind": "average"},
            "tiny, TS(3, 3); SAN from scratch; average of probabilities",
        ),
    ],
)
def test_a_model_in_words(
    model: dict[str, Any], sampling: dict[str, Any], prediction: dict[str, Any], text: str
) -> None:
    sections = {"model": model, "sampling": sampling, "prediction": prediction}
    assert model_text(ExperimentConfig.model_validate({"modality": "frames", **sections})) == text


def test_what_a_training_begins_with_is_told() -> None:
    hard = {"modality": "flow", "initial": "tsn", "model": {"family": "sta_cnn", "top": 1}}
    text = "tiny, TS(4, 1); begins with tsn; DCW 15 of 25"
    assert model_text(ExperimentConfig.model_validate(hard)) == text
    warm = {"modality": "flow", "initial": "tsn", "model": {"consensus": "max"}}
    assert model_text(ExperimentConfig.model_validate(warm)) == "tiny, max, N = 4; begins with tsn"


def test_a_fusion_in_words() -> None:
    assert fusion_text({"rgb": 1.0, "flow": 1.5}, on="prob") == "1 × rgb + 1.5 × flow, of probabilities"


def test_differences_have_a_sign_and_no_paper_no_difference() -> None:
    assert [points(1.25), points(-0.3), points(0.0), points(None)] == ["+1.2", "−0.3", "+0.0", "–"]
    assert percent(float("nan")) == percent(None) == "–"


def results(streams: int) -> dict[str, Any]:
    figures = {"top1_mean": 0.5, "top1_std": 0.1, "mean_class_mean": 0.5, "mean_class_std": 0.1, "runs": 1}
    rows: list[dict[str, Any]] = [
        {"kind": "fusion", "name": "both", "paper": 52.5, "experiments": {"s1": 1.0, "s0": 0.5}, "on": "exp"}
    ]
    rows += [{"kind": "stream", "name": f"s{n}", "paper": None} for n in range(streams)]
    rows += [{"kind": "baseline", "name": "baseline", "paper": None}]
    return {
        "rows": rows,
        "runs": [{"experiment": row["name"]} for row in reversed(rows)],
        "summary": {row["name"]: dict(figures) for row in rows},
        "attention": [],
        "chance": {"uniform": 0.25, "majority": 0.3},
        "left_out": {"split2": [], "split1": ["a"]},
    }


def test_rows_keep_their_order_and_runs_follow_it() -> None:
    experiments = {f"s{n}": ExperimentConfig(modality="flow") for n in range(2)}
    section = results_section(results(2), experiments)
    assert [row["name"] for row in section["rows"]] == ["both", "s0", "s1", "baseline"]
    assert [run["experiment"] for run in section["runs"]] == ["both", "s0", "s1", "baseline"]
    assert section["rows"][0]["difference"] == pytest.approx(-2.5)
    assert section["rows"][0]["model"] == "0.5 × s0 + 1 × s1, of probabilities, not normalised"
    assert (section["papers"], section["several"], section["left_out"]) == (True, False, {"split1": ["a"]})


def test_the_top_shows_a_few_accuracies_and_the_baseline() -> None:
    section = results_section(results(9), {f"s{n}": ExperimentConfig(modality="flow") for n in range(9)})
    cards = headline(section, classes=4, usable=1990, listed=2000)
    expected = ["both", *(f"s{n}" for n in range(CARDS - 1)), "baseline", "chance", "usable videos", "quarantined"]
    assert [card.label for card in cards] == expected
    assert [card.note for card in (cards[0], cards[1], cards[-4])] == ["2 streams", "one stream", "flow histogram"]
    assert cards[-2:] == [
        ("count", "usable videos", "1,990", "", "of 2,000"),
        ("count", "quarantined", "10", "", "0.5% of the videos"),
    ]


def test_truth_is_shown_for_the_streams_that_have_some() -> None:
    known = results(3)
    known["attention"] = [
        {"experiment": "s2", "temporal_videos": 3},
        {"experiment": "s0", "temporal_videos": 3, "spatial_videos": 2},
        {"experiment": "s0", "temporal_videos": 5, "spatial_videos": 5},
    ]
    inside = {"temporal_inside_mean": 0.6, "temporal_inside_std": 0.05, "temporal_uniform_mean": 0.4}
    known["summary"]["s0"] |= inside | {name.replace("temporal", "spatial"): 0.5 for name in inside} | {"runs": 2}
    known["summary"]["s2"] |= inside
    first, second = truth_rows(known)
    assert (first.name, first.videos, first.runs) == ("s0", 3, 2)
    assert first.kinds == [{"inside": 0.6, "std": 0.05, "uniform": 0.4}, {"inside": 0.5, "std": 0.5, "uniform": 0.5}]
    assert (second.name, second.kinds[1]) == ("s2", None)
