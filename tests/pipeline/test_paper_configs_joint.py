"""The protocols of JSTA, STA networks and Where-and-When: the numbers of their tables and the recipes beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import (
    Config,
    ExperimentConfig,
    JSTAConfig,
    JSTATemporalConfig,
    STANetConfig,
    WhereWhenConfig,
    load,
)
from pipeline.dataset.descriptor import describe
from pipeline.dataset.plan import training_part

FOLDER = Path(__file__).resolve().parents[2] / "config" / "papers"
DATASETS = {
    "jsta": ("hmdb51", "ucf101", "penn_action"),
    "sta_net": ("hmdb51", "ucf101"),
    "where_when": ("hmdb51", "ucf101", "ucf101_24", "thumos14", "moments_in_time"),
}
CONFIGS = {(paper, name): load(FOLDER / f"{paper}_{name}.yaml") for paper, names in DATASETS.items() for name in names}


def papers(config: Config) -> dict[str, float]:
    rows = {**config.experiments, **config.fusions}
    return {name: row.paper for name, row in rows.items() if row.paper is not None}


def of(paper: str) -> dict[str, Config]:
    return {dataset: CONFIGS[paper, dataset] for dataset in DATASETS[paper]}


MERGES = ("avg", "max", "concat")


@pytest.mark.parametrize(
    ("dataset", "table_1", "fc", "moe", "lstm", "frame"),
    [
        ("hmdb51", (46.9, 55.4), (55.2, 59.8), (55.6, 57.2), (48.3, 50.1), 65.3),
        ("ucf101", (82.6, 85.2), (85.6, 88.6), (85.6, 86.6), (77.6, 79.4), 93.7),
        ("penn_action", None, (93.1, 94.7), (92.4, 94.2), (87.5, 93.9), None),
    ],
)
def test_the_numbers_of_jsta(
    dataset: str,
    table_1: tuple[float, float] | None,
    fc: tuple[float, float],
    moe: tuple[float, float],
    lstm: tuple[float, float],
    frame: float | None,
) -> None:
    expected = dict(zip(("resnet3d", "resnet3d_sa"), table_1, strict=True)) if table_1 else {}
    for number, kind in enumerate(("plain", "ta")):
        expected |= {f"{kind}_fc_{merge}": fc[number] for merge in MERGES}
        expected |= {f"{kind}_moe_{merge}": moe[number] for merge in MERGES}
        expected[f"{kind}_lstm"] = lstm[number]
    if frame:
        expected |= {f"jsta_frame_{merge}": frame for merge in MERGES}
    assert papers(CONFIGS["jsta", dataset]) == expected


@pytest.mark.parametrize("dataset", DATASETS["jsta"])
def test_the_rows_of_jsta_are_what_their_names_say(dataset: str) -> None:
    config = CONFIGS["jsta", dataset]
    assert config.frames.size == (171, 128)
    described = describe(dataset)
    assert described is not None
    steps = -(-described.splits["split1"]["train"] // 7)
    for name, experiment in config.experiments.items():
        model, sampling, optim = experiment.model, experiment.sampling, experiment.optim
        if name == "frame":
            assert (sampling.segments, sampling.test_segments, experiment.predicts) == (1, 1, "model")
            continue
        stride = 2 if isinstance(model, JSTAConfig) else 1  # the T-step reads all floor(n / 8) clips
        assert (sampling.snippet, sampling.stride, sampling.test_segments, sampling.input_size) == (
            8,
            stride,
            None,
            112,
        )
        assert sampling.test_scale * 128 == 112
        if isinstance(model, JSTAConfig):
            assert (model.backbone, model.sa_position) == ("res3d18", "after_3b" if name == "resnet3d_sa" else "none")
            assert (sampling.segments, sampling.spread, sampling.flip) == (3, False, True)
            assert (sampling.crop_places, [scale * 128 for scale in sampling.crop_scales]) == ("random", [112])
            assert (optim.optimizer, optim.lr, optim.batch_size, optim.gamma) == ("sgd", 0.001, 7, 0.5)
            assert optim.epochs == pytest.approx(40_000 / steps, abs=0.5)
            assert optim.milestones == pytest.approx([part * 10_000 / steps for part in (1, 2, 3)], abs=0.5)
        else:
            assert isinstance(model, JSTATemporalConfig)
            attention, classifier, *merge = name.split("_")
            assert model.temporal == {"plain": "none", "ta": "paper"}[attention]
            assert (model.classifier, model.clip_pool) == (classifier, merge[0] if merge else "avg")
            assert (experiment.features, model.hidden) == ("resnet3d_sa", 512)
            assert (optim.optimizer, optim.lr, optim.epochs, optim.batch_size) == ("rmsprop", 0.001, 10, 4)
    for merge in MERGES if config.fusions else ():
        assert config.fusions[f"jsta_frame_{merge}"].experiments == {f"ta_fc_{merge}": 1, "frame": 1}


TABLE_2 = {
    "ucf101": ((94.0, 95.0, 97.8, 98.1), (94.8, 96.1, 98.5, 98.6), (94.8, 95.4, 98.4, 98.5)),
    "hmdb51": ((71.2, 75.0, 81.5, 82.4), (68.9, 73.3, 80.1, 81.2), (70.5, 74.1, 77.5, 80.5)),
}
"""Of each split: plain, STA, MARS + RGB + flow, and that with STA."""
ROWS = {
    "ucf101": {
        **{"resnext_16f": 90.7, "resnext_64f": 94.5, "sta_resnext_64f": 95.5, "mars": 97.7, "sta_mars": 97.7},
        **{"mars_flow": 98.0, "sta_mars_flow": 98.1, "mars_rgb_flow": 98.2, "sta_mars_rgb_flow": 98.4},
        **{"c3d": 77.4, "sta_c3d": 78.2, "p3d": 89.2, "sta_p3d": 89.8},
        **{"table_7_none": 94.0, "table_7_se": 94.2, "table_7_sa": 94.3, "table_7_ta": 95.0, "table_7_sta": 95.0},
        **{"early_layers": 94.5, "late_layers": 95.0, "no_deconv": 94.5, "deconv_stride_1": 95.0},
        **{"window_16": 90.1, "window_16_sta": 90.7, "window_64_sta": 95.0},
    },
    "hmdb51": {
        **{"resnext_16f": 63.8, "resnext_64f": 70.2, "sta_resnext_64f": 74.1, "mars": 79.1, "sta_mars": 80.2},
        **{"mars_flow": 79.5, "sta_mars_flow": 81.0, "mars_rgb_flow": 79.7, "sta_mars_rgb_flow": 81.4},
        **{"c3d": 46.7, "sta_c3d": 48.1, "p3d": 62.9, "sta_p3d": 64.3},
        **{"table_7_none": 71.2, "table_7_se": 74.0, "table_7_sa": 74.2, "table_7_ta": 73.9, "table_7_sta": 75.0},
        **{"early_layers": 73.0, "late_layers": 75.0, "no_deconv": 74.4, "deconv_stride_1": 75.0},
        **{"window_16": 64.1, "window_16_sta": 64.6, "window_64_sta": 75.0},
    },
}
ALL_SPLITS = {"resnext_16f", "resnext_64f", "sta_resnext_64f", "flow", "sta_flow", "mars", "sta_mars"}


@pytest.mark.parametrize("dataset", DATASETS["sta_net"])
def test_the_numbers_of_sta_networks(dataset: str) -> None:
    expected = dict(ROWS[dataset])
    for split, numbers in enumerate(TABLE_2[dataset], 1):
        rows = ("resnext", "sta_resnext", "mars_rgb_flow", "sta_mars_rgb_flow")
        expected |= {f"split{split}_{row}": number for row, number in zip(rows, numbers, strict=True)}
    config = CONFIGS["sta_net", dataset]
    assert papers(config) == expected
    for name, experiment in config.experiments.items():
        split = name.partition("_")[0] if name.startswith("split") else "split1"
        assert experiment.splits == (None if name in ALL_SPLITS else (split,)), name
    for name, fusion in config.fusions.items():
        assert set(fusion.experiments.values()) == {1}
        split, sta = name.startswith("split"), "sta_" in name
        found = {one.split("_", 1)[1] if split else one for one in fusion.experiments}
        rgb = "resnext" if split else "resnext_64f"
        streams = {"mars", "flow"} | ({rgb} if "rgb" in name else set())
        assert found == {f"sta_{one}" if sta else one for one in streams}, name
    assert config.fuse_on == "logits"


@pytest.mark.parametrize("dataset", DATASETS["sta_net"])
def test_the_rows_of_sta_networks_are_what_their_names_say(dataset: str) -> None:
    config = CONFIGS["sta_net", dataset]
    assert (config.frames.short_side, config.frames.fps, config.flow.variant) == (256, 25, "opencv-cuda")
    backbones = {"c3d": "c3d", "p3d": "p3d199", "resnet152": "resnet3d152"}
    plain = {"resnext_16f", "resnext_64f", "flow", "mars", "table_7_none", "window_16", *backbones}
    plain |= {f"split{k}_{row}" for k in (1, 2, 3) for row in ("resnext", "flow", "mars")}
    other = {"table_7_se": "se", "table_7_sa": "sa", "table_7_ta": "ta", "no_deconv": "no_deconv"}
    for name, experiment in config.experiments.items():
        model, sampling = experiment.model, experiment.sampling
        assert isinstance(model, STANetConfig)
        base = name.removeprefix("sta_")
        assert model.backbone == backbones.get(base, "resnext3d101")
        assert model.variant == ("none" if name in plain else other.get(name, "sta")), name
        stages = {"early_layers": "layer1", "sta_c3d": "conv5", "sta_p3d": "layer3"}
        assert model.stages == (stages.get(name, "layer4"),)
        assert model.deconv_stride == (int(name[-1]) if name.startswith("deconv") else 1)
        short = base in backbones or name in ("resnext_16f", "window_16", "window_16_sta")
        assert (sampling.snippet, sampling.input_size) == (16 if short else 64, 160 if base == "p3d" else 112)
        _check_mars(name, experiment)


def _check_mars(name: str, experiment: ExperimentConfig) -> None:
    """The recipe of MARS's code, and which experiments imitate which flow network."""
    optim, sampling = experiment.optim, experiment.sampling
    imitates = name.endswith("mars")
    assert (optim.optimizer, optim.lr, optim.momentum, optim.dampening) == ("sgd", 0.001, 0.9, 0.9)
    assert (optim.weight_decay, optim.schedule, optim.patience, optim.gamma) == (1e-5, "plateau", 10, 0.1)
    assert (optim.epochs, optim.batch_size) == (400, 16 if imitates else 32)
    whole = name.removeprefix("sta_") in ("c3d", "p3d")
    early = ("layer4", "fc", "before_add")
    assert optim.train_only == (None if whole else early if name == "early_layers" else ("layer4", "fc"))
    assert sampling.crop_scales == pytest.approx([2 ** (-k / 4) for k in range(5)], abs=1e-4)
    assert (sampling.crop_places, sampling.short) == ("corners", "loop")
    assert (sampling.test_segments, sampling.test_crops, sampling.test_scale) == (None, 1, 1.0)
    assert (experiment.mars is not None) == imitates
    if experiment.mars:
        assert (experiment.mars.teacher, experiment.mars.alpha) == ("sta_flow" if "sta_" in name else "flow", 50)
    assert (experiment.modality == "flow") == name.endswith("flow")


ABLATIONS = {
    "no_spatial": {"spatial": False},
    "no_temporal": {"temporal": "none"},
    "no_tv": {"lambda_tv": 0},
    "no_contrast": {"lambda_contrast": 0},
    "no_unimodal": {"lambda_unimodal": 0},
}


def test_the_numbers_of_where_and_when() -> None:
    rows = ("resnet101", "where_when", *ABLATIONS)
    hmdb51 = dict(zip(rows, (50.04, 53.07, 51.98, 52.25, 52.01, 52.10, 52.05), strict=True))
    hmdb51 |= {"table_6_resnet50": 47.5, "table_6_resnet101": 49.7, "table_6_resnet152": 50.1}
    table_6 = {"resnet50": 49.8, "resnet101": 53.1, "resnet152": 54.4}
    hmdb51 |= {f"table_6_{name}_where_when": number for name, number in table_6.items()}
    ucf101 = dict(zip(rows, (83.30, 87.11, 85.78, 85.86, 85.89, 85.98, 86.10), strict=True))
    assert {dataset: papers(config) for dataset, config in of("where_when").items()} == {
        "hmdb51": hmdb51,
        "ucf101": ucf101,
        "ucf101_24": {},
        "thumos14": {"resnet101": 74.45, "where_when": 78.33},
        "moments_in_time": {"where_when": 27.55},
    }


@pytest.mark.parametrize(
    ("dataset", "frames", "side", "batch"),
    [
        ("hmdb51", 25, 224, 30),
        ("ucf101", 25, 224, 30),
        ("ucf101_24", 20, 224, 30),
        ("thumos14", 50, 224, 30),
        ("moments_in_time", 15, 256, 10),
    ],
)
def test_the_rows_of_where_and_when_are_what_their_names_say(dataset: str, frames: int, side: int, batch: int) -> None:
    config = CONFIGS["where_when", dataset]
    fps = {"thumos14": 10.0, "moments_in_time": 5.0}
    assert config.frames.fps == fps.get(dataset)
    full = config.experiments["where_when"].model
    assert isinstance(full, WhereWhenConfig)
    assert (full.hidden, full.lambda_tv, full.lambda_contrast, full.lambda_unimodal) == (512, 1e-5, 1e-4, 1)
    for name, experiment in config.experiments.items():
        model, sampling, optim = experiment.model, experiment.sampling, experiment.optim
        assert (sampling.test_segments, sampling.test_crops, optim.schedule) == (frames, "whole", "plateau")
        if isinstance(model, WhereWhenConfig):
            changed = ABLATIONS.get(name, {"temporal": "post_lstm"} if name == "post_lstm" else {})
            assert model == full.model_copy(update=changed), name
            assert experiment.features == next(iter(config.experiments)) or name.startswith("table_6_")
            assert (optim.optimizer, optim.lr, optim.weight_decay, optim.patience) == ("adam", 1e-4, 1e-4, 5)
            assert (optim.epochs, optim.batch_size, sampling.input_size) == (200, batch, side)
        else:
            assert model.family == "atw"
            assert (model.backbone, model.consensus) == (name.removeprefix("table_6_"), "avg")
            assert (sampling.segments, sampling.input_size, sampling.crop_places) == (3, 224, "random")
            assert [scale * 256 for scale in sampling.crop_scales] == [224]
            assert (optim.optimizer, optim.lr, optim.batch_size, optim.patience) == ("sgd", 5e-4, 16, 1)


def test_other_networks_of_where_and_when_have_features_of_their_own() -> None:
    experiments = CONFIGS["where_when", "hmdb51"].experiments
    for name in ("table_6_resnet50", "table_6_resnet152"):
        assert experiments[f"{name}_where_when"].features == name
    assert training_part(experiments["table_6_resnet101_where_when"]) == training_part(experiments["where_when"])
