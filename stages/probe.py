"""Stage probe: decode every video of a shard once, to know how many frames it has, how fast and how large they are.

Facts are kept in ``<store>/<shard>.json`` by artifact key, so a video that did not change is not decoded again. They
are saved after each video: a job that is killed loses the one that it was at.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Literal

from pipeline.dataset.digests import planned_source
from pipeline.dataset.keys import artifact_key
from pipeline.dataset.receipts import Outcome, Receipt, work_through
from pipeline.media.errors import UnusableVideo
from pipeline.media.probe import probe
from pipeline.stores.leftovers import remove_leftovers
from pipeline.stores.publish import write_if_changed

MIN_FRAMES = 2
"""Fewest frames of a usable video: a flow field needs two."""


def probe_shard(
    videos: list[dict[str, Any]],
    *,
    shard: str,
    store: Path,
    on_error: Literal["quarantine", "fail"] = "quarantine",
) -> Receipt:
    """Probe the videos of a shard.

    Args:
        videos: ``id``, ``path``, ``digest`` and ``bytes`` of each, and ``image_fps`` of one that is a folder of images.
        shard: its name.
        store: folder of what is known from earlier runs; its file of this shard is brought up to date.
        on_error: what to do about an unusable video.

    Raises:
        ValueError: the store's file of this shard is damaged.
        UnusableVideo: ``on_error`` is ``fail`` and a video is unusable.
    """
    remove_leftovers(store)
    known = _read_known(store / f"{shard}.json")
    by_id = {video["id"]: video for video in videos}
    keys = {name: artifact_key("probe", {}, video["digest"]) for name, video in by_id.items()}
    found: dict[str, dict[str, Any]] = {}

    def attempt(name: str) -> Outcome:
        video, key = by_id[name], keys[name]
        facts = known.get(key) or found.get(key)
        found[key] = facts or _probe_as_planned(video)
        if not facts:
            _write(store / f"{shard}.json", known | found)
        if found[key]["frames"] < MIN_FRAMES:
            raise UnusableVideo(f"too few frames: {found[key]['frames']} decode, {MIN_FRAMES} needed")
        where = {"path": video["path"], "digest": video["digest"]}
        return Outcome(status="reused" if facts else "done", facts={**where, **found[key]})

    receipt = work_through(by_id, attempt, stage="probe", shard=shard, on_error=on_error)
    _write(store / f"{shard}.json", found)
    return receipt


def _write(path: Path, found: dict[str, dict[str, Any]]) -> None:
    write_if_changed(path, json.dumps(found, sort_keys=True, indent=1) + "\n")


def _probe_as_planned(video: dict[str, Any]) -> dict[str, Any]:
    path, image_fps = Path(video["path"]), video.get("image_fps")
    with planned_source(path, digest=video["digest"], image_fps=image_fps):
        result = probe(path, image_fps=image_fps)
    return {
        "frames": result.frames,
        "fps": result.fps,
        "width": result.width,
        "height": result.height,
        "sar": result.sar,
    }


def _read_known(path: Path) -> dict[str, dict[str, Any]]:
    try:
        known: dict[str, dict[str, Any]] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise ValueError(f"{path} is damaged; delete it and run again") from None
    return known


def main(argv: list[str] | None = None) -> None:
    """Probe one shard."""
    parser = argparse.ArgumentParser(prog="python -m stages.probe", description=main.__doc__)
    parser.add_argument("--shard", type=Path, required=True, help="the plan's list of the shard's videos")
    parser.add_argument("--store", type=Path, required=True, help="folder of what earlier runs found")
    parser.add_argument("--on-error", choices=("quarantine", "fail"), default="quarantine")
    parser.add_argument("--receipt", type=Path, required=True, help="receipt to write")
    arguments = parser.parse_args(argv)
    try:
        probe_shard(
            json.loads(arguments.shard.read_text()),
            shard=arguments.shard.stem,
            store=arguments.store,
            on_error=arguments.on_error,
        ).write(arguments.receipt)
    except (OSError, ValueError, UnusableVideo) as error:
        sys.exit(f"probe: {error}")


if __name__ == "__main__":
    main()
