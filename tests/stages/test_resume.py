"""A training that is killed goes on within the epoch, and ends with the bytes and the losses of one that never was."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from models.checkpoint import load_checkpoint
from pipeline.config import ComputeConfig, ExperimentConfig, canonical
from pipeline.dataset.manifest import Manifest, write_manifest
from pipeline.learning.epochs import STEPS_A_ROW
from stages import train as stage

ROOT = Path(__file__).resolve().parents[2]
COPIES = 12
"""Of each video under other names, so that an epoch has many steps."""
KILLS = 3


@dataclass(frozen=True)
class Long:
    """A training of 36 steps an epoch."""

    folder: Path
    experiment: ExperimentConfig
    compute: ComputeConfig

    def command(self, out: Path) -> list[str]:
        options = {
            "--manifest": self.folder / "manifest.tsv",
            "--index": self.folder / "flow.json",
            "--experiment": canonical(self.experiment),
            "--compute": canonical(self.compute),
            "--split": "split1",
            "--seed": 0,
            "--out": out,
        }
        return [sys.executable, "-m", "stages.train", *(str(word) for pair in options.items() for word in pair)]

    def run(self, out: Path) -> None:
        """In this process."""
        manifest = stage.read_manifest(self.folder / "manifest.tsv")
        index = stage.read_index(self.folder / "flow.json", stage="flow")
        settings: dict[str, Any] = {"experiment": self.experiment, "compute": self.compute, "split": "split1"}
        stage.train(manifest, index, seed=0, out=out, **settings)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def long(learnable: Any, tmp_path: Path) -> Long:
    """Momentum, dropout, clipping and a rate that falls: all of it must be where it was."""
    index = learnable.index("flow")
    index["videos"] = {f"{name}-{i}": facts for name, facts in index["videos"].items() for i in range(COPIES)}
    (tmp_path / "flow.json").write_text(json.dumps(index))
    videos = [replace(video, id=f"{video.id}-{i}") for video in learnable.manifest.videos for i in range(COPIES)]
    write_manifest(tmp_path / "manifest.tsv", Manifest(tuple(sorted(videos, key=lambda video: video.id))))
    sgd = {"epochs": 4, "optimizer": "sgd", "lr": 0.01, "clip_norm": 5.0, "schedule": "step", "milestones": [2]}
    compute = learnable.compute.model_copy(update={"checkpoint_minutes": 0.0, "workers": 1})
    return Long(tmp_path, learnable.experiment(optim=sgd), compute)


def metrics(folder: Path, *, timed: bool = False) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    speed = ("samples_per_second", "data_wait_share", "gpu_memory_mb")
    return rows if timed else [{name: row[name] for name in row if name not in speed} for row in rows]


def kill_within_an_epoch(job: list[str], out: Path, *, after: float) -> None:
    """SIGKILL, ``after`` seconds after the next checkpoint."""
    known = out / "last.pt"
    before = known.stat().st_mtime_ns if known.exists() else 0
    process = subprocess.Popen(job, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if known.exists() and known.stat().st_mtime_ns > before:
            time.sleep(after)
            break
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the training was over before it was killed"


def test_a_killed_training_continues_within_the_epoch_to_the_same_bytes(long: Long, tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    draw = random.Random(0)
    told = []
    for _ in range(KILLS):
        kill_within_an_epoch(long.command(killed), killed, after=draw.uniform(0, 0.05))
        last = torch.load(killed / "last.pt", weights_only=True)
        told.append(last["progress"]["step"])
    assert all(step % STEPS_A_ROW == 0 for step in told)
    assert any(told), "no kill fell into an epoch"
    assert last["settings"]["settings"]["optim"]["lr"] == 0.01
    done = subprocess.run(long.command(killed), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"continuing after (step \d+ of )?epoch \d", done.stderr)
    assert not (killed / "last.pt").exists()
    long.run(whole)
    for name in ("model.pt", "best.pt"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert metrics(killed) == metrics(whole)
    assert [int(row["step"]) for row in metrics(whole)][:5] == [10, 20, 30, 36, 46]
    assert history(killed) == history(whole)
    extra = load_checkpoint(whole / "model.pt").extra
    assert (extra["split"], extra["seed"], extra["stage"]) == ("split1", 0, "train")
    assert extra["code"].startswith("wherewhen ")
    assert extra == last["settings"]


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{name: row[name] for name in ("epoch", "lr", "train_loss", "train_top1", "test_top1")} for row in rows]


def test_the_curves_are_those_of_the_training(long: Long, tmp_path: Path) -> None:
    """The table's means, weighted by their samples, are the history's; TensorBoard has the same points."""
    long.run(tmp_path / "out")
    rows, epochs = metrics(tmp_path / "out", timed=True), history(tmp_path / "out")
    for epoch in epochs:
        of_epoch = [row for row in rows if row["epoch"] == epoch["epoch"]]
        weights = [10, 10, 10, 6]
        mean = sum(w * float(row["train_loss"]) for w, row in zip(weights, of_epoch, strict=True)) / sum(weights)
        assert mean == pytest.approx(float(epoch["train_loss"]), rel=1e-5)
        assert {float(row["lr"]) for row in of_epoch} == {float(epoch["lr"])}
    assert all(0 < float(row["data_wait_share"]) < 1 and float(row["samples_per_second"]) > 0 for row in rows)
    points = events(tmp_path / "out" / "tensorboard")
    for name in ("train_loss", "train_top1", "lr", "samples_per_second"):
        assert points[name] == {int(row["step"]): pytest.approx(float(row[name]), rel=1e-6) for row in rows}
    tested = {36 * int(row["epoch"]): float(row["test_top1"]) for row in epochs if row["test_top1"]}
    assert points["test_top1"] == pytest.approx(tested)


def events(folder: Path) -> dict[str, dict[int, float]]:
    """Points by curve, out of the files' own format: length, its checksum, a protocol buffer, its checksum."""
    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.iterdir()):
        data, place = file.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + length])
            place += 12 + length + 4
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_the_best_weights_are_those_of_the_best_test(learnable: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Every file that is written is looked at on its way; the history says which epochs were better than all before."""
    saved: list[tuple[str, dict[str, torch.Tensor]]] = []
    save = stage.save_checkpoint

    def watched(path: Path, **arguments: Any) -> None:
        save(path, **arguments)
        saved.append((path.name, load_checkpoint(path).model.state_dict()))

    monkeypatch.setattr(stage, "save_checkpoint", watched)
    experiment = learnable.experiment("frames", optim={"epochs": 8})
    settings: dict[str, Any] = {"experiment": experiment, "compute": learnable.compute, "split": "split1"}
    stage.train(learnable.manifest, learnable.index("frames"), seed=0, out=tmp_path / "out", **settings)
    tested = [float(row["test_top1"]) for row in history(tmp_path / "out")]
    better = [value for epoch, value in enumerate(tested) if value > max(tested[:epoch], default=-1)]
    assert len(better) > 1
    assert [name for name, _ in saved] == [*["best.pt"] * len(better), "model.pt"]
    best = load_checkpoint(tmp_path / "out" / "best.pt").model.state_dict()
    assert all(torch.equal(best[name], tensor) for name, tensor in saved[len(better) - 1][1].items())


def test_a_training_without_end_is_said_at_once(long: Long, tmp_path: Path) -> None:
    """The loss is looked at within the epoch, not only after it."""
    wild = long.experiment.model_copy(
        update={"optim": long.experiment.optim.model_copy(update={"lr": 1e30, "clip_norm": None, "milestones": ()})}
    )
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) in epoch 1; lower optim.lr or set optim.clip_norm"):
        replace(long, experiment=wild).run(tmp_path / "out")
    assert len(metrics(tmp_path / "out")) < 4
