"""Stage predict: scores and attention of a trained model on the test videos of one split.

Shapes: V videos, T test snippets, t snippets of one item, K classes, C channels, S input size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from models.build import Head, Model, SnippetModel
from models.checkpoint import load_checkpoint
from models.scoring import SnippetScores
from models.sta_cnn import dcw
from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.learning.augmentation import Augmented
from pipeline.learning.batches import flow_from, scoring_snippets
from pipeline.learning.devices import loader_options, start
from pipeline.learning.features import feature_testing_batches, open_features
from pipeline.learning.job import add_arguments, feature_shape, model_keywords, read_source
from pipeline.learning.loader import Clip, select
from pipeline.learning.readers import FeatureIndex, Index, open_reader
from pipeline.learning.scores import Scores, write_scores
from pipeline.learning.transforms import Crops, fixed_views
from pipeline.progress import track
from pipeline.stores.sharing import Sharing

CENTRE = 4
"""Number of the centre crop among five or ten."""
NO_SNIPPET = -1
"""Position where a video has fewer snippets than the one that has most."""


def predict(
    manifest: Manifest,
    index: Index | FeatureIndex,
    *,
    experiment: ExperimentConfig,
    compute: ComputeConfig,
    split: str,
    checkpoint: Path,
    sharing: Sharing | None = None,
) -> Scores:
    """Score every test video of ``split`` that the store holds, in the order of the ids.

    Raises:
        ValueError: the checkpoint is of another model, other classes or another split, or there is nothing to test.
    """
    clips, left_out = select(manifest, index, split=split, part="test")
    if left_out:
        line = f"{len(left_out)} test videos have no {index['stage']} and are left out: {', '.join(left_out)}"
        print(line, file=sys.stderr)
    keywords = model_keywords(experiment, num_classes=len(manifest.classes), feature_shape=feature_shape(index))
    model = load_model(checkpoint, keywords=keywords, classes=manifest.classes, split=split)
    fabric = start(compute, precision="32-true", alone=True)
    model.to(fabric.device)
    view = scored_views(index, clips, experiment=experiment)
    if isinstance(model, Head):
        assert index["stage"] == "features"  # or the keywords would have been of no head
        store = open_features(index, sharing=sharing, by="predict")
        batches = feature_testing_batches(clips, store, experiment=experiment, compute=compute, fabric=fabric)
        return score_features(model, batches, clips=clips, classes=manifest.classes, view=view)
    assert index["stage"] != "features"
    reader = open_reader(index, sharing=sharing, by="predict", frames_from=compute.frames_from)
    dataset = scoring_snippets(clips, reader, experiment=experiment)
    loader: Any = DataLoader(dataset, batch_size=None, **loader_options(compute, fabric))
    size, flow = experiment.sampling.input_size, flow_from(experiment)
    views = Augmented(batches=loader, size=size, flow_from=flow, device=fabric.device)
    items = track(views, total=len(dataset), label="predict", unit="item")
    return score(model, items, clips=clips, classes=manifest.classes, view=view, experiment=experiment)


def load_model(checkpoint: Path, *, keywords: dict[str, Any], classes: Sequence[str], split: str) -> Model:
    """The trained model of the experiment.

    Args:
        checkpoint: ``model.pt`` of its training.
        keywords: of ``build``, as the experiment has them.
        classes: names.
        split: whose training part it must have learnt.

    Raises:
        ValueError: the file is missing, or not a checkpoint of this model, of these classes and of this split.
    """
    if not checkpoint.is_file():
        raise ValueError(f"there is no checkpoint file {checkpoint}; train the model first")
    found = load_checkpoint(checkpoint, expect_build=keywords, expect_classes=classes)
    trained_on = found.extra.get("split")
    if trained_on != split:
        raise ValueError(
            f"{checkpoint} was trained on {trained_on}; its scores on {split} would count videos it has seen"
        )
    return found.model


@torch.inference_mode()
def score(
    model: SnippetModel,
    items: Iterable[Any],
    *,
    clips: Sequence[Clip],
    classes: Sequence[str],
    view: NDArray[np.float32],
    experiment: ExperimentConfig,
) -> Scores:
    """Gather the items of each video and predict from its snippets.

    Args:
        model: on the device.
        items: (views (crops, t, C, S, S) on the device, label, video number, positions (t,)), all items of a video in a
            row.
        clips: the videos by number.
        classes: names of the classes.
        view: (V, 4) centre crops as parts of the frames.
        experiment: how to predict, and from how many crops.
    """
    model.eval()
    centre = 0 if experiment.sampling.test_crops in ("whole", 1) else CENTRE
    logits, weights, positions, maps = [], [], [], []
    for _, chunks in groupby(items, key=lambda item: item[2]):
        parts = [(_score_chunk(model, views, centre=centre), places) for views, _, _, places in chunks]
        found = [part for part, _ in parts]
        snippets = torch.cat([part.logits for part in found], dim=1)  # crops T K
        energy = torch.cat([part.energy for part in found], dim=1)  # crops T
        video_logits, video_weights = predict_video(model, snippets, energy, experiment=experiment)
        logits.append(video_logits.cpu().numpy())
        weights.append(video_weights.cpu().numpy())
        positions.append(np.concatenate([places.numpy() for _, places in parts]))
        if looks := [part.maps for part in found if part.maps is not None]:
            maps.append(torch.cat(looks).half().cpu().numpy())
    return _gathered(logits, weights, positions, maps, clips=clips, classes=classes, view=view)


@torch.inference_mode()
def score_features(
    model: Head,
    batches: Iterable[Any],
    *,
    clips: Sequence[Clip],
    classes: Sequence[str],
    view: NDArray[np.float32],
) -> Scores:
    """Scores of a head, which sees a video's features at once.

    Args:
        model: on the device.
        batches: (what the head takes, labels, video numbers, positions (B, T)), all videos in order.
        clips: the videos by number.
        classes: names of the classes.
        view: (V, 4) what features are of, as parts of the frames.
    """
    model.eval()
    logits, weights, positions, maps = [], [], [], []
    for inputs, _, _, places in batches:
        output = model(*inputs)
        logits += list(output.logits.cpu().numpy())
        weights += list(output.weights.cpu().numpy())
        positions += list(places.numpy())
        if getattr(output, "masks", None) is not None:
            maps += list(output.masks.half().cpu().numpy())
    return _gathered(logits, weights, positions, maps, clips=clips, classes=classes, view=view)


def _gathered(
    logits: list[Any],
    weights: list[Any],
    positions: list[Any],
    maps: list[Any],
    *,
    clips: Sequence[Clip],
    classes: Sequence[str],
    view: NDArray[np.float32],
) -> Scores:
    """Scores of lists with an array for each video: (K,), (T,), (T,) and (T, h, w); no maps where there are none."""
    return Scores(
        ids=np.array([clip.id for clip in clips]),
        logits=np.stack(logits),
        weights=padded(weights, fill=0),
        positions=padded(positions, fill=NO_SNIPPET),
        classes=np.array(classes),
        maps=padded(maps, fill=0) if maps else None,
        view=view,
    )


def padded(rows: Sequence[NDArray[Any]], *, fill: int) -> NDArray[Any]:
    """One array of arrays (T, ...) of different lengths: (V, longest T, ...), filled up at the end."""
    longest = max(len(row) for row in rows)
    filled = np.full((len(rows), longest, *rows[0].shape[1:]), fill, rows[0].dtype)
    for place, row in zip(filled, rows, strict=True):
        place[: len(row)] = row
    return filled


def predict_video(
    model: SnippetModel, logits: Tensor, energy: Tensor, *, experiment: ExperimentConfig
) -> tuple[Tensor, Tensor]:
    """The scores of one video from those of its snippets.

    "model" is the model's consensus for each crop, then the mean over crops. The others average each snippet's
    probabilities over crops first: "average" sums them alike, "dcw" as equation (11) of STA-CNN has it.

    Args:
        model: whose consensus it is.
        logits: (crops, T, K) of the snippets.
        energy: (crops, T).
        experiment: how to predict.

    Returns:
        (K,) scores before the softmax: of the others the logarithm of the sum. (T,) weights; theirs sum to one.
    """
    prediction = experiment.prediction
    if experiment.predicts == "model":
        video = model.consensus(logits, energy)
        return video.logits.mean(dim=0), video.weights.mean(dim=0)
    probabilities = logits.softmax(dim=-1).mean(dim=0)  # T K
    match experiment.predicts:
        case "average":
            weights = torch.ones_like(probabilities[:, 0])
            summed = probabilities.mean(dim=0) if prediction.normalise else probabilities.sum(dim=0)
        case "dcw":
            summed, weights = dcw(probabilities, top=prediction.top, normalise=prediction.normalise)
    return summed.clamp(min=torch.finfo(summed.dtype).tiny).log(), weights / weights.sum()


def _score_chunk(model: SnippetModel, views: Tensor, *, centre: int) -> SnippetScores:
    """(crops, t, C, S, S) -> logits (crops, t, K), energies (crops, t), and maps (t, h, w) of one crop or None."""
    scores = model.score_snippets(views.flatten(0, 1))
    logits, energy = (values.unflatten(0, views.shape[:2]) for values in (scores.logits, scores.energy))
    maps = None if scores.maps is None else scores.maps.unflatten(0, views.shape[:2])[centre]
    return SnippetScores(logits, energy, maps)


def scored_views(
    index: Index | FeatureIndex, clips: Sequence[Clip], *, experiment: ExperimentConfig
) -> NDArray[np.float32]:
    """(V, 4) x0, y0, x1, y1 of the centre crop of each video, or of all of it, as parts of its frames."""
    sampling = experiment.sampling
    crops: Crops = "whole" if sampling.test_crops == "whole" else 1
    boxes = []
    for clip in clips:
        stored = index["videos"][clip.id]
        height, width = stored["height"], stored["width"]
        (box,) = fixed_views(height, width, crops=crops, scale=sampling.test_scale)
        corners = (box.x / width, box.y / height, (box.x + box.width) / width, (box.y + box.height) / height)
        boxes.append(corners)
    return np.array(boxes, np.float32)


def main(argv: list[str] | None = None) -> None:
    """Score the test videos of one split."""
    parser = argparse.ArgumentParser(prog="python -m stages.predict", description=main.__doc__)
    add_arguments(parser)
    parser.add_argument("--checkpoint", type=Path, required=True, help="model.pt of the training")
    parser.add_argument("--out", type=Path, required=True, help="score file to write")
    arguments = parser.parse_args(argv)
    try:
        scores = predict(
            read_manifest(arguments.manifest),
            read_source(arguments),
            experiment=arguments.experiment,
            compute=arguments.compute,
            split=arguments.split,
            checkpoint=arguments.checkpoint,
            sharing=Sharing.of(arguments.sharing, notes=arguments.damaged),
        )
    except (OSError, ValueError) as error:
        sys.exit(f"predict: {error}")
    write_scores(arguments.out, scores)


if __name__ == "__main__":
    main()
