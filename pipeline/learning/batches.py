"""The batches of one experiment on the device, as its settings have them: to train on, and to test while training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_fabric import Fabric
from torch.utils.data import DataLoader, Subset

from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.learning.augmentation import Augmented
from pipeline.learning.clock import Clock
from pipeline.learning.devices import loader_options
from pipeline.learning.features import (
    FeatureBatches,
    feature_testing_batches,
    feature_training_batches,
    open_features,
)
from pipeline.learning.loader import Clip, ScoringSnippets, TrainingBatches, TrainingSnippets, collate
from pipeline.learning.readers import FeatureIndex, FieldsOfFrames, Index, Reader, open_reader
from pipeline.stores.sharing import Sharing

SNIPPETS_AT_ONCE = 64
"""Most snippets in memory when scoring, over all crops."""
CHANNELS_AT_ONCE = 640
"""Most channels of these: 64 stacks of 5 flow fields, 5 MB a stack at 10 crops of 224 px; 13 clips of 16 frames."""


def loaders(
    clips: tuple[Sequence[Clip], Sequence[Clip]],
    index: Index | FeatureIndex,
    batches: TrainingBatches,
    *,
    beside: Index | None,
    sharing: Sharing | None,
    clock: Clock,
    **settings: Any,
) -> tuple[Augmented | FeatureBatches, Augmented | FeatureBatches]:
    """Training batches, and test batches for every time that they are gone through.

    Args:
        clips: to train on and to test on.
        index: of a store, or of features.
        batches: order of the training clips.
        beside: of flow that is read beside frames.
        sharing: of the stores.
        clock: of the training.
        settings: ``experiment``, ``compute`` and ``fabric``.
    """
    if index["stage"] == "features":
        store = open_features(index, sharing=sharing, by="train")
        return (
            feature_training_batches(clips[0], store, batches, clock=clock, **settings),
            feature_testing_batches(clips[1], store, **settings),
        )
    reader = open_reader(index, sharing=sharing, by="train", frames_from=settings["compute"].frames_from)
    other = (
        None if beside is None else FieldsOfFrames(open_reader(beside, sharing=sharing, by="train"), beside["videos"])
    )
    return (
        training_batches(clips[0], reader, batches, beside=other, clock=clock, **settings),
        testing_batches(clips[1], reader, **settings),
    )


def training_batches(
    clips: Sequence[Clip],
    reader: Reader,
    batches: TrainingBatches,
    *,
    experiment: ExperimentConfig,
    compute: ComputeConfig,
    fabric: Fabric,
    clock: Clock | None = None,
    beside: Reader | None = None,
) -> Augmented:
    """Random snippets under random views, in the order of ``batches``; ``beside`` reads flow of the same frames."""
    sampling = experiment.sampling
    dataset = TrainingSnippets(
        clips=clips,
        reader=reader,
        snippet=sampling.snippet,
        segments=sampling.segments,
        stride=sampling.stride,
        spread=sampling.spread,
        short=sampling.short,
        size=sampling.input_size,
        scales=sampling.crop_scales,
        places=sampling.crop_places,
        flip=sampling.flip,
        seed=batches.seed,
        reduced=sampling.reduced_decode,
        beside=beside,
    )
    loader: Any = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        **loader_options(compute, fabric),
    )
    return _augmented(loader, experiment=experiment, fabric=fabric, beside=beside is not None, clock=clock)


def testing_batches(
    clips: Sequence[Clip], reader: Reader, *, experiment: ExperimentConfig, compute: ComputeConfig, fabric: Fabric
) -> Augmented:
    """The centre crops of as many snippets as in training; this process's share of the videos, each once."""
    sampling = experiment.sampling
    dataset = ScoringSnippets(
        clips=clips,
        reader=reader,
        snippet=sampling.snippet,
        segments=sampling.segments,
        stride=sampling.stride,
        short=sampling.short,
        crops=1,
        scale=sampling.test_scale,
        chunk=sampling.segments,
        reduced_for=_reduced_for(experiment),
    )
    mine = Subset(dataset, range(fabric.global_rank, len(dataset), fabric.world_size))
    batch_size = max(1, experiment.optim.batch_size // fabric.world_size)
    loader: Any = DataLoader(mine, batch_size=batch_size, collate_fn=collate, **loader_options(compute, fabric))
    return _augmented(loader, experiment=experiment, fabric=fabric)


def scoring_snippets(clips: Sequence[Clip], reader: Reader, *, experiment: ExperimentConfig) -> ScoringSnippets:
    """What is scored of every video, as the settings have it, in chunks of bounded memory."""
    sampling = experiment.sampling
    views = 1 if sampling.test_crops == "whole" else sampling.test_crops
    at_once = min(SNIPPETS_AT_ONCE, CHANNELS_AT_ONCE // experiment.in_channels)
    return ScoringSnippets(
        clips=clips,
        reader=reader,
        snippet=sampling.snippet,
        segments=sampling.test_segments,
        stride=sampling.stride,
        short=sampling.short,
        crops=sampling.test_crops,
        scale=sampling.test_scale,
        chunk=max(1, at_once // views),
        reduced_for=_reduced_for(experiment),
    )


def flow_from(experiment: ExperimentConfig) -> int | None:
    """The first channel of flow in a snippet; None if it has none."""
    return None if experiment.modality == "frames" else 0


def _reduced_for(experiment: ExperimentConfig) -> int | None:
    """The input side for which frames may be decoded smaller, if they may."""
    return experiment.sampling.input_size if experiment.sampling.reduced_decode else None


def _augmented(
    loader: Any, *, experiment: ExperimentConfig, fabric: Fabric, beside: bool = False, clock: Clock | None = None
) -> Augmented:
    """The loader's batches on the device, with their views cut there."""
    return Augmented(
        batches=fabric.setup_dataloaders(loader, use_distributed_sampler=False, move_to_device=False),
        size=experiment.sampling.input_size,
        flow_from=experiment.in_channels if beside else flow_from(experiment),
        device=fabric.device,
        clock=clock,
    )
