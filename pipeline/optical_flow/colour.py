"""Optical flow as colour: the direction is the hue, the length the saturation, and no motion is white.

This is the HSV wheel (value 1), not Middlebury's 55-colour table: it has a closed form, and opposite directions are
exactly complementary. Hue 0 (red) points right (+x), and hues go clockwise on the screen because y points down.

Shapes: ``2 H W`` flow in pixels, channel 0 = x; ``H W 3`` RGB uint8.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def flow_to_rgb(flow: npt.NDArray[np.floating], *, max_px: float) -> npt.NDArray[np.uint8]:
    """Colour a flow field.

    Args:
        flow: ``(2, H, W)``, pixels.
        max_px: length that gets full saturation; longer vectors look the same.

    Returns:
        ``(H, W, 3)`` RGB.

    Raises:
        ValueError: another shape, or ``max_px`` is not positive.
    """
    if flow.ndim != 3 or flow.shape[0] != 2:
        raise ValueError(f"flow has shape {flow.shape}; give (2, height, width)")
    if not max_px > 0:
        raise ValueError(f"max_px is {max_px}; give a positive length in pixels")
    x, y = flow.astype(np.float32)
    saturation = np.minimum(np.hypot(x, y) / max_px, 1.0)
    sextant = np.arctan2(y, x) * (3 / np.pi)  # hue in units of 60 degrees, -3..3
    # HSV to RGB in closed form: a channel loses saturation by its distance from its own hue
    ramp = (np.array([5, 3, 1], np.float32) + sextant[..., None]) % 6
    loss = np.clip(np.minimum(ramp, 4 - ramp), 0, 1)
    return np.rint(255 * (1 - saturation[..., None] * loss)).astype(np.uint8)


def colour_wheel(side: int) -> npt.NDArray[np.uint8]:
    """The legend of ``flow_to_rgb``: ``(side, side, 4)`` RGBA, transparent outside the circle.

    The colour at a place is the colour of the motion from the centre to that place.
    """
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    flow = np.stack(np.meshgrid(axis, axis))
    length = np.hypot(*flow)
    alpha = np.clip((1 - length) * side / 2 + 0.5, 0, 1)  # one pixel of anti-aliasing
    return np.dstack([flow_to_rgb(flow, max_px=1.0), np.rint(255 * alpha).astype(np.uint8)])
