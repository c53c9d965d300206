"""What a model is fed: which videos, which frames, in which order; the same whoever loads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pipeline.dataset.manifest import Manifest, Video
from pipeline.learning import loader, sampling, transforms
from pipeline.learning.augmentation import Augmented, cut
from pipeline.learning.loader import Clip, ScoringSnippets, Snippets, TrainingBatches, TrainingSnippets, collate
from pipeline.learning.readers import FieldsOfFrames

LENGTHS = {"a": 30, "b": 3, "c": 17, "d": 60, "e": 9}
SIZES = {"a": (20, 24), "b": (18, 30), "c": (20, 24), "d": (26, 21), "e": (20, 24)}
CLIPS = [Clip(name, number % 2, frames) for number, (name, frames) in enumerate(LENGTHS.items())]


@dataclass(frozen=True)
class Numbered:
    """Videos whose every pixel tells its frame and channel: value = channels * frame + channel."""

    channels: int

    def size(self, video_id: str) -> tuple[int, int]:
        return SIZES[video_id]

    def read(self, video_id: str, indices: np.ndarray, *, reduction: int = 1) -> np.ndarray:
        assert reduction == 1
        assert indices.max() < LENGTHS[video_id]
        values = self.channels * indices[..., None] + np.arange(self.channels)
        return np.broadcast_to(values[..., None, None].astype(np.uint8), (*values.shape, *SIZES[video_id])).copy()


@dataclass(frozen=True)
class Noisy:
    """Videos of noise."""

    channels: int

    def size(self, video_id: str) -> tuple[int, int]:
        return SIZES[video_id]

    def read(self, video_id: str, indices: np.ndarray, *, reduction: int = 1) -> np.ndarray:
        assert reduction == 1
        rng = np.random.default_rng(ord(video_id))
        shape = (LENGTHS[video_id], self.channels, *SIZES[video_id])
        return rng.integers(0, 256, shape, dtype=np.uint8)[indices]


def training(clips: Sequence[Clip] = CLIPS, *, seed: int = 0, **changes: Any) -> TrainingSnippets:
    settings: dict[str, Any] = {
        "reader": Numbered(2), "snippet": 5, "segments": 3, "size": 16, "scales": (1.0, 0.875), "flip": False,
    }  # fmt: skip
    return TrainingSnippets(clips=clips, seed=seed, **settings | changes)


def spaced(*, chunk: int, crops: Any = 1) -> ScoringSnippets:
    return ScoringSnippets(clips=CLIPS, reader=Noisy(2), snippet=5, segments=7, crops=crops, chunk=chunk)


@pytest.mark.parametrize(("snippet", "channels"), [(5, 2), (1, 3), (2, 3)])
def test_channels_are_those_of_consecutive_frames(snippet: int, channels: int) -> None:
    """x1, y1, x2, y2, ... of fields; R, G, B of one frame; R1, G1, B1, R2, G2, B2 of two. "b" is shorter than five."""
    dataset = training(reader=Numbered(channels), snippet=snippet)
    for number, clip in enumerate(CLIPS):
        item = dataset[3, number]
        assert (item.label, item.video) == (clip.label, number)
        assert item.images.shape == (3, snippet * channels, *SIZES[clip.id])
        assert item.images.dtype == torch.uint8
        for image, position in zip(item.images, item.positions.tolist(), strict=True):
            frames = [min(position + i, clip.frames - 1) for i in range(snippet)]
            assert image[:, 0, 0].tolist() == [channels * frame + c for frame in frames for c in range(channels)]


def test_views_are_drawn_for_each_video_and_epoch_inside_its_own_images() -> None:
    dataset = training(flip=True)
    views = {(epoch, number): dataset[epoch, number].views.tolist() for epoch in range(20) for number in range(5)}
    for (_, number), (y, x, height, width, mirrored) in views.items():
        stored_height, stored_width = SIZES[CLIPS[number].id]
        assert 0 <= y < y + height <= stored_height
        assert 0 <= x < x + width <= stored_width
        assert mirrored in (0, 1)
    assert len({tuple(views[epoch, 0]) for epoch in range(20)}) > 8
    assert len({tuple(views[0, number]) for number in range(5)}) > 2


@pytest.mark.parametrize("batch_size", [1, 3, 5])
@pytest.mark.parametrize(("snippet", "channels"), [(5, 2), (1, 3), (2, 3)])
def test_a_batch_of_videos_of_several_sizes_is_each_of_them(batch_size: int, snippet: int, channels: int) -> None:
    dataset = training(reader=Noisy(channels), snippet=snippet, flip=True)
    batches = TrainingBatches(videos=5, batch_size=batch_size, epochs=range(2), seed=0)
    flow = channels == 2
    loaded: Any = DataLoader(dataset, batch_sampler=batches, collate_fn=collate)
    augmented = Augmented(batches=loaded, size=16, flow_from=0 if flow else None, device=torch.device("cpu"))
    for keys, (snippets, labels, videos, positions) in zip(batches, augmented, strict=True):
        assert snippets.shape == (len(keys), 3, snippet * channels, 16, 16)
        for row, (epoch, number) in enumerate(keys):
            item = dataset[epoch, number]
            assert torch.equal(snippets[row], cut(item.images, item.views, size=16, flow_from=0 if flow else None))
            assert (labels[row], videos[row]) == (item.label, item.video)
            assert torch.equal(positions[row], item.positions)


def test_smaller_videos_are_padded_at_the_bottom_and_the_right() -> None:
    items = [training(reader=Noisy(2))[0, number] for number in range(5)]
    batch = collate(items)
    assert isinstance(batch, Snippets)
    assert batch.images.shape == (5, 3, 10, 26, 30)
    for padded, item, (height, width) in zip(batch.images, items, SIZES.values(), strict=True):
        assert torch.equal(padded[..., :height, :width], item.images)
        assert padded.sum() == item.images.sum()


def test_draws_depend_on_seed_epoch_and_id_not_on_the_other_videos() -> None:
    def positions(dataset: TrainingSnippets, epoch: int, name: str) -> list[int]:
        number = [clip.id for clip in dataset.clips].index(name)
        return dataset[epoch, number].positions.tolist()

    all_, few = training(), training([CLIPS[3], CLIPS[0]])
    assert positions(all_, 2, "d") == positions(few, 2, "d")
    assert positions(all_, 2, "a") == positions(few, 2, "a")
    assert positions(all_, 2, "d") != positions(all_, 3, "d")
    assert positions(all_, 2, "d") != positions(training(seed=1), 2, "d")


def test_workers_do_not_change_what_is_loaded() -> None:
    batches = TrainingBatches(videos=5, batch_size=2, epochs=range(2), seed=0)
    alone, helped = (
        list(DataLoader(training(flip=True), batch_sampler=batches, num_workers=workers, collate_fn=collate))
        for workers in (0, 2)
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


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.data())
def test_continuing_within_an_epoch_gives_what_is_left(
    videos: int, world: int, share: int, accumulate: int, data: st.DataObject
) -> None:
    """Of every process, whatever the parts of a step; and what is left is as long as it says."""
    settings: dict[str, Any] = {
        "videos": videos,
        "batch_size": share * world,
        "seed": 0,
        "rank": data.draw(st.integers(0, world - 1)),
        "world": world,
        "accumulate": accumulate,
    }
    whole = TrainingBatches(epochs=range(3), **settings)
    step = data.draw(st.integers(0, whole.steps - 1))
    left = TrainingBatches(epochs=range(1, 3), first_step=step, **settings)
    batches, rest = list(whole), list(left)
    assert len(rest) == len(left)
    assert rest == batches[len(batches) - len(rest) :]
    assert {epoch for epoch, _ in rest[0]} == {1}
    done = sum(len(batch) for batch in batches) - sum(len(batch) for batch in rest)
    an_epoch = -(-videos // world)
    assert done == an_epoch + sum(whole.share(number) for number in range(step)) == an_epoch + share * step


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 8), st.integers(1, 5))
def test_parts_of_a_step_are_its_share(videos: int, world: int, share: int, accumulate: int) -> None:
    settings: dict[str, Any] = {"videos": videos, "batch_size": share * world, "epochs": range(1), "seed": 0}
    whole = list(TrainingBatches(world=world, **settings))
    sampler = TrainingBatches(world=world, accumulate=accumulate, **settings)
    batches = iter(sampler)
    for step, batch in enumerate(whole):
        parts = [next(batches) for _ in range(sampler.parts(step))]
        assert [number for part in parts for number in part] == batch
        assert len(batch) == sampler.share(step)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert next(batches, None) is None


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
        item = whole[number]
        parts = [chunked[3 * number + i] for i in range(3)]
        assert [part.video for part in parts] == [number] * 3
        assert item.label == clip.label
        assert item.images.shape == (7, 10, *SIZES[clip.id])
        assert torch.equal(torch.cat([part.images for part in parts]), item.images)
        assert torch.equal(torch.cat([part.positions for part in parts]), item.positions)
        assert item.positions.tolist() == sampling.scoring_positions(clip.frames, snippet=5, segments=7).tolist()
        expected = torch.tensor(transforms.fixed_views(*SIZES[clip.id], crops=crops))
        assert all(torch.equal(part.views, expected) for part in (item, *parts))


def test_ten_crops_of_a_chunk_mirror_five_and_negate_x_of_every_field() -> None:
    loaded: Any = DataLoader(spaced(chunk=3, crops=10), batch_size=None)  # type: ignore[arg-type]
    augmented = Augmented(batches=loaded, size=16, flow_from=0, device=torch.device("cpu"))
    views, label, video, positions = next(iter(augmented))
    assert (views.shape, label, video, len(positions)) == ((10, 3, 10, 16, 16), 0, 0, 3)
    assert torch.equal(views[5:, :, 0::2], 255 - views[:5, :, 0::2].flip(-1))
    assert torch.equal(views[5:, :, 1::2], views[:5, :, 1::2].flip(-1))


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


def test_every_clip_that_fits_is_scored_whatever_the_chunk() -> None:
    """Of videos of 30, 3, 17, 60 and 9 frames, clips of 4 at stride 2: 7 frames long, 8 apart."""
    for chunk in (1, 2, 99):
        dataset = ScoringSnippets(
            clips=CLIPS,
            reader=Numbered(1),
            snippet=4,
            segments=None,
            stride=2,
            short="loop",
            crops="whole",
            chunk=chunk,
        )
        found: dict[int, list[list[int]]] = {}
        for item in (dataset[number] for number in range(len(dataset))):
            found.setdefault(item.video, []).extend(item.images[:, :, 0, 0].tolist())
            assert item.views.tolist() == [[0, 0, *SIZES[CLIPS[item.video].id], 0]]
            assert len(item.positions) <= chunk
        assert {number: [clip[0] for clip in clips] for number, clips in found.items()} == {
            0: [0, 8, 16], 1: [0], 2: [0, 8], 3: [0, 8, 16, 24, 32, 40, 48], 4: [0],
        }  # fmt: skip
        assert found[1] == [[0, 2, 1, 0]]
        assert found[2] == [[0, 2, 4, 6], [8, 10, 12, 14]]


def test_flow_beside_frames_is_of_the_same_frames_and_mirrored_with_them() -> None:
    """From frame k leads field k; from the last none does, so the one before it stands again."""
    fields = FieldsOfFrames(Numbered(2), {name: {"frames": frames - 1} for name, frames in LENGTHS.items()})
    both = training(reader=Numbered(3), beside=fields, snippet=4, segments=2, size=18, scales=(1.0,))
    for epoch in range(5):
        for number, clip in enumerate(CLIPS):
            item = both[epoch, number]
            assert item.images.shape[1] == 4 * 3 + 4 * 2
            for place, snippet in zip(item.positions.tolist(), item.images[:, :, 0, 0].tolist(), strict=True):
                frames = [min(place + k, clip.frames - 1) for k in range(4)]
                fields = [min(frame, clip.frames - 2) for frame in frames]
                assert snippet[:12] == [(3 * frame + channel) % 256 for frame in frames for channel in range(3)]
                assert snippet[12:] == [(2 * field + channel) % 256 for field in fields for channel in range(2)]


def test_only_the_flow_of_frames_and_flow_is_negated() -> None:
    images = torch.randint(0, 256, (1, 2, 20, 16, 16), dtype=torch.uint8)
    straight, mirrored = (
        cut(images, torch.tensor([[0, 0, 16, 16, flip]]), size=16, flow_from=12) for flip in (False, True)
    )
    assert torch.equal(mirrored[:, :, :12], straight[:, :, :12].flip(-1))
    assert torch.equal(mirrored[:, :, 12::2], 255 - straight[:, :, 12::2].flip(-1))
    assert torch.equal(mirrored[:, :, 13::2], straight[:, :, 13::2].flip(-1))


@dataclass(frozen=True)
class Scaled:
    """Videos of 130 x 180 pixels, smaller by area means; every channel of every pixel is another ramp."""

    def size(self, video_id: str) -> tuple[int, int]:
        return 130, 180

    def read(self, video_id: str, indices: np.ndarray, *, reduction: int = 1) -> np.ndarray:
        y, x = np.mgrid[:130, :180]
        image = np.stack([y, x, (x + y) / 2], axis=-1).astype(np.uint8)
        if reduction > 1:
            image = cv2.resize(image, (-(-180 // reduction), -(-130 // reduction)), interpolation=cv2.INTER_AREA)
        shape = (*indices.shape, *image.shape)
        return np.moveaxis(np.broadcast_to(image, shape).copy(), -1, 2)


@pytest.mark.parametrize("snippet", [1, 3])
def test_reduced_images_are_cut_to_what_whole_ones_are(snippet: int) -> None:
    settings: dict[str, Any] = {
        "reader": Scaled(), "snippet": snippet, "size": 32, "scales": (1.0, 0.6, 0.45), "places": "random", "flip": True
    }  # fmt: skip
    seen = set()
    for epoch in range(12):
        for number in range(len(CLIPS)):
            whole, small = (training(**settings, reduced=reduced)[epoch, number] for reduced in (False, True))
            assert torch.equal(whole.positions, small.positions)
            y, x, height, width, mirrored = small.views.tolist()
            reduction = round(180 / small.images.shape[-1])
            seen.add(reduction)
            assert small.images.shape[-2:] == (-(-130 // reduction), -(-180 // reduction))
            assert 0 <= y < y + height <= small.images.shape[-2]
            assert 0 <= x < x + width <= small.images.shape[-1]
            assert min(height, width) >= 32
            assert mirrored == whole.views[-1]
            assert min(whole.views[2:4].tolist()) >= reduction * 32
            assert min(whole.views[2:4].tolist()) < 2 * reduction * 32
            one, two = (cut(item.images, item.views, size=32, flow_from=None).int() for item in (whole, small))
            assert (one - two).abs().float().mean() < 1.5
            if reduction == 1:
                assert torch.equal(one, two)
    assert seen == {1, 2, 4}


@pytest.mark.parametrize(("crops", "side", "reduction"), [("whole", 65, 2), ("whole", 66, 1), (10, 57, 2), (1, 58, 1)])
def test_test_views_decide_how_small_images_are_read(crops: Any, side: int, reduction: int) -> None:
    settings: dict[str, Any] = {
        "clips": CLIPS, "reader": Scaled(), "snippet": 1, "segments": 2, "crops": crops, "chunk": 2,
    }  # fmt: skip
    whole, small = ScoringSnippets(**settings)[0], ScoringSnippets(**settings, reduced_for=side)[0]
    assert small.images.shape[-2:] == (-(-130 // reduction), -(-180 // reduction))
    one, two = (cut(item.images, item.views, size=side, flow_from=None).int() for item in (whole, small))
    assert (one - two).abs().float().mean() < 1.5
    if reduction == 1:
        assert torch.equal(one, two)


def test_draws_are_what_they_were() -> None:
    """Positions first, then the view; of a seed, an epoch and an id."""
    item = training(flip=True, places="tsn")[3, 0]
    assert (item.positions.tolist(), item.views.tolist()) == ([1, 12, 19], [3, 2, 16, 16, 0])


@pytest.mark.parametrize("workers", [0, 2])
def test_single_frames_stay_interleaved_and_are_what_they_were(workers: int) -> None:
    batches = TrainingBatches(videos=5, batch_size=5, epochs=range(1), seed=0)
    dataset = training(reader=Interleaved(), snippet=1)
    (batch,) = DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers)
    assert batch.images.stride(2) == 1
    assert batch.images.shape == (5, 3, 3, 26, 30)
    (keys,) = batches
    for images, (epoch, number) in zip(batch.images, keys, strict=True):
        own = training(reader=Noisy(3), snippet=1)[epoch, number].images
        assert torch.equal(images[..., : own.shape[-2], : own.shape[-1]], own)


class Interleaved(Noisy):
    """Noise in the order of memory in which JPEGs are decoded."""

    def __init__(self) -> None:
        super().__init__(3)

    def read(self, video_id: str, indices: np.ndarray, *, reduction: int = 1) -> np.ndarray:
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(super().read(video_id, indices), 2, -1)), -1, 2)


def test_frames_of_a_snippet_are_taken_apart_as_numpy_does() -> None:
    for number in range(5):
        interleaved, planar = (training(reader=reader, snippet=4)[0, number] for reader in (Interleaved(), Noisy(3)))
        assert torch.equal(interleaved.images, planar.images)
