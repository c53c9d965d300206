"""When the learning rate falls, and after which epochs the test videos are scored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pipeline.config import OptimConfig
from pipeline.learning.history import Row

TEST_EPOCHS = 10
"""Number of epochs after which the test videos are scored for the history; so it costs little."""


def lr_factor(epoch: int, *, optim: OptimConfig, losses: Sequence[float]) -> float:
    """What the learning rate is multiplied by in ``epoch``, counted from 0, after epochs of these training losses."""
    match optim.schedule:
        case "step":
            return step_factor(epoch, milestones=optim.milestones, gamma=optim.gamma)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / optim.epochs))
        case "plateau":
            return optim.gamma ** plateaus(losses, patience=optim.patience)


def plateaus(losses: Sequence[float], *, patience: int) -> int:
    """How often the loss has not fallen for more than ``patience`` epochs, as torch's ReduceLROnPlateau counts.

    The papers look at a validation loss. Here that would be the test videos', so it is the training loss. Losses below
    zero, as Where-and-When's contrast has them, must fall too; to torch's relative threshold they always do.
    """
    lowest, waited, found = math.inf, 0, 0
    for loss in losses:
        fell = loss < lowest * (1 - math.copysign(1e-4, lowest))
        lowest, waited = (loss, 0) if fell else (lowest, waited + 1)
        if waited > patience:
            found, waited = found + 1, 0
    return found


def step_factor(epoch: int, *, milestones: Iterable[int], gamma: float) -> float:
    """What the learning rate is multiplied by in ``epoch``, counted from 0: gamma for each milestone that is past."""
    return gamma ** sum(epoch >= milestone for milestone in milestones)


def is_test_epoch(epoch: int, *, epochs: int) -> bool:
    """Whether the test videos are scored after ``epoch``, counted from 0: ten times or so, and after the last."""
    every = max(1, epochs // TEST_EPOCHS)
    return epoch + 1 == epochs or (epoch + 1) % every == 0


def is_best(history: Sequence[Row]) -> bool:
    """Whether the last row's test accuracy is above that of every row before."""
    *before, last = (value for row in history if (value := row["test_top1"]) is not None)
    return last > max(before, default=-1)
