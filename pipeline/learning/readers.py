"""What stands in the stores, by video id: the index that says where, and a reader for each kind of store.

Shapes: N snippets, n frames a snippet, C channels of a frame (3, or flow x y), H W stored size.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.keys import maker
from pipeline.stores.damage import DamagedArtifact, Note, Notes
from pipeline.stores.flow import FlowStore
from pipeline.stores.frame_reader import FrameShards
from pipeline.stores.provenance import made_by
from pipeline.stores.sharing import Sharing


class Index(TypedDict):
    """Where the readers find each video of one store (written by the index stage)."""

    stage: Literal["frames", "flow", "warped_flow"]
    store: str
    parameters: dict[str, Any]
    videos: dict[str, dict[str, Any]]
    quarantined: dict[str, dict[str, str]]


class FeatureIndex(TypedDict):
    """Where the reader finds the features of each video; of the keys of ``Index`` those that ``select`` reads.

    ``frames`` of a video is its number of clips or frames in the store (n).
    """

    stage: Literal["features"]
    store: str
    parameters: dict[str, Any]
    shape: tuple[int, ...]
    """F, the same for all videos."""
    videos: dict[str, dict[str, Any]]


class Reader(Protocol):
    """Stored frames or fields of a video."""

    def size(self, video_id: str) -> tuple[int, int]:
        """Stored height and width, pixels."""

    def read(self, video_id: str, indices: NDArray[np.int64], *, reduction: int = 1) -> NDArray[np.uint8]:
        """(N, n) frame numbers -> (N, n, C, H, W).

        ``reduction`` is 1 for fields; frames may be decoded with their sides divided by 2, 4 or 8 and rounded up.
        """


def read_index(path: Path, *, stage: str) -> Index:
    """Read an index and check that it is one of ``stage``.

    Raises:
        ValueError: the file is missing, is not an index or is one of another stage.
    """
    try:
        index: Index = json.loads(path.read_text())
        found = index["stage"]
    except FileNotFoundError:
        raise ValueError(f"there is no index {path}; run the index stage first") from None
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is not an index; delete it and run again") from None
    if found != stage:
        raise ValueError(f"{path} is an index of {found}, but {stage} is needed")
    if not Index.__annotations__.keys() <= index.keys():
        raise ValueError(f"{path} is not a whole index; delete it and run again")
    return index


def index_argument(text: str) -> tuple[str, Path]:
    """STORE=FILE of a command line: the name of a store and the file of its index."""
    name, separator, path = text.partition("=")
    if name not in ("frames", "flow", "warped_flow") or not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not frames=FILE, flow=FILE or warped_flow=FILE")
    return name, Path(path)


def open_reader(
    index: Index, *, sharing: Sharing | None = None, by: str = "reader", frames_from: str | None = None
) -> Reader:
    """The reader of the store that ``index`` describes.

    Args:
        index: of frames, flow or warped flow.
        sharing: where flow that is not in the local store is read in place, or copied from, and where notes about
            damage are left.
        by: name of the stage that reads, for the notes.
        frames_from: a copy of the folder of frame shards, as a folder or URL, to read frames from instead. Damage in it
            is an error, but no note is left: the frames of the index may be whole.
    """
    sharing = sharing or Sharing()
    parameters, videos = index["parameters"], index["videos"]
    origin = made_by(maker(index["stage"], parameters))
    reader: Reader
    match index["stage"]:
        case "frames":
            place, copied = frames_from or Path(index["store"]), frames_from is not None
            shards = FrameShards(place, wanted={**origin, "parameters": parameters}, copied=copied)
            reader = FrameReader(shards, videos)
            if copied:
                return NotingReader(reader, index, notes=None, by=by)
        case "flow" | "warped_flow":
            root, shared, copied = Path(index["store"]), sharing.store, not sharing.in_place
            arrays = FlowStore(root, parameters=parameters, provenance=origin, shared=shared, copied=copied)
            reader = FlowReader(arrays, videos)
    return reader if sharing.notes is None else NotingReader(reader, index, notes=Notes(sharing.notes), by=by)


@dataclass(frozen=True)
class FrameReader:
    """RGB frames from webdataset shards; only the frames asked for are decoded."""

    shards: FrameShards
    videos: dict[str, dict[str, Any]]

    def size(self, video_id: str) -> tuple[int, int]:
        """Stored height and width, pixels."""
        return _size(self.videos[video_id])

    def read(self, video_id: str, indices: NDArray[np.int64], *, reduction: int = 1) -> NDArray[np.uint8]:
        """(N, n) frame numbers -> (N, n, 3, H, W), a view of interleaved pixels."""
        frames = self.shards.read_frames(self.videos[video_id], indices.ravel().tolist(), reduction=reduction)
        return frames.reshape(*indices.shape, *frames.shape[1:]).transpose(0, 1, 4, 2, 3)


@dataclass(frozen=True)
class FlowReader:
    """Quantised flow from the zarr store; only the fields asked for are decoded."""

    store: FlowStore
    videos: dict[str, dict[str, Any]]

    def size(self, video_id: str) -> tuple[int, int]:
        """Stored height and width, pixels."""
        return _size(self.videos[video_id])

    def read(self, video_id: str, indices: NDArray[np.int64], *, reduction: int = 1) -> NDArray[np.uint8]:
        """(N, n) field numbers -> (N, n, 2, H, W)."""
        assert reduction == 1
        facts = self.videos[video_id]
        wanted, places = np.unique(indices, return_inverse=True)
        fields, done = np.empty((len(wanted), 2, *_size(facts)), np.uint8), 0
        for run in np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1):  # of consecutive fields
            own = fields[done : done + len(run)]
            self.store.read(facts["key"], int(run[0]), int(run[-1]) + 1, source=facts.get("digest"), out=own)
            done += len(run)
        if np.array_equal(indices.ravel(), wanted):  # none twice, none out of order
            return fields.reshape(*indices.shape, *fields.shape[1:])
        return fields[places.reshape(indices.shape)]


@dataclass(frozen=True)
class FieldsOfFrames:
    """Flow by the number of the frame that a field leads from; the last frames, from which none does, have the last."""

    reader: Reader
    videos: dict[str, dict[str, Any]]

    def size(self, video_id: str) -> tuple[int, int]:
        """Stored height and width, pixels."""
        return self.reader.size(video_id)

    def read(self, video_id: str, indices: NDArray[np.int64], *, reduction: int = 1) -> NDArray[np.uint8]:
        """(N, n) frame numbers -> (N, n, 2, H, W)."""
        fields = np.minimum(indices, self.videos[video_id]["frames"] - 1)
        return self.reader.read(video_id, fields, reduction=reduction)


def _size(facts: dict[str, Any]) -> tuple[int, int]:
    return facts["height"], facts["width"]


@dataclass(frozen=True)
class NotingReader:
    """Names the video in an error about damage, and leaves a note of it; in whatever process it reads."""

    reader: Reader
    index: Index
    notes: Notes | None
    """None: no note is left."""
    by: str

    def size(self, video_id: str) -> tuple[int, int]:
        """Stored height and width, pixels."""
        return self.reader.size(video_id)

    def read(self, video_id: str, indices: NDArray[np.int64], *, reduction: int = 1) -> NDArray[np.uint8]:
        """As the reader that it stands before."""
        try:
            return self.reader.read(video_id, indices, reduction=reduction)
        except DamagedArtifact as error:
            key = self.index["videos"][video_id]["key"]
            note = Note(stage=self.by, made_by=self.index["stage"], video=video_id, key=key, reason=str(error))
            if self.notes is not None:
                self.notes.leave(note)
            raise DamagedArtifact(f"video {video_id!r}: {error}") from None
