"""Spatial attention as people see it: a frame under a map, with the box that it gives and the box of what is true.

Shapes: ``H W 3`` RGB uint8, ``h w`` cells of a map, P boxes. A view and boxes are x0, y0, x1, y1, parts of the frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.manifest import Video
from pipeline.learning.localised import found_box
from pipeline.learning.truth import boxes_at, frame_at
from pipeline.report.pictures import Image, jpeg_uri
from pipeline.report.strips import SNIPPET_PX, Reader

Floats = NDArray[np.floating[Any]]

HEAT_RGB = (255, 64, 0)
OPAQUE = 0.8
"""Opacity of the heat where a map is largest; it falls to none where a map is zero."""
UNSEEN = 0.45
"""Brightness that is left of what lies outside the view."""
BOX_RGB = (64, 255, 128)
FOUND_RGB = (40, 140, 255)


def map_pictures(
    video: Video,
    maps: Floats,
    seconds: Sequence[float],
    *,
    view: Floats,
    family: str,
    frames: Mapping[str, Any],
    read: Reader,
) -> list[str]:
    """Frames at some moments, each under its map, with the box of the map and those of the truth.

    Args:
        video: with its boxes, if it has any.
        maps: ``(len(seconds), h, w)``.
        seconds: moments of the video.
        view: ``(4,)`` where the maps lie.
        family: of the model.
        frames: what the index says of the video in the frame store.
        read: of the frame store.
    """
    numbers = [min(frame_at(moment, fps=frames["fps"]), frames["frames"] - 1) for moment in seconds]
    pictures = []
    for frame, map_, moment in zip(read(video.id, numbers), maps, seconds, strict=True):
        found, true = found_boxes(map_, video, view=view, family=family), boxes_at(video, moment)
        pictures.append(jpeg_uri(heat(_shrunk(frame), map_, view=view, boxes=true, found=found), width_px=SNIPPET_PX))
    return pictures


def found_boxes(map_: Floats, video: Video, *, view: Floats, family: str) -> NDArray[np.float64]:
    """The box of a map as the evaluation finds it, in parts of the frame: (1, 4), or (0, 4) if there is none."""
    size_px = (
        np.array([video.width, video.height] * 2, np.float64) if video.width and video.height else np.full(4, 256.0)
    )
    x0, y0, x1, y1 = (view * size_px).tolist()
    box = found_box(map_, (x0, y0, x1, y1), family=family)
    return np.zeros((0, 4)) if box is None else np.array([box]) / size_px


def _shrunk(frame: Image) -> Image:
    """At most as wide as it is shown, so that outlines keep their width."""
    height, width = frame.shape[:2]
    if width <= SNIPPET_PX:
        return frame
    size = (SNIPPET_PX, max(1, round(height * SNIPPET_PX / width)))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def heat(rgb: Image, map_: Floats, *, view: Floats, boxes: Floats, found: Floats | None = None) -> Image:
    """A frame with a map over it: the larger, the stronger the colour; dark where the map does not reach.

    The map is enlarged to its view bilinearly, its cells' values standing at their middles.

    Args:
        rgb: ``(H, W, 3)``.
        map_: ``(h, w)``, not negative.
        view: ``(4,)`` where the map lies.
        boxes: ``(P, 4)`` to be outlined, of what is true.
        found: ``(P, 4)`` to be outlined below them, of what the map gives.

    Returns:
        ``(H, W, 3)``, a new array.
    """
    x0, y0, x1, y1 = _pixels(rgb, view)
    enlarged = cv2.resize(map_.astype(np.float32), (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
    opacity = OPAQUE * np.clip(enlarged / max(float(map_.max()), 1e-12), 0, 1)[..., None]
    seen = rgb[y0:y1, x0:x1]
    out = (rgb * UNSEEN).astype(np.uint8)
    out[y0:y1, x0:x1] = np.rint(seen * (1 - opacity) + np.array(HEAT_RGB) * opacity)
    for colour, outlined in ((FOUND_RGB, () if found is None else found), (BOX_RGB, boxes)):
        for box in outlined:
            left, top, right, bottom = _pixels(rgb, box)
            cv2.rectangle(out, (left, top), (right - 1, bottom - 1), colour, 1)
    return out


def _pixels(rgb: Image, box: Floats) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 in whole pixels of a picture, at least one wide and high."""
    height, width = rgb.shape[:2]
    x0, y0, x1, y1 = (round(float(value)) for value in np.clip(box, 0, 1) * [width, height, width, height])
    x0, y0 = min(x0, width - 1), min(y0, height - 1)
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)
