"""Which part of its frames a model sees: the crops of TSN (Wang et al., ECCV 2016, section 3.3), as numbers.

`augmentation` cuts them. Every image of a video gets the same treatment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

SNAP_PX = 3
"""A training crop whose side is this close to the network's input is cut at exactly that size, and so not resampled."""
TEST_SCALE = 224 / 256
"""Side of a test crop as a part of the short side: the papers cut 224 from 340x256, whatever the network's input."""


class View(NamedTuple):
    """A crop, pixels [y, y + height) x [x, x + width), and whether it is mirrored left and right after it is cut."""

    y: int
    x: int
    height: int
    width: int
    mirrored: bool


def draw_view(
    height: int, width: int, *, size: int, scales: Sequence[float], flip: bool, rng: np.random.Generator
) -> View:
    """A crop of random size, aspect ratio and place: TSN's scale jittering with corner cropping.

    Args:
        height, width: of the images, pixels.
        size: side of the network's input (S), pixels.
        scales: sides of crops as parts of the short side.
        flip: mirror with probability one half.
        rng: source of the draws: shape, place, and with ``flip`` the mirroring.
    """
    shapes = crop_shapes(min(height, width), size=size, scales=scales)
    box_height, box_width = shapes[rng.integers(len(shapes))]
    places = crop_places(height - box_height, width - box_width)
    y, x = places[rng.integers(len(places))]
    return View(y, x, box_height, box_width, flip and bool(rng.random() < 0.5))


def crop_shapes(short_side: int, *, size: int, scales: Sequence[float]) -> list[tuple[int, int]]:
    """Heights and widths of training crops: pairs of ``scales`` that are neighbours or equal (max_distort = 1)."""
    sides = [max(1, int(short_side * scale)) for scale in scales]
    sides = [size if abs(side - size) < SNAP_PX and size <= short_side else side for side in sides]
    return [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1]


def crop_places(free_height: int, free_width: int) -> list[tuple[int, int]]:
    """The 13 fixed (y, x) of training crops: corners, centre, middles of the edges, middles of the quadrants.

    Args:
        free_height, free_width: image size minus crop size, pixels.
    """
    fourths = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3)]
    return [(i * (free_height // 4), j * (free_width // 4)) for i, j in fourths]


def fixed_views(height: int, width: int, *, crops: Literal[1, 5, 10]) -> list[View]:
    """The views of testing: centre; corners and centre; corners, centre and their mirror images.

    A crop is a square of 7/8 of the short side.

    Args:
        height, width: of the images, pixels.
        crops: number of views.
    """
    side = max(1, round(TEST_SCALE * min(height, width)))
    bottom, right = height - side, width - side
    centre = (bottom // 2, right // 2)
    places = [centre] if crops == 1 else [(0, 0), (0, right), (bottom, 0), (bottom, right), centre]
    mirrors = (False, True) if crops == 10 else (False,)
    return [View(y, x, side, side, mirrored) for mirrored in mirrors for y, x in places]
