"""Learning rates against torch's schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.config import OptimConfig
from pipeline.learning.schedule import is_test_epoch, lr_factor, plateaus


@pytest.mark.parametrize("schedule", ["step", "cosine"])
def test_the_schedule_is_that_of_torch(schedule: Any) -> None:
    optim = OptimConfig(schedule=schedule, epochs=12, milestones=(3, 7), gamma=0.2, lr=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=optim.lr)
    reference: Any = (
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 7], gamma=0.2)
        if schedule == "step"
        else torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    )
    for epoch in range(12):
        assert optim.lr * lr_factor(epoch, optim=optim, losses=[]) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("patience", [0, 1, 4])
def test_plateaus_are_those_of_torch(patience: int) -> None:
    """Losses that fall, stay, fall by too little, rise and fall again."""
    losses = [2.0, 1.5, 1.5, 1.49999, 1.6, 1.7, 1.4, *[1.4] * 9, 1.3, *[1.5] * 6, 0.2, 0.1, 0.3]
    optim = OptimConfig(schedule="plateau", patience=patience, gamma=0.5, lr=0.4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=optim.lr)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=patience, factor=0.5)
    for epoch, loss in enumerate(losses):
        factor = lr_factor(epoch, optim=optim, losses=losses[:epoch])
        assert optim.lr * factor == pytest.approx(optimizer.param_groups[0]["lr"])
        reference.step(loss)
    assert optimizer.param_groups[0]["lr"] < optim.lr


def test_losses_below_zero_reach_a_plateau_too() -> None:
    assert plateaus([-0.05] * 20, patience=5) == plateaus([0.05] * 20, patience=5) == 3
    assert plateaus([-0.01 * epoch for epoch in range(20)], patience=1) == 0
    assert plateaus([0.1, 0.0, -0.1, -0.100001, -0.100002], patience=1) == 1


def test_epochs_that_are_tested_are_ten_or_so_and_the_last() -> None:
    for epochs in (1, 3, 10, 30, 95, 300):
        tested = [epoch for epoch in range(epochs) if is_test_epoch(epoch, epochs=epochs)]
        assert tested[-1] == epochs - 1
        assert len(tested) <= 19
