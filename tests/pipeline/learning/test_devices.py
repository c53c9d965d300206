"""Which devices and how many processes a job takes."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from pipeline.config import ComputeConfig
from pipeline.learning.devices import loader_options, start


@pytest.mark.parametrize(
    ("given", "cuda", "cores", "processes"),
    [
        ({}, False, 64, 0),  # a CPU that trains loads by the way
        ({}, True, 64, 4),
        ({}, True, 3, 2),  # one core is the training's own
        ({}, True, 1, 1),
        ({"threads": 2}, True, 2, 1),
        ({}, True, None, 4),  # a cluster gives what is asked for
        ({"workers": 0}, True, 64, 0),
        ({"workers": 12}, False, 2, 12),
    ],
)
def test_loaders_are_as_many_as_there_is_room_for(given: Any, cuda: bool, cores: int | None, processes: int) -> None:
    assert ComputeConfig(**given).loader_processes(cuda=cuda, cores=cores) == processes


def test_options_are_ones_that_a_loader_takes() -> None:
    for workers in (0, 2):
        compute = ComputeConfig(accelerator="cpu", workers=workers)
        options = loader_options(compute, start(compute, precision="32-true"))
        loader: Any = torch.utils.data.DataLoader(range(10), batch_size=3, **options)
        before = torch.get_rng_state()
        assert [batch.tolist() for batch in loader] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
        assert torch.equal(torch.get_rng_state(), before)


def test_several_devices_need_somebody_to_start_their_processes() -> None:
    with pytest.raises(ValueError, match="2 devices need a process each; use the command, or torchrun"):
        start(ComputeConfig(accelerator="cpu", devices=2), precision="32-true")
    fabric = start(ComputeConfig(accelerator="cpu", devices=2), precision="32-true", alone=True)
    assert fabric.world_size == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="cannot use 1 x cuda"):
        start(ComputeConfig(accelerator="cuda"), precision="32-true")


def test_a_cluster_that_describes_another_layout_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """One job of an allocation of eight tasks is still one process."""
    for name, value in {"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_JOB_NAME": "train", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert "TORCHELASTIC_RUN_ID" not in os.environ
    fabric = start(ComputeConfig(accelerator="cpu"), precision="32-true")
    assert (fabric.world_size, fabric.global_rank) == (1, 0)
