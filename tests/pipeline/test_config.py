"""Configuration: what is accepted, what is refused and in which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from pipeline.config import Config, FlowConfig, canonical, load, main
from pipeline.dataset.plan import stage_recipes
from pipeline.dataset.sources import KEYS, Dataset
from pipeline.optical_flow.params import TVL1Params

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


def test_a_variant_brings_its_own_iterations() -> None:
    """Defaults that the variant decides stand in the text, so that naming them makes no other address."""
    cuda = FlowConfig.model_validate({"size": [340, 256], "variant": "opencv24-cuda"})
    assert (cuda.inner_iterations, cuda.outer_iterations, cuda.scale_step, cuda.median_filtering) == (300, 1, 0.5, 1)
    named = {"inner_iterations": 300, "outer_iterations": 1, "scale_step": 0.5, "median_filtering": 1}
    other = FlowConfig.model_validate({"size": [340, 256], "variant": "opencv24-cuda", **named})
    assert canonical(cuda) == canonical(other)
    assert cuda.tvl1 == TVL1Params(variant="opencv24-cuda")


def test_warped_flow_may_have_another_variant_than_flow() -> None:
    sections = {"flow": {"size": [40, 30], "warps": 2}, "warped_flow": {"variant": "opencv-cuda"}}
    config = load({"name": "x", "dataset": "demo", **sections})
    assert config.warped_flow.tvl1 == TVL1Params(variant="opencv-cuda", warps=2)
    assert config.flow.tvl1 == TVL1Params(warps=2)


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
        ({"shards": 100_001}, "shards is 100001"),
        ({"seeds": [0, 1, 0]}, "seeds names a value twice: [0, 1, 0]"),
        ({"splits": ["split1", "split1"]}, "splits names a value twice"),
        ({"experiments": {"fused": {"modality": "flow"}}}, "an experiment cannot be called 'fused'"),
        ({"flow": {"size": [9, 9], "median_filtering": 3}}, "gamma and median_filtering 3 need backend: opencv"),
        ({"flow": {"size": [9, 9], "gamma": 0.5}}, "gamma and median_filtering 3 need backend: opencv"),
        ({"flow": {"size": [9, 9], "variant": "opencv"}}, "flow.variant is 'opencv': input should be 'opencv-cpu'"),
        ({"flow": {"size": [9, 9], "variant": "opencv-cuda", "backend": "opencv"}}, "has no variant opencv-cuda"),
        ({"flow": {"size": [9, 9], "variant": "opencv24-cuda", "scale_step": 0.8}}, "it must be 0.5 for variant"),
        ({"flow": {"size": [2, 9]}}, "flow needs frames of at least 3 x 3 pixels"),
        ({"dataset": "demo"}, "dataset demo renders its own videos"),
        ({"dataset": "ucf101"}, "dataset: ucf101 needs the key 'annotations'; set it in the file or by --config anno"),
        ({"dataset": "kinetics"}, "dataset is 'kinetics': input should be 'demo', 'class_folders'"),
        (
            {"annotations": "lists"},
            "dataset: class_folders does not read the key 'annotations', which is for ucf101, hm",
        ),
        ({"allow_missing": True}, "dataset: class_folders does not read the key 'allow_missing'"),
        (
            {"dataset": "ut_interaction", "test_fraction": 0.5},
            "'test_fraction', which is for class_folders, csv; remove",
        ),
        ({"dataset": "hmdb51", "annotations": "x", "trimmed": "y"}, "'trimmed', which is for thumos14; remove it"),
        ({"image_fps": 0}, "image_fps is 0: input should be greater than 0"),
        (
            {"experiments": {"rgb": {"modality": "frames", "model": {"partial_bn": True}}}},
            "partial_bn would freeze untrained statistics",
        ),
        ({"experiments": {"all": {"modality": "frames"}}}, "an experiment cannot be called 'all'"),
        (
            {
                "experiments": {
                    "a": {"modality": "flow", "model": {"backbone": "bn_inception"}, "sampling": {"input_size": 80}}
                }
            },
            "use a multiple of 32",
        ),
        (
            {"compute": {"devices": 3}, "experiments": {"a": {"modality": "flow", "optim": {"batch_size": 32}}}},
            "batch_size 32 of a cannot be shared by 3 devices",
        ),
        ({"experiments": {"a": {"modality": "flow", "optim": {"lr": float("inf")}}}}, "experiments.a.optim.lr is inf"),
        ({"experiments": {"a": {"modality": "flow", "sampling": {"crop_scales": []}}}}, "crop_scales is []"),
    ],
)
def test_a_wrong_key_or_value_is_one_clear_sentence(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        load({**MINIMAL, **change})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dataset", get_args(Dataset))
def test_every_dataset_can_be_configured(dataset: str) -> None:
    """With the keys that it needs alone, and then written out in full, as the report reads it."""
    needed = dict.fromkeys(KEYS[dataset].needed, "somewhere")
    config = load({"name": "x", "dataset": dataset, **needed})
    assert load(json.loads(canonical(config))) == config


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


def test_warped_flow_is_like_flow_but_for_what_is_set() -> None:
    flow = {"short_side": 112, "bound": 15, "lambda": 0.1, "warps": 2, "step": 2}
    config = load({**MINIMAL, "flow": flow, "warped_flow": {"warps": 3}})
    assert config.warped_flow.model_dump(include=set(FlowConfig.model_fields)) == {
        **config.flow.model_dump(),
        "warps": 3,
    }
    sized = load({**MINIMAL, "flow": flow, "warped_flow": {"size": [64, 48]}}).warped_flow
    assert (sized.size, sized.short_side, sized.bound) == ((64, 48), None, 15)
    assert load(MINIMAL).warped_flow.size == load(MINIMAL).flow.size
    assert load(json.loads(canonical(config))) == config  # as the report reads it


def test_a_wrong_flow_setting_is_told_once() -> None:
    with pytest.raises(ValueError) as error:
        load({**MINIMAL, "flow": {"size": [9, 9], "bond": 1}})
    assert str(error.value).count("bond") == 1
    assert "warped_flow" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mod": "correct"}, "unknown key 'warped_flow.mod'; the nearest known key is 'mode'"),
        ({"mode": "denseflow"}, "warped_flow.mode is 'denseflow'"),
        ({"defects": ["corners_of_next_frame"]}, "warped_flow: defects belong to mode: dense_flow"),
        ({"size": [9, 9], "short_side": 9}, "warped_flow: give either size or short_side"),
    ],
)
def test_wrong_settings_of_warped_flow(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        load({**MINIMAL, "warped_flow": settings})
    assert sentence in str(error.value)


def test_warped_flow_is_kept_only_if_a_stream_reads_it() -> None:
    stream = {"modality": "warped_flow"}
    assert load(MINIMAL).stores == ("frames", "flow")
    assert load({**MINIMAL, "experiments": {"a": stream}}).stores == ("frames", "flow", "warped_flow")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mode": "read-write"}, "store: mode: read-write has nothing to write to; set shared"),
        ({"shared": "https://host/x", "mode": "read-write"}, "store: https://host/x can only be read; set mode: read"),
        ({"access": "inplace"}, "store.access is 'inplace'"),
        ({"share": "x"}, "unknown key 'store.share'; the nearest known key is 'shared'"),
    ],
)
def test_wrong_settings_of_the_store(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        load({**MINIMAL, "store": settings})
    assert str(caught.value).startswith(sentence)


def test_where_the_stores_lie() -> None:
    alone = load(MINIMAL)
    assert alone.store_folder("flow", "r") == alone.store_folder("warped_flow", "s") == Path("work/x/stores/flow")
    assert alone.store_folder("frames", "r") == Path("work/x/stores/frames-r")
    common = load({**MINIMAL, "store": {"local": "big/disk"}})
    assert common.store_folder("flow", "r") == Path("big/disk/flow")
    assert common.store_folder("frames", "r") == Path("big/disk/x/frames-r")  # buckets are one dataset's
    assert stage_recipes(common) == stage_recipes(alone)
