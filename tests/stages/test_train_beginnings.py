"""Training STA-CNN, and training that begins with other trained weights."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from models.build import build
from models.checkpoint import load_checkpoint, save_checkpoint
from models.flownet import SpatialAttentionNetwork, save_encoder
from models.sta_cnn import STACNN
from pipeline.config import ExperimentConfig
from stages import train as stage
from stages.train import Beginning

STILL = {"epochs": 1, "optimizer": "sgd", "momentum": 0.0, "lr": 1e-12, "batch_size": 12, "weight_decay": 0.0}
SHARED = {"family": "sta_cnn", "spatial": "shared", "groups": 3, "top": 1}
SAN = {"family": "sta_cnn", "spatial": "san", "san": {"width": 0.03}}


def experiment(learnable: Any, modality: str = "flow", *, initial: str | None = None, **sections: Any) -> Any:
    if modality == "frames":
        sections["sampling"] = {"snippet": 2} | sections.get("sampling", {})
    sections["sampling"] = {"test_segments": 15} | sections.get("sampling", {})
    found: ExperimentConfig = learnable.experiment(modality, **sections)
    return found.model_copy(update={"initial": initial})


def train(learnable: Any, out: Path, wanted: ExperimentConfig, begin: Beginning | None = None) -> None:
    stage.train(
        learnable.manifest,
        learnable.index(wanted.modality),
        experiment=wanted,
        compute=learnable.compute,
        split="split1",
        seed=0,
        out=out,
        begin=begin,
    )


def column(folder: Path, name: str = "train_loss") -> list[float]:
    with (folder / "history.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_the_loss_is_the_familys_own(learnable: Any, tmp_path: Path) -> None:
    """Equation (10) is L_cls + lambda L_aux, so equal steps of lambda are equal steps of the loss."""
    found = []
    for share in (0.3, 0.6, 0.9):
        model = {**SHARED, "aux_lambda": share, "dropout": 0.0}
        train(learnable, tmp_path / str(share), experiment(learnable, model=model, optim=STILL))
        found += column(tmp_path / str(share))
    assert found[1] - found[0] == pytest.approx(found[2] - found[1], rel=1e-3)
    assert found[1] - found[0] > 0.1


def test_sta_cnn_learns_from_a_model_that_was_trained_with_the_average(learnable: Any, tmp_path: Path) -> None:
    average = experiment(learnable, model={"consensus": "avg"}, optim={"epochs": 8})
    train(learnable, tmp_path / "average", average)
    hard = experiment(learnable, model=SHARED, initial="average", optim={"epochs": 2})
    train(learnable, tmp_path / "hard", hard, Beginning(initial=tmp_path / "average" / "model.pt"))
    train(learnable, tmp_path / "scratch", hard.model_copy(update={"initial": None}))
    assert column(tmp_path / "hard")[0] < column(tmp_path / "scratch")[0] - 0.2
    assert column(tmp_path / "hard", "test_top1") == [1.0, 1.0]


def test_every_tensor_of_equal_name_and_shape_is_taken(learnable: Any, tmp_path: Path, capfd: Any) -> None:
    train(learnable, tmp_path / "source", experiment(learnable, model={"consensus": "avg"}, optim={"epochs": 1}))
    begin = Beginning(initial=tmp_path / "source" / "model.pt")
    train(learnable, tmp_path / "out", experiment(learnable, model=SHARED, initial="source", optim=STILL), begin)
    source, found = (load_checkpoint(tmp_path / name / "model.pt").model for name in ("source", "out"))
    before = dict(source.named_parameters())
    for name, parameter in found.named_parameters():
        if name in before:
            torch.testing.assert_close(parameter, before[name], rtol=0, atol=1e-9, msg=name)
    assert {name for name, _ in found.named_parameters()} - before.keys() == {"aux.weight", "sal.weight"}
    assert "2 missing (aux.weight, sal.weight)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"classes": ("c", "b", "a")}, "classes differ .same names, another order"),
        ({"split": "split2"}, "trained with split split1, not split2"),
        ({"seed": 1}, "trained with seed 0, not 1"),
    ],
)
def test_a_model_of_another_split_seed_or_class_order_is_no_beginning(
    tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    """On the command line; the workflow gives each training its own."""
    keywords = {"num_classes": 3, "modality": "flow", "in_channels": 2, "segments": 1, "dropout": 0.0}
    given: dict[str, Any] = {"classes": ("a", "b", "c"), "split": "split1", "seed": 0}
    file, given["experiment"] = tmp_path / "model.pt", ExperimentConfig(modality="flow")
    extra = {"split": "split1", "seed": 0}
    save_checkpoint(file, model=build(**keywords), build=keywords, classes=("a", "b", "c"), extra=extra)
    fabric = Fabric(accelerator="cpu", devices=1)
    Beginning(initial=file).build(keywords, **given, fabric=fabric)
    with pytest.raises(ValueError, match=sentence):
        Beginning(initial=file).build(keywords, **{**given, **change}, fabric=fabric)


def test_the_networks_weights_are_those_of_the_pre_training(learnable: Any, tmp_path: Path) -> None:
    torch.manual_seed(7)
    network = SpatialAttentionNetwork(width=0.03)
    save_encoder(tmp_path / "san.pt", network)
    wanted = experiment(learnable, "frames", model=SAN, optim=STILL)
    train(learnable, tmp_path / "out", wanted, Beginning(san=tmp_path / "san.pt"))
    found = load_checkpoint(tmp_path / "out" / "model.pt").model
    assert isinstance(found, STACNN)
    assert found.san is not None
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(found.san.state_dict()[name], tensor, rtol=0, atol=1e-9, msg=name)


def test_a_last_pt_that_began_with_other_weights_is_ignored(
    learnable: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    source = experiment(learnable, model={"consensus": "avg"}, optim={"epochs": 1})
    for name, lr in (("one", 0.01), ("other", 0.02)):
        wanted = source.model_copy(update={"optim": source.optim.model_copy(update={"lr": lr})})
        train(learnable, tmp_path / name, wanted)
    hard = experiment(learnable, model=SHARED, initial="source", optim={"epochs": 2})
    with monkeypatch.context() as patch:
        patch.setattr(stage, "history_table", lambda rows: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(learnable, tmp_path / "out", hard, Beginning(initial=tmp_path / "one" / "model.pt"))
    capfd.readouterr()
    train(learnable, tmp_path / "out", hard, Beginning(initial=tmp_path / "other" / "model.pt"))
    assert "starting from the first epoch" in capfd.readouterr().err
    train(learnable, tmp_path / "whole", hard, Beginning(initial=tmp_path / "other" / "model.pt"))
    assert (tmp_path / "out" / "model.pt").read_bytes() == (tmp_path / "whole" / "model.pt").read_bytes()


def test_a_beginning_that_is_not_there_or_not_wanted_is_one_sentence(learnable: Any, tmp_path: Path) -> None:
    file = tmp_path / "there.pt"
    file.touch()
    hard = experiment(learnable, model=SHARED)
    san = experiment(learnable, "frames", model=SAN)
    alone = experiment(learnable, "frames", model={**SAN, "san": {"width": 0.03, "targets": "none"}})
    for wanted, begin, sentence in (
        (hard.model_copy(update={"initial": "a"}), Beginning(), "initial is a, but --initial is None"),
        (hard, Beginning(initial=file), "initial is None, but --initial is .*there.pt"),
        (hard, Beginning(initial=tmp_path / "absent.pt"), "no checkpoint file .*absent.pt; train what it comes from"),
        (san, Beginning(), "needs them by --san"),
        (hard, Beginning(san=file), "--san .*there.pt has no place to go"),
        (alone, Beginning(san=file), "--san .*there.pt has no place to go"),
        (san, Beginning(san=file), "there.pt cannot be read as a checkpoint"),
    ):
        with pytest.raises(ValueError, match=sentence):
            train(learnable, tmp_path / "out", wanted, begin)
    train(
        learnable, tmp_path / "alone", alone.model_copy(update={"optim": hard.optim.model_copy(update={"epochs": 1})})
    )
