"""What a model is fed: which videos, which frames, in which order; the same whoever loads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pipeline.dataset.manifest import Manifest, Video
from pipeline.learning import loader, sampling
from pipeline.learning.loader import Clip, ScoringSnippets, TrainingBatches, TrainingSnippets

LENGTHS = {"a": 30, "b": 3, "c": 17, "d": 60, "e": 9}
CLIPS = [Clip(name, number % 2, frames) for number, (name, frames) in enumerate(LENGTHS.items())]


@dataclass(frozen=True)
class Numbered:
    """Videos whose every pixel tells its frame and channel: value = channels * frame + channel."""

    channels: int

    def read(self, video_id: str, indices: np.ndarray) -> np.ndarray:
        assert indices.max() < LENGTHS[video_id]
        values = self.channels * indices[..., None] + np.arange(self.channels)
        return np.broadcast_to(values[..., None, None].astype(np.uint8), (*values.shape, 20, 24))


def training(clips: Sequence[Clip] = CLIPS, *, seed: int = 0, **changes: Any) -> TrainingSnippets:
    settings: dict[str, Any] = {
        "snippet": 5, "segments": 3, "size": 16, "scales": (1.0, 0.875), "flip": False, "flow": True,
    }  # fmt: skip
    return TrainingSnippets(clips=clips, reader=Numbered(2), seed=seed, **settings | changes)


def spaced(*, chunk: int, crops: Any = 1, channels: int = 2) -> ScoringSnippets:
    return ScoringSnippets(
        clips=CLIPS, reader=Numbered(channels), snippet=5, segments=7, size=16, crops=crops, flow=True, chunk=chunk
    )


def test_channels_are_x1_y1_x2_y2_of_consecutive_fields() -> None:
    for number, clip in enumerate(CLIPS):
        snippets, label, told, positions = training()[3, number]
        assert (label, told) == (clip.label, number)
        assert snippets.shape == (3, 10, 16, 16)
        assert snippets.dtype == torch.uint8
        for snippet, position in zip(snippets, positions.tolist(), strict=True):
            fields = [min(position + i, clip.frames - 1) for i in range(5)]
            assert snippet[:, 0, 0].tolist() == [2 * field + c for field in fields for c in (0, 1)]


def test_draws_depend_on_seed_epoch_and_id_not_on_the_other_videos() -> None:
    def positions(dataset: TrainingSnippets, epoch: int, name: str) -> list[int]:
        number = [clip.id for clip in dataset.clips].index(name)
        return dataset[epoch, number][3].tolist()

    all_, few = training(), training([CLIPS[3], CLIPS[0]])
    assert positions(all_, 2, "d") == positions(few, 2, "d")
    assert positions(all_, 2, "a") == positions(few, 2, "a")
    assert positions(all_, 2, "d") != positions(all_, 3, "d")
    assert positions(all_, 2, "d") != positions(training(seed=1), 2, "d")


def test_workers_do_not_change_what_is_loaded() -> None:
    batches = TrainingBatches(videos=5, batch_size=2, epochs=range(2), seed=0)
    alone, helped = (
        list(DataLoader(training(flip=True), batch_sampler=batches, num_workers=workers)) for workers in (0, 2)
    )
    assert len(alone) == len(helped) == len(batches) == 6
    for one, two in zip(alone, helped, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(one, two, strict=True))


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
def test_processes_share_every_batch(videos: int, world: int, share: int, seed: int) -> None:
    def batches(rank: int, world: int) -> list[list[tuple[int, int]]]:
        sampler = TrainingBatches(
            videos=videos, batch_size=share * 4 * world, epochs=range(3), seed=seed, rank=rank, world=world
        )
        found = list(sampler)
        assert len(found) == len(sampler)
        return found

    parts = [batches(rank, world) for rank in range(world)]
    assert len({tuple(len(batch) for batch in part) for part in parts}) == 1  # nobody waits for a step that never comes
    for epoch in range(3):
        counts = Counter(number for part in parts for batch in part for e, number in batch if e == epoch)
        assert set(counts) == set(range(videos))
        assert sum(counts.values()) - videos < world


def test_two_processes_step_on_the_videos_of_one() -> None:
    def batches(rank: int, world: int) -> list[list[tuple[int, int]]]:
        return list(TrainingBatches(videos=10, batch_size=4, epochs=range(2), seed=0, rank=rank, world=world))

    for whole, first, second in zip(batches(0, 1), batches(0, 2), batches(1, 2), strict=True):
        assert sorted(whole) == sorted(first + second)


def test_continuing_gives_the_later_epochs_and_orders_differ() -> None:
    def epochs(span: range) -> list[list[tuple[int, int]]]:
        return list(TrainingBatches(videos=20, batch_size=20, epochs=span, seed=0))

    assert epochs(range(5))[2:] == epochs(range(2, 5))
    orders = [tuple(number for _, number in batch) for batch in epochs(range(5))]
    assert len(set(orders)) == 5


def test_a_batch_that_devices_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 5 cannot be shared by 2 devices"):
        TrainingBatches(videos=5, batch_size=5, epochs=range(1), seed=0, world=2)


@pytest.mark.parametrize("crops", [1, 10])
def test_chunks_of_a_test_video_are_the_whole(crops: int) -> None:
    whole, chunked = spaced(chunk=7, crops=crops), spaced(chunk=3, crops=crops)
    assert len(whole) == 5
    assert len(chunked) == 15
    for number, clip in enumerate(CLIPS):
        views, label, _, positions = whole[number]
        parts = [chunked[3 * number + i] for i in range(3)]
        assert [part[2] for part in parts] == [number] * 3
        assert label == clip.label
        assert views.shape == (crops, 7, 10, 16, 16)
        assert torch.equal(torch.cat([part[0] for part in parts], dim=1), views)
        assert torch.equal(torch.cat([part[3] for part in parts]), positions)
        assert positions.tolist() == sampling.test_positions(clip.frames, snippet=5, segments=7).tolist()


def test_mirrored_test_views_negate_x_of_every_field() -> None:
    views = spaced(chunk=7, crops=10)[0][0].int()
    assert torch.equal(views[5:, :, 0::2], 255 - views[:5, :, 0::2])
    assert torch.equal(views[5:, :, 1::2], views[:5, :, 1::2])


def video(name: str, *labels: str, part: str = "test", reason: str | None = None) -> Video:
    return Video(id=name, path=name, digest=name, bytes=1, labels=labels, splits={"split1": part}, reason=reason)


def index(*names: str) -> loader.Index:
    return {
        "stage": "flow",
        "store": "none",
        "parameters": {},
        "videos": {name: {"frames": 4, "key": name} for name in names},
        "quarantined": {},
    }


def test_select_takes_the_usable_videos_of_a_part_and_names_those_without_an_entry() -> None:
    manifest = Manifest(
        (video("a", "run"), video("b", "walk"), video("c", "jump", reason="broken"), video("d", "walk"))
    )
    clips, left_out = loader.select(manifest, index("a", "c", "d"), split="split1", part="test")
    assert clips == [("a", 1, 4), ("d", 2, 4)]
    assert left_out == ["b"]


@pytest.mark.parametrize(
    ("manifest", "part", "message"),
    [
        (Manifest((video("a", "run", "walk"),)), "test", "'a' has 2 labels; recognition needs one"),
        (Manifest((video("a", "run"),)), "train", "the train part of split1 has no video with flow"),
        (Manifest((video("b", "run"),)), "test", "the test part of split1 has no video with flow"),
    ],
)
def test_select_refuses_what_cannot_be_trained_on(manifest: Manifest, part: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader.select(manifest, index("a"), split="split1", part=part)
