"""Videos as snippets for torch: what is drawn depends on seed, epoch and video id only, never on workers or order.

Pixels leave as they are stored, uint8 RGB or quantised flow, beside the views to cut out of them: `augmentation` cuts
them on the device, and the model's own front normalises them there.

Shapes: B videos, N snippets, n frames a snippet, C channels of a frame (3, or flow x y), H W stored size, V views of a
video, each the five numbers of `transforms.View`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler, default_collate

from pipeline.dataset.manifest import Manifest
from pipeline.learning import sampling, transforms
from pipeline.learning.readers import FeatureIndex, Index, Reader


class Clip(NamedTuple):
    """A video of one part of a split."""

    id: str
    label: int
    """Class number."""
    frames: int
    """Number of frames, or of flow fields."""


def select(manifest: Manifest, index: Index | FeatureIndex, *, split: str, part: str) -> tuple[list[Clip], list[str]]:
    """The clips of one part of a split that the store holds, and the ids of those that it does not.

    Raises:
        ValueError: no such split, a video with several labels, or no clip is left.
    """
    number = {name: i for i, name in enumerate(manifest.classes)}
    clips, left_out = [], []
    for video in manifest.part(split, part):
        if len(video.labels) != 1:
            raise ValueError(f"the video {video.id!r} has {len(video.labels)} labels; recognition needs one")
        facts = index["videos"].get(video.id)
        if facts is None:
            left_out.append(video.id)
        else:
            clips.append(Clip(video.id, number[video.labels[0]], facts["frames"]))
    if not clips:
        raise ValueError(f"the {part} part of {split} has no video with {index['stage']}; mark some videos as {part}")
    return clips, left_out


class Snippets(NamedTuple):
    """Snippets of one video; of B videos after `collate`, with a first dimension B."""

    images: Tensor
    """(N, n*C, H, W) uint8."""
    views: Tensor
    """(5,) in training, (V, 5) in testing; int64."""
    label: int
    """Class number."""
    video: int
    """Number of the clip."""
    positions: Tensor
    """(N,) int64, first frames."""


@dataclass(frozen=True, kw_only=True)
class TrainingSnippets(Dataset[Snippets]):
    """Random snippets of training videos under a random view. An item is asked for by (epoch, video number)."""

    clips: Sequence[Clip]
    reader: Reader
    snippet: int
    """Frames a snippet (n)."""
    segments: int
    """Snippets a video (N)."""
    stride: int = 1
    """From one frame of a snippet to its next."""
    spread: bool = True
    """Snippets in equal parts of the video, rather than in one run of frames."""
    short: sampling.Short = "hold"
    size: int
    """Side of the network's input (S), pixels."""
    scales: tuple[float, ...]
    """Sides of crops as parts of the short side."""
    places: transforms.Places = "tsn"
    flip: bool
    """Mirror half of the views."""
    seed: int
    beside: Reader | None = None
    """Of flow, whose fields from the same frames are further channels, after those of all frames."""

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: tuple[int, int]) -> Snippets:
        """The snippets of a video in an epoch, and one view."""
        epoch, number = key
        clip = self.clips[number]
        rng = np.random.default_rng(derived_seed(self.seed, epoch, clip.id))
        draw = sampling.train_positions if self.spread else sampling.run_positions
        positions = draw(clip.frames, snippet=self.snippet, segments=self.segments, rng=rng, stride=self.stride)
        indices = sampling.snippet_indices(positions, self.snippet, clip.frames, stride=self.stride, short=self.short)
        images = _stacked(self.reader.read(clip.id, indices))
        if self.beside is not None:
            fields = _stacked(self.beside.read(clip.id, indices))
            if fields.shape[-2:] != images.shape[-2:]:
                raise ValueError(
                    f"the video {clip.id!r} has flow of {tuple(fields.shape[-2:])} pixels beside frames of "
                    f"{tuple(images.shape[-2:])}; store both in one size"
                )
            images = torch.cat([images, fields], dim=1)
        height, width = images.shape[-2:]
        view = transforms.draw_view(
            height, width, size=self.size, scales=self.scales, flip=self.flip, rng=rng, places=self.places
        )
        return Snippets(images, torch.tensor(view), clip.label, number, torch.from_numpy(positions))


@dataclass(frozen=True, kw_only=True)
class ScoringSnippets(Dataset[Snippets]):
    """Snippets of test videos under fixed views, in chunks of a video so that memory is bounded."""

    clips: Sequence[Clip]
    reader: Reader
    snippet: int
    """Frames a snippet (n)."""
    segments: int | None
    """Snippets a video (T); None: all that have room one after the other."""
    stride: int = 1
    """From one frame of a snippet to its next."""
    short: sampling.Short = "hold"
    crops: transforms.Crops
    """Views of a video (V)."""
    scale: float = transforms.TEST_SCALE
    """Side of a crop as a part of the short side."""
    chunk: int
    """Most snippets an item (t)."""

    @cached_property
    def items(self) -> list[tuple[int, int]]:
        """Video number and first snippet of each item."""
        return [
            (number, start)
            for number, clip in enumerate(self.clips)
            for start in range(0, len(self._positions(clip)), self.chunk)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> Snippets:
        """A chunk of t snippets of a video, and its views."""
        number, start = self.items[item]
        clip = self.clips[number]
        positions = self._positions(clip)[start : start + self.chunk]
        indices = sampling.snippet_indices(positions, self.snippet, clip.frames, stride=self.stride, short=self.short)
        images = self.reader.read(clip.id, indices)
        height, width = images.shape[-2:]
        views = torch.tensor(transforms.fixed_views(height, width, crops=self.crops, scale=self.scale))
        return Snippets(_stacked(images), views, clip.label, number, torch.from_numpy(positions))

    def _positions(self, clip: Clip) -> NDArray[np.int64]:
        return sampling.scoring_positions(clip.frames, snippet=self.snippet, segments=self.segments, stride=self.stride)


def _stacked(images: NDArray[np.uint8]) -> Tensor:
    """The frames of a snippet as its channels: (N, n, C, H, W) -> (N, n*C, H, W)."""
    return torch.from_numpy(images).flatten(1, 2)


def collate(items: Sequence[Snippets]) -> Snippets:
    """A batch of videos; images smaller than the largest are padded at the bottom and the right with zeros."""
    height, width = (max(item.images.shape[side] for item in items) for side in (-2, -1))
    batch: Snippets = default_collate([item._replace(images=_padded(item.images, height, width)) for item in items])
    return batch


def _padded(images: Tensor, height: int, width: int) -> Tensor:
    below, beside = height - images.shape[-2], width - images.shape[-1]
    return F.pad(images, (0, beside, 0, below)) if below or beside else images


@dataclass(frozen=True, kw_only=True)
class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, video number) for one process of ``world``: every epoch in an order of its own.

    The processes share each batch of ``batch_size``, so the videos of a step do not depend on how many there are. An
    order that they cannot share evenly is filled up from its start, by less than one video a process.
    """

    videos: int
    batch_size: int
    """Videos a step, over all processes; a multiple of ``world``."""
    epochs: range
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.world:
            raise ValueError(f"batch_size {self.batch_size} cannot be shared by {self.world} devices; use a multiple")

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return -(-self.videos // self.batch_size)

    def __len__(self) -> int:
        return self.steps * len(self.epochs)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in self.epochs:
            order = np.random.default_rng(derived_seed(self.seed, epoch)).permutation(self.videos)
            order = np.resize(order, -(-self.videos // self.world) * self.world)
            for start in range(0, len(order), self.batch_size):
                mine = order[start : start + self.batch_size][self.rank :: self.world]
                yield [(epoch, int(number)) for number in mine]


def derived_seed(*parts: int | str) -> int:
    """A seed of 64 bits for the draws that ``parts`` name; the same in every process."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
