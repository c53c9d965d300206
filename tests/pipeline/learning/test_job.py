"""What training and prediction share."""

from __future__ import annotations

import argparse

import pytest

from models.build import build
from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.learning.job import add_arguments, model_keywords


@pytest.mark.parametrize(("modality", "snippet", "channels"), [("frames", 1, 3), ("frames", 2, 6), ("flow", 5, 10)])
def test_the_model_takes_the_channels_that_the_loader_gives(modality: str, snippet: int, channels: int) -> None:
    experiment = ExperimentConfig.model_validate({"modality": modality, "sampling": {"snippet": snippet}})
    keywords = model_keywords(experiment, num_classes=4)
    assert keywords["in_channels"] == channels
    build(**keywords)


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
