"""Folders of flow that other tools have computed into the flow store, and what the flow stage does with them.

The codes in the images are stored as they are read, without a second rounding; the attributes say what they mean. A
key is that of the video's bytes and of what the configuration states about the flow, in a stage's name of its own:
imported flow is never taken for flow that was computed here.

Shapes: H W height and width of the images.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Config, FlowConfig, ImportedFlowConfig
from pipeline.dataset.keys import artifact_key, maker
from pipeline.dataset.receipts import Receipt
from pipeline.media.errors import UnusableVideo
from pipeline.progress import track
from pipeline.stores.flow import FlowStore
from pipeline.stores.folders import Matched, count_fields, match_folders, read_fields
from pipeline.stores.leftovers import remove_leftovers
from pipeline.stores.provenance import provenance
from pipeline.stores.publish import write_if_changed
from pipeline.stores.shared import SharedStore

NOT_IMPORTED = "no flow was imported for it"
"""How the reason begins why a video without imported flow cannot be used."""

END_FRAMES = 2
"""Largest difference to the number of fields that the frames make: decoders disagree about the end of some files."""

ALGORITHMS = {"farneback": "Farneback", "brox": "Brox", "nvof": "NVIDIA Optical Flow", "unknown": "unknown"}

FlowStage = Literal["flow", "warped_flow"]


@dataclass(frozen=True)
class Imported:
    """What became of the folders of a root."""

    matched: Matched
    done: tuple[str, ...]
    """Ids of videos whose flow was imported now."""
    already: tuple[str, ...]
    """Ids of videos whose flow was in the store."""
    refused: dict[str, str]
    """Why a folder was not imported, by video id."""


def import_flow(
    videos: Sequence[Mapping[str, Any]],
    root: Path,
    *,
    store: Path,
    config: FlowConfig,
    stage: FlowStage = "flow",
    processes: int = 1,
) -> Imported:
    """Import the folders of all videos that have one; those that are in the store are not read again.

    Args:
        videos: ``id``, ``path`` and ``digest`` of each, as the plan lists them.
        root: what the tool was told to write to: ``<root>/<name>/`` or ``<root>/<class>/<name>/``.
        store: folder of the arrays.
        config: section of the configuration with ``imported``.
        stage: whose flow it becomes.
        processes: number of them.

    Raises:
        ValueError: the section imports nothing, or folders cannot be told apart (see ``match_folders``).
    """
    if config.imported is None:
        raise ValueError(f"{stage}.imported is not set; state there what is known of the flow, as its tool and bound")
    matched = match_folders([(video["id"], Path(video["path"])) for video in videos], root=root)
    jobs = {v["id"]: (matched.folders[v["id"]], v["digest"]) for v in videos if v["id"] in matched.folders}
    attempt = partial(_attempt, store=store, config=config, stage=stage)
    outcomes = dict(zip(jobs, _each(attempt, list(jobs.values()), processes=processes), strict=True))
    return Imported(
        matched=matched,
        done=tuple(name for name, outcome in outcomes.items() if outcome is True),
        already=tuple(name for name, outcome in outcomes.items() if outcome is False),
        refused={name: outcome for name, outcome in outcomes.items() if isinstance(outcome, str)},
    )


def _each(
    attempt: Callable[[tuple[Path, str]], bool | str], jobs: list[tuple[Path, str]], *, processes: int
) -> Iterator[bool | str]:
    """Outcome of every job, in order, with progress."""
    if processes == 1:
        yield from track(map(attempt, jobs), total=len(jobs), label="import")
        return
    # not fork: the parent may hold threads of a codec
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from track(pool.map(attempt, jobs), total=len(jobs), label="import")


def _attempt(job: tuple[Path, str], *, store: Path, config: FlowConfig, stage: FlowStage) -> bool | str:
    """Whether a folder was imported now, or why it was not."""
    folder, digest = job
    arrays, key = FlowStore(store), artifact_key(maker(stage, config), config, digest)
    if arrays.has(key):
        return False
    arrays.remove_broken(key)
    remove_leftovers(arrays.path(key).parent)
    try:
        import_folder(folder, arrays=arrays, digest=digest, config=config, stage=stage)
    except UnusableVideo as error:
        return f"{folder}: {error}"
    return True


def import_folder(
    folder: Path, *, arrays: FlowStore, digest: str, config: FlowConfig, stage: FlowStage = "flow"
) -> dict[str, Any]:
    """Write the flow in a video's folder to the store, whole or not at all; memory does not grow with its length.

    Args:
        folder: of the images.
        arrays: the store.
        digest: of the video.
        config: section of the configuration with ``imported``.
        stage: whose flow it becomes.

    Returns:
        The attributes.

    Raises:
        UnusableVideo: the folder is not as the configuration states, or damaged.
    """
    layout, imported = config.layout, config.imported
    assert layout is not None
    assert imported is not None
    parameters = config.model_dump(mode="json", by_alias=True)
    key = artifact_key(maker(stage, config), parameters, digest)
    try:
        # what is shown by the images of dense_flow begins with the second frame; so does flow between them
        count, start = count_fields(folder, layout), int(imported.own_images)
        if count <= start:
            raise ValueError("it holds no field between two of its own images")
        fields = _Fields(read_fields(folder, layout, start=start, stop=count))

        def describe(count: int) -> dict[str, Any]:
            origin = provenance(maker(stage, config), parameters=parameters, digest=digest, software=_software())
            return {**origin, **attributes(config, stage=stage), "frames": count, **fields.seen()}

        return arrays.write(key, fields, describe=describe)
    except ValueError as error:
        raise UnusableVideo(str(error)) from None


class _Fields:
    """Passes fields on and remembers their size, and how many of their vectors are at the bound."""

    def __init__(self, fields: Iterable[NDArray[np.uint8]]) -> None:
        self._fields = fields
        self._clipped, self._count = 0.0, 0
        self._size = (0, 0)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for field in self._fields:
            self._clipped += float(((field == 0) | (field == 255)).any(axis=0).mean())
            self._count += 1
            self._size = field.shape[1:]
            yield field

    def seen(self) -> dict[str, Any]:
        height, width = self._size
        return {"height": height, "width": width, "clipped_fraction": self._clipped / self._count}


def attributes(config: FlowConfig, *, stage: FlowStage) -> dict[str, Any]:
    """What holds for every array that is imported with these settings. Whoever made the flow, it is the user's word."""
    layout, imported = config.layout, config.imported
    assert layout is not None
    assert imported is not None
    return {
        "artifact": "optical flow" if stage == "flow" else "optical flow without camera motion",
        "origin": f"imported from images of {imported.tool}; the parameters are stated, not known",
        "algorithm": ALGORITHMS.get(imported.solver, "TV-L1"),
        "variant": imported.solver,
        "alignment": _alignment(config),
        "step": config.step,
        "direction": "reverse" if config.reverse else "forward",
        "files": [layout.flow_name("x", 0), layout.flow_name("y", 0)],
        "lossy": "JPEG" if imported.images == "jpg" else None,
        "channels": ["x", "y"],
        "unit": "pixels of the image",
        "bound": config.bound,
        **_quantisation(imported),
    }


def _software() -> dict[str, str]:
    return {name: version(name) for name in ("opencv-contrib-python-headless", "zarr")}


def _alignment(config: FlowConfig) -> str:
    layout, imported = config.layout, config.imported
    assert layout is not None
    assert imported is not None
    if imported.own_images:
        return "flow[t]: frame t -> t+1, frames being dense_flow's own images"
    if layout.stride > 1:
        return f"flow[t]: frame {layout.step}*t -> {layout.step}*t+{layout.step}"
    ends = ("t", f"t+{layout.step}")[:: -1 if layout.reverse else 1]
    return f"flow[t]: frame {ends[0]} -> {ends[1]}"


def _quantisation(imported: ImportedFlowConfig) -> dict[str, Any]:
    """What the codes mean. Truncated ones stand for values half a code larger than rounded ones do."""
    scaled = "255 * (v + bound) / (2 * bound)"
    match imported.quantiser:
        case "round":
            codes, shift = f"q = 0 if v < -bound, 255 if v > bound, else round_half_even({scaled})", 0.0
        case "truncate":
            codes, shift = f"q = floor({scaled}) of v clipped to +-bound", 0.5
    inverse = "v = 2 * bound * (q + code_shift) / 255 - bound"
    return {"quantisation": codes, "code_shift": shift, "inverse": inverse}


def imported_facts(probed: Mapping[str, Any], found: Mapping[str, Any], config: FlowConfig) -> dict[str, Any]:
    """What cannot be known of an imported array without its video: ``fps``, fields per second.

    Args:
        probed: facts of the probe about the video.
        found: the array's attributes.
        config: section of the configuration with ``imported``.

    Raises:
        UnusableVideo: the array has not as many fields as the video's frames make.
    """
    layout, imported = config.layout, config.imported
    assert layout is not None
    assert imported is not None
    frames, fields = probed["frames"], found["frames"]
    expected = frames - 1 if imported.own_images else layout.fields(frames)
    allowed = 0 if Path(probed["path"]).is_dir() else END_FRAMES
    if abs(fields - expected) > allowed:
        raise UnusableVideo(
            f"{fields} fields were imported for it where its {frames} frames make {expected}; is the folder whole, "
            "of this video, and its step stated?"
        )
    stride = 1 if imported.own_images else layout.stride
    return {"fps": probed["fps"] / stride}


def arrivals_file(plan: Path, stage: str, recipe: str, shard: str) -> Path:
    """Input of a shard's job beside the probe's receipt; its content changes when flow has come that the job missed.

    Deleting the receipt instead would not do: Snakemake makes no file again that only finished files were made from.
    """
    return plan / "arrivals" / f"{stage}-{recipe}" / f"{shard}.json"


def count_arrivals(config: Config, recipes: Mapping[str, str], shards: Sequence[str]) -> Iterator[str]:
    """Bring the files of arrivals up to date; the caller has locked the work folder and written the plan.

    Args:
        config: whose receipts.
        recipes: of the stages.
        shards: names of all.

    Yields:
        A sentence for each shard whose job has to look again.

    Raises:
        OSError: the shared store cannot be reached.
    """
    for stage in ("flow", "warped_flow"):
        if stage not in recipes or getattr(config, stage).imported is None:
            continue
        for shard in shards:
            file = arrivals_file(config.work_dir / "plan", stage, recipes[stage], shard)
            counted = int(file.read_text()) if file.exists() else 0
            came = _arrived(config, stage, config.work_dir / "receipts" / f"{stage}-{recipes[stage]}" / f"{shard}.json")
            write_if_changed(file, f"{counted + bool(came)}\n")
            if came:
                yield f"{stage}: imported flow has come since the last run for {', '.join(came)}"


def _arrived(config: Config, stage: str, receipt: Path) -> list[str]:
    """Ids of videos that a receipt says no flow was imported for, where some is in a store by now."""
    if not receipt.exists():
        return []
    outcomes = Receipt.read(receipt).quarantined()
    lacking = [name for name, outcome in outcomes.items() if (outcome.reason or "").startswith(NOT_IMPORTED)]
    if not lacking:
        return []
    section, media = getattr(config, stage), config.work_dir / "plan" / "media" / receipt.name
    digests = {row["id"]: row["digest"] for row in json.loads(media.read_text())}
    keys = {name: artifact_key(maker(stage, section), section, digests[name]) for name in lacking if name in digests}
    return [name for name, key in keys.items() if _is_somewhere(config, stage, key)]


def _is_somewhere(config: Config, stage: str, key: str) -> bool:
    shared = config.store.shared
    return FlowStore(config.store_folder(stage, "")).has(key) or (
        shared is not None and SharedStore(shared).has("flow", key)
    )
