"""What training and prediction share."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest
import torch

from models.build import build
from models.sta_cnn import STACNN
from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.learning.job import add_arguments, model_keywords


@pytest.mark.parametrize(("modality", "snippet", "channels"), [("frames", 1, 3), ("frames", 2, 6), ("flow", 5, 10)])
def test_the_model_takes_the_channels_that_the_loader_gives(modality: str, snippet: int, channels: int) -> None:
    experiment = ExperimentConfig.model_validate({"modality": modality, "sampling": {"snippet": snippet}})
    keywords = model_keywords(experiment, num_classes=4)
    assert keywords["in_channels"] == channels
    build(**keywords)


def test_a_san_is_told_by_flat_keywords_that_build_knows() -> None:
    model = {"family": "sta_cnn", "spatial": "san", "san": {"width": 0.05, "last_pool_stride": 2, "encoder": "x"}}
    sampling = {"snippet": 2, "input_size": 64}
    experiment = ExperimentConfig.model_validate({"modality": "frames", "model": model, "sampling": sampling})
    keywords = model_keywords(experiment, num_classes=4)
    assert (keywords["in_channels"], keywords["input_size"]) == (6, 64)
    built = build(**keywords)
    assert isinstance(built, STACNN)
    assert built.san is not None
    assert (built.san.out_channels, built.san.last_pool_stride, built.classified_channels) == (51, 2, 3)
    shared = experiment.model_copy(update={"model": experiment.model.model_copy(update={"spatial": "shared"})})
    assert isinstance(build(**model_keywords(shared, num_classes=4)), STACNN)
    assert not [name for name in model_keywords(shared, num_classes=4) if name.startswith("san")]


CLIPS = {"snippet": 16, "input_size": 64}


@pytest.mark.parametrize(
    ("modality", "model"),
    [
        ("frames", {"family": "jsta"}),
        ("flow", {"family": "jsta", "backbone": "c3d", "sa_position": "none", "dropout": 0.5}),
        ("frames", {"family": "jsta", "backbone": "resnet3d18", "sa_position": "none", "shortcut": "A"}),
        ("frames", {"family": "sta_net", "width": 32}),
        ("flow", {"family": "sta_net", "backbone": "p3d199", "variant": "none", "stages": ["layer3"]}),
        ("frames", {"family": "sta_net", "backbone": "res3d18", "stages": ["res4", "res5"], "blocks": "last"}),
        ("warped_flow", {"family": "sta_net", "backbone": "resnet3d50", "release": "2020", "identity_init": True}),
    ],
)
def test_networks_of_clips_are_told_by_flat_keywords_that_build_knows(modality: str, model: dict[str, Any]) -> None:
    experiment = ExperimentConfig.model_validate({"modality": modality, "model": model, "sampling": CLIPS})
    keywords = model_keywords(experiment, num_classes=4)
    assert json.loads(json.dumps(keywords)) == keywords
    assert (keywords["snippet"], keywords["in_channels"]) == (16, 16 * (3 if modality == "frames" else 2))
    assert not {"segments", "san_width"} & keywords.keys()
    with torch.device("meta"):
        built = build(**keywords)
        out = built(torch.zeros(2, 3, keywords["in_channels"], 64, 64))
    assert out.segment_logits.shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        ({"family": "jsta_temporal", "clip_pool": "concat", "clips": 3}, (12,)),
        ({"family": "jsta_temporal", "temporal": "none", "classifier": "moe"}, (12,)),
        ({"family": "where_when", "hidden": 8}, (12, 3, 3)),
        ({"family": "where_when", "hidden": 8, "spatial": False, "temporal": "none"}, (12, 3, 3)),
    ],
)
def test_heads_are_told_what_they_read_and_nothing_of_pixels(model: dict[str, Any], shape: tuple[int, ...]) -> None:
    experiment = ExperimentConfig.model_validate({"modality": "flow", "model": model, "features": "other"})
    keywords = model_keywords(experiment, num_classes=4, feature_shape=shape)
    assert json.loads(json.dumps(keywords)) == keywords
    assert not {"modality", "in_channels", "input_size", "segments", "snippet", "pretrained"} & keywords.keys()
    assert build(**keywords)(torch.rand(2, 5, *shape)).logits.shape == (2, 4)


def test_arguments_are_sections_of_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["--manifest", "m", "--index", "i", "--split", "s"]
    found = parser.parse_args([*words, "--experiment", '{"modality": "flow"}', "--compute", '{"workers": 3}'])
    assert found.experiment == ExperimentConfig(modality="flow")
    assert found.compute == ComputeConfig(workers=3)
    with pytest.raises(SystemExit):
        parser.parse_args([*words, "--experiment", '{"modality": "flow", "optim": {"ephocs": 3}}', "--compute", "{}"])
    assert "optim.ephocs" in capsys.readouterr().err
