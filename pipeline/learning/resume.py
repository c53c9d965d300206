"""``last.pt``: where a training stands, so that the same command goes on with it after a kill.

On the CPU it goes on to the same bytes: the file holds weights, optimizer, loss scaler, the random state of every
process and how far into which epoch the loader was. What a step sees follows from seed, epoch and step alone, so no
loader has to be brought back to where it was.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from pipeline.learning.history import Row
from pipeline.learning.job import log
from pipeline.lock import hold
from pipeline.stores.publish import atomic_file, unfinished

LOCK = ".lock"
SECONDS_PER_MINUTE = 60


@dataclass
class Progress:
    """How far a training is."""

    epoch: int = 0
    """The epoch that it is in, counted from 0."""
    step: int = 0
    """Steps of that epoch that are done."""
    sums: list[float] = field(default_factory=list)
    """Of the measures over the samples of these steps, and their number, over all processes."""
    seconds: dict[str, float] = field(default_factory=dict)
    """That these steps took: ``epoch`` in all, and by part."""
    history: list[Row] = field(default_factory=list)
    """A row for each epoch that is done."""
    random: list[dict[str, Tensor]] | None = None
    """Random state of each process after these steps; None where an epoch begins, which seeds its own."""


class LastState:
    """The file of one training.

    Args:
        path: of it.
        fingerprint: hash of everything that decides the weights, but for the machine.
        settings: plain values that say what training this is, and which version of the program makes it.
        minutes: between two writes within an epoch, at least.
    """

    def __init__(self, path: Path, *, fingerprint: str, settings: dict[str, Any], minutes: float) -> None:
        self.path = path
        self._identity = {"fingerprint": fingerprint, "settings": settings}
        self._seconds = minutes * SECONDS_PER_MINUTE
        self._written = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() - self._written >= self._seconds

    def write(self, model: nn.Module, optimizer: Any, progress: Progress, fabric: Fabric) -> None:
        """Write atomically what one process has of it all; every process must call this."""
        progress.random = _random_states(fabric) if progress.step else None
        if fabric.is_global_zero:
            content = {
                **self._identity,
                "model": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
                "optimizer": optimizer.state_dict(),
                "scaler": fabric.strategy.precision.state_dict(),
                "progress": dict(vars(progress)),
            }
            with atomic_file(self.path) as file:
                torch.save(content, file)
        self._written = time.monotonic()

    def read(self, fabric: Fabric) -> dict[str, Any] | None:
        """What was written of this very training; None, and said so, if the file is of another one or damaged.

        The first process reads for all of them: others may not see the file, or see an older one. It also keeps any
        second job of the same training away until it ends.

        Raises:
            ValueError: another job is at this training.
        """
        if fabric.is_global_zero:
            try:
                hold(self.path.parent / LOCK)
            except OSError as error:  # some network file systems have no locks
                log(fabric, f"{self.path.parent} cannot be locked ({error}); see that no second job trains there")
            for older in unfinished(self.path):
                older.unlink(missing_ok=True)
        found: dict[str, Any] | None = fabric.broadcast(self._read(fabric) if fabric.is_global_zero else None)
        return found

    def _read(self, fabric: Fabric) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            found = torch.load(self.path, map_location="cpu", weights_only=True)
            same = {name: found[name] for name in self._identity} == self._identity
        except Exception as error:  # of many kinds; what is no readable checkpoint is none
            told = " ".join(str(error).split())[:200]
            log(fabric, f"{self.path} cannot be read ({told}); starting from the first epoch")
            return None
        if not same:
            log(fabric, f"{self.path} is of a training on other data or settings; starting from the first epoch")
            return None
        return found

    def remove(self) -> None:
        """Of a training that is over nothing is left to go on with."""
        self.path.unlink(missing_ok=True)


def progress_of(found: dict[str, Any] | None, *, path: Path, fabric: Fabric) -> Progress:
    """How far the training was that ``LastState.read`` has found; the start if it has found none."""
    if found is None:
        return Progress()
    progress = Progress(**found["progress"])
    within = f"step {progress.step} of epoch {progress.epoch + 1}" if progress.step else f"epoch {progress.epoch}"
    log(fabric, f"continuing after {within} of {path}")
    return progress


def restore_random(progress: Progress, *, fabric: Fabric, seed: int) -> None:
    """Bring the random state back to where it was, or to ``seed`` if other devices were at work then."""
    states = progress.random
    on_cuda = fabric.device.type == "cuda"
    if states is None or len(states) != fabric.world_size or ("cuda" in states[0]) != on_cuda:
        torch.manual_seed(seed)
        return
    mine = states[fabric.global_rank]
    torch.set_rng_state(mine["cpu"])
    if on_cuda:
        torch.cuda.set_rng_state(mine["cuda"], fabric.device)


def _random_states(fabric: Fabric) -> list[dict[str, Tensor]]:
    """Of every process, known to each."""
    mine = {"cpu": torch.get_rng_state()}
    if fabric.device.type == "cuda":
        mine["cuda"] = torch.cuda.get_rng_state(fabric.device)
    if fabric.world_size == 1:
        return [mine]
    gathered: Any = fabric.all_gather({name: state.to(fabric.device) for name, state in mine.items()})
    # each a tensor of its own: torch crashes on setting a state that is a view into another tensor
    return [
        {name: states[rank].cpu().clone() for name, states in gathered.items()} for rank in range(fabric.world_size)
    ]
