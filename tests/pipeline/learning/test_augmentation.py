"""Cutting views against loops over pixels, against OpenCV, and against pictures whose right answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.learning import augmentation, clock, transforms
from pipeline.learning.augmentation import Augmented, cut
from pipeline.learning.transforms import View

SCALES = (1.0, 0.875, 0.75, 0.66)
Cut = Callable[..., Tensor]

both = pytest.mark.parametrize("cut", [augmentation.cut_opencv, augmentation.cut_torch])


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def as_views(*views: View) -> Tensor:
    """(V, 5)."""
    return torch.tensor(views)


def by_loops(plane: np.ndarray, view: View, *, size: int, negated: bool) -> np.ndarray:
    """One view of one plane (H, W), pixel by pixel; not rounded."""
    out = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y = min(max((i + 0.5) * view.height / size - 0.5, 0), view.height - 1)
            x = min(max((j + 0.5) * view.width / size - 0.5, 0), view.width - 1)
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, view.height - 1), min(left + 1, view.width - 1)
            down, across = y - top, x - left

            def pixel(row: int, column: int) -> float:
                return float(plane[view.y + row, view.x + column])

            value = (
                (1 - down) * (1 - across) * pixel(top, left)
                + (1 - down) * across * pixel(top, right)
                + down * (1 - across) * pixel(bottom, left)
                + down * across * pixel(bottom, right)
            )
            value = 255 - value if negated else value
            out[i, size - 1 - j if view.mirrored else j] = value
    return out


@both
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    "box",
    [
        (3, 2, 17, 13),  # smaller, of another shape
        (0, 0, 24, 29),  # the whole image
        (5, 20, 9, 7),  # enlarged, to the right border
        (8, 6, 12, 12),  # as it is
        (0, 5, 24, 24),  # half, where OpenCV takes means of areas
        (23, 28, 1, 1),  # one pixel
    ],
)
def test_a_view_is_what_loops_over_pixels_give(cut: Cut, box: tuple[int, int, int, int], mirrored: bool) -> None:
    fields = noise(1, 1, 4, 24, 29)  # x1 y1 x2 y2
    view = View(*box, mirrored)
    found = cut(fields, as_views(view)[None], size=12, flow_from=0)[0, 0, 0]
    assert found.dtype == torch.uint8
    for channel, plane in enumerate(fields[0, 0].numpy()):
        expected = by_loops(plane, view, size=12, negated=mirrored and channel % 2 == 0)
        np.testing.assert_allclose(found[channel].numpy(), expected, atol=1)


def test_torch_rounds_to_the_nearest_level() -> None:
    plane = noise(1, 1, 1, 24, 29)
    view = View(3, 2, 17, 13, False)
    found = augmentation.cut_torch(plane, as_views(view)[None], size=12, flow_from=None)[0, 0, 0, 0]
    expected = by_loops(plane[0, 0, 0].numpy(), view, size=12, negated=False)
    np.testing.assert_allclose(found.numpy(), expected, atol=0.501)


@pytest.mark.parametrize(("height", "width", "size"), [(96, 96, 80), (61, 47, 64), (64, 85, 56)])
def test_torch_and_opencv_agree_to_one_level_on_drawn_and_fixed_views(height: int, width: int, size: int) -> None:
    images = noise(3, 2, 4, height, width)
    rng = np.random.default_rng(0)
    drawn = [
        transforms.draw_view(height, width, size=size, scales=SCALES, flip=True, rng=rng) for _ in range(len(images))
    ]
    fixed = as_views(*transforms.fixed_views(height, width, crops=10)).expand(len(images), 10, 5)
    for views in (as_views(*drawn)[:, None], fixed):
        one = augmentation.cut_opencv(images, views, size=size, flow_from=0)
        other = augmentation.cut_torch(images, views, size=size, flow_from=0)
        assert one.shape == other.shape == (3, views.shape[1], 2, 4, size, size)
        assert (one.int() - other.int()).abs().max() <= 1


def test_on_the_cpu_each_plane_is_resized_by_opencv() -> None:
    images = noise(2, 3, 40, 50)
    found = augmentation.cut(images, torch.tensor(View(3, 7, 30, 24, False)), size=16, flow_from=None)
    for n, c in np.ndindex(2, 3):
        expected = cv2.resize(images[n, c, 3:33, 7:31].numpy().copy(), (16, 16), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(found[n, c].numpy(), expected)


@both
def test_a_crop_of_the_input_s_size_is_the_pixels(cut: Cut) -> None:
    images = noise(1, 2, 3, 256, 340)
    views = as_views(*transforms.fixed_views(256, 340, crops=10))
    found = cut(images, views[None], size=224, flow_from=None)[0]
    for view, (y, x) in zip(found, [(0, 0), (0, 116), (32, 0), (32, 116), (16, 58)], strict=False):
        assert torch.equal(view, images[0, ..., y : y + 224, x : x + 224])
    assert torch.equal(found[5:], found[:5].flip(-1))


@both
def test_mirrored_flow_points_the_other_way(cut: Cut) -> None:
    """A corner moving right and down becomes one moving left and down; no motion, 128, becomes 127 by convention."""
    field = torch.full((1, 1, 2, 4, 4), 128, dtype=torch.uint8)
    field[0, 0, :, 0, 0] = torch.tensor([200, 220])
    mirrored = cut(field, as_views(View(0, 0, 4, 4, True))[None], size=4, flow_from=0)[0, 0, 0]
    assert mirrored[:, 0, 3].tolist() == [255 - 200, 220]
    assert mirrored[:, 3, 0].tolist() == [127, 128]
    assert torch.equal(
        cut(mirrored[None, None], as_views(View(0, 0, 4, 4, True))[None], size=4, flow_from=0)[0, 0], field[0]
    )


@both
def test_fields_without_motion_stay_so_whatever_the_crop(cut: Cut) -> None:
    still = torch.full((1, 2, 10, 30, 40), 128, dtype=torch.uint8)
    views = as_views(View(1, 2, 27, 23, False), View(0, 0, 30, 30, False))
    assert (cut(still, views[None], size=16, flow_from=0) == 128).all()


@both
def test_all_images_of_a_video_are_treated_alike(cut: Cut) -> None:
    one = noise(1, 1, 1, 40, 60)
    video = one.expand(1, 4, 3, 40, 60)
    views = as_views(View(3, 5, 30, 35, True))[None]
    found = cut(video, views, size=24, flow_from=None)
    assert torch.equal(found, cut(one, views, size=24, flow_from=None).expand_as(found))


@both
@pytest.mark.parametrize("channels", [10, 3, 6])
def test_padding_changes_nothing_nor_do_the_other_videos(cut: Cut, channels: int) -> None:
    """Stacks of flow, frames, pairs of frames, of three sizes; views touch the right and the bottom of each."""
    flow = channels == 10
    sizes = [(40, 50), (33, 61), (20, 24)]
    videos = [noise(1, 2, channels, *size, seed=seed) for seed, size in enumerate(sizes)]
    views = [as_views(View(4, 6, h - 4, w - 6, mirrored)) for (h, w), mirrored in zip(sizes, (0, 1, 1), strict=True)]
    padded = torch.full((3, 2, channels, 40, 61), 77, dtype=torch.uint8)
    for video, whole in zip(videos, padded, strict=True):
        whole[..., : video.shape[-2], : video.shape[-1]] = video[0]
    together = cut(padded, torch.stack(views), size=16, flow_from=0 if flow else None)
    alone = [
        cut(video, view[None], size=16, flow_from=0 if flow else None)
        for video, view in zip(videos, views, strict=True)
    ]
    difference = (together.int() - torch.cat(alone).int()).abs().max()
    assert difference <= (
        0 if cut is augmentation.cut_opencv else 1
    )  # of torch: positions are parts of the padded size


def test_dimensions_before_the_video_s_are_kept() -> None:
    images = noise(2, 3, 3, 20, 24)
    views = as_views(*transforms.fixed_views(20, 24, crops=5))
    whole = augmentation.cut(images, views.expand(2, 5, 5), size=16, flow_from=None)
    assert whole.shape == (2, 5, 3, 3, 16, 16)
    for number in range(2):
        assert torch.equal(augmentation.cut(images[number], views, size=16, flow_from=None), whole[number])
    centres = augmentation.cut(images, views[4].expand(2, 5), size=16, flow_from=None)
    assert torch.equal(centres, whole[:, 4])


def test_interleaved_frames_give_the_same() -> None:
    interleaved = noise(4, 40, 50, 3).permute(0, 3, 1, 2)
    view = torch.tensor(View(1, 2, 32, 28, True))
    planar = interleaved.contiguous()
    assert planar.stride() != interleaved.stride()
    assert torch.equal(
        augmentation.cut(interleaved, view, size=16, flow_from=None),
        augmentation.cut(planar, view, size=16, flow_from=None),
    )


def test_batches_can_be_gone_through_again_and_keep_what_else_they_hold() -> None:
    images, view = noise(1, 2, 3, 20, 24), torch.tensor([View(0, 0, 20, 20, False)])
    batches: list[Any] = [(images, view, torch.tensor([7]), "rest")] * 2
    augmented = Augmented(batches=batches, size=16, flow_from=None, device=torch.device("cpu"))
    for _ in range(2):
        found = list(augmented)
        assert len(found) == 2
        assert torch.equal(found[0][0], augmentation.cut(images, view, size=16, flow_from=None))
        assert found[0][1:] == (torch.tensor([7]), "rest")


def test_cutting_is_not_waiting_for_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the loader and the cutting move."""
    now = [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    real = augmentation.cut

    def slow_loader() -> Iterator[Any]:
        for _ in range(3):
            now[0] += 2.0
            yield noise(1, 1, 3, 20, 24), torch.tensor([View(0, 0, 20, 20, False)])

    def slow_cut(*images_and_views: torch.Tensor, **how: Any) -> torch.Tensor:
        now[0] += 5.0
        return real(*images_and_views, **how)

    monkeypatch.setattr(augmentation, "cut", slow_cut)
    device = torch.device("cpu")
    parts = clock.Clock(device)
    for _ in Augmented(batches=slow_loader(), size=16, flow_from=None, device=device, clock=parts):
        now[0] += 7.0  # the step
        parts.mark("forward")
    assert parts.take() == {"data_wait": 6.0, "cut": 15.0, "forward": 21.0, "backward": 0.0, "update": 0.0}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_cuts_as_the_cpu_does() -> None:
    images = noise(4, 3, 10, 96, 128)
    views = as_views(*transforms.fixed_views(96, 128, crops=10)).expand(4, 10, 5)
    here = augmentation.cut(images, views, size=80, flow_from=0)
    there = augmentation.cut(images.cuda(), views.cuda(), size=80, flow_from=0)
    assert there.is_cuda
    assert (here.int() - there.cpu().int()).abs().max() <= 1


@pytest.mark.parametrize("side", [16, 23])
def test_interleaved_images_are_cut_to_the_same_bits(side: int, rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (2, 3, 29, 31, 3), np.uint8)  # B N H W C
    views = torch.tensor([[2, 3, 16, 16, 1], [0, 5, 29, 20, 0]])
    interleaved = torch.from_numpy(images).movedim(-1, 2)
    expected = cut(interleaved.contiguous(), views, size=side, flow_from=None)
    assert torch.equal(cut(interleaved, views, size=side, flow_from=None), expected)
