"""What tests of stages share.

A dataset small enough to train on in a second: three classes, told apart by movement and by colour. A finished project
with stores, and the commands on them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.dataset.manifest import Manifest, Video, write_manifest
from pipeline.learning.readers import Index
from pipeline.stores.flow import FlowStore
from pipeline.stores.frames import ShardWriter
from pipeline.stores.provenance import made_by
from stages.store import main
from tests.stages.store_project import make

LABELS = ("left", "right", "up")
VELOCITY_PX = {"left": (-4, 0), "right": (4, 0), "up": (0, -4)}
COLOUR = {"left": (200, 40, 40), "right": (40, 200, 40), "up": (40, 40, 200)}
FRAMES = 12
SIDE = 40
LOST = "test-left-1"
"""A test video that the frames stage has lost."""


@dataclass(frozen=True)
class Learnable:
    """Paths of the dataset, and settings that learn it."""

    folder: Path
    manifest: Manifest

    def index(self, stage: str) -> Index:
        found: Index = json.loads(self.index_path(stage).read_text())
        return found

    def index_path(self, stage: str) -> Path:
        return self.folder / f"{stage}.json"

    def experiment(self, stage: str = "flow", **sections: dict[str, object]) -> ExperimentConfig:
        defaults: dict[str, dict[str, object]] = {
            "model": {"backbone": "tiny", "dropout": 0.3},
            "sampling": {
                "segments": 3,
                "snippet": 2 if stage == "flow" else 1,
                "test_segments": 5,
                "input_size": 32,
                "crop_scales": [1.0, 0.875],
                "flip": False,  # mirroring turns left into right
            },
            "optim": {"epochs": 4, "batch_size": 4, "optimizer": "adamw", "lr": 0.01, "schedule": "cosine"},
        }
        merged = {name: values | sections.get(name, {}) for name, values in defaults.items()}
        return ExperimentConfig.model_validate({"modality": stage, **merged})

    @property
    def compute(self) -> ComputeConfig:
        return ComputeConfig(accelerator="cpu")


@pytest.fixture(scope="session")
def learnable(tmp_path_factory: pytest.TempPathFactory) -> Learnable:
    """Eighteen videos, four of a class to train on and two to test on, in both stores."""
    folder = tmp_path_factory.mktemp("learnable")
    rng = np.random.default_rng(0)
    videos = [
        _video(f"{part}-{label}-{i}", label, part)
        for part, count in (("train", 4), ("test", 2))
        for label in LABELS
        for i in range(count)
    ]
    manifest = Manifest(tuple(sorted(videos, key=lambda video: video.id)))
    write_manifest(folder / "manifest.tsv", manifest)
    _write_flow(folder, {v.id: _fields(v.labels[0], rng) for v in manifest.videos})
    _write_frames(folder, {v.id: _frames(v.labels[0], rng) for v in manifest.videos if v.id != LOST})
    return Learnable(folder, manifest)


def _video(name: str, label: str, part: str) -> Video:
    splits = {"split1": part, "split2": part}
    return Video(id=name, path=name, digest=name, bytes=1, labels=(label,), splits=splits)


def _fields(label: str, rng: np.random.Generator) -> np.ndarray:
    """(T-1, 2, H, W) quantised flow: the class's velocity in a square, noise of one pixel everywhere."""
    flow = rng.normal(0, 1, (FRAMES - 1, 2, SIDE, SIDE))
    flow[:, :, 10:30, 10:30] += np.reshape(VELOCITY_PX[label], (2, 1, 1))
    return np.rint(255 * (flow + 20) / 40).clip(0, 255).astype(np.uint8)


def _frames(label: str, rng: np.random.Generator) -> np.ndarray:
    """(T, H, W, 3) RGB: a square of the class's colour on grey, with noise."""
    frames = rng.normal(120, 20, (FRAMES, SIDE, SIDE, 3))
    frames[:, 10:30, 10:30] = COLOUR[label] + rng.normal(0, 20, (FRAMES, 20, 20, 3))
    return frames.clip(0, 255).astype(np.uint8)


def _write_flow(folder: Path, videos: dict[str, np.ndarray]) -> None:
    parameters = {"bound": 20.0}
    store = FlowStore(folder / "flow")
    facts: dict[str, dict[str, object]] = {}
    for name, fields in videos.items():
        key = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
        store.write(key, fields, describe=lambda count: {**made_by("flow"), "parameters": parameters})
        facts[name] = {"key": key, "frames": len(fields), "width": SIDE, "height": SIDE}
    _write_index(folder, "flow", facts, parameters=parameters)


def _write_frames(folder: Path, videos: dict[str, np.ndarray]) -> None:
    facts: dict[str, dict[str, object]] = {}
    (folder / "frames").mkdir()
    with (folder / "frames" / "00000.tar").open("w+b") as file:
        writer = ShardWriter(file, folder=folder)
        for name, frames in videos.items():
            jpegs = [cv2.imencode(".jpg", frame[..., ::-1])[1].tobytes() for frame in frames]
            made = {**made_by("frames"), "parameters": {}}
            sample = writer.add(jpegs, metadata={"id": name, "artifact_key": name, **made})
            facts[name] = {
                "key": name, "shard": "00000.tar", "offset": sample.offset, "length": sample.length,
                "frames": len(frames), "width": SIDE, "height": SIDE,
            }  # fmt: skip
        writer.finish()
    _write_index(folder, "frames", facts, parameters={})


def _write_index(folder: Path, stage: str, facts: dict[str, dict[str, object]], *, parameters: dict) -> None:
    index = {"stage": stage, "store": str(folder / stage), "parameters": parameters, "videos": facts, "quarantined": {}}
    (folder / f"{stage}.json").write_text(json.dumps(index))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[..., Path]) -> Path:
    """A finished project. Do not change it: copy it."""
    folder = tmp_path_factory.mktemp("store") / "base"
    make(folder, make_clip)
    return folder


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished project, in which the test works."""
    shutil.copytree(finished, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def store(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run one command; gives its exit status, 2 for a sentence in place of one, and what it said."""

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        sentence = isinstance(ended.value.code, str)
        return (2, out, str(ended.value.code)) if sentence else (int(ended.value.code or 0), out, err)

    return command
