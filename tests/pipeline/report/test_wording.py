"""Experiments and fusions in words."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import ExperimentConfig
from pipeline.report.wording import fusion_text, model_text, scored_text


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
            {"family": "jsta"},
            {"segments": 3, "snippet": 8, "stride": 2, "test_segments": None},
            {},
            "res3d18; spatial attention after 3b, softmax over channel; 3 clips of 8 frames, stride 2, all in testing",
        ),
        (
            {"family": "jsta", "sa_position": "none", "backbone": "c3d", "width": 8},
            {"segments": 1, "snippet": 16, "test_segments": 10},
            {},
            "c3d of width 8; no attention; 1 clip of 16 frames, 10 in testing",
        ),
        (
            {"family": "sta_net", "stages": ["layer1", "layer4"], "blocks": "last", "identity_init": True},
            {"segments": 1, "snippet": 16, "test_segments": None},
            {},
            "resnext3d101; STA in last blocks of layer1, layer4 before add, begins as identity; "
            "1 clip of 16 frames, all in testing",
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


@pytest.mark.parametrize(
    ("model", "sampling", "text"),
    [
        (
            {"family": "jsta_temporal", "classifier": "moe"},
            {"snippet": 8, "stride": 2, "test_segments": None},
            "temporal attention, concat of directions; MOE of the avg of clips; "
            "all clips of 8 frames, stride 2; features of source",
        ),
        (
            {"family": "jsta_temporal", "temporal": "none", "classifier": "lstm"},
            {"snippet": 8, "test_segments": None},
            "no attention; LSTM over clips; all clips of 8 frames; features of source",
        ),
        (
            {"family": "jsta_temporal", "temporal": "keras_gate", "clip_pool": "concat", "clips": 5},
            {"snippet": 8, "test_segments": 5},
            "temporal gate; FC of the concat of 5 clips; 5 clips of 8 frames; features of source",
        ),
        (
            {"family": "where_when"},
            {},
            "ConvLSTM of 512, N = 25; spatial mask; temporal attention, additive; features of source",
        ),
        (
            {"family": "where_when", "spatial": False, "temporal": "post_lstm", "lambda_unimodal": 0, "hidden": 32},
            {"test_segments": 9, "stride": 2},
            "ConvLSTM of 32, N = 9; no spatial mask; temporal attention after the ConvLSTM; no loss of unimodality; "
            "stride 2; features of source",
        ),
    ],
)
def test_a_head_in_words(model: dict[str, Any], sampling: dict[str, Any], text: str) -> None:
    given = {"modality": "frames", "features": "source", "model": model, "sampling": sampling}
    assert model_text(ExperimentConfig.model_validate(given)) == text


def test_a_head_is_scored_on_the_same_features_in_training_and_in_testing() -> None:
    sampling = {"segments": 3, "test_segments": 12}
    one: dict[str, Any] = {"modality": "frames", "sampling": sampling}
    head = {**one, "features": "source", "model": {"family": "where_when"}}
    assert "scored on 3 snippets here, on 12 for" in scored_text(ExperimentConfig.model_validate(one))
    assert "same features" in scored_text(ExperimentConfig.model_validate(head))


def test_a_teacher_is_named() -> None:
    given = {"modality": "frames", "mars": {"teacher": "on_flow"}, "model": {"family": "sta_net", "variant": "none"}}
    sampling = {"segments": 1, "snippet": 16, "test_segments": None}
    text = "resnext3d101; no attention; 1 clip of 16 frames, all in testing; MARS with teacher on_flow, α = 50"
    assert model_text(ExperimentConfig.model_validate({**given, "sampling": sampling})) == text
