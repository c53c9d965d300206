"""The batches of one experiment on the device, as its settings have them: to train on, and to test while training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader, Subset

from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.learning.augmentation import Augmented
from pipeline.learning.loader import Clip, ScoringSnippets, TrainingBatches, TrainingSnippets, collate
from pipeline.learning.readers import Reader


def training_batches(
    clips: Sequence[Clip],
    reader: Reader,
    batches: TrainingBatches,
    *,
    experiment: ExperimentConfig,
    compute: ComputeConfig,
    fabric: Fabric,
) -> Augmented:
    """Random snippets under random views, in the order of ``batches``."""
    sampling = experiment.sampling
    dataset = TrainingSnippets(
        clips=clips,
        reader=reader,
        snippet=sampling.snippet,
        segments=sampling.segments,
        size=sampling.input_size,
        scales=sampling.crop_scales,
        flip=sampling.flip,
        seed=batches.seed,
    )
    loader: Any = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=compute.workers,
        collate_fn=collate,
        pin_memory=fabric.device.type == "cuda",
        generator=torch.Generator(),  # the loader draws when it starts, which must not move the model's draws
    )
    return _augmented(loader, experiment=experiment, fabric=fabric)


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
        crops=1,
        chunk=sampling.segments,
    )
    mine = Subset(dataset, range(fabric.global_rank, len(dataset), fabric.world_size))
    batch_size = max(1, experiment.optim.batch_size // fabric.world_size)
    loader: Any = DataLoader(
        mine, batch_size=batch_size, num_workers=compute.workers, collate_fn=collate, generator=torch.Generator()
    )
    return _augmented(loader, experiment=experiment, fabric=fabric)


def _augmented(loader: Any, *, experiment: ExperimentConfig, fabric: Fabric) -> Augmented:
    """The loader's batches on the device, with their views cut there."""
    return Augmented(
        batches=fabric.setup_dataloaders(loader, use_distributed_sampler=False),
        size=experiment.sampling.input_size,
        flow=experiment.modality != "frames",
        device=fabric.device,
    )
