"""The plan: videos in stable buckets, one small JSON a shard for media and one for labels, written only if changed.

Snakemake follows modification times; a plan file that keeps its content keeps its time, so nothing runs for it.
Media and labels stand in separate files so that relabelling never looks like new video.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.config import Config, ExperimentConfig, FlowConfig, FramesConfig, SanConfig
from pipeline.dataset.builders.flying_chairs import flying_chairs
from pipeline.dataset.builders.found import Listing
from pipeline.dataset.digests import file_digest
from pipeline.dataset.keys import maker, recipe
from pipeline.dataset.manifest import Manifest, Video, segment_rows, tube_rows
from pipeline.stores.publish import write_if_changed

NOTES_FILE = "notes.json"
"""File in the plan's folder: which listed videos are missing, which videos are not listed, what is not official."""


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
        media = [_media(video) for video in videos]
        labels = [_labels(video) for video in videos]
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


def read_rows(folder: Path, part: Literal["media", "labels"]) -> list[dict[str, Any]]:
    """Rows of a plan that is already written, in the order of the ids.

    Raises:
        ValueError: there is none.
    """
    try:
        rows = [row for name in read_shards(folder) for row in json.loads((folder / part / f"{name}.json").read_text())]
    except FileNotFoundError:
        raise ValueError(
            f"there is no plan in {folder}; `snakemake --dry-run` with this configuration makes it"
        ) from None
    return sorted(rows, key=lambda row: str(row["id"]))


def _media(video: Video) -> dict[str, Any]:
    """What is known of a video before it is decoded; of a folder of images also the rate, told from outside."""
    rate = {} if video.fps is None else {"image_fps": video.fps}
    return {"id": video.id, "path": video.path, "digest": video.digest, "bytes": video.bytes, **rate}


def _labels(video: Video) -> dict[str, Any]:
    """What people say of a video, without what is empty."""
    row: dict[str, Any] = {"id": video.id, "labels": video.labels, "splits": video.splits}
    if video.segments:
        row["segments"] = segment_rows(video.segments)
    if video.tubes:
        row["tubes"] = tube_rows(video.tubes)
    return row


def write_notes(listing: Listing, *, unofficial: Sequence[str], folder: Path) -> None:
    """Write the names of ``missing`` and ``extra`` videos and the sentences ``unofficial``, for the report to show.

    Args:
        listing: of the dataset.
        unofficial: sentences on annotation files that are not the official ones.
        folder: of the plan.
    """
    notes = {"missing": sorted(listing.missing), "extra": sorted(listing.extra), "unofficial": list(unofficial)}
    write_if_changed(folder / NOTES_FILE, json.dumps(notes, sort_keys=True, indent=1) + "\n")


_encode = json.JSONEncoder(sort_keys=True).encode  # made once: a plan has up to a million rows


def _lines(rows: list[dict[str, Any]]) -> str:
    """JSON with one row a line, so that a diff of two plans names the video."""
    return "[\n" + ",\n".join(map(_encode, rows)) + "\n]\n"


def stage_recipes(config: Config) -> dict[str, str]:
    """Recipes of the preprocessing stages that the configuration asks for."""
    probe = {"probe": recipe("probe", {})}
    return probe | {stage: _stage_recipe(stage, getattr(config, stage), **probe) for stage in config.stores}


def _stage_recipe(stage: str, section: FlowConfig | FramesConfig, *, probe: str) -> str:
    """Imported flow is not made from what probing found, but checked against it."""
    name = maker(stage, section)
    return recipe(name, section, *([probe] if name != stage else []))


def training_part(experiment: ExperimentConfig) -> dict[str, Any]:
    """The settings of an experiment that its training depends on.

    Not what only testing, fusion or the report reads, nor switches that mean nothing beside the others; nor where
    weights lie that it begins with, whose content counts.
    """
    excluded: dict[str, Any] = dict.fromkeys(("weight", "splits", "paper", "initial", "features", "prediction"), True)
    if experiment.features is None:
        later = set() if experiment.sampling.reduced_decode else {"reduced_decode"}  # as before there was the setting
        excluded |= {"sampling": {"test_segments", "test_crops", *later}}
    else:  # of features the training sees what testing sees; they have a recipe of their own
        excluded |= {"sampling": True}
    excluded |= {"mars": {"teacher"} if experiment.mars else True}
    if experiment.optim.shuffle == "videos":  # as all trainings did before there was another way
        excluded |= {"optim": {"shuffle", "shuffle_buffer"}}
    excluded |= {"model": {"pretrained", "san", *experiment.model.unheard}}
    part = experiment.model_dump(mode="json", exclude=excluded)
    if experiment.san:
        part["model"]["san"] = experiment.san.model_dump(mode="json", include={"width", "last_pool_stride"})
    return part


def train_recipes(config: Config, stages: Mapping[str, str]) -> dict[str, str]:
    """Recipes of the training of each experiment. Equal ones are one training."""
    found: dict[str, str] = {}

    def of(name: str) -> str:
        if name not in found:
            experiment = config.experiments[name]
            before = {source: of(source) for source in experiment.depends_on}
            told: dict[str, Any] = {"precision": config.compute.precision, "shards": config.shards}
            found[name] = train_recipe(experiment, stages=stages, before=before, **told)
        return found[name]

    return {name: of(name) for name in config.experiments}


def train_recipe(
    experiment: ExperimentConfig,
    *,
    precision: str,
    stages: Mapping[str, str],
    before: Mapping[str, str] | None = None,
    shards: int | None = None,
) -> str:
    """Recipe of one experiment's training.

    Args:
        experiment: its settings.
        precision: of the arithmetic.
        stages: recipes of the preprocessing.
        before: recipes of the trainings that it depends on, by the names of their experiments.
        shards: number of the dataset's, which decides the order of a training that goes shard by shard.

    Raises:
        ValueError: a checkpoint or FlyingChairs, which it begins with, cannot be read.
    """
    pretrained, san, before = experiment.pretrained, experiment.san, before or {}
    begins_with = {
        "initial": experiment.initial and before[experiment.initial],
        "features": experiment.features and features_recipe(experiment, train=before[experiment.features]),
        "teacher": experiment.mars and before[experiment.mars.teacher],
        "san": san and _san_weights(san, precision=precision, stages=stages),
    }
    parameters = training_part(experiment) | {"precision": precision}
    parameters |= {name: weights for name, weights in begins_with.items() if weights is not None}
    if experiment.optim.shuffle == "shards":
        parameters["shards"] = shards
    origin = _content(pretrained, key="model.pretrained") if pretrained else "scratch"
    return recipe("train", parameters, stages["probe"], stages[experiment.modality], origin)


def features_part(experiment: ExperimentConfig) -> dict[str, Any]:
    """The settings of a head that the features it reads depend on, given the network that makes them."""
    seen = {"snippet", "stride", "short", "test_segments", "test_crops", "test_scale", "input_size"}
    if experiment.sampling.reduced_decode:
        seen.add("reduced_decode")
    part = experiment.sampling.model_dump(mode="json", include=seen)
    return part if part["test_crops"] != "whole" else part | {"test_scale": None}


def features_recipe(experiment: ExperimentConfig, *, train: str) -> str:
    """Recipe of the features that a head reads.

    Args:
        experiment: the head.
        train: recipe of the training of the network that makes them.
    """
    return recipe("features", features_part(experiment), train)


def _san_weights(san: SanConfig, *, precision: str, stages: Mapping[str, str]) -> str | None:
    if san.targets != "none":
        return san_recipe(san, precision=precision, stages=stages)
    return _content(san.encoder, key="model.san.encoder") if san.encoder else None


def san_part(san: SanConfig) -> dict[str, Any]:
    """The settings that a SAN's pre-training depends on, but for where its files lie."""
    return san.model_dump(mode="json", exclude={"encoder", "flying_chairs"}) | {"crop": list(san.crop_px)}


def san_recipe(san: SanConfig, *, precision: str, stages: Mapping[str, str]) -> str:
    """Recipe of the pre-training of a SAN, which has targets.

    FlyingChairs counts by the names of its files: they have not changed in ten years, and are 30 GB to read.

    Raises:
        ValueError: the encoder's checkpoint or FlyingChairs cannot be read.
    """
    origin = _content(san.encoder, key="model.san.encoder") if san.encoder else "scratch"
    parameters = san_part(san) | {"precision": precision}
    if san.flying_chairs is None:
        return recipe("san", parameters, stages["probe"], stages["frames"], stages["flow"], origin)
    return recipe("san", parameters, _pairs(san.flying_chairs), origin)


def _content(path: Path, *, key: str) -> str:
    if not path.is_file():
        raise ValueError(f"there is no checkpoint file {path}; correct {key} or set it to null")
    return _digest(path, path.stat().st_size, path.stat().st_mtime_ns)


@functools.cache  # a table's rows begin with the same file
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    return file_digest(path)


@functools.cache
def _pairs(folder: Path) -> str:
    """Digest of the names in FlyingChairs' folder."""
    names = "\n".join(pair.id for pair in flying_chairs(folder, split_file=None))
    return hashlib.blake2b(names.encode(), digest_size=16).hexdigest()


def predicting_part(experiment: ExperimentConfig) -> dict[str, Any]:
    """The settings of an experiment that its scores depend on, given the trained model."""
    part = experiment.sampling.model_dump(include={"test_segments", "test_crops"})
    unheard = {"model": {"kind", "top", "normalise"}, "average": {"kind", "top"}, "dcw": {"kind"}}[experiment.predicts]
    prediction = experiment.prediction.model_dump(exclude=unheard)
    return part | {"prediction": experiment.predicts, **prediction}


def predict_recipe(experiment: ExperimentConfig, *, train: str) -> str:
    """Recipe of one experiment's scores."""
    return recipe("predict", predicting_part(experiment), train)


def baseline_recipe(stages: Mapping[str, str]) -> str:
    """Recipe of the flow-histogram baseline."""
    return recipe("baseline", {}, stages["probe"], stages["flow"])
