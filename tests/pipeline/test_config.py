"""Configuration: what is accepted, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import Config, FlowConfig, canonical, load, main

MINIMAL: dict[str, Any] = {"name": "x", "dataset": "class_folders", "videos": "somewhere"}


def test_every_shipped_configuration_loads(root: Path) -> None:
    files = sorted((root / "config").glob("*.yaml"))
    assert {"demo.yaml", "ut_interaction.yaml"} <= {file.name for file in files}
    for file in files:
        assert load(file).experiments


def test_printed_configuration_is_the_same_configuration(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(root / "config/demo.yaml")])
    printed = capsys.readouterr().out
    assert load(yaml.safe_load(printed)) == load(root / "config/demo.yaml")
    undocumented = [line for line in printed.splitlines() if "#" not in line and not line.rstrip().endswith(":")]
    assert undocumented == []


def test_equal_settings_have_equal_canonical_text() -> None:
    one = FlowConfig.model_validate({"size": [340, 256], "lambda": 0.15, "bound": 20})
    other = FlowConfig.model_validate({"bound": 20.0, "lambda": 0.150, "size": (340, 256)})
    assert canonical(one) == canonical(other)
    assert canonical(one) != canonical(one.model_copy(update={"bound": 15.0}))


def test_canonical_text_reads_back() -> None:
    config = FlowConfig(short_side=112, fps=25)
    assert FlowConfig.model_validate_json(canonical(config)) == config


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shard": 8}, "unknown key 'shard'; the nearest known key is 'shards'"),
        ({"flow": {"size": [9, 9], "bond": 1}}, "unknown key 'flow.bond'; the nearest known key is 'bound'"),
        ({"flow": {"size": [9, 9], "lamda": 1}}, "the nearest known key is 'lambda'"),
        (
            {"experiments": {"rgb": {"modality": "frames", "model": {"backbon": "tiny"}}}},
            "unknown key 'experiments.rgb.model.backbon'; the nearest known key is 'backbone'",
        ),
        ({"shards": 0}, "shards is 0: input should be greater than or equal to 1"),
        ({"dataset": "imagenet"}, "dataset is 'imagenet': input should be 'demo', 'class_folders'"),
        ({"frames": {"size": [340, 256], "short_side": 256}}, "give either size or short_side"),
        ({"videos": None}, "needs the key 'videos'"),
        ({"dataset": "csv"}, "needs the key 'csv'"),
        ({"experiments": {"a/b": {"modality": "flow"}}}, "experiments"),
        ({"experiments": {"rgb": {}}}, "the key 'experiments.rgb.modality' is missing"),
        ({"name": "../up"}, "name is '../up'"),
        ({"max_quarantined": 1.5}, "max_quarantined is 1.5"),
    ],
)
def test_a_wrong_key_or_value_is_one_clear_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        load({**MINIMAL, **change})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_name() -> None:
    with pytest.raises(ValueError, match="the key 'name' is missing"):
        load({"dataset": "demo"})


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no configuration file"):
        load(tmp_path / "absent.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(ValueError, match="is not YAML"):
        load(broken)
    broken.write_text("just a line")
    with pytest.raises(ValueError, match="mapping of keys to values"):
        load(broken)


def test_main_says_the_sentence_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: x\ndataset: demo\nseed: 1\n")
    with pytest.raises(SystemExit) as exit_:
        main([str(file)])
    assert exit_.value.code == 2
    assert "unknown key 'seed'; the nearest known key is 'seeds'" in capsys.readouterr().err


def test_configuration_cannot_be_changed_by_accident() -> None:
    config: Config = load(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.shards = 3  # type: ignore[misc]
