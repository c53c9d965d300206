"""Pictures for a page: thumbnails, flow in colour, confusion matrices, all as data URIs with deterministic bytes.

Shapes: ``H W 3`` RGB uint8, ``2 H W`` flow in pixels, ``C C`` confusion.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.optical_flow.colour import colour_wheel, flow_to_rgb

JPEG_QUALITY = 82
MATRIX_RGB = (59, 130, 246)
"""Seen on white as on near-black; the share is in the opacity."""
LEAST_SCALE_PX = 2.0
"""Shorter flow is never blown up to full colour: at the usual bound of 20 px a step of the quantiser is 0.16 px."""

Image = npt.NDArray[np.uint8]


def jpeg_uri(rgb: Image, *, width_px: int) -> str:
    """A thumbnail, shrunk to at most ``width_px`` wide and never enlarged."""
    height, width = rgb.shape[:2]
    if width > width_px:
        size = (width_px, max(1, round(height * width_px / width)))
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    return _uri(rgb, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def png_uri(image: Image) -> str:
    """An RGB or RGBA picture, lossless."""
    return _uri(image, ".png", [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _uri(image: Image, suffix: str, options: list[int]) -> str:
    order = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}[image.shape[2]]
    written, data = cv2.imencode(suffix, cv2.cvtColor(np.ascontiguousarray(image), order), options)
    assert written
    kind = {".jpg": "jpeg", ".png": "png"}[suffix]
    return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


def flow_scale_px(fields: Sequence[npt.NDArray[np.floating]]) -> float:
    """The length that gets full colour in a strip: the 99th percentile, so that one outlier does not fade the rest."""
    lengths = [np.hypot(*field).ravel() for field in fields if field.size]
    top = float(np.percentile(np.concatenate(lengths), 99)) if lengths else 0.0
    return max(round(top, 1), LEAST_SCALE_PX)


def flow_uri(flow: npt.NDArray[np.floating], *, max_px: float, width_px: int) -> str:
    """A flow field in the colours of ``flow_to_rgb``, as a thumbnail."""
    return jpeg_uri(flow_to_rgb(flow, max_px=max_px), width_px=width_px)


def wheel_uri(side_px: int = 144) -> str:
    """The legend of the flow pictures."""
    return png_uri(colour_wheel(side_px))


def matrix_uri(shares: npt.NDArray[np.floating], *, side_px: int) -> str:
    """A matrix of shares, 0 to 1, as squares of one colour: opaque is 1, clear is 0.

    Args:
        shares: ``(C, C)``.
        side_px: about how large the picture gets; a cell is a whole number of pixels.
    """
    cell = max(1, side_px // len(shares))
    alpha = np.rint(255 * np.sqrt(shares))  # the square root lets single mistakes be seen
    image = np.empty((*shares.shape, 4), np.uint8)
    image[..., :3], image[..., 3] = MATRIX_RGB, alpha
    return png_uri(image.repeat(cell, axis=0).repeat(cell, axis=1))


def evenly(length: int, number: int) -> list[int]:
    """Indices of ``number`` moments in the middle of equal parts of ``length`` frames; each once, so fewer if short."""
    return sorted({(2 * part + 1) * length // (2 * number) for part in range(number)}) if length else []
