"""Rows of the results in words, and which of them stand at the top."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import ExperimentConfig
from pipeline.report.formats import percent, points
from pipeline.report.results import CARDS, headline, located_tables, results_section, truth_rows


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
        "localisation": [],
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


def located_run(name: str, seed: int, value: float) -> dict[str, Any]:
    fit = {"accuracy": {"0.1": value, "0.05": value + 0.2}, "map": {"0.1": 0.1, "0.05": 0.2}, "videos": 7, "items": 9}
    return {"experiment": name, "split": "split1", "seed": seed, "boxes": fit, "boxes_centre": fit}


def test_what_was_located_is_shown_beside_the_baseline_by_overlap() -> None:
    given = results(2)
    given["localisation"] = [located_run("s1", seed, 0.3) for seed in (0, 1)]
    for kind, shift in (("boxes", 0.0), ("boxes_centre", 0.5)):
        for number, name in enumerate(("accuracy_0.05", "accuracy_0.1", "map_0.05", "map_0.1")):
            mean, std = (f"{kind}_{name}_{which}" for which in ("mean", "std"))
            given["summary"]["s1"] |= {mean: shift + number / 10, std: number / 100}
    (table,) = located_tables(given)
    assert (table.kind, table.overlaps) == ("boxes", ["0.05", "0.1"])
    (row,) = table.rows
    assert row.found == [(0.0, 0.0), (0.1, 0.01), (0.2, 0.02), (0.3, 0.03)]
    assert [mean for mean, _ in row.baseline] == [0.5, 0.6, 0.7, 0.8]
    assert (row.name, row.videos, row.items, row.runs) == ("s1", 7, 9, 2)
    assert located_tables(results(2)) == []
