"""Stage predict: scores and temporal attention of a trained model on the test videos of one split.

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
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from models.atw import ATW
from models.checkpoint import load_checkpoint
from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.learning.job import add_arguments, model_keywords, start
from pipeline.learning.loader import Clip, ScoringSnippets, select
from pipeline.learning.readers import Index, open_reader, read_index
from pipeline.learning.scores import Scores, write_scores
from pipeline.progress import track
from pipeline.stores.sharing import Sharing

SNIPPETS_AT_ONCE = 64
"""Most snippets in memory, over all crops: 10 crops of a 10-channel snippet at 224 px are 5 MB."""


def predict(
    manifest: Manifest,
    index: Index,
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
    model = load_model(checkpoint, manifest, experiment=experiment, split=split)
    fabric = start(compute, devices=1, precision="32-true")
    sampling = experiment.sampling
    dataset = ScoringSnippets(
        clips=clips,
        reader=open_reader(index, sharing=sharing, by="predict"),
        snippet=sampling.snippet,
        segments=sampling.test_segments,
        size=sampling.input_size,
        crops=sampling.test_crops,
        flow=experiment.modality != "frames",
        chunk=max(1, SNIPPETS_AT_ONCE // sampling.test_crops),
    )
    loader: Any = DataLoader(dataset, batch_size=None, num_workers=compute.workers)
    items = track(loader, total=len(dataset), label="predict", unit="item")
    return score(model.to(fabric.device), items, clips=clips, classes=manifest.classes, fabric=fabric)


def load_model(checkpoint: Path, manifest: Manifest, *, experiment: ExperimentConfig, split: str) -> ATW:
    """The trained model of the experiment.

    Raises:
        ValueError: the file is missing, or not a checkpoint of this model, of these classes and of this split.
    """
    if not checkpoint.is_file():
        raise ValueError(f"there is no checkpoint file {checkpoint}; train the model first")
    keywords = model_keywords(experiment, num_classes=len(manifest.classes))
    found = load_checkpoint(checkpoint, expect_build=keywords, expect_classes=manifest.classes)
    trained_on = found.extra.get("split")
    if trained_on != split:
        raise ValueError(
            f"{checkpoint} was trained on {trained_on}; its scores on {split} would count videos it has seen"
        )
    assert isinstance(found.model, ATW)
    return found.model


@torch.inference_mode()
def score(model: ATW, items: Iterable[Any], *, clips: Sequence[Clip], classes: Sequence[str], fabric: Fabric) -> Scores:
    """Gather the items of each video, weight its snippets, and average over crops.

    Args:
        model: on the device.
        items: (views (crops, t, C, S, S), label, video number, positions (t,)), all items of a video in a row.
        clips: the videos by number.
        classes: names of the classes.
    """
    model.eval()
    logits, weights, positions = [], [], []
    for _, chunks in groupby(items, key=lambda item: item[2]):
        parts = [(*_score_chunk(model, views.to(fabric.device)), places) for views, _, _, places in chunks]
        snippet_logits, energy, places = (torch.cat([part[i] for part in parts], dim=-1) for i in range(3))
        video = model.consensus(snippet_logits.movedim(1, 2), energy)  # crops K T -> crops T K
        logits.append(video.logits.mean(dim=0).cpu().numpy())
        weights.append(video.weights.mean(dim=0).cpu().numpy())
        positions.append(places.numpy())
    return Scores(
        ids=np.array([clip.id for clip in clips]),
        logits=np.stack(logits),
        weights=np.stack(weights),
        positions=np.stack(positions),
        classes=np.array(classes),
    )


def _score_chunk(model: ATW, views: Tensor) -> tuple[Tensor, Tensor]:
    """(crops, t, C, S, S) -> snippet logits (crops, K, t) and energies (crops, t)."""
    scores = model.score_snippets(views.flatten(0, 1))
    return scores.logits.unflatten(0, views.shape[:2]).movedim(2, 1), scores.energy.unflatten(0, views.shape[:2])


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
            read_index(arguments.index, stage=arguments.experiment.modality),
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
