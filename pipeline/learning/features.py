"""Features of videos for torch: what another experiment's network makes of them, out of the store of features.

Nothing is drawn: a video gives the same features in every epoch.

Shapes: B videos, n clips or frames of a video, F what there is of each: (D,) features or a map (C, h, w).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Subset

from pipeline.config import ComputeConfig, ExperimentConfig
from pipeline.dataset.feature_receipts import FeatureReceipt
from pipeline.learning.clock import Clock, clocked
from pipeline.learning.devices import loader_options
from pipeline.learning.loader import Clip, TrainingBatches
from pipeline.learning.readers import FeatureIndex
from pipeline.stores.damage import DamagedArtifact, Note, Notes
from pipeline.stores.features import FeatureStore
from pipeline.stores.provenance import made_by
from pipeline.stores.sharing import Sharing

PADDING = -1
"""Position of a clip that is none."""


def read_feature_index(folder: Path, *, shards: Sequence[str]) -> FeatureIndex:
    """Gather the receipts of the features stage in a folder, one for each shard.

    Args:
        folder: of the receipts; those of shards that the plan no longer has may lie there too.
        shards: names of the plan's.

    Raises:
        ValueError: one is missing or no receipt, they are of different networks, or there is no video.
    """
    receipts = [FeatureReceipt.read(folder / f"{shard}.json") for shard in shards]
    videos = {video: facts for receipt in receipts for video, facts in sorted(receipt.videos.items())}
    if not videos:
        raise ValueError(f"there are no features in the receipts of {folder}; run the features stage first")
    of = {(receipt.store, str(sorted(receipt.parameters.items()))) for receipt in receipts}
    shapes = {tuple(facts["shape"]) for facts in videos.values()}
    if len(of) > 1 or len(shapes) > 1:
        raise ValueError(f"the receipts in {folder} are of different networks or settings; delete them and run again")
    store, parameters = receipts[0].store, receipts[0].parameters
    return {"stage": "features", "store": store, "parameters": parameters, "shape": shapes.pop(), "videos": videos}


@dataclass(frozen=True)
class FeatureReader:
    """Features by video id. Names the video in an error about damage, and leaves a note of it."""

    store: FeatureStore
    videos: dict[str, dict[str, Any]]
    notes: Notes | None
    by: str

    def read(self, video_id: str) -> NDArray[Any]:
        """(n, D) float32 or (n, C, h, w) float16.

        Raises:
            DamagedArtifact: the array is missing, damaged or made otherwise than the index says.
        """
        key = self.videos[video_id]["key"]
        try:
            return self.store.read(key)
        except DamagedArtifact as error:
            if self.notes is not None:
                self.notes.leave(
                    Note(stage=self.by, made_by="features", video=video_id, key=key, reason=str(error)),
                )
            raise DamagedArtifact(f"video {video_id!r}: {error}") from None


def open_features(index: FeatureIndex, *, sharing: Sharing | None = None, by: str = "reader") -> FeatureReader:
    """The reader of the store that ``index`` describes.

    Args:
        index: of features.
        sharing: where notes about damage are left; features are not shared.
        by: name of the stage that reads, for the notes.
    """
    store = FeatureStore(Path(index["store"]), wanted={**made_by("features"), "parameters": index["parameters"]})
    notes = None if sharing is None or sharing.notes is None else Notes(sharing.notes)
    return FeatureReader(store, index["videos"], notes, by)


class Features(NamedTuple):
    """Features of one video."""

    features: Tensor
    """(n, *F)."""
    label: int
    """Class number."""
    video: int
    """Number of the clip."""
    positions: Tensor
    """(n,) int64, first frames."""


@dataclass(frozen=True)
class FeatureClips(Dataset[Features]):
    """Features of videos. An item is asked for by video number, or in training by (epoch, video number)."""

    clips: Sequence[Clip]
    reader: FeatureReader

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: int | tuple[int, int]) -> Features:
        number = key if isinstance(key, int) else key[1]
        clip = self.clips[number]
        positions = np.array(self.reader.videos[clip.id]["positions"], np.int64)
        features = torch.from_numpy(self.reader.read(clip.id))
        return Features(features, clip.label, number, torch.from_numpy(positions))


Batch = tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]
"""Inputs of the model, labels (B,), video numbers (B,) and positions (B, n) int64, -1 at padding.

Video numbers and positions stay on the CPU.
"""


def collate(items: Sequence[Features], *, masked: bool) -> Batch:
    """A batch of videos; shorter ones are padded with zeros to the longest.

    Args:
        items: of the videos.
        masked: the inputs are features (B, n, *F) and the mask (B, n), true where there is a clip; otherwise the
            features alone, and all videos must have as many.

    Raises:
        ValueError: they must and have not.
    """
    lengths = {len(item.features) for item in items}
    if not masked and len(lengths) > 1:
        raise ValueError(
            f"videos of {min(lengths)} and of {max(lengths)} maps cannot be read together; "
            "set sampling.test_segments to a number"
        )
    features = pad_sequence([item.features for item in items], batch_first=True)
    positions = pad_sequence([item.positions for item in items], batch_first=True, padding_value=PADDING)
    labels, videos = (
        torch.tensor(values) for values in zip(*((item.label, item.video) for item in items), strict=True)
    )
    inputs = (features, positions != PADDING) if masked else (features,)
    return inputs, labels, videos, positions


@dataclass(frozen=True)
class FeatureBatches:
    """The batches of a loader, inputs and labels on the device."""

    batches: Any
    device: torch.device
    clock: Clock | None = None
    """Of the training that steps on them."""

    def __iter__(self) -> Iterator[Batch]:
        return clocked(self.batches, self.clock, then=self._moved)

    def _moved(self, batch: Any) -> Batch:
        inputs, labels, videos, positions = batch
        there = tuple(values.to(self.device, non_blocking=True) for values in inputs)  # pinned, it is a list
        return there, labels.to(self.device, non_blocking=True), videos, positions


def feature_training_batches(
    clips: Sequence[Clip],
    reader: FeatureReader,
    batches: TrainingBatches,
    *,
    experiment: ExperimentConfig,
    compute: ComputeConfig,
    fabric: Fabric,
    clock: Clock | None = None,
) -> FeatureBatches:
    """In the order of ``batches``."""
    loader: Any = DataLoader(
        FeatureClips(clips, reader),
        batch_sampler=batches,
        collate_fn=_collate(experiment),
        **loader_options(compute, fabric),
    )
    return FeatureBatches(loader, fabric.device, clock)


def feature_testing_batches(
    clips: Sequence[Clip],
    reader: FeatureReader,
    *,
    experiment: ExperimentConfig,
    compute: ComputeConfig,
    fabric: Fabric,
) -> FeatureBatches:
    """This process's share of the videos in their order, each once."""
    mine = Subset(FeatureClips(clips, reader), range(fabric.global_rank, len(clips), fabric.world_size))
    loader: Any = DataLoader(
        mine,
        batch_size=max(1, experiment.optim.batch_size // fabric.world_size),
        collate_fn=_collate(experiment),
        **loader_options(compute, fabric),
    )
    return FeatureBatches(loader, fabric.device)


def _collate(experiment: ExperimentConfig) -> Any:
    """Families that take a mask beside the features say what is padding."""
    return partial(collate, masked=experiment.model.family == "jsta_temporal")
