"""What training and prediction must agree on: their arguments, the device, the keywords of the model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import cv2
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from pydantic import ValidationError

from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.stores.sharing import add_arguments as add_store_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a job that runs a model."""
    parser.add_argument("--manifest", type=Path, required=True, help="the dataset's manifest")
    parser.add_argument("--index", type=Path, required=True, help="index of the store of the experiment's modality")
    parser.add_argument("--experiment", type=_section(ExperimentConfig), required=True, help="its settings as JSON")
    parser.add_argument("--compute", type=_section(ComputeConfig), required=True, help="where it runs, as JSON")
    parser.add_argument("--split", required=True, help="name of the split")
    add_store_arguments(parser)


def _section(section: type[ExperimentConfig] | type[ComputeConfig]) -> Any:
    def parse(text: str) -> ExperimentConfig | ComputeConfig:
        try:
            return section.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise argparse.ArgumentTypeError(f"{key or 'the JSON'}: {first['msg']}") from None

    return parse


def start(compute: ComputeConfig, *, devices: int, precision: str) -> Fabric:
    """Take the devices; with more than one, this program is started again for each of the others (DDP).

    Raises:
        ValueError: there is no such device here.
    """
    torch.set_num_threads(compute.threads)
    cv2.setNumThreads(0)  # many small images: threads cost more than they give
    try:
        fabric = Fabric(
            accelerator="cuda" if compute.accelerator == "auto" and torch.cuda.is_available() else _host(compute),
            devices=devices,
            precision=precision,  # type: ignore[arg-type]
            strategy="ddp" if devices > 1 else "auto",
            plugins=[LightningEnvironment()],  # one machine; a cluster's variables describe other jobs' layouts
        )
    except Exception as error:  # of many kinds, all of which mean that the device is not there
        raise ValueError(f"cannot use {devices} x {compute.accelerator}: {' '.join(str(error).split())}") from None
    fabric.launch()
    return fabric


def _host(compute: ComputeConfig) -> str:
    """What ``auto`` means without CUDA; Apple's GPU has no float64, which the sums over an epoch need."""
    return "cpu" if compute.accelerator == "auto" else compute.accelerator


def model_keywords(experiment: ExperimentConfig, *, num_classes: int) -> dict[str, Any]:
    """The keywords of ``models.build.build`` for an experiment; all of them plain JSON values."""
    channels = 3 if experiment.modality == "frames" else 2
    return {
        **experiment.model.model_dump(mode="json"),
        "num_classes": num_classes,
        "modality": "rgb" if experiment.modality == "frames" else experiment.modality,
        "in_channels": channels * experiment.sampling.snippet,
        "segments": experiment.sampling.segments,
    }
