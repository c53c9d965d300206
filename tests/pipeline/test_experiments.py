"""Experiments: two families in one key, what one experiment may want of another, and what a SAN needs of the stores."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.config import ATWConfig, Config, ExperimentConfig, SanConfig, STACNNConfig, canonical, load

SAN = {"family": "sta_cnn", "spatial": "san"}
TWO_FRAMES = {"modality": "frames", "sampling": {"snippet": 2}}


def config(experiments: dict[str, Any], **more: Any) -> Config:
    return load({"name": "x", "dataset": "demo", "experiments": experiments, **more})


def test_the_family_chooses_the_section_and_atw_is_what_it_was() -> None:
    found = config({"a": {"modality": "flow", "model": {"activation": "tanh"}}, "b": {**TWO_FRAMES, "model": SAN}})
    assert isinstance(found.experiments["a"].model, ATWConfig)
    assert isinstance(found.experiments["b"].model, STACNNConfig)
    assert ExperimentConfig(modality="flow").model == ATWConfig()
    assert load(json.loads(canonical(found))) == found


def test_what_an_experiment_reads_and_how_it_predicts() -> None:
    flow = ExperimentConfig.model_validate({"modality": "flow", "sampling": {"snippet": 5}})
    assert (flow.in_channels, flow.classifier_channels, flow.san, flow.predicts) == (10, 10, None, "model")
    san = ExperimentConfig.model_validate({**TWO_FRAMES, "model": SAN})
    assert (san.in_channels, san.classifier_channels, san.predicts) == (6, 3, "dcw")
    assert san.san is not None
    unread = ExperimentConfig.model_validate({**TWO_FRAMES, "model": {**SAN, "spatial": "shared"}})
    assert (unread.san, unread.classifier_channels) == (None, 6)
    told = ExperimentConfig.model_validate({**TWO_FRAMES, "model": SAN, "prediction": {"kind": "average"}})
    assert told.predicts == "average"


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (224, 224)),
        ({"targets": "flying_chairs", "flying_chairs": "x"}, (320, 448)),
        ({"crop": 96}, (96, 96)),
        ({"crop": 96, "targets": "flying_chairs", "flying_chairs": "x"}, (96, 96)),
        ({"crop": [64, 96]}, (64, 96)),
    ],
)
def test_the_crop_of_a_pre_training(settings: dict[str, Any], size: tuple[int, int]) -> None:
    found = ExperimentConfig.model_validate({**TWO_FRAMES, "model": {**SAN, "san": settings}})
    assert found.san is not None
    assert found.san.crop_px == size


def test_videos_are_seen_in_pre_training_at_the_size_that_the_network_will_see() -> None:
    sampling = {"snippet": 2, "input_size": 64}
    for settings, size in (({}, (64, 64)), ({"targets": "flying_chairs", "flying_chairs": "x"}, (320, 448))):
        model = {**SAN, "san": settings}
        found = ExperimentConfig.model_validate({"modality": "frames", "sampling": sampling, "model": model}).san
        assert found is not None
        assert found.crop_px == size
        assert SanConfig.model_validate_json(canonical(found)).crop_px == size  # as its job is told


def test_statistics_that_another_experiment_trained_may_be_frozen() -> None:
    frozen = {"modality": "flow", "model": {"partial_bn": True}, "initial": "a"}
    found = config({"a": {"modality": "flow"}, "b": frozen})
    assert found.experiments["b"].model.partial_bn


@pytest.mark.parametrize(
    ("experiment", "sentence"),
    [
        (
            {"modality": "flow", "model": {"family": "tsn"}},
            "model.family is 'tsn': input should be one of 'atw', 'sta_cnn'",
        ),
        ({"modality": "flow", "model": {"spatial": "none"}}, "unknown key 'experiments.a.model.spatial'"),
        (
            {**TWO_FRAMES, "model": {**SAN, "san": {"epoch": 1}}},
            "unknown key 'experiments.a.model.san.epoch'; the nearest known key is 'epochs'",
        ),
        ({**TWO_FRAMES, "model": {**SAN, "san": {"width": 2}}}, "experiments.a.model.san.width is 2: input should be"),
        (
            {"modality": "frames", "model": SAN},
            "snippet 1 does not suit model.spatial: san, which sees two frames; use 2",
        ),
        (
            {"modality": "flow", "sampling": {"snippet": 2}, "model": SAN},
            "model.spatial: san looks at frames; for flow use spatial: shared",
        ),
        (
            {**TWO_FRAMES, "model": {**SAN, "san": {"targets": "flying_chairs"}}},
            "targets: flying_chairs needs the folder flying_chairs",
        ),
        (
            {**TWO_FRAMES, "model": {**SAN, "san": {"flying_chairs": "x"}}},
            "targets: flow does not read the folder flying_chairs",
        ),
        ({**TWO_FRAMES, "model": {**SAN, "san": {"crop": 16}}}, "crop 16 is too small for a CNN"),
        (
            {**TWO_FRAMES, "model": {**SAN, "san": {"crop": "big"}}},
            "experiments.a.model.san.crop is 'big': input should be a valid tuple, or input should be a valid integer",
        ),
        (
            {**TWO_FRAMES, "model": {**SAN, "san": {"crop": [64, 0]}}},
            "experiments.a.model.san.crop.1 is 0: input should be greater than or equal to 1",
        ),
        (
            {"modality": "flow", "model": {"family": "sta_cnn", "groups": 3}},
            "sampling.segments 4 are no multiple of model.groups 3",
        ),
        (
            {"modality": "flow", "model": {"family": "sta_cnn", "groups": 2, "top": 3}},
            "model.top 3 is more than the 2 segments of a group, of sampling.segments 4; lower it",
        ),
        (
            {
                "modality": "flow",
                "model": {"family": "sta_cnn", "groups": 3, "top": 2},
                "sampling": {"segments": 9, "test_segments": 3},
                "prediction": {"kind": "model"},
            },
            "model.top 2 is more than the 1 segments of a group, of sampling.test_segments 3; lower it",
        ),
        (
            {"modality": "flow", "sampling": {"test_segments": 12}, "model": {"family": "sta_cnn"}},
            "prediction.top 15 is more than sampling.test_segments 12; lower it, or set it to null for all",
        ),
        (
            {"modality": "flow", "model": {"family": "sta_cnn", "groups": 2}, "prediction": {"kind": "model"}},
            "sampling.test_segments 25 are no multiple of model.groups 2",
        ),
        (
            {
                "modality": "flow",
                "sampling": {"segments": 9, "test_segments": 3},
                "model": {"family": "sta_cnn", "groups": 3, "top": 2},
                "prediction": {"kind": "model"},
            },
            "model.top 2 is more than the 1 segments of a group, of sampling.test_segments 3; lower it",
        ),
        ({"modality": "flow", "paper": 101}, "experiments.a.paper is 101"),
        ({"modality": "flow", "optim": {"shuffle": "shards"}}, "optim.shuffle shards is for frames"),
        ({"modality": "flow", "sampling": {"reduced_decode": True}}, "sampling.reduced_decode is for frames alone"),
    ],
)
def test_a_wrong_experiment_is_one_clear_sentence(experiment: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        config({"a": experiment})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


FLOW = {"modality": "flow", "sampling": {"snippet": 5}}


def test_a_san_may_begin_with_a_model_that_saw_one_frame() -> None:
    found = config({"tsn": {"modality": "frames"}, "sta": {**TWO_FRAMES, "model": SAN, "initial": "tsn"}})
    assert found.experiments["sta"].initial == "tsn"


@pytest.mark.parametrize(
    ("experiments", "sentence"),
    [
        ({"a": {**FLOW, "initial": "c"}, "b": FLOW}, "a begins with 'c', which is no experiment; there is b"),
        ({"a": {**FLOW, "initial": "a"}}, "experiments wait for each other: a begins with a; cut the circle"),
        (
            {"a": {**FLOW, "initial": "b"}, "b": {**FLOW, "initial": "c"}, "c": {**FLOW, "initial": "b"}},
            "experiments wait for each other: a begins with b begins with c begins with b; cut the circle",
        ),
        (
            {"a": {**FLOW, "initial": "b"}, "b": {"modality": "warped_flow", "sampling": {"snippet": 5}}},
            "a begins with b, whose modality is warped_flow and not flow; begin with an experiment on the same input",
        ),
        (
            {"a": {**FLOW, "initial": "b"}, "b": {**FLOW, "model": {"backbone": "resnet18"}}},
            "whose backbone is resnet18 and not tiny",
        ),
        (
            {"a": {**FLOW, "initial": "b"}, "b": {"modality": "flow"}},
            "whose number of channels is 2 and not 10",
        ),
        (
            {"a": {**TWO_FRAMES, "initial": "b"}, "b": {**TWO_FRAMES, "model": SAN}},
            "whose number of channels is 3 and not 6",
        ),
    ],
)
def test_a_model_that_cannot_be_begun_with(experiments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        config(experiments)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("stores", "sentence"),
    [
        ({"flow": {"size": [96, 96]}}, "frames.size is [340, 256] and flow.size [96, 96]; make them equal"),
        ({"frames": {"size": [340, 256], "fps": 10}}, "frames.fps is 10.0 and flow.fps None"),
        ({"flow": {"size": [340, 256], "step": 2}}, "flow.step is 2 and flow.reverse False"),
        ({"flow": {"size": [340, 256], "reverse": True}}, "flow.step is 1 and flow.reverse True"),
        (
            {"frames": {"short_side": 256, "max_seconds": 9}, "flow": {"imported": {"tool": "denseflow"}, "bound": 20}},
            "frames.max_seconds is 9.0 and flow.max_seconds None",
        ),
    ],
)
def test_a_san_learns_the_flow_of_the_frames_that_it_sees(stores: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        config({"a": {**TWO_FRAMES, "model": SAN}}, **stores)
    assert sentence in str(error.value)
    config({"a": {**TWO_FRAMES, "model": {**SAN, "san": {"targets": "none"}}}}, **stores)
    config({"a": {**TWO_FRAMES, "model": {**SAN, "spatial": "shared"}}}, **stores)


def test_imported_flow_is_checked_by_the_sizes_that_it_has() -> None:
    stores = {"frames": {"short_side": 256}, "flow": {"imported": {"tool": "denseflow"}, "bound": 20}}
    config({"a": {**TWO_FRAMES, "model": SAN}}, **stores)


def test_the_devices_share_the_pairs() -> None:
    model = {**SAN, "san": {"batch_size": 5}}
    with pytest.raises(ValueError, match="batch_size 5 of a cannot be shared by 2 devices"):
        config({"a": {**TWO_FRAMES, "model": model}}, compute={"devices": 2})
