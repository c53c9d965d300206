"""Prediction: every test video once, the numbers of the model itself, no checkpoint of something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.build import build
from models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.config import ExperimentConfig, PredictionConfig, canonical
from pipeline.dataset.manifest import Manifest
from pipeline.learning import augmentation, batches, readers, transforms
from pipeline.learning.job import model_keywords
from pipeline.learning.loader import Clip
from pipeline.learning.sampling import scoring_positions as middle_positions
from pipeline.learning.sampling import snippet_indices
from pipeline.learning.scores import Scores, read_scores
from stages import predict as stage


@pytest.fixture(params=["frames", "flow"])
def modality(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def checkpoint(path: Path, learnable: Any, experiment: ExperimentConfig, *, sure: float = 1.0) -> Path:
    """An untrained model whose statistics and attention are not those of initialisation; it is very ``sure``."""
    keywords = model_keywords(experiment, num_classes=3)
    torch.manual_seed(0)
    model = build(**keywords)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor += 0.1 * torch.rand_like(tensor)
    model.fc.weight.data *= sure
    extra = {"split": "split1", "seed": 0}
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


def views_of(learnable: Any, experiment: ExperimentConfig, name: str) -> list[torch.Tensor]:
    """All snippets of one video (T, C, S, S) under each crop."""
    index, sampling = learnable.index(experiment.modality), experiment.sampling
    frames = index["videos"][name]["frames"]
    positions = middle_positions(frames, snippet=sampling.snippet, segments=sampling.test_segments)
    images = readers.open_reader(index).read(name, snippet_indices(positions, sampling.snippet, frames))
    boxes = transforms.fixed_views(*images.shape[-2:], crops=sampling.test_crops)
    return [
        augmentation.cut(
            torch.from_numpy(images).flatten(1, 2),
            torch.tensor(box),
            size=sampling.input_size,
            flow_from=0 if experiment.modality == "flow" else None,
        )
        for box in boxes
    ]


def by_hand(learnable: Any, experiment: ExperimentConfig, file: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Logits and weights of one video: one call of the model for each crop, all snippets together, then the mean."""
    views = views_of(learnable, experiment, name)
    model = load_checkpoint(file).model.eval()
    with torch.no_grad():
        outputs = [model(view[None]) for view in views]
    logits = torch.stack([output.logits[0] for output in outputs]).mean(dim=0)
    return logits.numpy(), torch.stack([output.weights[0] for output in outputs]).mean(dim=0).numpy()


@pytest.mark.parametrize(("crops", "at_once"), [(1, 64), (1, 2), (10, 30), (5, 1)])
def test_scores_are_those_of_the_model_whatever_the_chunks(
    learnable: Any, tmp_path: Path, modality: str, crops: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = learnable.experiment(modality, sampling={"test_crops": crops})
    file = checkpoint(tmp_path / "model.pt", learnable, experiment)
    monkeypatch.setattr(batches, "SNIPPETS_AT_ONCE", at_once)
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


def dcw_by_hand(p: np.ndarray, top: int | None, normalise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Equation (11) of STA-CNN in float64: p (T, K)."""
    alpha = 1 / -(p * np.log(p)).sum(axis=1)
    alpha[np.argsort(-alpha)[len(alpha) if top is None else top :]] = 0
    return (alpha[:, None] * p).sum(axis=0) / (alpha.sum() if normalise else 1), alpha / alpha.sum()


@pytest.mark.parametrize(
    ("prediction", "crops", "at_once"),
    [
        ({"top": 2}, 10, 20),
        ({"top": None, "normalise": False}, 1, 2),
        ({"kind": "average"}, 5, 64),
        ({"kind": "average", "normalise": False}, 1, 64),
    ],
)
def test_predictions_in_probabilities(
    learnable: Any, tmp_path: Path, prediction: Any, crops: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Softmax per view, mean over crops, then the weights: and the logits are the logarithm of what that gives."""
    model = {"family": "sta_cnn", "spatial": "shared", "groups": 3, "top": 1}
    experiment = learnable.experiment(model=model, sampling={"test_crops": crops, "test_segments": 15})
    experiment = experiment.model_copy(update={"prediction": PredictionConfig.model_validate(prediction)})
    file = checkpoint(tmp_path / "model.pt", learnable, experiment, sure=1e-4)
    monkeypatch.setattr(batches, "SNIPPETS_AT_ONCE", at_once)
    scores = predict(learnable, file, experiment)
    built = load_checkpoint(file).model.eval()
    for row, name in enumerate(scores.ids.tolist()):
        with torch.no_grad():
            logits = [built.score_snippets(view).logits for view in views_of(learnable, experiment, name)]
        p = np.mean([each.double().softmax(dim=1).numpy() for each in logits], axis=0)
        if prediction.get("kind") == "average":
            summed, weights = (
                (p.mean(axis=0) if prediction.get("normalise", True) else p.sum(axis=0)),
                np.full(15, 1 / 15),
            )
        else:
            summed, weights = dcw_by_hand(p, prediction["top"], prediction.get("normalise", True))
        assert 0.01 < p.min() < p.max() < 0.99
        np.testing.assert_allclose(np.exp(scores.logits[row]), summed, rtol=1e-3)
        np.testing.assert_allclose(scores.weights[row], weights, rtol=1e-3, atol=1e-6)
        assert (scores.weights[row] > 0).sum() == (prediction.get("top") or 15)


def test_a_class_without_any_probability_has_a_finite_score(learnable: Any) -> None:
    experiment = learnable.experiment(model={"family": "sta_cnn"}, sampling={"test_segments": 15})
    logits = torch.tensor([0.0, 500.0, -500.0]).expand(1, 15, 3)
    scores, weights = stage.predict_video(
        build(**model_keywords(experiment, num_classes=3)), logits, torch.ones(1, 15), experiment=experiment
    )
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores.softmax(dim=0), torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(weights, torch.full((15,), 1 / 15))


@pytest.mark.parametrize(("crops", "centre"), [(1, 0), (5, 4), (10, 4)])
@pytest.mark.parametrize("spatial", ["shared", "san"])
def test_maps_are_those_of_the_centre_crop(
    learnable: Any, tmp_path: Path, crops: int, centre: int, spatial: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"family": "sta_cnn", "spatial": spatial, "san": {"width": 0.03}}
    sampling = {"test_crops": crops, "test_segments": 15, "snippet": 2, "input_size": 64}
    experiment = learnable.experiment("frames" if spatial == "san" else "flow", model=model, sampling=sampling)
    file = checkpoint(tmp_path / "model.pt", learnable, experiment)
    monkeypatch.setattr(batches, "SNIPPETS_AT_ONCE", 4 * crops)
    scores = predict(learnable, file, experiment)
    assert scores.maps is not None
    assert scores.maps.dtype == np.float16
    built = load_checkpoint(file).model.eval()
    for row, name in enumerate(scores.ids.tolist()):
        with torch.no_grad():
            expected = built.score_snippets(views_of(learnable, experiment, name)[centre]).maps
        assert expected is not None
        np.testing.assert_allclose(scores.maps[row], expected.numpy(), rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(scores.maps.astype(np.float64).sum(axis=(2, 3)), 1, atol=5e-3)
    assert np.ptp(scores.maps.astype(np.float32)) > 1e-3  # not uniform, or the test would prove little


def test_the_view_is_the_centre_crop_as_parts_of_the_frame(learnable: Any, tmp_path: Path) -> None:
    """Of 40x40 pixels seven eighths, 35 from pixel 2 on; whatever the network's input. ATW has no maps."""
    experiment = learnable.experiment(sampling={"test_crops": 10})
    scores = predict(learnable, checkpoint(tmp_path / "model.pt", learnable, experiment), experiment)
    assert scores.maps is None
    np.testing.assert_allclose(scores.view, [[2 / 40, 2 / 40, 37 / 40, 37 / 40]] * len(scores.ids), rtol=1e-6)
    wide: Any = {"videos": {"a": {"height": 256, "width": 340}}}
    (view,) = stage.scored_views(wide, [Clip("a", 0, 9)], experiment=ExperimentConfig(modality="frames"))
    np.testing.assert_allclose(view, [58 / 340, 16 / 256, 282 / 340, 240 / 256], rtol=1e-6)  # 224 of 340x256


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
