"""Videos as snippets for torch: what is drawn depends on seed, epoch and video id only, never on workers or order.

Pixels leave as they are stored, uint8 RGB or quantised flow, beside the views to cut out of them: `augmentation` cuts
them on the device, and the model's own front normalises them there.

Shapes: B videos, N snippets, n frames a snippet, C channels of a frame (3, or flow x y), H W stored size, V views of a
video, each the five numbers of `transforms.View`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler, default_collate, get_worker_info

from pipeline.dataset.manifest import Manifest
from pipeline.learning import sampling, transforms
from pipeline.learning.order import derived_seed, epoch_order
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
    reduced: bool = False
    """Whether images are decoded smaller where the view has pixels enough for the network; of frames alone."""
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
        height, width = self.reader.size(clip.id)
        view = transforms.draw_view(
            height, width, size=self.size, scales=self.scales, flip=self.flip, rng=rng, places=self.places
        )
        reduction = transforms.reduction_for([view], size=self.size) if self.reduced else 1
        images = _stacked(self.reader.read(clip.id, indices, reduction=reduction))
        if self.beside is not None:
            fields = _stacked(self.beside.read(clip.id, indices))
            if fields.shape[-2:] != images.shape[-2:]:
                raise ValueError(
                    f"the video {clip.id!r} has flow of {tuple(fields.shape[-2:])} pixels beside frames of "
                    f"{tuple(images.shape[-2:])}; store both in one size"
                )
            images = torch.cat([images, fields], dim=1)
        view = transforms.reduced(view, reduction)
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
    reduced_for: int | None = None
    """Side of the network's input (S), pixels, if images are decoded smaller where the views have enough for it."""

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
        views = transforms.fixed_views(*self.reader.size(clip.id), crops=self.crops, scale=self.scale)
        reduction = 1 if self.reduced_for is None else transforms.reduction_for(views, size=self.reduced_for)
        images = _stacked(self.reader.read(clip.id, indices, reduction=reduction))
        seen = torch.tensor([transforms.reduced(view, reduction) for view in views])
        return Snippets(images, seen, clip.label, number, torch.from_numpy(positions))

    def _positions(self, clip: Clip) -> NDArray[np.int64]:
        return sampling.scoring_positions(clip.frames, snippet=self.snippet, segments=self.segments, stride=self.stride)


def _stacked(images: NDArray[np.uint8]) -> Tensor:
    """The frames of a snippet as its channels: (N, n, C, H, W) -> (N, n*C, H, W).

    Single frames stay interleaved, a view. Several must not, and OpenCV takes them apart in a tenth of NumPy's time.
    """
    snippets, frames, channels, height, width = images.shape
    if frames == 1 or images.strides[2] != 1 or channels != 3:
        return torch.from_numpy(images).flatten(1, 2)
    planes = np.empty((snippets, frames * channels, height, width), np.uint8)
    interleaved = images.transpose(0, 1, 3, 4, 2).reshape(-1, height, width, channels)
    for image, own in zip(interleaved, planes.reshape(-1, channels, height, width), strict=True):
        cv2.split(image, list(own))
    return torch.from_numpy(planes)


def collate(items: Sequence[Snippets]) -> Snippets:
    """A batch of videos; images smaller than the largest are padded at the bottom and the right with zeros."""
    height, width = (max(item.images.shape[side] for item in items) for side in (-2, -1))
    images = [_padded(item.images, height, width) for item in items]
    interleaved = all(one.stride(1) == 1 for one in images)
    if interleaved:  # in the order of memory, in which they are copied fastest
        images = [one.movedim(1, -1) for one in images]
    batch = _batched(images)
    rest = [default_collate(list(column)) for column in zip(*(item[1:] for item in items), strict=True)]
    return Snippets(batch.movedim(-1, 2) if interleaved else batch, *rest)


def _batched(images: Sequence[Tensor]) -> Tensor:
    """Images of equal sizes with a first dimension B, copied.

    In a loader process into the memory that they are sent by; otherwise into NumPy's, which asks the system for large
    pages: with small ones a large batch would take four times as long, most of it to get them.
    """
    if get_worker_info() is not None:
        batch: Tensor = default_collate(list(images))
        return batch
    memory = np.empty((len(images), *images[0].shape), np.uint8)
    for own, image in zip(memory, images, strict=True):
        own[...] = image.numpy()
    return torch.from_numpy(memory)


def _padded(images: Tensor, height: int, width: int) -> Tensor:
    below, beside = height - images.shape[-2], width - images.shape[-1]
    return F.pad(images, (0, beside, 0, below)) if below or beside else images


@dataclass(frozen=True, kw_only=True)
class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, video number) for one process of ``world``: every epoch in an order of its own.

    The processes share each batch of ``batch_size``, so the videos of a step do not depend on how many there are. An
    order that they cannot share evenly is filled up from its start, by less than one video a process: every process
    makes the same number of steps, and no video is seen again in an epoch before each was seen.

    The order is computed, so training can begin in the middle of an epoch without reading what comes before.
    """

    videos: int
    batch_size: int
    """Videos a step, over all processes; a multiple of ``world``."""
    epochs: range
    seed: int
    rank: int = 0
    world: int = 1
    first_step: int = 0
    """Of the first epoch."""
    accumulate: int = 1
    """Parts in which a process takes its share of a step; fewer if it has fewer videos."""
    shards: Sequence[int] | None = None
    """Of each video, where reading goes shard by shard."""
    buffer: int = 1
    """Videos among which that order is shuffled."""

    def __post_init__(self) -> None:
        if self.batch_size % self.world:
            raise ValueError(f"batch_size {self.batch_size} cannot be shared by {self.world} devices; use a multiple")

    @property
    def steps(self) -> int:
        """An epoch."""
        return -(-self.videos // self.batch_size)

    def share(self, step: int) -> int:
        """Videos of each process at a step of an epoch."""
        left = -(-self.videos // self.world) - step * (self.batch_size // self.world)
        return min(self.batch_size // self.world, left)

    def parts(self, step: int) -> int:
        """Batches in which each process takes its share at a step."""
        return min(self.accumulate, self.share(step))

    def __len__(self) -> int:
        """Batches that are left."""
        an_epoch = sum(self.parts(step) for step in range(self.steps))
        done = sum(self.parts(step) for step in range(self.first_step))
        return an_epoch * len(self.epochs) - done

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first_step = self.first_step
        for epoch in self.epochs:
            order = epoch_order(self.videos, seed=self.seed, epoch=epoch, shards=self.shards, buffer=self.buffer)
            order = np.resize(order, -(-self.videos // self.world) * self.world)
            for step in range(first_step, self.steps):
                batch = order[step * self.batch_size : (step + 1) * self.batch_size]
                for part in np.array_split(batch[self.rank :: self.world], self.parts(step)):
                    yield [(epoch, int(number)) for number in part]
            first_step = 0
