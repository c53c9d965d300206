"""Every configuration that comes with the program loads, and says what the papers say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from pipeline.config import Config, load
from pipeline.dataset.descriptor import describe
from pipeline.dataset.sources import Dataset

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "config").glob("*.yaml"))
STEPS = {"ucf101": 9537, "hmdb51": 3570}
"""Training videos of the first split of the datasets that the paper of ATW trains on."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_loads_and_loads_again_when_printed(path: Path) -> None:
    config = load(path)
    assert load(config.model_dump(mode="json")) == config
    for name, experiment in config.experiments.items():
        optim = experiment.optim
        assert all(milestone < optim.epochs for milestone in optim.milestones), name
        assert list(optim.milestones) == sorted(optim.milestones), name
        clips = experiment.model.family in ("jsta", "jsta_temporal", "sta_net")
        one_frame = experiment.modality == "frames" and experiment.san is None and not clips
        assert (experiment.sampling.snippet == 1) == one_frame, name


def test_the_command_prints_it_in_full() -> None:
    command = [sys.executable, "-m", "pipeline.config", "config/ucf101.yaml"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert Config.model_validate(yaml.safe_load(printed)) == load(ROOT / "config" / "ucf101.yaml")


def test_every_dataset_has_a_configuration_of_its_name() -> None:
    configured = {path.stem: load(path).dataset for path in FILES if not path.stem.startswith("demo")}
    assert configured == {name: name for name in get_args(Dataset) if name != "demo"}


@pytest.mark.parametrize("name", STEPS)
def test_the_schedule_is_that_of_the_paper_in_epochs(name: str) -> None:
    """RGB 0.1 x every 2,000 iterations, flow at 12,000 and 18,000, of 128 videos; totals 4,500 and 20,000."""
    steps = -(-STEPS[name] // 128)
    described = describe(name)
    assert described is not None
    assert described.splits["split1"]["train"] == STEPS[name]
    config = load(ROOT / "config" / f"{name}.yaml")
    assert config.splits == tuple(described.splits)
    for stream, marks, total in (
        ("rgb", (2000, 4000), 4500),
        ("flow", (12000, 18000), 20000),
        ("warped_flow", (12000, 18000), 20000),
    ):
        optim = config.experiments[stream].optim
        assert optim.batch_size == 128
        assert optim.epochs == pytest.approx(total / steps, abs=0.5)
        assert optim.milestones == pytest.approx([mark / steps for mark in marks], abs=0.5)
    assert {name: stream.weight for name, stream in config.experiments.items()} == {
        "rgb": 1.0,
        "flow": 1.0,
        "warped_flow": 0.5,
    }
    assert config.fuse_on == "logits"
    assert config.warped_flow.variant == config.flow.variant == "opencv24-cuda"


def test_the_readme_types_every_configuration_and_its_folders() -> None:
    text = (ROOT / "data_manifests" / "README.md").read_text()
    for name in sorted(set(get_args(Dataset)) - {"demo", "class_folders", "csv"}):
        config = load(ROOT / "config" / f"{name}.yaml")
        cores = "all" if name == "ut_interaction" else "32"
        assert f"snakemake --configfile config/{name}.yaml --cores {cores} train_all\n" in text
        for folder in (config.videos, config.annotations, config.trimmed):
            assert folder is None or any(str(place) in text for place in (folder, folder.parent)), folder
        for experiment in config.experiments.values():
            assert experiment.pretrained is None or experiment.pretrained.name in text
    named = re.findall(r"config/(\w+)\.yaml", text)
    assert set(named) <= {path.stem for path in FILES}
