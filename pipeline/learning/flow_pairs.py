"""Pairs of frames with the flow between them, from the stores or from FlyingChairs: what a flow predictor learns from.

What is drawn depends on seed, epoch and the pair's name only, never on workers or order.

Shapes: H W size of the frames, h w of the network's input, k l of its prediction, all in pixels; flow channel 0 = x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from pipeline.dataset.builders.flying_chairs import FlowPair
from pipeline.dataset.manifest import Manifest
from pipeline.experiments import check_flow_of_frames
from pipeline.learning.order import derived_seed
from pipeline.learning.readers import Index, Reader
from pipeline.learning.transforms import View
from pipeline.optical_flow.flo import read_flo
from pipeline.optical_flow.quantise import dequantise

SCALES = (1.0, 0.875, 0.75)
"""Crops as parts of the largest of their shape; 0.875 of FlyingChairs' 512 x 384 are the 448 x 320 of FlowNet."""


class Pair(NamedTuple):
    """Two frames and the flow from the first to the second."""

    frames: NDArray[np.uint8]
    """(2, 3, H, W) RGB."""
    flow: NDArray[np.float32]
    """(2, H, W) in pixels."""


class PairSource(Protocol):
    """Where pairs come from."""

    def __len__(self) -> int:
        """Pairs of an epoch."""

    def name(self, number: int) -> str:
        """What tells one from another, whatever else there is."""

    def read(self, number: int, rng: np.random.Generator) -> Pair:
        """A pair; where there are several of a name, one of them at random."""


class PairedClip(NamedTuple):
    """A video with frames and flow."""

    id: str
    pairs: int
    """Frames that are followed by one, each with a flow field."""


@dataclass(frozen=True, kw_only=True)
class StoredPairs:
    """Frames and quantised flow of own videos: a random pair of each."""

    clips: Sequence[PairedClip]
    frames: Reader
    flow: Reader
    bound_px: float
    """Of the quantisation."""

    def __len__(self) -> int:
        return len(self.clips)

    def name(self, number: int) -> str:
        return self.clips[number].id

    def read(self, number: int, rng: np.random.Generator) -> Pair:
        clip = self.clips[number]
        first = int(rng.integers(clip.pairs))
        frames = self.frames.read(clip.id, np.array([[first, first + 1]]))[0]
        codes = self.flow.read(clip.id, np.array([[first]]))[0, 0]
        if codes.shape[1:] != frames.shape[2:]:
            raise ValueError(
                f"frames of {clip.id!r} are {_size(frames)} and its flow {_size(codes)}; a SAN learns the flow between "
                "the very frames that it sees: make both stores of one size"
            )
        return Pair(frames, dequantise(codes, bound=self.bound_px))


def paired_clips(manifest: Manifest, frames: Index, flow: Index, *, split: str) -> tuple[list[PairedClip], list[str]]:
    """The training videos of a split that both stores hold, and the ids of those that one of them does not.

    Raises:
        ValueError: no such split, no video is left, or the flow is not the one between these frames.
    """
    check_flow_of_frames(frames["parameters"], flow["parameters"])
    clips, left_out = [], []
    for video in manifest.part(split, "train"):
        one, other = (index["videos"].get(video.id, {}).get("frames", 0) for index in (frames, flow))
        pairs = min(one - 1, other)
        if pairs < 1:
            left_out.append(video.id)
        else:
            clips.append(PairedClip(video.id, pairs))
    if not clips:
        raise ValueError(f"the train part of {split} has no video with frames and flow; mark some videos as train")
    return clips, left_out


@dataclass(frozen=True)
class ChairsPairs:
    """FlyingChairs, every pair once an epoch."""

    pairs: Sequence[FlowPair]

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, number: int) -> str:
        return self.pairs[number].id

    def read(self, number: int, rng: np.random.Generator) -> Pair:
        pair = self.pairs[number]
        frames = np.stack([_image(path) for path in (pair.prev, pair.next)])
        flow = read_flo(pair.flow)
        if flow.shape[1:] != frames.shape[2:]:
            raise ValueError(f"{pair.flow} is {_size(flow)}, its images {_size(frames)}; get the pair anew")
        if not np.isfinite(flow).all():
            raise ValueError(
                f"{pair.flow} has vectors that are not known; pre-training needs whole flow: remove the pair"
            )
        return Pair(frames, flow)


@dataclass(frozen=True, kw_only=True)
class FlowTargets(Dataset[tuple[Tensor, Tensor]]):
    """Random views of pairs. An item is asked for by (epoch, number)."""

    source: PairSource
    size: tuple[int, int]
    """Height and width of the network's input (h, w)."""
    target_size: tuple[int, int]
    """Height and width of its prediction (k, l)."""
    seed: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Both frames (6, h, w) uint8, and the flow (2, k, l) in pixels of (h, w)."""
        epoch, number = key
        rng = np.random.default_rng(derived_seed(self.seed, "san", epoch, self.source.name(number)))
        pair = self.source.read(number, rng)
        view = draw_view(*pair.flow.shape[1:], size=self.size, rng=rng)
        return cut_frames(pair.frames, view, size=self.size), cut_flow(
            pair.flow, view, size=self.size, target_size=self.target_size
        )


def draw_view(height: int, width: int, *, size: tuple[int, int], rng: np.random.Generator) -> View:
    """A crop of the shape of ``size``, of random scale and place, mirrored or not.

    Args:
        height, width: of the frames, pixels.
        size: height and width of the network's input, pixels.
        rng: source of the draws: scale, row, column, mirroring.
    """
    fit = min(height / size[0], width / size[1]) * SCALES[rng.integers(len(SCALES))]
    box_height, box_width = (
        max(1, min(side, round(part * fit))) for side, part in zip((height, width), size, strict=True)
    )
    y, x = int(rng.integers(height - box_height + 1)), int(rng.integers(width - box_width + 1))
    return View(y, x, box_height, box_width, bool(rng.random() < 0.5))


def cut_frames(frames: NDArray[np.uint8], view: View, *, size: tuple[int, int]) -> Tensor:
    """Cut a view out of both frames (2, 3, H, W) and resize it, bilinearly: (6, h, w) uint8."""
    cut = frames[:, :, view.y : view.y + view.height, view.x : view.x + view.width]
    out = np.empty((6, *size), np.uint8)
    for plane, resized in zip(cut.reshape(6, *cut.shape[2:]), out, strict=True):
        cv2.resize(plane, size[::-1], dst=resized, interpolation=cv2.INTER_LINEAR)
    return torch.from_numpy(np.ascontiguousarray(out[..., ::-1]) if view.mirrored else out)


def cut_flow(flow: NDArray[np.float32], view: View, *, size: tuple[int, int], target_size: tuple[int, int]) -> Tensor:
    """Cut a view out of flow (2, H, W), averaged over each cell of the target: (2, k, l) float32.

    Vectors are in pixels of the input, so they scale with the view's resizing to ``size``; mirroring negates x.
    """
    cut = torch.from_numpy(flow[:, view.y : view.y + view.height, view.x : view.x + view.width])
    per_axis = torch.tensor([size[1] / view.width, size[0] / view.height]).reshape(2, 1, 1)  # x, y
    target = F.adaptive_avg_pool2d(cut * per_axis, target_size)
    return target.flip(2) * torch.tensor([-1.0, 1.0]).reshape(2, 1, 1) if view.mirrored else target


def _image(path: Path) -> NDArray[np.uint8]:
    """(3, H, W) RGB."""
    found = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if found is None:
        raise ValueError(f"{path} cannot be read as an image; get the pair anew")
    return np.ascontiguousarray(np.moveaxis(found, 2, 0), np.uint8)


def _size(images: NDArray[np.generic]) -> str:
    return f"{images.shape[-1]}x{images.shape[-2]}"
