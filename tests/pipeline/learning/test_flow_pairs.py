"""Pairs to learn flow from: after any crop, resizing and mirroring the flow still leads from one frame to the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.dataset.builders.flying_chairs import FlowPair, flying_chairs
from pipeline.dataset.manifest import Manifest, Video
from pipeline.learning.flow_pairs import (
    ChairsPairs,
    FlowTargets,
    Pair,
    StoredPairs,
    cut_flow,
    cut_frames,
    draw_view,
    paired_clips,
)
from pipeline.learning.readers import Index
from pipeline.learning.transforms import View
from pipeline.optical_flow.flo import write_flo
from pipeline.optical_flow.quantise import quantise

HEIGHT, WIDTH = 96, 128


def texture(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smooth RGB picture (3, H, W) at any places."""
    waves = [np.sin(x / 5.3 + phase) * np.cos(y / 6.1 - phase) for phase in (0.0, 1.1, 2.3)]
    return np.stack(waves) * 90 + 128


def moving_pair() -> Pair:
    """Zoom, turn and translation, x' = x + u(x, y): the second picture shows the first's pixels where they went."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    matrix, shift = np.array([[0.04, -0.05], [0.03, -0.02]]), np.array([3.0, -2.0])
    u = matrix[0, 0] * (x - 64) + matrix[0, 1] * (y - 48) + shift[0]
    v = matrix[1, 0] * (x - 64) + matrix[1, 1] * (y - 48) + shift[1]
    inverse = np.linalg.inv(np.eye(2) + matrix)
    from_x, from_y = np.einsum("ij,jhw->ihw", inverse, np.stack([x - 64 - shift[0], y - 48 - shift[1]]))
    frames = np.stack([texture(x, y), texture(from_x + 64, from_y + 48)])
    return Pair(frames.round().astype(np.uint8), np.stack([u, v]).astype(np.float32))


@dataclass(frozen=True)
class OnePair:
    pair: Pair

    def __len__(self) -> int:
        return 1

    def name(self, number: int) -> str:
        return "pair"

    def read(self, number: int, rng: np.random.Generator) -> Pair:
        return self.pair


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (80, 56)])
def test_the_flow_leads_from_one_frame_to_the_other_whatever_is_drawn(size: tuple[int, int]) -> None:
    """OpenCV's remap brings the second frame back onto the first; with the flow mirrored or unscaled it does not."""
    targets = FlowTargets(source=OnePair(moving_pair()), size=size, target_size=size, seed=3)
    y, x = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    inner = (slice(8, -8), slice(8, -8))
    for epoch in range(12):
        frames, flow = targets[epoch, 0]
        assert frames.dtype == torch.uint8
        prev, next_ = (frame.mean(0) for frame in frames.reshape(2, 3, *size).numpy().astype(np.float32))

        def off(u: NDArray[np.float32], v: NDArray[np.float32]) -> float:
            back = cv2.remap(next_, x + u, y + v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # noqa: B023
            return float(np.abs(back - prev)[inner].mean())  # noqa: B023

        u, v = flow.numpy()
        assert off(u, v) < 2.5
        assert min(off(-u, v), off(u, -v), off(0 * u, 0 * v), off(1.5 * u, 1.5 * v)) > 2 * off(u, v)


def test_targets_are_averages_over_the_cells() -> None:
    """Where cells are whole pixels, as OpenCV's INTER_AREA has them; vectors grow with the picture."""
    flow = np.random.default_rng(0).normal(0, 5, (2, 64, 96)).astype(np.float32)
    view = View(8, 16, 32, 64, False)
    found = cut_flow(flow, view, size=(64, 192), target_size=(8, 16)).numpy()
    cut = flow[:, 8:40, 16:80]
    for channel, scale in enumerate((3.0, 2.0)):
        expected = cv2.resize(cut[channel], (16, 8), interpolation=cv2.INTER_AREA) * scale
        np.testing.assert_allclose(found[channel], expected, rtol=1e-4, atol=1e-5)
    mirrored = cut_flow(flow, view._replace(mirrored=True), size=(64, 192), target_size=(8, 16)).numpy()
    np.testing.assert_allclose(mirrored, found[:, :, ::-1] * np.reshape([-1, 1], (2, 1, 1)), rtol=1e-5)


def test_frames_are_cut_and_resized_as_opencv_does() -> None:
    frames = moving_pair().frames
    view = View(5, 10, 60, 90, True)
    found = cut_frames(frames, view, size=(40, 50)).numpy()
    interleaved = np.concatenate([np.moveaxis(frame, 0, 2) for frame in frames], axis=2)[5:65, 10:100]  # h w 6
    expected = cv2.flip(cv2.resize(np.ascontiguousarray(interleaved[..., :3]), (50, 40)), 1)
    np.testing.assert_array_equal(found[:3], np.moveaxis(expected, 2, 0))


def test_views_fit_have_the_inputs_shape_and_cover_what_there_is() -> None:
    rng = np.random.default_rng(0)
    views = [draw_view(384, 512, size=(320, 448), rng=rng) for _ in range(400)]
    assert {(view.height, view.width) for view in views} == {(366, 512), (320, 448), (274, 384)}
    assert all(0 <= view.y <= 384 - view.height and 0 <= view.x <= 512 - view.width for view in views)
    assert {view.mirrored for view in views} == {True, False}
    small = [view for view in views if view.height == 274]
    assert min(view.x for view in small) < 10
    assert max(view.x for view in small) > 118
    tiny = draw_view(3, 2, size=(224, 224), rng=rng)
    assert min(tiny.height, tiny.width) >= 1


@dataclass(frozen=True)
class Stored:
    """A reader of arrays."""

    images: NDArray[np.uint8]

    def read(self, video_id: str, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.images[indices]


def stored(frames: NDArray[np.uint8], codes: NDArray[np.uint8]) -> StoredPairs:
    (clip,), _ = paired_clips(manifest("a"), index("frames", a=len(frames)), index("flow", a=len(codes)), split="s")
    return StoredPairs(clips=[clip], frames=Stored(frames), flow=Stored(codes), bound_px=20.0)


def manifest(*ids: str) -> Manifest:
    return Manifest(
        tuple(Video(id=name, path=name, digest=name, bytes=1, labels=("x",), splits={"s": "train"}) for name in ids)
    )


def index(stage: str, *, parameters: dict[str, object] | None = None, **frames: int) -> Index:
    videos = {name: {"frames": count, "key": name} for name, count in frames.items()}
    return {"stage": stage, "store": "", "parameters": parameters or {}, "videos": videos, "quarantined": {}}  # type: ignore[typeddict-item]


def test_a_stored_pair_is_two_frames_in_a_row_and_the_field_between_them() -> None:
    rng = np.random.default_rng(0)
    fields = rng.uniform(-19, 19, (4, 2, 6, 8)).astype(np.float32)
    frames = np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None, None], (5, 3, 6, 8))
    pairs = stored(frames, quantise(fields))
    seen = set()
    for _ in range(40):
        pair = pairs.read(0, rng)
        first, second = pair.frames[:, 0, 0, 0].tolist()
        assert second == first + 1
        np.testing.assert_allclose(pair.flow, fields[first], atol=20 / 255 + 1e-6)
        seen.add(first)
    assert seen == {0, 1, 2, 3}


def test_frames_and_flow_of_two_sizes_are_one_sentence() -> None:
    pairs = stored(np.zeros((3, 3, 6, 8), np.uint8), np.zeros((2, 2, 6, 9), np.uint8))
    with pytest.raises(ValueError, match="frames of 'a' are 8x6 and its flow 9x6"):
        pairs.read(0, np.random.default_rng(0))


def test_videos_that_a_store_lacks_are_left_out() -> None:
    frames, flow = index("frames", a=5, b=5, d=1, e=5), index("flow", a=4, c=4, d=1, e=2)
    clips, left_out = paired_clips(manifest(*"abcde"), frames, flow, split="s")
    assert [tuple(clip) for clip in clips] == [("a", 4), ("e", 2)]
    assert left_out == ["b", "c", "d"]
    with pytest.raises(ValueError, match="the train part of s has no video with frames and flow"):
        paired_clips(manifest("b"), frames, flow, split="s")


@pytest.mark.parametrize("parameters", [{"step": 2}, {"fps": 10.0}, {"size": [9, 9]}])
def test_flow_of_other_frames_is_refused(parameters: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="a SAN needs the flow"):
        paired_clips(manifest("a"), index("frames", a=5), index("flow", a=4, parameters=parameters), split="s")


def test_pairs_of_flying_chairs(shared_data: Path) -> None:
    pairs = ChairsPairs(flying_chairs(shared_data / "flow/flyingchairs", split_file=None))
    targets = FlowTargets(source=pairs, size=(160, 224), target_size=(160, 224), seed=0)
    y, x = np.mgrid[0:160, 0:224].astype(np.float32)
    for number in range(len(pairs)):
        frames, flow = targets[0, number]
        prev, next_ = (frame.mean(0) for frame in frames.reshape(2, 3, 160, 224).numpy().astype(np.float32))
        u, v = flow.numpy()
        back = cv2.remap(next_, x + u, y + v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        assert np.median(np.abs(back - prev)) < 0.5 * np.median(np.abs(next_ - prev))
    original = cv2.imread(str(pairs.pairs[0].prev))
    np.testing.assert_array_equal(
        pairs.read(0, np.random.default_rng(0)).frames[0], original[..., ::-1].transpose(2, 0, 1)
    )


def test_a_damaged_pair_is_one_sentence(tmp_path: Path) -> None:
    prev, next_, flow = tmp_path / "1_img1.ppm", tmp_path / "1_img2.ppm", tmp_path / "1_flow.flo"
    pairs = ChairsPairs([FlowPair("1", prev, next_, flow, "train")])
    prev.write_bytes(b"P6")
    with pytest.raises(ValueError, match=r"1_img1\.ppm cannot be read as an image"):
        pairs.read(0, np.random.default_rng(0))
    for path in (prev, next_):
        cv2.imwrite(str(path), np.zeros((6, 8, 3), np.uint8))
    write_flo(flow, np.zeros((2, 6, 9)))
    with pytest.raises(ValueError, match=r"1_flow\.flo is 9x6, its images 8x6"):
        pairs.read(0, np.random.default_rng(0))
    write_flo(flow, np.full((2, 6, 8), np.nan))
    with pytest.raises(ValueError, match="vectors that are not known"):
        pairs.read(0, np.random.default_rng(0))


def test_draws_follow_seed_epoch_and_name() -> None:
    one, again, other = (FlowTargets(source=OnePair(moving_pair()), size=(32, 32), target_size=(32, 32), seed=seed)
                         for seed in (1, 1, 2))  # fmt: skip
    assert torch.equal(one[0, 0][1], again[0, 0][1])
    assert not torch.equal(one[0, 0][1], one[1, 0][1])
    assert not torch.equal(one[0, 0][1], other[0, 0][1])
