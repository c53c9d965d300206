"""What jobs that run a model must agree on: their arguments, what they say, the keywords of the model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from lightning_fabric import Fabric
from pydantic import ValidationError
from torch import Tensor

from pipeline.config import ComputeConfig, ExperimentConfig, told
from pipeline.families import HeadConfig, VideoNetworkConfig
from pipeline.learning.features import read_feature_index
from pipeline.learning.readers import FeatureIndex, Index, read_index
from pipeline.progress import track
from pipeline.sections import Section
from pipeline.stores.sharing import add_arguments as add_store_arguments

Item = TypeVar("Item")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a job that runs a model."""
    parser.add_argument("--manifest", type=Path, required=True, help="the dataset's manifest")
    parser.add_argument("--index", type=Path, required=True, help="index of the store of the experiment's modality")
    parser.add_argument(
        "--experiment", type=section_argument(ExperimentConfig), required=True, help="its settings as JSON"
    )
    parser.add_argument("--compute", type=section_argument(ComputeConfig), required=True, help="where it runs, as JSON")
    parser.add_argument("--features", type=Path, nargs="?", help="folder of the receipts of the features it reads")
    parser.add_argument("--shards", type=Path, help="with --features, the plan's shards.json")
    parser.add_argument("--split", required=True, help="name of the split")
    add_store_arguments(parser)


def read_source(arguments: argparse.Namespace) -> Index | FeatureIndex:
    """The index of what the experiment reads: its modality's store, or features.

    Raises:
        ValueError: there is none, or it is of something else.
    """
    experiment: ExperimentConfig = arguments.experiment
    if experiment.features is None:
        return read_index(arguments.index, stage=experiment.modality)
    if arguments.features is None or arguments.shards is None:
        raise ValueError(
            f"{experiment.model.family} reads features; give the folder of their receipts by --features and the plan's "
            "shards.json by --shards"
        )
    return read_feature_index(arguments.features, shards=json.loads(arguments.shards.read_text()))


def feature_shape(index: Index | FeatureIndex) -> tuple[int, ...] | None:
    """What there is of each clip or frame in an index of features; None for another."""
    return index["shape"] if index["stage"] == "features" else None


def section_argument(section: type[Section]) -> Callable[[str], Any]:
    """Type of an argument that is a section of the configuration as JSON."""

    def parse(text: str) -> Section:
        try:
            return section.model_validate_json(text)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(told(error, of=section)) from None

    return parse


def log(fabric: Fabric, line: str | None) -> None:
    """Say a line, if there is one, once for all processes."""
    if line and fabric.is_global_zero:
        print(line, file=sys.stderr, flush=True)


def progress(
    steps: Iterable[Item], count: int, *, label: str, note: Callable[[], str], fabric: Fabric
) -> Iterable[Item]:
    """``steps``, telling how far along they are, once for all processes."""
    return track(steps, total=count, label=label, unit="step", note=note) if fabric.is_global_zero else steps


def total(sums: Tensor, fabric: Fabric) -> Tensor:
    """Sums over all processes."""
    found: Any = fabric.all_reduce(sums, reduce_op="sum")
    return found


def model_keywords(
    experiment: ExperimentConfig, *, num_classes: int, feature_shape: Sequence[int] | None = None
) -> dict[str, Any]:
    """The keywords of ``models.build.build`` for an experiment; all of them plain JSON values.

    Args:
        experiment: whose model it is.
        num_classes: of the dataset.
        feature_shape: of families that read features, what they read of a clip (D,) or a frame (C, h, w).
    """
    model, san = experiment.model, experiment.san
    # what is not heard keeps its default, so that experiments with equal trainings have equal models
    heard = {"num_classes": num_classes, **model.model_dump(mode="json", exclude={"san", *model.unheard})}
    if isinstance(model, get_args(HeadConfig)):
        assert feature_shape is not None
        return {**heard, "feature_shape": list(feature_shape)}
    clips = isinstance(model, VideoNetworkConfig)
    return {
        **heard,
        **({"san_width": san.width, "san_last_pool_stride": san.last_pool_stride} if san else {}),
        **({"snippet": experiment.sampling.snippet} if clips else {"segments": experiment.sampling.segments}),
        "modality": "rgb" if experiment.modality == "frames" else experiment.modality,
        "in_channels": experiment.in_channels,
        "input_size": experiment.sampling.input_size,
    }
