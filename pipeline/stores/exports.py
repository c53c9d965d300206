"""Flow and frames out of the stores, into the folders of images that other tools read.

A video's folder is ``<root>/<label>/<name>/``. It appears when it is whole; one that is there stays as it is.

Shapes: H W height and width of the images.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import Config, FlowConfig
from pipeline.progress import track
from pipeline.stores.flow import FlowStore
from pipeline.stores.folders import folder_name
from pipeline.stores.frame_reader import FrameShards
from pipeline.stores.layouts import FIRST_NUMBER, FolderLayout, Suffix, Tool
from pipeline.stores.publish import atomic_folder

JPEG_QUALITY = 95
"""Of exported flow, as the tools themselves write it."""
_FIELDS_AT_ONCE = 32
_COMPONENTS = ("x", "y")


@dataclass(frozen=True)
class FlowSource:
    """Stored flow."""

    store: FlowStore
    videos: Mapping[str, Mapping[str, Any]]
    """Facts of each video: of an index."""
    every: int = 1
    """Stored fields from one exported field to the next."""

    def write(self, video: str, folder: Path, layout: FolderLayout) -> None:
        """Write the images of a video's fields."""
        facts, encoding = self.videos[video], _encoding(layout.suffix)
        for start in range(0, facts["frames"], _FIELDS_AT_ONCE):
            stop = min(start + _FIELDS_AT_ONCE, facts["frames"])
            for number, field in enumerate(self.store.read(facts["key"], start, stop), start):
                if number % self.every:
                    continue
                for component, plane in zip(_COMPONENTS, field, strict=True):
                    name = layout.flow_name(component, number // self.every)  # type: ignore[arg-type]
                    (folder / name).write_bytes(_encode(plane, layout.suffix, encoding))


@dataclass(frozen=True)
class FrameSource:
    """Stored frames."""

    shards: FrameShards
    videos: Mapping[str, Mapping[str, Any]]
    """Facts of each video: of an index."""

    def write(self, video: str, folder: Path, layout: FolderLayout) -> None:
        """Write the JPEGs of a video's frames, byte for byte, under the numbers that the layout has for them."""
        facts, index = dict(self.videos[video]), 0
        while (frame := layout.shown(index)) < facts["frames"]:
            (image,) = self.shards.read_jpegs(facts, [frame])
            (folder / layout.image_name(index)).write_bytes(image)
            index += 1


@dataclass(frozen=True)
class Exporter:
    """Writes folders of videos; picklable."""

    layout: FolderLayout
    sources: tuple[FlowSource | FrameSource, ...]

    def __call__(self, job: tuple[str, Path]) -> bool:
        """Write the folder of a video; False if it was there."""
        video, folder = job
        if folder.exists():
            return False
        with atomic_folder(folder) as temporary:
            for source in self.sources:
                source.write(video, temporary, self.layout)
        return True


@dataclass(frozen=True)
class Exported:
    """What became of the videos."""

    done: tuple[str, ...]
    already: tuple[str, ...]
    """Ids of videos whose folder was there."""
    lacking: tuple[str, ...]
    """Ids of videos that the stores do not hold."""


def export(
    videos: Sequence[Mapping[str, Any]],
    root: Path,
    *,
    layout: FolderLayout,
    sources: Sequence[FlowSource | FrameSource],
    processes: int = 1,
) -> Exported:
    """Write ``<root>/<label>/<name>/`` for every video that all sources hold.

    Args:
        videos: ``id``, ``path`` and ``labels`` of each, as the plan lists them; the first label names the class.
        root: made if absent.
        layout: names, numbers and alignment; see ``export_layout``.
        sources: what the folders hold.
        processes: number of them.

    Raises:
        ValueError: a label is no name of a folder, two videos would share a folder, or an artifact is damaged.
    """
    held = [video for video in videos if all(video["id"] in source.videos for source in sources)]
    jobs = [(video["id"], folder) for video, folder in zip(held, _folders(held, root), strict=True)]
    written = list(_each(Exporter(layout, tuple(sources)), jobs, processes=processes))
    return Exported(
        done=tuple(video for (video, _), new in zip(jobs, written, strict=True) if new),
        already=tuple(video for (video, _), new in zip(jobs, written, strict=True) if not new),
        lacking=tuple(sorted({video["id"] for video in videos} - {video["id"] for video in held})),
    )


def export_layout(tool: Tool, *, config: FlowConfig, suffix: Suffix = "jpg") -> tuple[FolderLayout, int]:
    """How the flow of a configuration lies in a tool's folders.

    Args:
        tool: that reads them.
        config: the flow's section.
        suffix: of the flow images.

    Returns:
        The layout, and the number of stored fields from one exported field to the next: dense_flow's pairs follow each
        other, while those that are stored here overlap where the step is larger than one.

    Raises:
        ValueError: the tool has no such step or direction, or needs pairs that are not stored.
    """
    stored = config.layout or FolderLayout(tool="denseflow", step=config.step, reverse=config.reverse, first_number=0)
    step = 1 if config.imported is not None and config.imported.own_images else stored.step
    stride = min(stored.stride, step)
    layout = FolderLayout(tool=tool, step=step, reverse=stored.reverse, suffix=suffix, first_number=FIRST_NUMBER[tool])
    if layout.stride % stride:
        raise ValueError(
            f"{tool} has a field for each frame, and one for {stride} frames is stored; choose the layout of dense_flow"
        )
    return layout, layout.stride // stride


def check_rates(config: Config, *, flow: FlowConfig) -> None:
    """Refuse frames and flow of different rates for one folder, whose numbers would not belong together.

    Raises:
        ValueError: they differ.
    """
    rates = {(section.fps, section.max_seconds) for section in (config.frames, flow)}
    if len(rates) > 1:
        raise ValueError("frames and flow have other fps or max_seconds, so their numbers differ; export them apart")


def _folders(videos: Sequence[Mapping[str, Any]], root: Path) -> Iterator[Path]:
    owners: dict[Path, str] = {}
    for video in videos:
        label = video["labels"][0]
        if label in ("", ".", "..") or "/" in label or "\0" in label:
            raise ValueError(f"the label {label!r} of {video['id']!r} is no name of a folder; rename the class")
        folder = root / label / folder_name(Path(video["path"]))
        if folder in owners:
            raise ValueError(f"the videos {owners[folder]!r} and {video['id']!r} would share the folder {folder}")
        owners[folder] = video["id"]
        yield folder


def _each(exporter: Exporter, jobs: Sequence[tuple[str, Path]], *, processes: int) -> Iterator[bool]:
    """Outcome of every job, in order, with progress."""
    if processes == 1:
        yield from track(map(exporter, jobs), total=len(jobs), label="export")
        return
    # not fork: the parent may hold threads of a codec
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from track(pool.map(exporter, jobs), total=len(jobs), label="export")


def _encoding(suffix: Suffix) -> list[int]:
    return [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == "jpg" else []


def _encode(plane: NDArray[np.uint8], suffix: Suffix, encoding: Iterable[int]) -> bytes:
    """A grey image file of (H, W)."""
    whole, data = cv2.imencode(f".{suffix}", plane, list(encoding))
    assert whole
    return data.tobytes()
