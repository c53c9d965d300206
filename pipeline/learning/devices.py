"""The devices and processes of a job that runs a model."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

import cv2
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

from pipeline.config import ComputeConfig
from pipeline.learning.gpus import claim, visible_here
from pipeline.learning.memory import keep_freed_memory

BATCHES_AHEAD = 4
"""Of each loader process: a video that is slow to read is waited for only if it takes longer than these."""
PR_SET_PDEATHSIG = 1
"""Of Linux' prctl: the signal that comes when the parent dies."""


def one_process_a_device(compute: ComputeConfig, *, module: str) -> None:
    """With several devices become torchrun, which starts ``module`` with these very arguments once for each.

    When one of its processes fails, torchrun ends the others; a process that waits for one that is dead would hang.
    """
    if compute.devices == 1 or TorchElasticEnvironment.detect():
        return
    _take_gpus(compute, compute.devices)
    os.environ.setdefault("OMP_NUM_THREADS", str(compute.threads))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
    launcher += ["--nproc-per-node", str(compute.devices), "-m", module]
    os.execv(sys.executable, [sys.executable, *launcher, *sys.argv[1:]])


def start(compute: ComputeConfig, *, precision: str, alone: bool = False) -> Fabric:
    """Take the device, or of several that of this process, which torchrun has started, here or on many machines.

    Args:
        compute: which devices.
        precision: of the model.
        alone: one device, whatever the settings say.

    Raises:
        ValueError: there is no such device here, or nobody has started the other processes.
    """
    torch.set_num_threads(compute.threads)
    cv2.setNumThreads(0)  # many small images: threads cost more than they give
    keep_freed_memory()
    devices, nodes = 1 if alone else compute.devices, 1
    environment: Any = LightningEnvironment()  # a cluster's variables describe other jobs' layouts
    if TorchElasticEnvironment.detect() and not alone:
        _die_with_parent()
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        devices, nodes, environment = local, world // local, TorchElasticEnvironment()
    elif devices > 1:
        raise ValueError(f"{devices} devices need a process each; use the command, or torchrun, which starts them")
    else:
        _take_gpus(compute, 1)
    try:
        fabric = Fabric(
            accelerator="cuda" if compute.accelerator == "auto" and torch.cuda.is_available() else _host(compute),
            devices=devices,
            num_nodes=nodes,
            precision=precision,  # type: ignore[arg-type]
            strategy="ddp" if devices * nodes > 1 else "auto",
            plugins=[environment],
        )
    except Exception as error:  # of many kinds, all of which mean that the device is not there
        raise ValueError(f"cannot use {devices} x {compute.accelerator}: {' '.join(str(error).split())}") from None
    fabric.launch()
    return fabric


def _take_gpus(compute: ComputeConfig, count: int) -> None:
    """Other GPUs than the jobs beside this one have, before CUDA sees any."""
    if compute.accelerator != "cpu" and torch.version.cuda is not None and visible_here():
        claim(count)


def _die_with_parent() -> None:
    """torchrun that is killed outright cannot end its processes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _host(compute: ComputeConfig) -> str:
    """What ``auto`` means without CUDA; Apple's GPU has no float64, which the sums over an epoch need."""
    return "cpu" if compute.accelerator == "auto" else compute.accelerator


def loader_options(compute: ComputeConfig, fabric: Fabric) -> dict[str, Any]:
    """Of every DataLoader: how many processes load for this one, how far ahead, and where to."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_cuda = fabric.device.type == "cuda"
    here = int(os.environ["LOCAL_WORLD_SIZE"]) if fabric.world_size > 1 else 1
    processes = compute.loader_processes(cuda=on_cuda, cores=cores // here)
    return {
        "num_workers": processes,
        "prefetch_factor": BATCHES_AHEAD if processes else None,
        "pin_memory": on_cuda,
        "generator": torch.Generator(),  # a loader draws when it starts, which must not move the model's draws
    }
