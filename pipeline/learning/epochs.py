"""The loop of every training: epochs of steps, measured, tested now and then, and kept so that a kill costs little.

A step sees ``batch_size`` videos whatever the number of processes and of parts that a process takes them in
(gradient accumulation): each process has an equal share, and a part's loss counts by its share of that.

Shapes: k measures of a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.config import ComputeConfig
from pipeline.learning.clock import Clock
from pipeline.learning.curves import Curves
from pipeline.learning.history import Row
from pipeline.learning.job import log, progress, total
from pipeline.learning.loader import TrainingBatches
from pipeline.learning.order import derived_seed
from pipeline.learning.resume import LastState, Progress, restore_random

STEPS_A_ROW = 10
"""Steps that are measured together. Losses are read from the device no more often, and checkpoints written then."""
MEGABYTE = 1 << 20
SPEED = ("samples_per_second", "data_wait_share", "gpu_memory_mb")
"""Columns of ``metrics.csv`` that differ from run to run."""


class Seen(NamedTuple):
    """What a model makes of one batch."""

    loss: Tensor
    """() mean over the samples, with its graph."""
    measures: Tensor
    """(k,) sums over the samples."""
    samples: int


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the loop needs to know of a training.

    ``wrapped`` is the network ``model`` as Fabric has set it up, and so is the optimizer, whose groups hold
    ``initial_lr``.
    """

    fabric: Fabric
    model: nn.Module
    wrapped: Any
    optimizer: Any
    clock: Clock
    batches: TrainingBatches
    """Order of the samples."""
    epochs: int
    see: Callable[[Any], Seen]
    """Calls ``wrapped`` on a batch of the stream."""
    measures: tuple[str, ...]
    """Names of the columns that hold the means of the measures; the first is the loss."""
    lr: float
    factor: Callable[[int, Sequence[Row]], float]
    """What the learning rates are multiplied by in an epoch, counted from 0, after others."""
    clip_norm: float | None = None
    remedy: str
    """What to do when the loss is not finite."""
    line: Callable[[Row], str]
    """A row as a line to read."""
    finish_epoch: Callable[[int, list[Row]], None] = lambda epoch, history: None
    """Called after an epoch, counted from 0, with the history, to whose last row it may add."""


def set_up(
    model: nn.Module,
    optimizer: Any,
    found: dict[str, Any] | None,
    *,
    fabric: Fabric,
    compute: ComputeConfig,
    see: Callable[[Any, Any], Seen],
    **settings: Any,
) -> Training:
    """A training on the devices, at the state that was found.

    Args:
        model: on the CPU.
        optimizer: of its parameters.
        found: by ``LastState.read``.
        fabric: the devices.
        compute: how they are used.
        see: calls the model that it is given on a batch.
        settings: the other fields of ``Training``.
    """
    if found is not None:
        model.load_state_dict(found["model"])
    if compute.channels_last:
        _channels_last(model)
    forward: Any = torch.compile(model) if compute.compile else model
    wrapped, wrapped_optimizer = fabric.setup(forward, optimizer)
    if found is not None:
        wrapped_optimizer.load_state_dict(found["optimizer"])
        fabric.strategy.precision.load_state_dict(found["scaler"])
    return Training(
        fabric=fabric,
        model=model,
        wrapped=wrapped,
        optimizer=wrapped_optimizer,
        see=lambda batch: see(wrapped, batch),
        **settings,
    )


def _channels_last(model: nn.Module) -> None:
    """Lay the weights of convolutions out so; what they see follows."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in model.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])


def run_epochs(job: Training, stream: Iterator[Any], begun: Progress, *, last: LastState, out: Path) -> list[Row]:
    """Train through what is left, and write ``last.pt``, ``metrics.csv`` and TensorBoard's files meanwhile.

    Args:
        job: the training.
        stream: its batches on the device, from where it was left.
        begun: how far it is.
        last: where its state is kept.
        out: folder of the curves.

    Returns:
        The history, a row an epoch.

    Raises:
        ValueError: the loss is not finite.
    """
    steps, columns = job.batches.steps, ("epoch", "lr", *job.measures, *SPEED)
    curves = None
    if job.fabric.is_global_zero:
        curves = Curves(out, columns=columns, step=begun.epoch * steps + begun.step)
    for epoch in range(begun.epoch, job.epochs):
        begins = ("epoch", epoch, job.fabric.global_rank)
        seed = derived_seed(job.batches.seed, *begins, *(("step", begun.step) if begun.step else ()))
        restore_random(begun, fabric=job.fabric, seed=seed)
        row = _run_epoch(job, stream, begun, last=last, curves=curves)
        begun = Progress(epoch=epoch + 1, history=[*begun.history, row])
        job.finish_epoch(epoch, begun.history)
        log(job.fabric, job.line(row))
        if curves is not None:
            curves.points(begun.epoch * steps, {name: row[name] for name in row if name.startswith("test")})
        last.write(job.model, job.optimizer, begun, job.fabric)
    if curves is not None:
        curves.close()
    return begun.history


def _run_epoch(job: Training, stream: Iterator[Any], done: Progress, *, last: LastState, curves: Curves | None) -> Row:
    """One pass over the samples, or what is left of it; ``done`` is kept up to date."""
    factor = job.factor(done.epoch, done.history)
    for group in job.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    job.wrapped.train()
    steps = job.batches.steps
    sums = _nothing(job)
    left = range(done.step, steps)
    started = time.perf_counter()
    job.clock.restart()
    label, now = f"epoch {done.epoch + 1}/{job.epochs}", {"note": ""}
    for step in progress(left, len(left), label=label, note=lambda: now["note"], fabric=job.fabric):
        sums[:-1] += _train_step(job, stream, step)
        if (step + 1) % STEPS_A_ROW and step + 1 < steps:
            continue
        sums[-1] = float(last.due and job.fabric.is_global_zero)
        *found, due = total(sums, job.fabric).tolist()
        _check_finite(found[0], job, epoch=done.epoch)
        seconds = {"epoch": time.perf_counter() - started, **job.clock.take()}
        done.step = step + 1
        done.sums = _added(done.sums, found)
        done.seconds = {name: done.seconds.get(name, 0.0) + value for name, value in seconds.items()}
        if curves is not None:
            row = _metrics(job, done.epoch, factor, found, seconds)
            curves.add(done.epoch * steps + done.step, row)
            now["note"] = pace(row)
        if due and done.step < steps:
            last.write(job.model, job.optimizer, done, job.fabric)
        sums, started = _nothing(job), time.perf_counter()
        job.clock.restart()
    return _row(job, done, factor)


def _train_step(job: Training, stream: Iterator[Any], step: int) -> Tensor:
    """One step of the optimizer; returns the sums of the measures over this process's samples, and their number."""
    sums = _nothing(job)[:-1]
    parts, share = job.batches.parts(step), job.batches.share(step)
    for part in range(parts):
        batch = next(stream)
        with job.fabric.no_backward_sync(job.wrapped, enabled=part + 1 < parts):
            seen = job.see(batch)
            job.clock.mark("forward")
            job.fabric.backward(seen.loss if parts == 1 else seen.loss * (seen.samples / share))
            job.clock.mark("backward")
        sums[:-1] += seen.measures.double()  # nothing here waits for the device
        sums[-1] += seen.samples
    if job.clip_norm is not None:
        # what is not finite is told when it is read, or undone by the loss scaler of 16-mixed
        job.fabric.clip_gradients(job.wrapped, job.optimizer, max_norm=job.clip_norm, error_if_nonfinite=False)
    job.optimizer.step()
    job.optimizer.zero_grad()
    job.clock.mark("update")
    return sums


def _nothing(job: Training) -> Tensor:
    """Sums of the measures, of the samples, and of wishes to write a checkpoint."""
    return torch.zeros(len(job.measures) + 2, dtype=torch.float64, device=job.fabric.device)


def _added(sums: Sequence[float], found: Sequence[float]) -> list[float]:
    return [one + other for one, other in zip(sums, found, strict=True)] if sums else list(found)


def _check_finite(loss: float, job: Training, *, epoch: int) -> None:
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss} in epoch {epoch + 1}; {job.remedy}")


def _metrics(job: Training, epoch: int, factor: float, sums: Sequence[float], seconds: dict[str, float]) -> Row:
    """A row of ``metrics.csv``."""
    *measures, samples = sums
    means = dict(zip(job.measures, (value / samples for value in measures), strict=True))
    speed = (samples / seconds["epoch"], seconds["data_wait"] / seconds["epoch"], _gpu_memory(job.fabric))
    return {"epoch": epoch + 1, "lr": job.lr * factor, **means, **dict(zip(SPEED, speed, strict=True))}


def pace(row: Row) -> str:
    """How fast it goes, in a few words."""
    memory = "" if row["gpu_memory_mb"] is None else f", {row['gpu_memory_mb']:.0f} MB of GPU memory"
    return (
        f"loss {row['train_loss']:.4f}, {row['samples_per_second']:.1f} samples/s, "
        f"{100 * (row['data_wait_share'] or 0):.0f}% of the time waiting for data{memory}"
    )


def _row(job: Training, done: Progress, factor: float) -> Row:
    """A row of the history."""
    *measures, samples = done.sums
    parts = {f"{name}_seconds": value for name, value in done.seconds.items() if name != "epoch"}
    return {
        "epoch": done.epoch + 1,
        "lr": job.lr * factor,
        **dict(zip(job.measures, (value / samples for value in measures), strict=True)),
        "seconds": done.seconds["epoch"],
        **parts,
        "samples_per_second": samples / done.seconds["epoch"],
        "gpu_memory_mb": _gpu_memory(job.fabric),
    }


def _gpu_memory(fabric: Fabric) -> float | None:
    return torch.cuda.max_memory_allocated(fabric.device) / MEGABYTE if fabric.device.type == "cuda" else None
