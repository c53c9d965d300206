"""What each of several processes sees: started by torchrun, with the settings of one or more trainings.

Loaders, order and loop are the real ones; the network is one linear layer on mean colours, whose gradient is a mean
over the videos of a step, so that however many processes share a step the weights must be the same.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.nn import functional as F

from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.dataset.manifest import read_manifest
from pipeline.learning.batches import loaders
from pipeline.learning.clock import Clock
from pipeline.learning.devices import start
from pipeline.learning.epochs import Seen, run_epochs, set_up
from pipeline.learning.loader import select
from pipeline.learning.readers import read_index
from pipeline.learning.resume import LastState, Progress
from stages.train import order_of


def look(fabric: Fabric, folder: Path, settings: dict[str, Any], compute: ComputeConfig, out: Path) -> None:
    """Train, go through the test videos, and write what this process saw to ``out``.

    Args:
        fabric: the processes.
        folder: of the dataset.
        settings: of the experiment.
        compute: how the devices are used.
        out: a folder.
    """
    out.mkdir(exist_ok=True)
    experiment = ExperimentConfig.model_validate(settings)
    manifest, index = read_manifest(folder / "manifest.tsv"), read_index(folder / "frames.json", stage="frames")
    clips, tests = (select(manifest, index, split="split1", part=part)[0] for part in ("train", "test"))
    progress = Progress()
    batches = order_of(clips, index, experiment=experiment, compute=compute, seed=0, fabric=fabric, begun=progress)
    clock = Clock(fabric.device)
    devices: dict[str, Any] = {"compute": compute, "fabric": fabric, "clock": clock}
    training, testing = loaders(
        (clips, tests), index, batches, experiment=experiment, beside=None, sharing=None, **devices
    )
    seen: list[list[str]] = []

    def watched() -> Iterator[Any]:
        for batch in training:
            seen.append([clips[int(number)].id for number in batch[2]])
            yield batch

    def see(model: Any, batch: Any) -> Seen:
        snippets, labels, *_ = batch
        loss = F.cross_entropy(model(snippets.float().mean(dim=(1, 3, 4)) / 255), labels)
        return Seen(loss, loss.detach()[None] * len(labels), len(labels))

    torch.manual_seed(0)
    model = nn.Linear(3, len(manifest.classes))
    parameters = [{"params": list(model.parameters()), "lr": 0.5, "initial_lr": 0.5}]
    job = set_up(
        model,
        torch.optim.SGD(parameters, momentum=0.9),
        None,
        batches=batches,
        epochs=experiment.optim.epochs,
        see=see,
        measures=("train_loss",),
        lr=0.5,
        factor=lambda epoch, history: 1.0,
        remedy="",
        line=lambda row: f"epoch {row['epoch']}: {row['train_loss']}",
        **devices,
    )
    last = LastState(out / "last.pt", fingerprint="", settings={}, minutes=0.0)
    history = run_epochs(job, watched(), progress, last=last, out=out)
    tested = [tests[int(number)].id for _, _, numbers, _ in testing for number in numbers]
    found = {
        "seen": seen,
        "tested": tested,
        "losses": [row["train_loss"] for row in history],
        "weights": model.weight.detach().flatten().tolist(),
    }
    (out / f"{fabric.global_rank}.json").write_text(json.dumps(found))


def main(jobs: list[dict[str, Any]]) -> None:
    """One job after the other, each the arguments of ``look``."""
    compute = [ComputeConfig.model_validate(job["compute"]) for job in jobs]
    fabric = start(compute[0], precision="32-true")
    for job, own in zip(jobs, compute, strict=True):
        look(fabric, Path(job["folder"]), job["settings"], own, Path(job["out"]))
        fabric.barrier()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
