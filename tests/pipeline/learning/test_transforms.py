"""Views against the published definitions, read as plain loops."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learning import transforms
from pipeline.learning.transforms import View

RGB_SCALES = (1.0, 0.875, 0.75, 0.66)
FLOW_SCALES = (1.0, 0.875, 0.75)


def crops_by_definition(height: int, width: int, *, size: int, scales: tuple[float, ...]) -> set[tuple[int, ...]]:
    """Every crop (y, x, h, w) of TSN: sides, pairs of them, and the points of a lattice of quarters of the free space.

    Of the 5x5 points those count whose row and column are both even (corners, centre, middles of the edges) or both
    odd (middles of the quadrants): 13.
    """
    sides = []
    for scale in scales:
        side = int(min(height, width) * scale)
        sides.append(size if side in range(size - 2, size + 3) else side)
    found = set()
    for row, h in enumerate(sides):
        for column, w in enumerate(sides):
            if row - column not in (-1, 0, 1):
                continue
            for i in range(5):
                for j in range(5):
                    if i % 2 == j % 2:
                        found.add((i * ((height - h) // 4), j * ((width - w) // 4), h, w))
    return found


@pytest.mark.parametrize(("scales", "shapes"), [(RGB_SCALES, 10), (FLOW_SCALES, 7)])
def test_the_drawn_crops_are_all_those_of_the_definition_and_no_others(scales: tuple[float, ...], shapes: int) -> None:
    """340x256 and 224, the papers' shape."""
    rng = np.random.default_rng(0)
    views = [transforms.draw_view(256, 340, size=224, scales=scales, flip=True, rng=rng) for _ in range(5000)]
    assert {tuple(view[:4]) for view in views} == crops_by_definition(256, 340, size=224, scales=scales)
    drawn = Counter((view.height, view.width) for view in views)
    assert len(drawn) == shapes
    assert all(abs(count * shapes / 5000 - 1) < 0.25 for count in drawn.values())  # five deviations or so
    places = Counter((view.y, view.x) for view in views if (view.height, view.width) == (224, 224))
    assert set(places) == {(8 * i, 29 * j) for i in range(5) for j in range(5) if i % 2 == j % 2}
    assert max(places.values()) < 3 * min(places.values())


@given(st.integers(20, 90), st.integers(20, 90), st.integers(8, 96), st.integers(0, 5))
def test_drawn_crops_are_of_the_definition_and_inside_the_image(height: int, width: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    view = transforms.draw_view(height, width, size=size, scales=RGB_SCALES, flip=False, rng=rng)
    assert 0 <= view.y < view.y + view.height <= height
    assert 0 <= view.x < view.x + view.width <= width
    if size <= min(height, width):  # where it is larger the definition would leave the image
        assert tuple(view[:4]) in crops_by_definition(height, width, size=size, scales=RGB_SCALES)


def test_crop_shapes_of_the_paper() -> None:
    """340x256 and 224: sides 256, 224, 192 and 168; ten pairs that are neighbours or equal."""
    assert transforms.crop_shapes(256, size=224, scales=RGB_SCALES) == [
        (256, 256), (256, 224), (224, 256), (224, 224), (224, 192),
        (192, 224), (192, 192), (192, 168), (168, 192), (168, 168),
    ]  # fmt: skip


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


def test_half_of_the_views_are_mirrored_and_none_when_told_not_to() -> None:
    def mirrored(*, flip: bool) -> int:
        rng = np.random.default_rng(0)
        return sum(
            transforms.draw_view(50, 60, size=24, scales=(1.0,), flip=flip, rng=rng).mirrored for _ in range(400)
        )

    assert 160 < mirrored(flip=True) < 240
    assert mirrored(flip=False) == 0


def test_mirroring_does_not_move_the_crop_of_a_seed() -> None:
    for seed in range(20):
        still, perhaps = (
            transforms.draw_view(50, 60, size=24, scales=RGB_SCALES, flip=flip, rng=np.random.default_rng(seed))
            for flip in (False, True)
        )
        assert still[:4] == perhaps[:4]


def test_fixed_views_of_the_paper_are_corners_centre_and_mirror_images() -> None:
    """340x256: squares of 224, in the order of TSN's ten crops."""
    corners_and_centre = [(0, 0), (0, 116), (32, 0), (32, 116), (16, 58)]
    expected = [View(y, x, 224, 224, mirrored) for mirrored in (False, True) for y, x in corners_and_centre]
    assert transforms.fixed_views(256, 340, crops=10) == expected
    assert transforms.fixed_views(256, 340, crops=5) == expected[:5]
    assert transforms.fixed_views(256, 340, crops=1) == expected[4:5]


@given(st.integers(1, 400), st.integers(1, 400))
def test_fixed_views_lie_inside_the_image_and_touch_its_corners(height: int, width: int) -> None:
    views = transforms.fixed_views(height, width, crops=5)
    assert all(view.height == view.width > 0 for view in views)
    assert min(view.y for view in views) == min(view.x for view in views) == 0
    assert max(view.y + view.height for view in views) == height
    assert max(view.x + view.width for view in views) == width


CORNER_SCALES = (1.0, 2**-0.25, 2**-0.5, 2**-0.75, 0.5)


def test_corner_crops_are_squares_of_five_sizes_in_five_places() -> None:
    """MultiScaleCornerCrop of 3D-ResNets: centre, top left, top right, bottom left, bottom right, of each size."""
    rng = np.random.default_rng(0)
    views = [
        transforms.draw_view(112, 150, size=90, scales=CORNER_SCALES, flip=False, rng=rng, places="corners")
        for _ in range(3000)
    ]
    expected = set()
    for side in (112, 94, 79, 66, 56):  # whole parts of 112, none of them within 2 of the input
        low, right = 112 - side, 150 - side
        expected |= {
            (y, x, side, side) for y, x in ((0, 0), (0, right), (low, 0), (low, right), (low // 2, right // 2))
        }
    assert {tuple(view[:4]) for view in views} == expected


def test_random_crops_are_squares_that_reach_every_place() -> None:
    rng = np.random.default_rng(0)
    views = [
        transforms.draw_view(10, 13, size=64, scales=(0.8,), flip=False, rng=rng, places="random") for _ in range(2000)
    ]
    assert {tuple(view[:4]) for view in views} == {(y, x, 8, 8) for y in range(3) for x in range(6)}


def test_a_test_view_may_be_the_whole_image_or_of_another_scale() -> None:
    assert transforms.fixed_views(90, 120, crops="whole") == [View(0, 0, 90, 120, False)]
    assert transforms.fixed_views(90, 120, crops=1, scale=1.0) == [View(0, 15, 90, 90, False)]


@pytest.mark.parametrize(
    ("sides", "size", "expected"),
    [
        ([(224, 224)], 112, 2), ([(223, 400)], 112, 1), ([(224, 223)], 112, 1), ([(448, 300)], 112, 2),
        ([(448, 448)], 112, 4), ([(896, 895)], 112, 4), ([(2000, 2000)], 112, 8), ([(100, 100)], 112, 1),
        ([(448, 448), (447, 600)], 112, 2),
    ],
)  # fmt: skip
def test_images_are_reduced_only_as_far_as_the_smallest_view_allows(
    sides: list[tuple[int, int]], size: int, expected: int
) -> None:
    views = [transforms.View(3, 5, height, width, False) for height, width in sides]
    assert transforms.reduction_for(views, size=size) == expected


@given(st.data(), st.sampled_from([1, 2, 4, 8]))
def test_a_reduced_view_is_the_same_part_within_a_pixel_and_inside(data: st.DataObject, reduction: int) -> None:
    spans = []
    for _ in range(2):
        side = data.draw(st.integers(8, 500))
        start = data.draw(st.integers(0, side - 8))
        spans.append((side, start, data.draw(st.integers(8, side - start))))
    (_, y, tall), (_, x, wide) = spans
    view = transforms.reduced(transforms.View(y, x, tall, wide, True), reduction)
    assert view.mirrored
    for (side, start, length), low, size in zip(spans, (view.y, view.x), (view.height, view.width), strict=True):
        assert 0 <= low < low + size <= -(-side // reduction)
        assert abs(low - start / reduction) <= 0.5
        assert abs(low + size - (start + length) / reduction) <= 0.5
        assert size >= length // reduction
    if reduction == 1:
        assert view == (y, x, tall, wide, True)
