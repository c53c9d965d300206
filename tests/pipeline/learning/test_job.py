"""What training and prediction share."""

from __future__ import annotations

import argparse

import pytest
import torch

from models.build import build
from models.sta_cnn import STACNN
from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.learning.job import add_arguments, model_keywords, step_factor


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


def test_the_rate_falls_at_each_milestone_as_torch_has_it() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3, 7], gamma=0.5)
    for epoch in range(9):
        assert step_factor(epoch, milestones=(2, 3, 7), gamma=0.5) == schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()


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
