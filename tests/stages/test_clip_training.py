"""Training and prediction of networks that see clips: JSTA's S-step, STA networks, and MARS, which also sees flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.build import build
from models.checkpoint import load_checkpoint
from pipeline.config import ExperimentConfig
from pipeline.learning import augmentation, readers, sampling, transforms
from pipeline.learning.job import model_keywords
from stages import predict, train

FAMILIES: dict[str, dict[str, Any]] = {
    "jsta": {"family": "jsta", "width": 8},
    "sta_net": {"family": "sta_net", "backbone": "resnet3d18", "width": 8, "stages": ["layer3"]},
    "plain": {"family": "sta_net", "backbone": "resnet3d18", "width": 8, "variant": "none"},
}


def clips(family: str, modality: str = "frames", **sections: Any) -> ExperimentConfig:
    """Two clips of eight frames a video; at the test all that follow one another."""
    return ExperimentConfig.model_validate(
        {
            "modality": modality,
            "model": FAMILIES[family],
            "sampling": {
                "segments": 2, "snippet": 8, "spread": False, "short": "loop", "test_segments": None, "test_scale": 1.0,
                "input_size": 32, "crop_scales": [1.0, 0.8], "crop_places": "corners", "flip": False,
            },
            "optim": {"epochs": 10, "batch_size": 4, "optimizer": "adamw", "lr": 0.004, "schedule": "cosine"},
        }
        | sections
    )  # fmt: skip


def run(learnable: Any, out: Path, experiment: ExperimentConfig, **changes: Any) -> Any:
    """Train, and predict with what was trained."""
    index = learnable.index(experiment.modality)
    settings: dict[str, Any] = {"experiment": experiment, "compute": learnable.compute, "split": "split1"}
    train.train(learnable.manifest, index, seed=0, out=out, **settings, **changes)
    return predict.predict(learnable.manifest, index, checkpoint=out / "model.pt", **settings)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("modality", ["frames", "flow"])
def test_a_clip_network_learns_and_predicts_from_every_clip(
    learnable: Any, tmp_path: Path, family: str, modality: str
) -> None:
    experiment = clips(family, modality)
    scores = run(learnable, tmp_path, experiment)
    labels = [learnable.manifest.classes.index(name.split("-")[1]) for name in scores.ids]
    assert np.mean(scores.logits.argmax(axis=1) == labels) >= 0.8  # chance is a third
    index = learnable.index(modality)
    frames = index["videos"][str(scores.ids[0])]["frames"]
    assert scores.positions[0].tolist() == list(range(0, frames - 7, 8))
    np.testing.assert_allclose(scores.weights, 1 / scores.weights.shape[1], rtol=1e-6)
    np.testing.assert_allclose(scores.logits[0], by_hand(tmp_path, index, str(scores.ids[0]), experiment), atol=1e-4)


def by_hand(folder: Path, index: Any, video: str, experiment: ExperimentConfig) -> Any:
    """Mean logits of the clips of a video, each cut and run alone."""
    model = load_checkpoint(folder / "model.pt").model.eval()
    frames = index["videos"][video]["frames"]
    logits = []
    for start in range(0, frames - 7, 8):
        indices = np.arange(start, start + 8)[None]
        images = torch.from_numpy(readers.open_reader(index).read(video, indices)).flatten(1, 2)
        (view,) = transforms.fixed_views(*images.shape[-2:], crops=1, scale=1.0)
        flow_from = None if experiment.modality == "frames" else 0
        clip = augmentation.cut(images, torch.tensor(view), size=32, flow_from=flow_from)
        with torch.inference_mode():
            logits.append(model(clip[None]).logits[0])
    return torch.stack(logits).mean(dim=0).numpy()


def test_videos_of_different_lengths_are_filled_up_with_no_snippet() -> None:
    rows = [np.arange(3.0), np.arange(1.0), np.arange(2.0)]
    assert predict.padded(rows, fill=-1).tolist() == [[0, 1, 2], [0, -1, -1], [0, 1, -1]]


def test_a_student_of_mars_comes_nearer_to_its_teacher_than_without(learnable: Any, tmp_path: Path) -> None:
    """Features of the same clips: of the teacher on flow, of an RGB network taught and of one that is not."""
    teacher = clips("plain", "flow")
    run(learnable, tmp_path / "teacher", teacher)
    alone = clips("plain")
    run(learnable, tmp_path / "alone", alone)
    student = clips("plain", mars={"teacher": "flow", "alpha": 50.0})
    before = (tmp_path / "teacher" / "model.pt").read_bytes()
    begin = train.Beginning(teacher=tmp_path / "teacher" / "model.pt")
    run(learnable, tmp_path / "taught", student, begin=begin, beside=learnable.index("flow"))
    assert (tmp_path / "teacher" / "model.pt").read_bytes() == before
    names = set(load_checkpoint(tmp_path / "taught" / "model.pt").model.state_dict())
    assert names == set(load_checkpoint(tmp_path / "alone" / "model.pt").model.state_dict())
    target = features(learnable, tmp_path / "teacher", "flow")
    apart = {
        name: float((features(learnable, tmp_path / name, "frames") - target).square().mean())
        for name in ("taught", "alone")
    }
    assert apart["taught"] < 0.7 * apart["alone"]


def features(learnable: Any, folder: Path, modality: str) -> torch.Tensor:
    """(V, D) of the first clip of every training video that has frames and flow."""
    model: Any = load_checkpoint(folder / "model.pt").model.eval()
    reader = readers.open_reader(learnable.index(modality))
    found = []
    for name in learnable.index("frames")["videos"]:
        if name.startswith("train"):
            images = torch.from_numpy(reader.read(name, np.arange(8)[None])).flatten(1, 2)
            with torch.inference_mode():
                found.append(model.clip_features(images[..., 4:36, 4:36])[0])
    return torch.stack(found)


def test_a_killed_or_repeated_student_gives_the_same_bytes(learnable: Any, tmp_path: Path) -> None:
    run(learnable, tmp_path / "teacher", clips("plain", "flow", optim={"epochs": 1, "batch_size": 4}))
    student = clips("plain", mars={"teacher": "flow"}, optim={"epochs": 2, "batch_size": 4})
    begin = train.Beginning(teacher=tmp_path / "teacher" / "model.pt")
    for name in ("one", "two"):
        run(learnable, tmp_path / name, student, begin=begin, beside=learnable.index("flow"))
    assert (tmp_path / "one" / "model.pt").read_bytes() == (tmp_path / "two" / "model.pt").read_bytes()


def test_a_teacher_that_is_missing_or_not_asked_for_is_one_sentence(learnable: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the experiment's teacher is flow, but --teacher is None"):
        run(learnable, tmp_path, clips("plain", mars={"teacher": "flow"}))
    file = tmp_path / "x.pt"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="the experiment's teacher is None, but --teacher is"):
        run(learnable, tmp_path, clips("plain"), begin=train.Beginning(teacher=file))


def test_the_classes_of_clip_networks_start_alike(learnable: Any) -> None:
    """Keywords of a clip network build it without a file, so that a checkpoint can be read anywhere."""
    for family in FAMILIES:
        keywords = model_keywords(clips(family), num_classes=3)
        assert sampling.scoring_positions(20, snippet=keywords["snippet"], segments=None).tolist() == [0, 8]
        model: Any = build(**keywords)
        assert model.fc.out_features == 3
