"""Which part of its frames a model sees: the crops of TSN (Wang et al., ECCV 2016, section 3.3) and of 3D CNNs (Hara
et al., CVPR 2018, section 3.3), as numbers.

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

Places = Literal["tsn", "corners", "random"]
Crops = Literal["whole", 1, 5, 10]


class View(NamedTuple):
    """A crop, pixels [y, y + height) x [x, x + width), and whether it is mirrored left and right after it is cut."""

    y: int
    x: int
    height: int
    width: int
    mirrored: bool


def draw_view(
    height: int,
    width: int,
    *,
    size: int,
    scales: Sequence[float],
    flip: bool,
    rng: np.random.Generator,
    places: Places = "tsn",
) -> View:
    """A crop of random size and place: TSN's scale jittering, which varies the aspect ratio too, or a square.

    Args:
        height, width: of the images, pixels.
        size: side of the network's input (S), pixels.
        scales: sides of crops as parts of the short side.
        flip: mirror with probability one half.
        rng: source of the draws: shape, place, and with ``flip`` the mirroring.
        places: "tsn": the 13 of TSN; "corners": squares in the corners and the centre; "random": squares anywhere.
    """
    distort = 1 if places == "tsn" else 0
    shapes = crop_shapes(min(height, width), size=size, scales=scales, distort=distort)
    box_height, box_width = shapes[rng.integers(len(shapes))]
    bottom, right = height - box_height, width - box_width
    match places:
        case "tsn" | "corners":
            known = crop_places(bottom, right) if places == "tsn" else corner_places(bottom, right)
            y, x = known[rng.integers(len(known))]
        case "random":
            y, x = int(rng.integers(bottom + 1)), int(rng.integers(right + 1))
    return View(y, x, box_height, box_width, flip and bool(rng.random() < 0.5))


def reduction_for(views: Sequence[View], *, size: int) -> int:
    """How much smaller images may be decoded before a view of them would have fewer pixels than the network's input.

    Args:
        views: of the stored images.
        size: side of the network's input (S), pixels.

    Returns:
        8, 4, 2 or 1: the largest number r for which the shorter side of every view is r * S or more.
    """
    shortest = min(min(view.height, view.width) for view in views)
    return next((r for r in (8, 4, 2) if shortest >= r * size), 1)


def reduced(view: View, reduction: int) -> View:
    """The same part, within a pixel, of images of which ``reduction`` x ``reduction`` pixels have become one.

    Inside them if the view is inside the images. Its sides are the view's over ``reduction``, rounded up or down.
    """
    top, left, bottom, right = (
        (2 * edge + reduction) // (2 * reduction)  # the nearest edge of a pixel
        for edge in (view.y, view.x, view.y + view.height, view.x + view.width)
    )
    return View(top, left, bottom - top, right - left, view.mirrored)


def crop_shapes(short_side: int, *, size: int, scales: Sequence[float], distort: int = 1) -> list[tuple[int, int]]:
    """Heights and widths of training crops: pairs of ``scales`` that are no more than ``distort`` places apart."""
    sides = [max(1, int(short_side * scale)) for scale in scales]
    sides = [size if abs(side - size) < SNAP_PX and size <= short_side else side for side in sides]
    return [(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= distort]


def crop_places(free_height: int, free_width: int) -> list[tuple[int, int]]:
    """The 13 fixed (y, x) of training crops: corners, centre, middles of the edges, middles of the quadrants.

    Args:
        free_height, free_width: image size minus crop size, pixels.
    """
    fourths = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2), (2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3)]
    return [(i * (free_height // 4), j * (free_width // 4)) for i, j in fourths]


def corner_places(free_height: int, free_width: int) -> list[tuple[int, int]]:
    """The four corners and the centre, (y, x) each."""
    bottom, right = free_height, free_width
    return [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]


def fixed_views(height: int, width: int, *, crops: Crops, scale: float = TEST_SCALE) -> list[View]:
    """The views of testing: centre; corners and centre; corners, centre and their mirror images; or all of the image.

    Args:
        height, width: of the images, pixels.
        crops: number of views, or "whole" for one that is the image.
        scale: side of a crop as a part of the short side.
    """
    if crops == "whole":
        return [View(0, 0, height, width, False)]
    side = max(1, round(scale * min(height, width)))
    places = corner_places(height - side, width - side)
    places = places[-1:] if crops == 1 else places
    mirrors = (False, True) if crops == 10 else (False,)
    return [View(y, x, side, side, mirrored) for mirrored in mirrors for y, x in places]
