"""Commands that take folders of other tools into the stores, and write such folders out of them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pipeline.config import Config, FlowConfig
from pipeline.dataset.plan import read_rows, stage_recipes
from pipeline.stores.exports import FlowSource, FrameSource, check_rates, export, export_layout
from pipeline.stores.flow import FlowStore
from pipeline.stores.frame_reader import FrameShards
from pipeline.stores.imports import FlowStage, import_flow
from pipeline.stores.layouts import Suffix, Tool
from pipeline.stores.ready import make_local
from pipeline.stores.shared import SharedStore

NAMED = 5
"""Videos or folders that are named where many are counted."""


def add_import(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``import_folders``."""
    parser.add_argument("--from", dest="root", type=Path, required=True, help="folder that the other tool wrote to")
    parser.add_argument("--stage", choices=get_args(FlowStage), default="flow", help="whose flow it is")
    parser.add_argument("--jobs", type=_count, default=os.cpu_count() or 1, help="number of processes")


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``export_folders``."""
    parser.add_argument("--to", dest="root", type=Path, required=True, help="folder to write; made if absent")
    parser.add_argument("--tool", choices=get_args(Tool), required=True, help="whose names, numbers and alignment")
    what = ("flow", "warped_flow", "frames")
    parser.add_argument("--what", nargs="+", choices=what, default=["flow"], help="what each video's folder holds")
    parser.add_argument(
        "--images", choices=get_args(Suffix), default="jpg", help="kind of the flow images; png is exact"
    )
    parser.add_argument("--jobs", type=_count, default=os.cpu_count() or 1, help="number of processes")


def import_folders(config: Config, *, root: Path, stage: FlowStage, jobs: int) -> int:
    """Import flow for all videos of the plan, and say what was found.

    Returns:
        Exit status: 0 if all folders that belong to a video are in the store.

    Raises:
        ValueError: the configuration imports nothing, there is no plan, or folders cannot be told apart.
    """
    section, rows = getattr(config, stage), read_rows(config.work_dir / "plan", "media")
    make_local(config)
    found = import_flow(rows, root, store=config.store_folder(stage, ""), config=section, stage=stage, processes=jobs)
    for name, reason in found.refused.items():
        _say(f"{name}: not imported: {reason}")
    _say_names("videos have no folder", found.matched.missing)
    _say_names("folders belong to no video", found.matched.extra)
    _say_names("files are not read, only folders of images", found.matched.files)
    counts = f"{len(found.done)} imported, {len(found.already)} already there, {len(found.refused)} refused"
    print(f"{stage}: {len(rows)} videos, {counts}, {len(found.matched.missing)} without a folder")
    return int(bool(found.refused) or not (found.done or found.already))


def export_folders(config: Config, *, root: Path, tool: Tool, what: Sequence[str], images: Suffix, jobs: int) -> int:
    """Export what a run has stored, a folder a video, and say how many.

    Returns:
        Exit status: 0 if a folder of each video is there.

    Raises:
        ValueError: the tool cannot hold it, nothing has been stored, or an artifact is damaged.
    """
    flows = [name for name in what if name != "frames"]
    if len(set(flows)) > 1:
        raise ValueError("flow and warped_flow have the same file names; export them to two folders")
    section: FlowConfig = getattr(config, flows[0] if flows else "flow")
    layout, every = export_layout(tool, config=section, suffix=images)
    if flows and "frames" in what and section.imported is None:
        check_rates(config, flow=section)
    sources = [_source(config, stage, every=every) for stage in dict.fromkeys(what)]
    media, labels = (read_rows(config.work_dir / "plan", part) for part in ("media", "labels"))
    rows = [one | other for one, other in zip(media, labels, strict=True)]
    found = export(rows, root, layout=layout, sources=sources, processes=jobs)
    _say_names("videos are not in the stores", found.lacking)
    _say_names("videos have a folder there already, which stays as it is", found.already)
    counts = f"{len(found.done)} exported, {len(found.already)} already there, {len(found.lacking)} not stored"
    print(f"{' and '.join(dict.fromkeys(what))}: {len(rows)} videos, {counts}")
    return int(bool(found.lacking))


def _source(config: Config, stage: str, *, every: int) -> FlowSource | FrameSource:
    """What the run has stored of a stage, by its index."""
    recipe = stage_recipes(config).get(stage)
    path = config.work_dir / "index" / f"{stage}-{recipe}.json"
    try:
        index: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"there is no index {path}; run `snakemake preprocess_all` with this configuration") from None
    store, videos = Path(index["store"]), index["videos"]
    if stage == "frames":
        return FrameSource(FrameShards(store), videos)
    shared = SharedStore(config.store.shared) if config.store.shared and config.store.access == "in-place" else None
    return FlowSource(FlowStore(store, parameters=index["parameters"], shared=shared), videos, every)


def _say_names(what: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        _say(f"{len(names)} {what}: {', '.join(names[:NAMED])}{more}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes; give 1 or more")
    return int(text)
