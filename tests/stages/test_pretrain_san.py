"""Pre-training of a Spatial Attention Network: it learns flow, continues bit for bit, and says what is wrong."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.flownet import FlowPredictor, SpatialAttentionNetwork, load_encoder, save_encoder
from pipeline.config import ComputeConfig, SanConfig, canonical
from pipeline.learning.flow_pairs import Pair
from stages import pretrain_san as stage

ROOT = Path(__file__).resolve().parents[2]
TINY = {"width": 0.03, "epochs": 2, "batch_size": 6, "lr": 0.002, "crop": 32}


def san(**changes: Any) -> SanConfig:
    return SanConfig.model_validate(TINY | changes)


def pretrain(learnable: Any, out: Path, settings: SanConfig, *, seed: int = 0, **changes: Any) -> None:
    pairs = stage.stored_pairs(
        learnable.manifest, learnable.index("frames"), learnable.index("flow"), split=changes.pop("split", "split1")
    )
    stage.pretrain(pairs, san=settings, compute=changes.pop("compute", learnable.compute), seed=seed, out=out)


def command(learnable: Any, out: Path, settings: SanConfig, *, compute: ComputeConfig | None = None) -> list[str]:
    options = {
        "--san": canonical(settings),
        "--compute": canonical(compute or learnable.compute),
        "--seed": 0,
        "--out": out,
        "--manifest": learnable.folder / "manifest.tsv",
        "--frames": learnable.index_path("frames"),
        "--flow": learnable.index_path("flow"),
        "--split": "split1",
    }
    return [str(word) for pair in options.items() for word in pair]


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Falling:
    """Grey pictures that fall or rise the faster, the further they are from medium grey; mirroring changes nothing."""

    def __len__(self) -> int:
        return 24

    def name(self, number: int) -> str:
        return str(number)

    def read(self, number: int, rng: np.random.Generator) -> Pair:
        grey = number * 10 + 5
        speed = np.array([0.0, (grey - 128) / 16], np.float32)
        flow = np.broadcast_to(speed[:, None, None], (2, 40, 40))
        return Pair(np.full((2, 3, 40, 40), grey, np.uint8), np.ascontiguousarray(flow))


def test_it_learns_flow_and_leaves_its_files(tmp_path: Path) -> None:
    pairs = stage.Pairs(Falling(), {})
    stage.pretrain(pairs, san=san(epochs=40), compute=ComputeConfig(accelerator="cpu"), seed=0, out=tmp_path)
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == [
        "history.csv",
        "metrics.csv",
        "san.pt",
        "tensorboard",
    ]
    rows = history(tmp_path)
    assert tuple(rows[0]) == stage.COLUMNS
    assert [int(row["epoch"]) for row in rows] == list(range(1, 41))
    still_px = np.mean([abs(number * 10 + 5 - 128) / 16 for number in range(24)])  # what seeing no motion is off by
    assert float(rows[-1]["endpoint_error_px"]) < 0.4 * still_px * 32 / 40
    assert float(rows[-1]["train_loss"]) < 0.2 * float(rows[0]["train_loss"])
    network = SpatialAttentionNetwork(width=0.03)
    assert len(load_encoder(network, tmp_path / "san.pt").loaded) == 20


def test_a_killed_pre_training_continues_to_the_same_bytes(learnable: Any, tmp_path: Path, capfd: Any) -> None:
    """SIGKILL at any moment after the first epoch: moments of Adam, rates and draws must all be where they were."""
    settings = san(epochs=25, milestones=[2, 20])
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    job = [sys.executable, "-m", "stages.pretrain_san", *command(learnable, killed, settings)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(job, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (killed / "last.pt").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sorted(path.name for path in killed.glob("[!.]*")) == ["last.pt", "metrics.csv", "tensorboard"]
    capfd.readouterr()
    pretrain(learnable, killed, settings)
    assert "continuing after epoch" in capfd.readouterr().err
    pretrain(learnable, whole, settings)
    assert (killed / "san.pt").read_bytes() == (whole / "san.pt").read_bytes()
    assert not (killed / "last.pt").exists()
    measured = [[{k: v for k, v in row.items() if "seconds" not in k} for row in history(f)] for f in (killed, whole)]
    assert measured[0] == measured[1]
    assert [float(row["lr"]) for row in history(whole)][1:4] == [0.002, 0.001, 0.001]


def test_the_same_seed_gives_the_same_bytes_whoever_loads_and_another_seed_others(
    learnable: Any, tmp_path: Path
) -> None:
    for name, seed, workers in (("one", 0, 0), ("loaded by others", 0, 2), ("another seed", 1, 0)):
        compute = ComputeConfig(accelerator="cpu", workers=workers)
        pretrain(learnable, tmp_path / name, san(epochs=1), seed=seed, compute=compute)
    one = (tmp_path / "one" / "san.pt").read_bytes()
    assert one == (tmp_path / "loaded by others" / "san.pt").read_bytes()
    assert one != (tmp_path / "another seed" / "san.pt").read_bytes()


@pytest.mark.parametrize("change", ["seed", "settings", "split", "video", "damage", "nothing"])
def test_a_last_pt_of_something_else_is_ignored_and_said_so(
    learnable: Any, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    with monkeypatch.context() as patch:  # killed between the last epoch and the end
        patch.setattr(stage, "save_encoder", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pretrain(learnable, tmp_path, san())
    settings, seed, split, flow = san(), 0, "split1", learnable.index("flow")
    match change:
        case "seed":
            seed = 1
        case "settings":
            settings = san(lr=0.001)
        case "split":
            split = "split2"
        case "video":  # another file under the same id: its flow has another key
            flow["videos"]["train-left-0"]["key"] = flow["videos"]["train-left-1"]["key"]
        case "damage":
            (tmp_path / "last.pt").write_bytes(b"damaged")
    capfd.readouterr()
    pairs = stage.stored_pairs(learnable.manifest, learnable.index("frames"), flow, split=split)
    stage.pretrain(pairs, san=settings, compute=learnable.compute, seed=seed, out=tmp_path)
    log = capfd.readouterr().err
    assert ("starting from the first epoch" in log) == ("epoch 1/2" in log) == (change != "nothing")
    assert (tmp_path / "san.pt").exists()


def test_it_begins_with_flownets_weights_wherever_they_lie(learnable: Any, tmp_path: Path, capfd: Any) -> None:
    torch.manual_seed(5)
    network = FlowPredictor(width=0.03).san
    state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": {**state, "module.deconv5.0.weight": torch.zeros(1)}}, tmp_path / "flownets.pth")
    shutil.copy(tmp_path / "flownets.pth", tmp_path / "moved.pth")
    still = {"lr": 1e-12, "weight_decay": 0.0, "epochs": 1}
    pretrain(learnable, tmp_path / "out", san(encoder=tmp_path / "flownets.pth", **still))
    assert "20 tensors loaded; 1 unexpected (deconv5.0.weight)" in capfd.readouterr().err
    found = SpatialAttentionNetwork(width=0.03)
    load_encoder(found, tmp_path / "out" / "san.pt")
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=0, atol=1e-9, msg=name)
    pairs = stage.Pairs(stage.ChairsPairs([]), {})
    prints = {
        stage.fingerprint(pairs, san=san(encoder=tmp_path / name), compute=learnable.compute, seed=0)
        for name in ("flownets.pth", "moved.pth")
    }
    assert len(prints) == 1


@pytest.mark.slow
def test_two_processes_pre_train_one_network(learnable: Any, tmp_path: Path) -> None:
    compute = ComputeConfig(accelerator="cpu", devices=2)
    job = [sys.executable, "-m", "stages.pretrain_san", *command(learnable, tmp_path, san(), compute=compute)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(job, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 2/2: loss") == 1
    assert sorted(path.name for path in tmp_path.glob("[!.]*")) == [
        "history.csv",
        "metrics.csv",
        "san.pt",
        "tensorboard",
    ]


def test_flying_chairs_through_the_command(shared_data: Path, tmp_path: Path) -> None:
    settings = san(
        targets="flying_chairs", flying_chairs=shared_data / "flow/flyingchairs", crop=[96, 128], batch_size=1
    )
    words = ["--san", canonical(settings), "--compute", canonical(ComputeConfig(accelerator="cpu"))]
    stage.main([*words, "--seed", "0", "--out", str(tmp_path)])
    assert len(history(tmp_path)) == 2
    assert (tmp_path / "san.pt").exists()


def test_what_cannot_be_learnt_is_one_sentence(learnable: Any, tmp_path: Path) -> None:
    words = command(learnable, tmp_path, san(encoder=tmp_path / "none.pth"))
    with pytest.raises(SystemExit, match=r"pretrain_san: there is no checkpoint file .*none\.pth; correct model\.san"):
        stage.main(words)
    with pytest.raises(SystemExit, match="pretrain_san: targets: none leaves nothing to learn"):
        stage.main(command(learnable, tmp_path, san(targets="none")))
    with pytest.raises(SystemExit, match="pretrain_san: targets: flow needs --split"):
        stage.main(command(learnable, tmp_path, san())[:-2])
    with pytest.raises(SystemExit, match=r"pretrain_san: .*is an index of flow, but frames is needed"):
        stage.main([*command(learnable, tmp_path, san()), "--frames", str(learnable.index_path("flow"))])
    with pytest.raises(ValueError, match="the loss is (nan|inf) in epoch 1; lower model.san.lr"):
        pretrain(learnable, tmp_path, san(lr=1e30))
    save_encoder(tmp_path / "wide.pt", SpatialAttentionNetwork(width=0.05))
    with pytest.raises(ValueError, match="does not fit this Spatial Attention Network"):
        pretrain(learnable, tmp_path, san(encoder=tmp_path / "wide.pt"))
