"""Prediction: every test video once, the numbers of the model itself, no checkpoint of something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.build import build
from models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.config import ExperimentConfig, canonical
from pipeline.dataset.manifest import Manifest
from pipeline.learning import readers, transforms
from pipeline.learning.job import model_keywords
from pipeline.learning.sampling import snippet_indices
from pipeline.learning.sampling import test_positions as middle_positions
from pipeline.learning.scores import Scores, read_scores
from stages import predict as stage


@pytest.fixture(params=["frames", "flow"])
def modality(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def checkpoint(path: Path, learnable: Any, experiment: ExperimentConfig, *, split: str = "split1") -> Path:
    """An untrained model whose statistics and attention are not those of initialisation."""
    keywords = model_keywords(experiment, num_classes=3)
    torch.manual_seed(0)
    model = build(**keywords)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.1 * torch.rand_like(tensor)
    extra = {"split": split, "seed": 0}
    save_checkpoint(path, model=model, build=keywords, classes=learnable.manifest.classes, extra=extra)
    return path


def predict(learnable: Any, file: Path, experiment: ExperimentConfig, **changes: Any) -> Scores:
    settings: dict[str, Any] = {
        "manifest": learnable.manifest,
        "split": "split1",
        "compute": learnable.compute,
    } | changes
    index = learnable.index(experiment.modality)
    return stage.predict(settings.pop("manifest"), index, experiment=experiment, checkpoint=file, **settings)


def by_hand(learnable: Any, experiment: ExperimentConfig, file: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits and weights of one video: one call of the model for each crop, all snippets together, then the mean."""
    index, sampling = learnable.index(experiment.modality), experiment.sampling
    frames = index["videos"][name]["frames"]
    positions = middle_positions(frames, snippet=sampling.snippet, segments=sampling.test_segments)
    images = readers.open_reader(index).read(name, snippet_indices(positions, sampling.snippet, frames))
    views = transforms.fixed_views(
        images, size=sampling.input_size, crops=sampling.test_crops, flow=experiment.modality == "flow"
    )
    model = load_checkpoint(file).model.eval()
    with torch.no_grad():
        outputs = [model(torch.from_numpy(view).flatten(1, 2)[None]) for view in views]
    logits = torch.stack([output.logits[0] for output in outputs]).mean(dim=0)
    return logits.numpy(), torch.stack([output.weights[0] for output in outputs]).mean(dim=0).numpy()


@pytest.mark.parametrize(("crops", "at_once"), [(1, 64), (1, 2), (10, 30), (5, 1)])
def test_scores_are_those_of_the_model_whatever_the_chunks(
    learnable: Any, tmp_path: Path, modality: str, crops: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = learnable.experiment(modality, sampling={"test_crops": crops})
    file = checkpoint(tmp_path / "model.pt", learnable, experiment)
    monkeypatch.setattr(stage, "SNIPPETS_AT_ONCE", at_once)
    scores = predict(learnable, file, experiment)
    stored = learnable.index(modality)["videos"]
    expected = [video.id for video in learnable.manifest.part("split1", "test") if video.id in stored]
    assert scores.ids.tolist() == expected
    assert len(expected) == (5 if modality == "frames" else 6)
    assert scores.classes.tolist() == list(learnable.manifest.classes)
    for row, name in enumerate(expected):
        logits, weights = by_hand(learnable, experiment, file, name)
        np.testing.assert_allclose(scores.logits[row], logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(scores.weights[row], weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores.weights.sum(axis=1), 1, rtol=1e-5)
    assert np.ptp(scores.weights) > 1e-4  # attention is not uniform here, or the test would prove little
    assert scores.positions.shape == (len(expected), 5)


def test_workers_change_nothing(learnable: Any, tmp_path: Path) -> None:
    experiment = learnable.experiment()
    file = checkpoint(tmp_path / "model.pt", learnable, experiment)
    alone = predict(learnable, file, experiment)
    helped = predict(learnable, file, experiment, compute=learnable.compute.model_copy(update={"workers": 2}))
    np.testing.assert_array_equal(alone.logits, helped.logits)
    np.testing.assert_array_equal(alone.positions, helped.positions)


def test_a_checkpoint_of_something_else_is_refused(learnable: Any, tmp_path: Path) -> None:
    experiment = learnable.experiment()
    file = checkpoint(tmp_path / "model.pt", learnable, experiment)
    wider = learnable.experiment(sampling={"snippet": 5})
    with pytest.raises(ValueError, match="another model: in_channels is 4 instead of 10"):
        predict(learnable, file, wider)
    other = Manifest(tuple(v for v in learnable.manifest.videos if v.labels != ("up",)))
    with pytest.raises(ValueError, match="its classes differ .up."):
        predict(learnable, file, experiment, manifest=other)
    with pytest.raises(ValueError, match="was trained on split1; its scores on split2 would count videos"):
        predict(learnable, file, experiment, split="split2")
    with pytest.raises(ValueError, match="there is no checkpoint file"):
        predict(learnable, tmp_path / "none.pt", experiment)


def test_a_model_whose_scores_are_not_finite_is_refused(learnable: Any, tmp_path: Path) -> None:
    experiment = learnable.experiment()
    keywords = model_keywords(experiment, num_classes=3)
    model = build(**keywords)
    model.state_dict()["fc.weight"].fill_(float("nan"))
    extra = {"split": "split1"}
    save_checkpoint(tmp_path / "nan.pt", model=model, build=keywords, classes=learnable.manifest.classes, extra=extra)
    with pytest.raises(ValueError, match="scores are not finite"):
        predict(learnable, tmp_path / "nan.pt", experiment)


def test_the_command_writes_a_score_file(learnable: Any, tmp_path: Path) -> None:
    experiment = learnable.experiment()
    file = checkpoint(tmp_path / "model.pt", learnable, experiment)

    def command(out: str, split: str = "split1") -> None:
        options = {
            "--manifest": learnable.folder / "manifest.tsv",
            "--index": learnable.index_path("flow"),
            "--experiment": canonical(experiment),
            "--compute": canonical(learnable.compute),
            "--split": split,
            "--checkpoint": file,
            "--out": tmp_path / out,
        }
        stage.main([str(word) for pair in options.items() for word in pair])

    command("one.npz")
    command("two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    np.testing.assert_array_equal(read_scores(tmp_path / "one.npz").logits, predict(learnable, file, experiment).logits)
    with pytest.raises(SystemExit, match="predict: the manifest has no split 'split9'"):
        command("three.npz", split="split9")
