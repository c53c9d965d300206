"""A shard of videos into the flow store: what the stages flow and warped_flow share.

Each video is decoded, solved, quantised and written a pair at a time, so memory does not grow with its length.

Shapes: H W height and width of the flow.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import FlowConfig
from pipeline.dataset.digests import planned_source
from pipeline.dataset.keys import artifact_key, maker
from pipeline.dataset.receipts import Outcome, Receipt, work_through
from pipeline.media import ffmpeg
from pipeline.media.decode import counted, gray_frames, target_size
from pipeline.media.errors import UnusableVideo
from pipeline.optical_flow.quantise import clipped_fraction, quantise
from pipeline.optical_flow.solve import resolved_backend
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.flow import FlowStore
from pipeline.stores.imports import NOT_IMPORTED, imported_facts
from pipeline.stores.leftovers import remove_leftovers
from pipeline.stores.provenance import provenance
from pipeline.stores.sharing import Sharing, add_arguments

SOLVER_LIBRARY: dict[str, str] = {
    "numba": "numba",
    "opencv": "opencv-contrib-python-headless",
    "torch": "torch",
    "triton": "triton",
}

Gray = NDArray[np.uint8]
Pairs = dict[str, NDArray[Any]]


class Solved(NamedTuple):
    """Flow of one pair."""

    flow: NDArray[np.float32]
    """(2, H, W), pixels."""
    found: Mapping[str, Any] = MappingProxyType({})
    """Numbers and small arrays to be kept beside the flow; of equal names and shapes for all pairs."""


def no_summary(pairs: Pairs) -> dict[str, Any]:
    """For flow that has nothing beside it."""
    return {}


def fill_shard(
    probed: Receipt,
    *,
    stage: Literal["flow", "warped_flow"],
    shard: str,
    store: Path,
    config: FlowConfig,
    solve: Callable[[Iterable[Gray]], Iterable[Solved]],
    attributes: dict[str, Any],
    summarise: Callable[[Pairs], dict[str, Any]] = no_summary,
    on_error: Literal["quarantine", "fail"],
    sharing: Sharing | None = None,
) -> Receipt:
    """Make sure that the flow of every video of a shard is in the store.

    Args:
        probed: receipt of the probe stage on this shard.
        stage: whose flow; part of the artifact key.
        shard: its name.
        store: folder of the arrays.
        config: geometry, rate, solver and quantisation; or what is stated of imported flow, which is not computed.
        solve: grey frames of a video, (H, W), to the flow of its pairs.
        attributes: what holds for every array of this stage, beside what the configuration says.
        summarise: what is kept beside the flow of a video, in a few numbers, for its attributes and its facts.
        on_error: what to do about an unusable video.
        sharing: the team's store; None for none.

    Raises:
        UnusableVideo: ``on_error`` is ``fail`` and a video is unusable.
        OSError: the shared store cannot be reached, or the disk is full.
    """
    sharing = sharing or Sharing()
    remove_leftovers(store)
    videos, arrays = probed.usable(), sharing.arrays(store)

    def attempt(name: str) -> Outcome:
        key = artifact_key(maker(stage, config), config, videos[name]["digest"])
        if _is_here(arrays, key, sharing):
            return Outcome(status="reused", facts=facts(name, key, arrays.attributes(key)))
        remove_leftovers(arrays.path(key).parent)
        if sharing.take_flow(arrays, key):
            return Outcome(status="fetched", facts=facts(name, key, arrays.attributes(key)))
        if config.imported is not None:
            raise UnusableVideo(f"{NOT_IMPORTED}; import its folder by `python -m stages.store import`")
        video = _Video(stage, key, videos[name], config)
        written = video.write(arrays, solve, attributes=attributes, summarise=summarise)
        sharing.give_flow(arrays, key)
        return Outcome(status="done", facts=facts(name, key, written))

    def facts(name: str, key: str, found: dict[str, Any]) -> dict[str, Any]:
        if config.imported is not None:
            found = {**found, **imported_facts(videos[name], found, config)}
        return _facts(key, found)

    return work_through(videos, attempt, stage=stage, shard=shard, on_error=on_error, earlier=probed.quarantined())


def _is_here(arrays: FlowStore, key: str, sharing: Sharing) -> bool:
    """Whether the local store has the array, and the shared one if it is to have it. A damaged one is deleted."""
    if not arrays.has(key):
        arrays.remove_broken(key)
        return False
    try:
        arrays.attributes(key)
        sharing.give_flow(arrays, key)
    except DamagedArtifact as error:
        print(error, file=sys.stderr, flush=True)
        arrays.remove(key)
        return False
    return True


class _Video:
    """One video on its way into the store."""

    def __init__(self, stage: str, key: str, facts: dict[str, Any], config: FlowConfig) -> None:
        self._stage, self._key, self._facts, self._config = stage, key, facts, config
        self._width, self._height = target_size(
            facts["width"], facts["height"], size=config.size, short_side=config.short_side
        )
        self._clipped = 0.0
        self._pairs: dict[str, list[Any]] = defaultdict(list)

    def write(
        self,
        arrays: FlowStore,
        solve: Callable[[Iterable[Gray]], Iterable[Solved]],
        *,
        attributes: dict[str, Any],
        summarise: Callable[[Pairs], dict[str, Any]],
    ) -> dict[str, Any]:
        """Write the array; returns its attributes."""

        def describe(count: int) -> dict[str, Any]:
            common = _common_attributes(self._stage, self._config, digest=self._facts["digest"])
            return {**common, **attributes, **self._own(count), **summarise(self._beside())}

        fields = self._quantised(solve(self._frames()))
        return arrays.write(self._key, fields, describe=describe, pairs=self._beside)

    def _frames(self) -> Iterator[Gray]:
        config, facts = self._config, self._facts
        rate = {"fps": config.fps, "max_seconds": config.max_seconds, "image_fps": facts["fps"]}
        path = Path(facts["path"])
        frames = gray_frames(path, width=self._width, height=self._height, **rate)
        every_frame = config.fps is None and config.max_seconds is None
        with planned_source(path, digest=facts["digest"], image_fps=facts["fps"]):
            yield from counted(frames, at_least=config.step + 1, expected=facts["frames"] if every_frame else None)

    def _quantised(self, solved: Iterable[Solved]) -> Iterator[NDArray[np.uint8]]:
        bound = self._config.bound
        for flow, found in solved:
            self._clipped += clipped_fraction(flow, bound=bound)
            for name, value in found.items():
                self._pairs[name].append(value)
            yield quantise(flow, bound=bound)

    def _beside(self) -> Pairs:
        return {name: np.stack(values) for name, values in self._pairs.items()}

    def _own(self, count: int) -> dict[str, Any]:
        return {
            "frames": count,
            "width": self._width,
            "height": self._height,
            "fps": self._config.fps or self._facts["fps"],
            "clipped_fraction": self._clipped / count,
        }


def _common_attributes(stage: str, config: FlowConfig, *, digest: str) -> dict[str, Any]:
    """What holds for every array made with these settings."""
    backend = resolved_backend(config.backend)
    library = SOLVER_LIBRARY[backend]
    ends = (f"t+{config.step}", "t") if config.reverse else ("t", f"t+{config.step}")
    return {
        "artifact": "optical flow",
        "algorithm": "TV-L1",
        "variant": config.variant,
        "backend": backend,
        "alignment": f"flow[t]: frame {ends[0]} -> {ends[1]}",
        "step": config.step,
        "direction": "reverse" if config.reverse else "forward",
        "channels": ["x", "y"],
        "unit": "pixels of the resized frame",
        "bound": config.bound,
        "quantisation": "q = 0 if v < -bound, 255 if v > bound, else round_half_even(255 * (v + bound) / (2 * bound))",
        "inverse": "v = 2 * bound * q / 255 - bound",
        **provenance(
            stage,
            parameters=config.model_dump(mode="json", by_alias=True),
            digest=digest,
            software={"ffmpeg": ffmpeg.version(), library: version(library), "zarr": version("zarr")},
        ),
    }


def _facts(key: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """What a reader needs to know of an array."""
    facts = {name: attributes[name] for name in ("frames", "width", "height", "fps")}
    facts["digest"] = attributes["source_digest"]
    camera = {"camera": attributes["camera"]} if "camera" in attributes else {}
    return {"key": key, **facts, "clipped": attributes["clipped_fraction"], **camera}


def run_command(
    argv: Sequence[str] | None,
    *,
    stage: str,
    description: str | None,
    section: type[FlowConfig],
    job: Callable[..., Receipt],
) -> None:
    """The command line of a flow stage: one shard from the probe's receipt to this stage's.

    Args:
        argv: arguments; None takes the process's.
        stage: name of the stage, as in ``stages.NAME``.
        description: for ``--help``.
        section: the stage's part of the configuration.
        job: does the work; called as ``fill_shard`` without what only the stage knows.
    """
    parser = argparse.ArgumentParser(prog=f"python -m stages.{stage}", description=description)
    parser.add_argument("--shard", type=Path, required=True, help="receipt of the probe stage; its name is the shard's")
    parser.add_argument("--store", type=Path, required=True, help="folder of the arrays")
    parser.add_argument("--params", type=section.model_validate_json, required=True, help="settings as JSON")
    parser.add_argument("--on-error", choices=("quarantine", "fail"), default="quarantine")
    parser.add_argument("--receipt", type=Path, required=True, help="receipt to write")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        job(
            Receipt.read(arguments.shard),
            shard=arguments.shard.stem,
            store=arguments.store,
            config=arguments.params,
            on_error=arguments.on_error,
            sharing=Sharing.of(arguments.sharing, notes=arguments.damaged),
        ).write(arguments.receipt)
    except (OSError, ValueError, UnusableVideo) as error:
        sys.exit(f"{stage}: {error}")
