"""Stage train: one experiment on one split with one seed.

The weights after the last epoch are kept. Test accuracy appears in the history to be looked at; it selects nothing.
Every epoch draws from a seed of its own, so a run that was killed continues to the same weights.

Shapes: B videos, N snippets, C channels, S input size, K classes.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from models.build import build
from models.checkpoint import load_checkpoint, load_state, save_checkpoint
from models.tsn import parameter_groups
from pipeline.config import ComputeConfig, ExperimentConfig, OptimConfig, canonical
from pipeline.dataset.digests import file_digest
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.dataset.plan import training_part
from pipeline.learning.history import Row, Timed, epoch_line, history_table
from pipeline.learning.job import add_arguments, model_keywords, start
from pipeline.learning.loader import (
    Clip,
    ScoringSnippets,
    TrainingBatches,
    TrainingSnippets,
    derived_seed,
    select,
)
from pipeline.learning.readers import Index, Reader, open_reader, read_index
from pipeline.progress import track
from pipeline.stores.publish import write_text
from pipeline.stores.sharing import Sharing

TEST_EPOCHS = 10
"""Number of epochs after which the test videos are scored for the history; so it costs little."""

Item = TypeVar("Item")


def train(
    manifest: Manifest,
    index: Index,
    *,
    experiment: ExperimentConfig,
    compute: ComputeConfig,
    split: str,
    seed: int,
    out: Path,
    sharing: Sharing | None = None,
) -> None:
    """Train and write ``model.pt`` and ``history.csv`` to ``out``; meanwhile ``last.pt`` there lets it continue.

    Raises:
        ValueError: the videos, the settings, the device or a pretrained file do not fit, or the loss is not finite.
    """
    pretrained = experiment.model.pretrained
    if pretrained is not None and not pretrained.is_file():
        raise ValueError(f"there is no checkpoint file {pretrained}; correct model.pretrained or set it to null")
    fabric = start(compute, devices=compute.devices, precision=compute.precision)
    clips, test_clips = _clips(manifest, index, split=split, fabric=fabric)
    keywords = model_keywords(experiment, num_classes=len(manifest.classes))
    torch.manual_seed(derived_seed(seed, "weights"))
    model = build(**keywords)
    _log(fabric, str(model.load_report) if model.load_report else None)
    optimizer = make_optimizer(model, experiment=experiment)
    saved = Checkpoint(
        path=out / "last.pt",
        keywords=keywords,
        classes=manifest.classes,
        fingerprint=fingerprint(clips, index, experiment=experiment, compute=compute, split=split, seed=seed),
    )
    history, state = saved.read(model, fabric)
    wrapped, optimizer = fabric.setup(model, optimizer)
    if state is not None:
        optimizer.load_state_dict(state)

    optim = experiment.optim
    batches = TrainingBatches(
        videos=len(clips),
        batch_size=optim.batch_size,
        epochs=range(len(history), optim.epochs),
        seed=seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
    )
    reader = open_reader(index, sharing=sharing, by="train")
    stream = iter(_training_loader(clips, reader, batches, experiment=experiment, compute=compute, fabric=fabric))
    test_loader = _test_loader(test_clips, reader, experiment=experiment, compute=compute, fabric=fabric)
    for epoch in batches.epochs:
        torch.manual_seed(derived_seed(seed, "epoch", epoch, fabric.global_rank))
        row = train_epoch(wrapped, optimizer, stream, epoch=epoch, steps=batches.steps, optim=optim, fabric=fabric)
        if is_test_epoch(epoch, epochs=optim.epochs):
            row["test_top1"] = accuracy(model, test_loader, fabric=fabric)
        history.append(row)
        _log(fabric, epoch_line(row, epochs=optim.epochs))
        if fabric.is_global_zero:
            saved.write(model, optimizer.state_dict(), history)
    if fabric.is_global_zero:
        extra = {"split": split, "seed": seed}
        save_checkpoint(out / "model.pt", model=model, build=keywords, classes=manifest.classes, extra=extra)
        write_text(out / "history.csv", history_table(history))
        saved.path.unlink(missing_ok=True)
    fabric.barrier()


def train_epoch(
    model: Any, optimizer: Any, stream: Iterator[Any], *, epoch: int, steps: int, optim: OptimConfig, fabric: Fabric
) -> Row:
    """One pass over the training videos.

    Args:
        model: set up by Fabric, as is the optimizer.
        stream: batches on the device: snippets (B, N, C, S, S), labels (B,), video numbers, positions.
        epoch: counted from 0.
        steps: number of batches to take.

    Returns:
        A row of the history.

    Raises:
        ValueError: the loss is not finite.
    """
    start_seconds = time.perf_counter()
    factor = lr_factor(epoch, optim=optim)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    model.train()
    sums = torch.zeros(3, dtype=torch.float64, device=fabric.device)  # loss, right, videos; read once an epoch
    timed = Timed(islice(stream, steps))
    for snippets, labels, _, _ in _progress(timed, steps, label=f"epoch {epoch + 1}/{optim.epochs}", fabric=fabric):
        logits = model(snippets).logits
        loss = F.cross_entropy(logits, labels, label_smoothing=optim.label_smoothing)
        fabric.backward(loss)
        if optim.clip_norm is not None:
            # what is not finite is told below, or undone by the loss scaler of 16-mixed
            fabric.clip_gradients(model, optimizer, max_norm=optim.clip_norm, error_if_nonfinite=False)
        optimizer.step()
        optimizer.zero_grad()
        right = (logits.argmax(dim=1) == labels).sum()
        sums += torch.stack([loss.detach() * len(labels), right, right.new_tensor(len(labels))]).double()
    loss_sum, right_sum, videos = _total(sums, fabric).tolist()
    if not math.isfinite(loss_sum):
        raise ValueError(f"the loss is {loss_sum} in epoch {epoch + 1}; lower optim.lr or set optim.clip_norm")
    return {
        "epoch": epoch + 1,
        "lr": optim.lr * factor,
        "train_loss": loss_sum / videos,
        "train_top1": right_sum / videos,
        "test_top1": None,
        "seconds": time.perf_counter() - start_seconds,
        "data_wait_seconds": timed.seconds,
    }


def lr_factor(epoch: int, *, optim: OptimConfig) -> float:
    """What the learning rate is multiplied by in ``epoch``, counted from 0."""
    match optim.schedule:
        case "step":
            return optim.gamma ** sum(epoch >= milestone for milestone in optim.milestones)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / optim.epochs))


def make_optimizer(model: nn.Module, *, experiment: ExperimentConfig) -> torch.optim.Optimizer:
    """The optimizer; a group's own rate is in ``initial_lr``.

    No decay on biases and BatchNorm. TSN's learning-rate multipliers belong to fine-tuning: without a pretrained file
    all parameters have the same rate.
    """
    optim, tuning = experiment.optim, experiment.model.pretrained is not None
    modality = "rgb" if experiment.modality == "frames" else experiment.modality
    groups = []
    for group in parameter_groups(model, modality=modality):
        lr = optim.lr * (group["lr_mult"] if tuning else 1.0)
        decay = optim.weight_decay * group["decay_mult"]
        groups.append({"params": group["params"], "lr": lr, "initial_lr": lr, "weight_decay": decay})
    match optim.optimizer:
        case "sgd":
            return torch.optim.SGD(groups, momentum=optim.momentum)
        case "adamw":
            return torch.optim.AdamW(groups)


def is_test_epoch(epoch: int, *, epochs: int) -> bool:
    """Whether the test videos are scored after ``epoch``, counted from 0: ten times or so, and after the last."""
    every = max(1, epochs // TEST_EPOCHS)
    return epoch + 1 == epochs or (epoch + 1) % every == 0


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[Any], *, fabric: Fabric) -> float:
    """Share of test videos whose class is right by the centre crops of as many snippets as in training.

    Args:
        model: not wrapped, because the processes' shares of the videos differ in length.
        batches: (views (B, 1, N, C, S, S), labels (B,), ...) on the device.
    """
    if fabric.world_size > 1:  # BatchNorm's statistics are those of each process; rank 0's are the ones that are saved
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=fabric.device)
    for views, labels, _, _ in batches:
        with fabric.autocast():
            right = (model(views[:, 0]).logits.argmax(dim=1) == labels).sum()
        sums += torch.stack([right, right.new_tensor(len(labels))]).double()
    right_sum, videos = _total(sums, fabric).tolist()
    return right_sum / videos


def fingerprint(
    clips: Sequence[Clip],
    index: Index,
    *,
    experiment: ExperimentConfig,
    compute: ComputeConfig,
    split: str,
    seed: int,
) -> str:
    """A hash of everything that decides the weights, but for the machine."""
    pretrained = experiment.model.pretrained
    parts = {
        "clips": [[*clip, index["videos"][clip.id]["key"]] for clip in clips],  # the key follows the pixels
        "index": {"stage": index["stage"], "parameters": index["parameters"]},
        "experiment": training_part(experiment),
        "pretrained": file_digest(pretrained) if pretrained else None,
        "precision": compute.precision,
        "split": split,
        "seed": seed,
    }
    return hashlib.blake2b(canonical(parts).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """``last.pt``: where a training stands after its last whole epoch."""

    path: Path
    keywords: dict[str, Any]
    classes: tuple[str, ...]
    fingerprint: str

    def write(self, model: nn.Module, optimizer: dict[str, Any], history: list[Row]) -> None:
        """Write atomically."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        extra = {"fingerprint": self.fingerprint, "optimizer": optimizer, "history": history}
        save_checkpoint(self.path, model=model, build=self.keywords, classes=self.classes, extra=extra)

    def read(self, model: nn.Module, fabric: Fabric) -> tuple[list[Row], dict[str, Any] | None]:
        """Load the weights into ``model``; return history and optimizer state, none if it is of another training."""
        if not self.path.exists():
            return [], None
        try:
            found = load_checkpoint(self.path, expect_build=self.keywords, expect_classes=self.classes)
        except ValueError as error:
            _log(fabric, f"{error}; starting from the first epoch")
            return [], None
        if found.extra.get("fingerprint") != self.fingerprint:
            _log(fabric, f"{self.path} is of a training on other data or settings; starting from the first epoch")
            return [], None
        load_state(model, found.model.state_dict())
        _log(fabric, f"continuing after epoch {len(found.extra['history'])} of {self.path}")
        return found.extra["history"], found.extra["optimizer"]


def _clips(manifest: Manifest, index: Index, *, split: str, fabric: Fabric) -> tuple[list[Clip], list[Clip]]:
    """Training and test clips; what the store lacks is logged, a class without a training video is an error."""
    parts = []
    for part in ("train", "test"):
        clips, left_out = select(manifest, index, split=split, part=part)
        if left_out:
            _log(
                fabric,
                f"{len(left_out)} {part} videos have no {index['stage']} and are left out: {', '.join(left_out)}",
            )
        parts.append(clips)
    trained = {clip.label for clip in parts[0]}
    for number, name in enumerate(manifest.classes):
        if number not in trained:
            raise ValueError(
                f"the class {name!r} has no training video with {index['stage']} in {split}; "
                "add one, or list it in exclude_labels"
            )
    return parts[0], parts[1]


def _training_loader(
    clips: list[Clip],
    reader: Reader,
    batches: TrainingBatches,
    *,
    experiment: ExperimentConfig,
    compute: ComputeConfig,
    fabric: Fabric,
) -> Any:
    sampling = experiment.sampling
    dataset = TrainingSnippets(
        clips=clips,
        reader=reader,
        snippet=sampling.snippet,
        segments=sampling.segments,
        size=sampling.input_size,
        scales=sampling.crop_scales,
        flip=sampling.flip,
        flow=experiment.modality != "frames",
        seed=batches.seed,
    )
    loader: Any = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=compute.workers,
        pin_memory=fabric.device.type == "cuda",
        generator=torch.Generator(),  # the loader draws when it starts, which must not move the model's draws
    )
    return fabric.setup_dataloaders(loader, use_distributed_sampler=False)


def _test_loader(
    clips: list[Clip], reader: Reader, *, experiment: ExperimentConfig, compute: ComputeConfig, fabric: Fabric
) -> Any:
    sampling = experiment.sampling
    dataset = ScoringSnippets(
        clips=clips,
        reader=reader,
        snippet=sampling.snippet,
        segments=sampling.segments,
        size=sampling.input_size,
        crops=1,
        flow=experiment.modality != "frames",
        chunk=sampling.segments,
    )
    mine = Subset(dataset, range(fabric.global_rank, len(dataset), fabric.world_size))  # every video once
    batch_size = max(1, experiment.optim.batch_size // fabric.world_size)
    loader: Any = DataLoader(mine, batch_size=batch_size, num_workers=compute.workers, generator=torch.Generator())
    return fabric.setup_dataloaders(loader, use_distributed_sampler=False)


def _total(sums: Tensor, fabric: Fabric) -> Tensor:
    """Sums over all processes."""
    total: Any = fabric.all_reduce(sums, reduce_op="sum")
    return total


def _progress(batches: Iterable[Item], steps: int, *, label: str, fabric: Fabric) -> Iterable[Item]:
    return track(batches, total=steps, label=label, unit="step") if fabric.is_global_zero else batches


def _log(fabric: Fabric, line: str | None) -> None:
    if line and fabric.is_global_zero:
        print(line, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> None:
    """Train one experiment on one split."""
    parser = argparse.ArgumentParser(prog="python -m stages.train", description=main.__doc__)
    add_arguments(parser)
    parser.add_argument("--seed", type=int, required=True, help="of weights, order and draws")
    parser.add_argument("--out", type=Path, required=True, help="folder for model.pt and history.csv")
    arguments = parser.parse_args(argv)
    try:
        train(
            read_manifest(arguments.manifest),
            read_index(arguments.index, stage=arguments.experiment.modality),
            experiment=arguments.experiment,
            compute=arguments.compute,
            split=arguments.split,
            seed=arguments.seed,
            out=arguments.out,
            sharing=Sharing.of(arguments.sharing, notes=arguments.damaged),
        )
    except (OSError, ValueError) as error:
        sys.exit(f"train: {error}")


if __name__ == "__main__":
    main()
