"""Crops and mirror images of snippets, as TSN trains and tests with them (Wang et al., ECCV 2016, section 3.3).

Every image of a video gets the same treatment. Flow is quantised: 128 is no motion, so a mirrored field needs its x
components negated, which the papers do as 255 - v. That maps 128 to 127 (0.16 px at a bound of 20) and is kept,
because it is its own inverse and published models were trained so.

Shapes: images are uint8 (..., C, H, W), planar; C is 3 (R, G, B) or 2 (flow x, y); S the side of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]

SNAP_PX = 3
"""A training crop whose side is this close to the network's input is cut at exactly that size, and so not resampled."""
TEST_SCALE = 224 / 256
"""Side of a test crop as a part of the short side: the papers cut 224 from 340x256, whatever the network's input."""


class Box(NamedTuple):
    """A crop: pixels [y, y + height) x [x, x + width)."""

    y: int
    x: int
    height: int
    width: int


def draw_box(height: int, width: int, *, size: int, scales: Sequence[float], rng: np.random.Generator) -> Box:
    """A crop of random size, aspect ratio and place: TSN's scale jittering with corner cropping.

    Args:
        height, width: of the images.
        size: side of the network's input (S), pixels.
        scales: sides of crops as parts of the short side.
        rng: source of the draws.
    """
    shapes = crop_shapes(min(height, width), size=size, scales=scales)
    box_height, box_width = shapes[rng.integers(len(shapes))]
    places = crop_places(height - box_height, width - box_width)
    y, x = places[rng.integers(len(places))]
    return Box(y, x, box_height, box_width)


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


def crop(images: Images, *, box: Box, size: int) -> Images:
    """Cut ``box`` out of every image and resize it, bilinearly.

    Args:
        images: (..., C, H, W) uint8.
        box: within the images.
        size: side of the result (S), pixels.

    Returns:
        (..., C, S, S) uint8, contiguous.
    """
    cut = images[..., box.y : box.y + box.height, box.x : box.x + box.width]
    if (box.height, box.width) == (size, size):
        return np.ascontiguousarray(cut)
    planes = cut.reshape(-1, box.height, box.width)  # a view, unless the strides do not allow it
    out = np.empty((len(planes), size, size), np.uint8)
    for plane, resized in zip(planes, out, strict=True):
        cv2.resize(plane, (size, size), dst=resized, interpolation=cv2.INTER_LINEAR)
    return out.reshape(*images.shape[:-2], size, size)


def mirror(images: Images, *, flow: bool) -> Images:
    """Mirror left and right; the x components of flow become 255 - v.

    Args:
        images: (..., C, H, W) uint8.
        flow: the channels are flow x and y.

    Returns:
        The same shape, a new array.
    """
    mirrored = images[..., ::-1].copy()
    if flow:
        x = mirrored[..., 0, :, :]
        np.subtract(255, x, out=x)
    return mirrored


def augment(
    images: Images, *, size: int, scales: Sequence[float], flip: bool, flow: bool, rng: np.random.Generator
) -> Images:
    """One random training view of a video, the same for all its images.

    Args:
        images: (..., C, H, W) uint8.
        size: side of the network's input (S), pixels.
        scales: sides of crops as parts of the short side.
        flip: mirror with probability one half.
        flow: the channels are flow x and y.
        rng: source of the draws.

    Returns:
        (..., C, S, S) uint8.
    """
    box = draw_box(*images.shape[-2:], size=size, scales=scales, rng=rng)
    view = crop(images, box=box, size=size)
    return mirror(view, flow=flow) if flip and rng.random() < 0.5 else view


def fixed_views(images: Images, *, size: int, crops: Literal[1, 5, 10], flow: bool) -> Images:
    """The fixed views of testing: centre; corners and centre; corners, centre and their mirror images.

    A crop is a square of 7/8 of the short side, resized to the network's input.

    Args:
        images: (..., C, H, W) uint8.
        size: side of the network's input (S), pixels.
        crops: number of views.
        flow: the channels are flow x and y.

    Returns:
        (crops, ..., C, S, S) uint8.
    """
    height, width = images.shape[-2:]
    side = max(1, round(TEST_SCALE * min(height, width)))
    bottom, right = height - side, width - side
    centre = (bottom // 2, right // 2)
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    places = [centre] if crops == 1 else [*corners, centre]
    views = [crop(images, box=Box(y, x, side, side), size=size) for y, x in places]
    if crops == 10:
        views += [mirror(view, flow=flow) for view in views]
    return np.stack(views)
