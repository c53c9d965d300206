"""The plan: videos in stable buckets, one small JSON a shard for media and one for labels, written only if changed.

Snakemake follows modification times; a plan file that keeps its content keeps its time, so nothing runs for it.
Media and labels stand in separate files so that relabelling never looks like new video.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import Config, ExperimentConfig
from pipeline.dataset.digests import file_digest
from pipeline.dataset.keys import recipe
from pipeline.dataset.manifest import Manifest, Video
from pipeline.stores.publish import write_if_changed


def shard_of(video_id: str, shards: int) -> str:
    """Name of the bucket of a video: five digits, by a hash of the id that is the same in every process.

    Args:
        video_id: any text.
        shards: number of buckets, at most 100,000.
    """
    digest = hashlib.blake2b(video_id.encode(), digest_size=8).digest()
    return f"{int.from_bytes(digest, 'big') % shards:05d}"


def write_plan(manifest: Manifest, *, shards: int, folder: Path) -> tuple[str, ...]:
    """Write ``media/<shard>.json``, ``labels/<shard>.json`` and ``shards.json``; remove those of empty buckets.

    Returns:
        Names of the shards that hold a video, in order.
    """
    buckets: dict[str, list[Video]] = defaultdict(list)
    for video in manifest.videos:  # in the order of the ids, so that reordered input gives equal files
        buckets[shard_of(video.id, shards)].append(video)
    for name, videos in buckets.items():
        media = [{"id": v.id, "path": v.path, "digest": v.digest, "bytes": v.bytes} for v in videos]
        labels = [{"id": v.id, "labels": v.labels, "splits": v.splits} for v in videos]
        write_if_changed(folder / "media" / f"{name}.json", _lines(media))
        write_if_changed(folder / "labels" / f"{name}.json", _lines(labels))
    for part in ("media", "labels"):
        for file in (folder / part).glob("*.json"):
            if file.stem not in buckets:
                file.unlink()
    write_if_changed(folder / "shards.json", json.dumps(sorted(buckets)) + "\n")
    return tuple(sorted(buckets))


def read_shards(folder: Path) -> tuple[str, ...]:
    """Names of the shards of a plan that is already written."""
    return tuple(json.loads((folder / "shards.json").read_text()))


def _lines(rows: list[dict[str, Any]]) -> str:
    """JSON with one row a line, so that a diff of two plans names the video."""
    return "[\n" + ",\n".join(json.dumps(row, sort_keys=True) for row in rows) + "\n]\n"


def stage_recipes(config: Config) -> dict[str, str]:
    """Recipes of the preprocessing stages that the configuration asks for."""
    probe = {"probe": recipe("probe", {})}
    return probe | {stage: recipe(stage, getattr(config, stage)) for stage in config.stores}


def training_part(experiment: ExperimentConfig) -> dict[str, Any]:
    """The settings of an experiment that its training depends on; not what only testing or fusion reads."""
    excluded: dict[str, Any] = {"weight": True, "sampling": {"test_segments", "test_crops"}}
    return experiment.model_dump(mode="json", exclude=excluded)


def predicting_part(experiment: ExperimentConfig) -> dict[str, Any]:
    """The settings of an experiment that its scores depend on, given the trained model."""
    return experiment.model_dump(mode="json", exclude={"weight", "optim"})


def train_recipe(experiment: ExperimentConfig, *, precision: str, stages: Mapping[str, str]) -> str:
    """Recipe of one experiment's training.

    Raises:
        ValueError: the pretrained checkpoint cannot be read.
    """
    parameters = training_part(experiment)
    parameters["model"].pop("pretrained")  # its content counts, not its name
    parameters["precision"] = precision
    pretrained = experiment.model.pretrained
    if pretrained is not None and not pretrained.is_file():
        raise ValueError(f"there is no checkpoint file {pretrained}; correct model.pretrained or set it to null")
    origin = file_digest(pretrained) if pretrained else "scratch"
    return recipe("train", parameters, stages["probe"], stages[experiment.modality], origin)


def predict_recipe(experiment: ExperimentConfig, *, train: str) -> str:
    """Recipe of one experiment's scores."""
    return recipe("predict", experiment.sampling.model_dump(include={"test_segments", "test_crops"}), train)


def baseline_recipe(stages: Mapping[str, str]) -> str:
    """Recipe of the flow-histogram baseline."""
    return recipe("baseline", {}, stages["probe"], stages["flow"])
