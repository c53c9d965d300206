"""Crops and mirror images against definitions, and against pictures whose right answer is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learning import transforms
from pipeline.learning.transforms import Box

SCALES = (1.0, 0.875, 0.75, 0.66)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_crop_shapes_of_the_paper() -> None:
    """340x256 and 224: sides 256, 224, 192 and 168; ten pairs that are neighbours or equal."""
    sides = [256, 224, 192, 168]
    expected = [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]
    assert transforms.crop_shapes(256, size=224, scales=SCALES) == expected
    assert len(expected) == 10


def test_a_side_near_the_input_becomes_the_input() -> None:
    assert transforms.crop_shapes(100, size=86, scales=(0.875,)) == [(86, 86)]  # 87
    assert transforms.crop_shapes(100, size=84, scales=(0.875,)) == [(87, 87)]
    assert transforms.crop_shapes(100, size=101, scales=(1.0,)) == [(100, 100)]  # never larger than the image


def test_crop_places_of_the_paper() -> None:
    """The 13 offsets of TSN for a free margin of 40 by 80: multiples of a quarter."""
    places = transforms.crop_places(40, 80)
    assert len(places) == len(set(places)) == 13
    assert set(places) == {
        (0, 0), (0, 80), (40, 0), (40, 80), (20, 40),
        (20, 0), (20, 80), (40, 40), (0, 40),
        (10, 20), (10, 60), (30, 20), (30, 60),
    }  # fmt: skip


@given(st.integers(20, 300), st.integers(20, 300), st.integers(8, 224), st.integers(0, 5))
def test_drawn_boxes_lie_inside_the_image(height: int, width: int, size: int, seed: int) -> None:
    box = transforms.draw_box(height, width, size=size, scales=SCALES, rng=np.random.default_rng(seed))
    assert 0 <= box.y <= box.y + box.height <= height
    assert 0 <= box.x <= box.x + box.width <= width
    assert box.height > 0
    assert box.width > 0


def test_crop_without_resizing_is_the_pixels() -> None:
    images = noise(2, 3, 2, 20, 30)
    out = transforms.crop(images, box=Box(4, 5, 16, 16), size=16)
    np.testing.assert_array_equal(out, images[..., 4:20, 5:21])


def test_crop_resizes_each_plane_like_opencv() -> None:
    images = noise(2, 3, 2, 40, 50)
    out = transforms.crop(images, box=Box(3, 7, 30, 24), size=16)
    for n, i, c in np.ndindex(2, 3, 2):
        expected = cv2.resize(images[n, i, c, 3:33, 7:31].copy(), (16, 16), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(out[n, i, c], expected)


def test_crop_takes_a_view_of_interleaved_pixels() -> None:
    interleaved = noise(4, 1, 40, 50, 3)
    view = np.moveaxis(interleaved, -1, 2)
    box = Box(1, 2, 32, 28)
    np.testing.assert_array_equal(
        transforms.crop(view, box=box, size=16), transforms.crop(np.ascontiguousarray(view), box=box, size=16)
    )


@pytest.mark.parametrize("flow", [False, True])
def test_mirroring_twice_restores(flow: bool) -> None:
    images = noise(2, 5, 2, 8, 8) if flow else noise(2, 1, 3, 8, 8)
    before = images.copy()
    once = transforms.mirror(images, flow=flow)
    np.testing.assert_array_equal(transforms.mirror(once, flow=flow), images)
    np.testing.assert_array_equal(images, before)
    assert (once != images).any()


def test_mirrored_flow_points_the_other_way() -> None:
    """A corner moving right and down becomes one moving left and down; no motion, 128, becomes 127 by convention."""
    field = np.full((1, 1, 2, 4, 4), 128, np.uint8)
    field[0, 0, :, 0, 0] = (200, 220)
    mirrored = transforms.mirror(field, flow=True)[0, 0]
    assert mirrored[0, 0, 3] == 255 - 200
    assert mirrored[1, 0, 3] == 220
    assert mirrored[0, 3, 0] == 127
    assert mirrored[1, 3, 0] == 128


def test_augment_treats_all_images_of_a_video_alike() -> None:
    one = noise(1, 1, 2, 40, 60)
    video = np.broadcast_to(one, (4, 5, 2, 40, 60))
    for seed in range(10):
        view = transforms.augment(video, size=24, scales=SCALES, flip=True, flow=True, rng=np.random.default_rng(seed))
        np.testing.assert_array_equal(view, np.broadcast_to(view[:1, :1], view.shape))


def test_augment_mirrors_half_of_the_videos_and_none_when_told_not_to() -> None:
    ramp = np.broadcast_to(np.arange(0, 250, 5, dtype=np.uint8), (1, 1, 3, 50, 50))

    def mirrored(seed: int, *, flip: bool) -> bool:
        rng = np.random.default_rng(seed)
        view = transforms.augment(ramp, size=24, scales=(1.0,), flip=flip, flow=False, rng=rng)
        return bool(view[0, 0, 0, 0, 0] > view[0, 0, 0, 0, -1])

    assert 70 < sum(mirrored(seed, flip=True) for seed in range(200)) < 130
    assert not any(mirrored(seed, flip=False) for seed in range(50))


def test_fixed_views_of_the_paper_are_corners_centre_and_mirror_images() -> None:
    """340x256: squares of 224 without resizing, in the order of TSN's ten crops."""
    images = noise(2, 1, 3, 256, 340)
    views = transforms.fixed_views(images, size=224, crops=10, flow=False)
    assert views.shape == (10, 2, 1, 3, 224, 224)
    for view, (y, x) in zip(views, [(0, 0), (0, 116), (32, 0), (32, 116), (16, 58)], strict=False):
        np.testing.assert_array_equal(view, images[..., y : y + 224, x : x + 224])
    np.testing.assert_array_equal(views[5:], views[:5, ..., ::-1])


def test_fewer_views_are_a_part_of_the_ten_and_flow_is_negated_in_the_mirrored_ones() -> None:
    fields = noise(2, 5, 2, 96, 96)
    ten, five, one = (transforms.fixed_views(fields, size=80, crops=n, flow=True) for n in (10, 5, 1))
    np.testing.assert_array_equal(ten[:5], five)
    np.testing.assert_array_equal(five[4:], one)
    np.testing.assert_array_equal(ten[5:, ..., 0, :, :], 255 - five[..., 0, :, ::-1])
    np.testing.assert_array_equal(ten[5:, ..., 1, :, :], five[..., 1, :, ::-1])
