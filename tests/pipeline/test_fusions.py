"""Fusions in the configuration: what evaluating is told, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from pipeline.config import _documented, load

STREAMS = {"rgb": {"modality": "frames"}, "flow": {"modality": "flow", "sampling": {"snippet": 5}, "paper": 88.3}}


def config(streams: dict[str, Any] = STREAMS, **more: Any) -> Any:
    return load({"name": "x", "dataset": "demo", "experiments": streams, **more})


def test_without_fusions_there_is_one_by_the_weights() -> None:
    weighted = {"rgb": {"modality": "frames", "weight": 0}, "flow": {"modality": "flow", "weight": 1.5}}
    told = config(weighted, fuse_on="prob").evaluation
    assert told["fusions"] == [{"name": "fused", "experiments": {"flow": 1.5}, "on": "prob", "paper": None}]
    assert config({"rgb": {"modality": "frames", "weight": 0}}).evaluation["fusions"] == []
    assert config({}).evaluation == {"experiments": {}, "fusions": []}


def test_without_a_split_in_common_nothing_is_fused_unless_the_stranger_has_no_weight() -> None:
    apart = {name: {"modality": "flow", "splits": [f"split{name}"]} for name in "12"}
    splits = {"splits": ["split1", "split2"]}
    assert config(apart, **splits).evaluation["fusions"] == []
    apart["2"]["weight"] = 0
    assert [fusion["experiments"] for fusion in config(apart, **splits).evaluation["fusions"]] == [{"1": 1.0}]
    both = {**apart, "every": {"modality": "frames"}}
    assert [fusion["experiments"] for fusion in config(both, **splits).evaluation["fusions"]] == [
        {"1": 1.0, "every": 1.0}
    ]


def test_fusions_by_name_take_the_place_of_weights() -> None:
    both = {"rgb": 1, "flow": 1.5}
    fusions = {"raw": {"experiments": both}, "soft": {"experiments": both, "fuse_on": "exp", "paper": 94.6}}
    streams = {name: {**stream, "prediction": {"kind": "average"}} for name, stream in STREAMS.items()}
    told = config(streams, fusions=fusions, fuse_on="logits").evaluation
    assert told["fusions"] == [
        {"name": "raw", "experiments": {"rgb": 1.0, "flow": 1.5}, "on": "logits", "paper": None},
        {"name": "soft", "experiments": {"rgb": 1.0, "flow": 1.5}, "on": "exp", "paper": 94.6},
    ]
    assert told["experiments"] == {
        "rgb": {"modality": "frames", "family": "atw", "snippet": 1, "stride": 1, "paper": None},
        "flow": {"modality": "flow", "family": "atw", "snippet": 5, "stride": 1, "paper": 88.3},
    }


def test_fusions_are_printed_and_read_again() -> None:
    given = config(fusions={"both": {"experiments": {"rgb": 1, "flow": 1.5}, "paper": 94.6}})
    assert load(yaml.safe_load("\n".join(_documented(given)))) == given


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"fusions": {"a": {"experiments": {}}}}, "fusions.a.experiments is {}"),
        ({"fusions": {"a": {"experiments": {"rgb": 0}}}}, "fusions.a.experiments.rgb is 0: input should be greater"),
        (
            {"fusions": {"a": {"experiments": {"rgb": 1}, "fuse_om": "prob"}}},
            "unknown key 'fusions.a.fuse_om'; the nearest",
        ),
        ({"fusions": {"a": {"experiments": {"rgb": 1}, "fuse_on": "scores"}}}, "fusions.a.fuse_on is 'scores'"),
        ({"fusions": {"a": {"experiments": {"rbg": 1}}}}, "the fusion 'a' adds 'rbg', which is no experiment"),
        ({"fusions": {"rgb": {"experiments": {"flow": 1}}}}, "the fusion 'rgb' has the name of something else"),
        ({"fusions": {"chance": {"experiments": {"flow": 1}}}}, "the fusion 'chance' has the name of something else"),
        ({"fusions": {"a": {"experiments": {"rgb": 1}, "paper": 946}}}, "fusions.a.paper is 946"),
        ({"fuse_on": "softmax"}, "fuse_on is 'softmax'"),
        ({"fuse_on": "exp"}, "the fusion 'fused' adds exp(logits), but rgb predicts by its model"),
        (
            {"fusions": {"a": {"experiments": {"flow": 1}, "fuse_on": "exp"}}},
            "the fusion 'a' adds exp(logits), but flow predicts by its model",
        ),
        (
            {"experiments": {"rgb": {"modality": "frames", "splits": ["split1", "split1"]}}},
            "experiments.rgb: splits names a value twice: ['split1', 'split1']",
        ),
        (
            {
                "experiments": {"rgb": {"modality": "frames", "weight": 0.5}},
                "fusions": {"a": {"experiments": {"rgb": 1}}},
            },
            "weight of rgb is not heard beside fusions",
        ),
        (
            {
                "splits": ["split1", "split2"],
                "experiments": {n: {"modality": "flow", "splits": [f"split{n}"]} for n in "12"},
                "fusions": {"a": {"experiments": {"1": 1, "2": 1}}},
            },
            "the fusion 'a' adds experiments that have no split in common",
        ),
        (
            {"experiments": {"rgb": {"modality": "frames", "splits": ["split2"]}}},
            "rgb runs on split2, which is not among splits: split1; add it there",
        ),
        ({"experiments": {"rgb": {"modality": "frames", "splits": []}}}, "experiments.rgb.splits is []"),
    ],
)
def test_what_cannot_be_fused_is_one_clear_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        load({"name": "x", "dataset": "demo", "experiments": STREAMS, **change})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
