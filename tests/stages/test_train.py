"""Training on a small dataset: it learns, it continues bit for bit, it says what is wrong."""

from __future__ import annotations

import csv
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.build import build
from models.checkpoint import load_checkpoint
from pipeline.config import ComputeConfig, ExperimentConfig, canonical
from pipeline.dataset.manifest import Manifest
from pipeline.learning.augmentation import cut
from pipeline.learning.clock import PARTS
from pipeline.learning.job import model_keywords
from pipeline.learning.loader import TrainingSnippets
from pipeline.learning.readers import open_reader
from stages import train as stage

ROOT = Path(__file__).resolve().parents[2]
LEFT = ["best.pt", "history.csv", "metrics.csv", "model.pt", "tensorboard"]


def train(learnable: Any, out: Path, *, experiment: Any = None, seed: int = 0, **changes: Any) -> None:
    experiment = experiment or learnable.experiment()
    settings: dict[str, Any] = {
        "manifest": learnable.manifest,
        "index": learnable.index(experiment.modality),
        "compute": learnable.compute,
        "split": "split1",
    } | changes
    stage.train(settings.pop("manifest"), settings.pop("index"), experiment=experiment, seed=seed, out=out, **settings)


def command(learnable: Any, out: Path, *, experiment: ExperimentConfig, compute: ComputeConfig) -> list[str]:
    options = {
        "--manifest": learnable.folder / "manifest.tsv",
        "--index": learnable.index_path(experiment.modality),
        "--experiment": canonical(experiment),
        "--compute": canonical(compute),
        "--split": "split1",
        "--seed": 0,
        "--out": out,
    }
    return [sys.executable, "-m", "stages.train", *(str(word) for pair in options.items() for word in pair)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("modality", ["frames", "flow"])
def test_it_learns_and_leaves_its_files(learnable: Any, tmp_path: Path, modality: str, capfd: Any) -> None:
    train(learnable, tmp_path, experiment=learnable.experiment(modality, optim={"epochs": 8}))
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == LEFT
    rows = history(tmp_path)
    assert [int(row["epoch"]) for row in rows] == list(range(1, 9))
    assert float(rows[-1]["train_loss"]) < 0.5 * float(rows[0]["train_loss"])
    assert float(rows[-1]["test_top1"]) == 1.0
    for row in rows:
        parts = sum(float(row[f"{part}_seconds"]) for part in PARTS)
        assert 0.5 * float(row["seconds"]) < parts <= float(row["seconds"])
        assert float(row["samples_per_second"]) == pytest.approx(12 / float(row["seconds"]), rel=1e-4)
    log = capfd.readouterr().err
    assert "epoch 8/8: loss" in log
    assert ("test-left-1" in log) == (modality == "frames")  # the video that the store lacks is named


def test_the_same_seed_gives_the_same_bytes_whoever_loads_and_another_seed_others(
    learnable: Any, tmp_path: Path
) -> None:
    experiment = learnable.experiment(optim={"epochs": 2})
    for name, seed, workers in (("one", 0, 0), ("again", 0, 0), ("loaded by others", 0, 2), ("another seed", 1, 0)):
        compute = ComputeConfig(accelerator="cpu", workers=workers)
        train(learnable, tmp_path / name, seed=seed, experiment=experiment, compute=compute)
    one = (tmp_path / "one" / "model.pt").read_bytes()
    assert one == (tmp_path / "again" / "model.pt").read_bytes()
    assert one == (tmp_path / "loaded by others" / "model.pt").read_bytes()
    assert one != (tmp_path / "another seed" / "model.pt").read_bytes()


@pytest.mark.parametrize("change", ["seed", "settings", "labels", "video", "damage", "nothing"])
def test_a_last_pt_of_something_else_is_ignored_and_said_so(
    learnable: Any, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    experiment = learnable.experiment(optim={"epochs": 2})
    with monkeypatch.context() as patch:  # killed between the last epoch and the end
        patch.setattr(stage, "history_table", lambda rows: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(learnable, tmp_path / "one", experiment=experiment)
    assert (tmp_path / "one" / "last.pt").exists()
    arguments: dict[str, Any] = {"seed": 0, "experiment": experiment}
    match change:
        case "seed":
            arguments["seed"] = 1
        case "settings":
            arguments["experiment"] = learnable.experiment(optim={"epochs": 2, "lr": 0.02})
        case "labels":
            arguments["manifest"] = swapped(learnable.manifest, "train-left-0", "train-up-0")
        case "video":  # another file under the same id: its flow has another key
            arguments["index"] = index = learnable.index("flow")
            index["videos"]["train-left-0"]["key"] = index["videos"]["train-left-1"]["key"]
        case "damage":
            (tmp_path / "one" / "last.pt").write_bytes(b"damaged")
    capfd.readouterr()
    train(learnable, tmp_path / "one", **arguments)
    log = capfd.readouterr().err
    assert ("starting from the first epoch" in log) == (change != "nothing")
    assert ("epoch 1/2" in log) == (change != "nothing")
    train(learnable, tmp_path / "two", **arguments)
    assert (tmp_path / "one" / "model.pt").read_bytes() == (tmp_path / "two" / "model.pt").read_bytes()


def swapped(manifest: Manifest, one: str, other: str) -> Manifest:
    """The manifest with the labels of two videos exchanged."""
    labels = {video.id: video.labels for video in manifest.videos}
    labels[one], labels[other] = labels[other], labels[one]
    return Manifest(tuple(replace(video, labels=labels[video.id]) for video in manifest.videos))


def test_two_processes_train_one_model(learnable: Any, tmp_path: Path) -> None:
    """DDP on two CPU processes: every test video is counted once, one log, one model."""
    experiment = learnable.experiment(optim={"epochs": 6})
    compute = ComputeConfig(accelerator="cpu", devices=2)
    job = command(learnable, tmp_path, experiment=experiment, compute=compute)
    done = subprocess.run(job, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 6/6: loss") == 1
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == LEFT
    found = load_checkpoint(tmp_path / "model.pt", expect_classes=learnable.manifest.classes)
    assert all(torch.isfinite(tensor).all() for tensor in found.model.state_dict().values())
    tested = [float(row["test_top1"]) for row in history(tmp_path)]
    assert all(value * 6 == pytest.approx(round(value * 6), abs=1e-4) for value in tested)  # six test videos
    assert tested[-1] == 1.0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "model.pt").model.state_dict()


@pytest.mark.parametrize(
    "model", [{"backbone": "tiny"}, {"family": "sta_net", "backbone": "resnet3d18", "width": 8, "stages": ["layer3"]}]
)
def test_channels_last_is_another_layout_of_the_same_training(learnable: Any, tmp_path: Path, model: Any) -> None:
    """Of images and of clips, which have five dimensions; at a rate at which differences in rounding stay small."""
    clips = {"segments": 1, "snippet": 8} if "family" in model else {}
    optim = {"epochs": 1, "lr": 1e-4}
    experiment = learnable.experiment("frames", model={**model, "dropout": 0.0}, sampling=clips, optim=optim)
    last = ComputeConfig(accelerator="cpu", channels_last=True)
    train(learnable, tmp_path / "first", experiment=experiment)
    train(learnable, tmp_path / "last", experiment=experiment, compute=last)
    found = weights(tmp_path / "last")
    for name, wanted in weights(tmp_path / "first").items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-2, atol=5e-4, msg=name)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_trains_the_same_and_is_stored_as_any(learnable: Any, tmp_path: Path) -> None:
    experiment = learnable.experiment(
        "frames", model={"backbone": "tiny", "dropout": 0.0}, optim={"epochs": 1, "lr": 1e-4}
    )
    train(learnable, tmp_path / "eager", experiment=experiment)
    compiled = ComputeConfig(accelerator="cpu", compile=True)
    train(learnable, tmp_path / "compiled", experiment=experiment, compute=compiled)
    found = weights(tmp_path / "compiled")
    for name, wanted in weights(tmp_path / "eager").items():
        torch.testing.assert_close(found[name], wanted, rtol=1e-2, atol=5e-4, msg=name)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision_learns_and_continues(learnable: Any, tmp_path: Path, precision: str) -> None:
    """The loss scaler's state is in ``last.pt`` as well: interrupted and undisturbed end with the same bytes."""
    if precision == "16-mixed" and not torch.cuda.is_available():
        pytest.skip("16-mixed needs a GPU")
    compute = ComputeConfig(precision=precision)
    experiment = learnable.experiment("frames", optim={"epochs": 6})
    with pytest.MonkeyPatch.context() as patch:
        test = stage.is_test_epoch
        patch.setattr(stage, "is_test_epoch", lambda epoch, **how: test(epoch, **how) if epoch < 3 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(learnable, tmp_path / "stopped", experiment=experiment, compute=compute)
    train(learnable, tmp_path / "stopped", experiment=experiment, compute=compute)
    train(learnable, tmp_path / "whole", experiment=experiment, compute=compute)
    assert (tmp_path / "stopped" / "model.pt").read_bytes() == (tmp_path / "whole" / "model.pt").read_bytes()
    assert float(history(tmp_path / "whole")[-1]["test_top1"]) == 1.0


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "dampening": 0.9}),
        ("adam", torch.optim.Adam, {}),
        ("adamw", torch.optim.AdamW, {}),
        ("rmsprop", torch.optim.RMSprop, {}),
    ],
)
def test_an_optimizer_is_the_one_it_is_called(learnable: Any, name: str, kind: Any, options: dict[str, float]) -> None:
    experiment = learnable.experiment(optim={"optimizer": name, "schedule": "step", "lr": 0.1, **options})
    model = build(**model_keywords(experiment, num_classes=3))
    found = stage.make_optimizer(model, experiment=experiment)
    assert type(found) is kind
    assert all(found.param_groups[0][key] == value for key, value in {"lr": 0.1, **options}.items())


def test_only_what_is_named_learns_but_statistics_go_on(learnable: Any, tmp_path: Path) -> None:
    experiment = learnable.experiment(optim={"epochs": 1, "train_only": ["stage4", "fc"]})
    train(learnable, tmp_path, experiment=experiment)
    torch.manual_seed(stage.derived_seed(0, "weights"))
    before = build(**model_keywords(experiment, num_classes=3)).state_dict()
    after = load_checkpoint(tmp_path / "model.pt").model.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    parameters = {name for name in moved if "running" not in name and "num_batches" not in name}
    assert {name.split(".")[1 if name.startswith("backbone") else 0] for name in parameters} == {"stage4", "fc"}
    assert {name for name in moved if "stage1" in name} == {
        f"backbone.stage1.1.{part}" for part in ("running_mean", "running_var", "num_batches_tracked")
    }
    wrong = learnable.experiment(optim={"train_only": ["layer9"]})
    with pytest.raises(ValueError, match="layer9 is in no parameter's name; correct it or set it to null"):
        train(learnable, tmp_path / "wrong", experiment=wrong)


def test_no_epoch_keeps_what_training_begins_with(learnable: Any, tmp_path: Path) -> None:
    experiment = learnable.experiment(optim={"epochs": 0})
    train(learnable, tmp_path, experiment=experiment)
    torch.manual_seed(stage.derived_seed(0, "weights"))
    before = build(**model_keywords(experiment, num_classes=3)).state_dict()
    after = load_checkpoint(tmp_path / "model.pt").model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert history(tmp_path) == []


def test_biases_do_not_decay_and_multipliers_wait_for_fine_tuning(learnable: Any) -> None:
    def rates(experiment: ExperimentConfig) -> dict[str, tuple[float, float]]:
        model = build(**model_keywords(experiment.model_copy(update={"model": scratch.model}), num_classes=3))
        optimizer = stage.make_optimizer(model, experiment=experiment)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        return {
            names[id(parameter)]: (group["lr"], group["weight_decay"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    scratch = learnable.experiment(optim={"lr": 0.1, "weight_decay": 0.01})
    plain = rates(scratch)
    assert {lr for lr, _ in plain.values()} == {0.1}
    assert {name for name, (_, decay) in plain.items() if decay} == {
        *(f"backbone.stage{i}.0.weight" for i in range(1, 5)), "fc.weight", "attention.weight",
    }  # fmt: skip
    tuned = rates(learnable.experiment(model={"pretrained": "x"}, optim={"lr": 0.1, "weight_decay": 0.01}))
    assert tuned["backbone.stage1.0.weight"] == (pytest.approx(0.5), 0.01)
    assert tuned["fc.bias"] == (pytest.approx(0.2), 0.0)


def test_gradients_are_clipped(learnable: Any, tmp_path: Path) -> None:
    """With a norm of 1e-9 and no decay nothing moves, but for BatchNorm's statistics."""
    sgd = {"epochs": 1, "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 0.1, "clip_norm": 1e-9}
    experiment = learnable.experiment(optim=sgd)
    train(learnable, tmp_path, experiment=experiment)
    torch.manual_seed(stage.derived_seed(0, "weights"))
    before = build(**model_keywords(experiment, num_classes=3))
    after = load_checkpoint(tmp_path / "model.pt").model
    for (name, one), two in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-8, msg=name)


def test_label_smoothing_is_that_of_the_equation(learnable: Any, tmp_path: Path) -> None:
    """A model that cannot learn keeps its first logits, so the loss of one epoch is an average that can be computed."""
    still = {"epochs": 1, "optimizer": "sgd", "momentum": 0.0, "lr": 1e-12, "batch_size": 12}
    losses = {}
    for smoothing in (0.0, 0.4):
        experiment = learnable.experiment(model={"dropout": 0.0}, optim={**still, "label_smoothing": smoothing})
        train(learnable, tmp_path / str(smoothing), experiment=experiment)
        losses[smoothing] = float(history(tmp_path / str(smoothing))[0]["train_loss"])
    dataset, batches = stage_data(learnable, experiment)
    torch.manual_seed(stage.derived_seed(0, "weights"))
    model = build(**model_keywords(experiment, num_classes=3))
    model.train()
    items = [dataset[key] for key in next(iter(batches))]
    x = torch.stack([cut(item.images, item.views, size=32, flow_from=0) for item in items])
    log_p = model(x).logits.log_softmax(dim=1).detach().numpy()
    own = np.array([row[item.label] for row, item in zip(log_p, items, strict=True)])
    assert losses[0.0] == pytest.approx(-own.mean(), rel=1e-4)
    assert losses[0.4] == pytest.approx(-(0.6 * own + 0.4 * log_p.mean(axis=1)).mean(), rel=1e-4)


def stage_data(learnable: Any, experiment: ExperimentConfig) -> tuple[Any, Any]:
    clips, _ = stage.select(learnable.manifest, learnable.index("flow"), split="split1", part="train")
    batches = stage.TrainingBatches(videos=len(clips), batch_size=12, epochs=range(1), seed=0)
    sampling = experiment.sampling
    dataset = TrainingSnippets(
        clips=clips, reader=open_reader(learnable.index("flow")), snippet=sampling.snippet,
        segments=sampling.segments, size=32, scales=sampling.crop_scales, flip=False, seed=0,
    )  # fmt: skip
    return dataset, batches


def without(manifest: Manifest, part: str, label: str | None = None) -> Manifest:
    return Manifest(tuple(v for v in manifest.videos if v.splits["split1"] != part or (label and v.labels != (label,))))


def test_what_cannot_be_trained_is_one_sentence(learnable: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'train' part|the train part of split1 has no video"):
        train(learnable, tmp_path, manifest=without(learnable.manifest, "train"))
    with pytest.raises(ValueError, match="the class 'up' has no training video with flow in split1"):
        train(learnable, tmp_path, manifest=without(learnable.manifest, "train", "up"))
    with pytest.raises(ValueError, match="the test part of split1 has no video"):
        train(learnable, tmp_path, manifest=without(learnable.manifest, "test"))
    with pytest.raises(ValueError, match="no split 'split9'"):
        train(learnable, tmp_path, split="split9")
    with pytest.raises(ValueError, match="loss is (nan|inf) in epoch 1; lower optim.lr"):
        train(learnable, tmp_path, experiment=learnable.experiment(optim={"optimizer": "sgd", "lr": 1e30}))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cannot use 1 x cuda"):
            train(learnable, tmp_path, compute=ComputeConfig(accelerator="cuda"))


def test_a_pretrained_file_of_another_model_is_one_sentence(learnable: Any, tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "other.pth")
    messages = {"other.pth": r"other\.pth .*another model", "none.pth": "there is no checkpoint file .*none"}
    for name, message in messages.items():
        experiment = learnable.experiment(model={"pretrained": str(tmp_path / name)})
        with pytest.raises(ValueError, match=message):
            train(learnable, tmp_path / "out", experiment=experiment)


def test_the_command_says_what_is_wrong_without_a_traceback(learnable: Any, tmp_path: Path) -> None:
    job = command(learnable, tmp_path, experiment=learnable.experiment("frames"), compute=learnable.compute)[3:]
    job[job.index("--index") + 1] = str(learnable.index_path("flow"))
    with pytest.raises(SystemExit, match=r"train: .*flow\.json is an index of flow, but frames is needed"):
        stage.main(job)


def test_cosine_ends_near_zero_and_history_holds_the_rate(learnable: Any, tmp_path: Path) -> None:
    train(learnable, tmp_path)
    rates = [float(row["lr"]) for row in history(tmp_path)]
    assert rates == pytest.approx([0.01 * 0.5 * (1 + math.cos(math.pi * e / 4)) for e in range(4)], rel=1e-5)
