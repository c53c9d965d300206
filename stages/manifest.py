"""Stage manifest: find and label the videos of a dataset, and write one row for each. Names of datasets stop here.

``find``, ``select`` and ``digest`` run whenever the Snakefile is parsed and cost one stat a file. The stage itself
joins labels with what probing found, after the shards were probed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pipeline.config import Config
from pipeline.dataset.builders.class_folders import class_folders
from pipeline.dataset.builders.csv_table import csv_table
from pipeline.dataset.builders.demo import demo
from pipeline.dataset.builders.found import Found, Listing, named
from pipeline.dataset.builders.hmdb51 import hmdb51
from pipeline.dataset.builders.moments_in_time import moments_in_time
from pipeline.dataset.builders.penn_action import penn_action
from pipeline.dataset.builders.thumos14 import thumos14
from pipeline.dataset.builders.ucf101 import ucf101
from pipeline.dataset.builders.ucf101_24 import ucf101_24
from pipeline.dataset.builders.ut_interaction import ut_interaction
from pipeline.dataset.descriptor import absent, describe, unofficial
from pipeline.dataset.digests import digest_files
from pipeline.dataset.ledger import check_share
from pipeline.dataset.manifest import (
    PARTS,
    Manifest,
    Video,
    check,
    check_split,
    collector_paused,
    misfit,
    segments_of,
    tubes_of,
    write_manifest,
)
from pipeline.dataset.receipts import Outcome, Receipt

ANNOTATION_SUFFIXES = (".csv", ".mat", ".txt")


def unofficial_annotations(config: Config) -> tuple[str, ...]:
    """Sentences on annotation files that are absent or differ from the published ones, for described datasets."""
    descriptor = describe(config.dataset)
    return unofficial(descriptor, config.annotations) if descriptor and config.annotations else ()


@collector_paused()
def find(config: Config) -> Listing:
    """Find and label the videos of the configured dataset; reads no video and writes nothing.

    Raises:
        ValueError: a folder or a file is missing, a line of a list cannot be used, or listed videos are not there and
            ``allow_missing`` is not set.
    """
    try:
        listing = _build(config)
    except ValueError as error:
        raise ValueError(f"{error}{_source_of_annotations(config)}") from None
    listing = listing._replace(extra=tuple(_without_annotations(listing.extra, config)))
    if listing.missing and not config.allow_missing:
        total = len(listing.videos) + len(listing.missing)
        raise ValueError(
            f"{len(listing.missing)} of {total} listed videos are not in {_root(config)}: {named(listing.missing)};"
            " restore them or set allow_missing: true"
        )
    return listing


def _source_of_annotations(config: Config) -> str:
    """Where the annotation files come from, as the end of a sentence; empty if all are there."""
    descriptor = describe(config.dataset)
    if not (descriptor and config.annotations and absent(descriptor, config.annotations)):
        return ""
    return f"; the annotation files of {descriptor.title} come from {descriptor.annotations.from_}"


def _without_annotations(extra: tuple[str, ...], config: Config) -> Iterator[str]:
    """Extra files that are no annotation files, which may lie in the videos' folder."""
    below = os.path.relpath(config.annotations, _root(config)) if config.annotations else ".."
    prefix = "" if below == "." else f"{below}/"
    for name in extra:
        if not (name.startswith(prefix) and name.lower().endswith(ANNOTATION_SUFFIXES)):
            yield name


def _build(config: Config) -> Listing:
    videos, annotations = _root(config), config.annotations or Path()
    match config.dataset:
        case "demo":
            return demo(videos)
        case "class_folders":
            return class_folders(videos, test_fraction=config.test_fraction)
        case "csv":
            assert config.csv is not None
            return csv_table(config.csv, root=videos, test_fraction=config.test_fraction)
        case "ut_interaction":
            return ut_interaction(videos)
        case "ucf101":
            return ucf101(videos, annotations)
        case "hmdb51":
            return hmdb51(videos, annotations)
        case "penn_action":
            return penn_action(videos, annotations)
        case "moments_in_time":
            return moments_in_time(videos, annotations)
        case "thumos14":
            return thumos14(videos, annotations, trimmed=config.trimmed, single_label=config.single_label)
        case "ucf101_24":
            return ucf101_24(videos, annotations)


def _root(config: Config) -> Path:
    """The folder of the videos."""
    if config.dataset == "demo":
        return demo_folder(config)
    root = config.videos or (config.csv and config.csv.parent)
    assert root is not None, "the configuration checks it"
    return root


def demo_folder(config: Config) -> Path:
    """Where the demo's videos are rendered."""
    return config.work_dir / "dataset"


def remarks(listing: Listing) -> list[str]:
    """What the builder tells, and a line about missing videos and one about videos not listed, if there are any."""
    lines = [*listing.remarks]
    if listing.missing:
        lines.append(f"{len(listing.missing)} listed videos are not there and left out: {named(listing.missing)}")
    if listing.extra:
        lines.append(f"{len(listing.extra)} videos are there but not listed, and left out: {named(listing.extra)}")
    return lines


@collector_paused()
def select(listing: Listing, config: Config) -> Manifest:
    """The videos that the run uses, without the classes that it leaves out; not digested yet.

    A video of several classes loses those that are left out, and goes when it has lost all.

    Raises:
        ValueError: a class to leave out that no video has, a list that cannot be trained on (see ``check``), or, if
            there are experiments, a video of several classes.
    """
    excluded = set(config.exclude_labels)
    unknown = excluded - {label for labels in {video.labels for video in listing.videos} for label in labels}
    if unknown:
        raise ValueError(f"exclude_labels names {min(unknown)!r}, which no video has; correct it or leave it out")
    kept = (_without(video, excluded) for video in listing.videos) if excluded else listing.videos
    videos = (_video(video, path=str(video.path)) for video in kept if video.labels or not excluded)
    manifest = check(videos, splits=config.splits)
    if config.experiments:
        _check_one_label(manifest, config)
    return manifest


def _check_one_label(manifest: Manifest, config: Config) -> None:
    """Refuse videos of several classes now, and not when hours of preprocessing are done."""
    used = {*PARTS} - {""}
    several = [
        video.id
        for video in manifest.videos
        if len(video.labels) > 1 and any(video.splits.get(split) in used for split in config.splits)
    ]
    if not several:
        return
    shortcut = "set single_label: true to leave them out, " if config.dataset == "thumos14" else ""
    verb = "video has" if len(several) == 1 else "videos have"
    raise ValueError(
        f"{len(several)} {verb} several labels: {named(several)}; experiments need one label a video: {shortcut}"
        "leave classes out by exclude_labels, or give each one label"
    )


def _without(video: Found, excluded: set[str]) -> Found:
    if excluded.isdisjoint(video.labels):
        return video
    return replace(
        video,
        labels=tuple(label for label in video.labels if label not in excluded),
        segments=tuple(segment for segment in video.segments if segment.label not in excluded),
        tubes=tuple(tube for tube in video.tubes if tube.label not in excluded),
    )


def _video(found: Found | Video, *, path: str, digest: str = "", size: int = 0, fps: float | None = None) -> Video:
    return Video(
        id=found.id,
        path=path,
        digest=digest,
        bytes=size,
        labels=found.labels,
        splits=found.splits,
        fps=fps,
        segments=found.segments,
        tubes=found.tubes,
    )


@collector_paused()
def digest(manifest: Manifest, *, cache: Path, image_fps: float) -> Manifest:
    """The manifest with digests and sizes of the videos, and the rate of those that are folders of images.

    Args:
        manifest: of ``select``.
        cache: file of the digest cache, made if absent.
        image_fps: frames per second of folders of images.

    Raises:
        ValueError: a file cannot be read, or the cache cannot be used.
    """
    sources = digest_files([Path(video.path) for video in manifest.videos], cache=cache, image_fps=image_fps)
    return Manifest(
        tuple(
            _video(video, path=video.path, digest=digest, size=size, fps=image_fps if is_folder else None)
            for video, (digest, size, is_folder) in zip(manifest.videos, sources, strict=True)
        )
    )


def compare(
    receipt: Receipt, labels: Mapping[str, dict[str, Any]], *, on_error: Literal["quarantine", "fail"]
) -> Receipt:
    """The probe's receipt, with videos quarantined whose boxes do not fit what probing found.

    Args:
        receipt: of one shard.
        labels: the plan's rows by id.
        on_error: what to do about such a video.

    Raises:
        ValueError: ``on_error`` is ``fail`` and there is one.
    """
    outcomes = dict(receipt.videos)
    for name, outcome in receipt.videos.items():
        row = labels[name]
        if outcome.status == "quarantined" or "tubes" not in row:
            continue
        facts = {name: outcome.facts[name] for name in ("frames", "width", "height")}
        if problem := misfit(tubes_of(row["tubes"]), **facts):
            if on_error == "fail":
                raise ValueError(f"in the video {name!r} {problem}; correct the annotation or leave the video out")
            outcomes[name] = Outcome(status="quarantined", stage="manifest", reason=problem)
    return replace(receipt, videos=outcomes)


@collector_paused()
def join(labels: Mapping[str, dict[str, Any]], receipts: list[Receipt], media: list[dict[str, Any]]) -> Manifest:
    """One row a video from the plan's labels by id and media, and the probe's receipts."""
    outcomes = {name: outcome for receipt in receipts for name, outcome in receipt.videos.items()}
    videos = []
    for source in media:
        row, outcome = labels[source["id"]], outcomes[source["id"]]
        facts = outcome.facts.get
        video = Video(
            id=source["id"],
            path=source["path"],
            digest=source["digest"],
            bytes=source["bytes"],
            labels=tuple(row["labels"]),
            splits=row["splits"],
            frames=facts("frames"),
            fps=facts("fps"),
            width=facts("width"),
            height=facts("height"),
            stage=outcome.stage,
            reason=outcome.reason,
            segments=segments_of(row.get("segments", ())),
            tubes=tubes_of(row.get("tubes", ())),
        )
        videos.append(video)
    return Manifest(tuple(sorted(videos, key=lambda video: video.id)))


def main(argv: list[str] | None = None) -> None:
    """Write the manifest of a probed dataset."""
    parser = argparse.ArgumentParser(prog="python -m stages.manifest", description=main.__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="folder of the plan")
    parser.add_argument("--receipts", type=Path, required=True, help="folder of the probe's receipts")
    parser.add_argument("--splits", nargs="+", required=True, help="splits that the run uses")
    parser.add_argument("--max-quarantined", type=float, required=True, help="largest unusable part, 0 to 1")
    parser.add_argument("--on-error", choices=("quarantine", "fail"), default="quarantine")
    parser.add_argument("--out", type=Path, required=True, help="manifest to write")
    arguments = parser.parse_args(argv)
    try:
        shards = json.loads((arguments.plan / "shards.json").read_text())
        rows, media = (
            [row for shard in shards for row in json.loads((arguments.plan / part / f"{shard}.json").read_text())]
            for part in ("labels", "media")
        )
        labels = {row["id"]: row for row in rows}
        probed = [Receipt.read(arguments.receipts / f"{shard}.json") for shard in shards]
        receipts = [compare(receipt, labels, on_error=arguments.on_error) for receipt in probed]
        manifest = join(labels, receipts, media)
        check_share(receipts, limit=arguments.max_quarantined)
        for split in arguments.splits:
            check_split(manifest, split)
    except ValueError as error:
        sys.exit(f"manifest: {error}")
    write_manifest(arguments.out, manifest)


if __name__ == "__main__":
    main()
