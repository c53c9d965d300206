"""The image pyramid of TV-L1, by a bilinear resize that gives OpenCV's values. Shapes: H W, rows and columns."""

from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, np.dtype[np.float32]]

SMALLEST_LEVEL_PX = 16
"""The pyramid ends before a level with a side below this, as in OpenCV."""


def pyramid(frame: np.ndarray[Any, np.dtype[Any]], *, nscales: int, scale_step: float) -> list[Array]:
    """At most `nscales` float32 levels, finest first; sides shrink by `scale_step`, rounded half to even."""
    levels = [np.ascontiguousarray(frame, dtype=np.float32)]
    while len(levels) < nscales:
        height, width = (round(side * scale_step) for side in levels[-1].shape)
        if min(height, width) < SMALLEST_LEVEL_PX:
            break
        level = np.empty((height, width), np.float32)
        _resize(levels[-1], level, 1 / scale_step, 1 / scale_step)
        levels.append(level)
    return levels


def enlarge(flow: Array, shape: tuple[int, ...], *, scale_step: float) -> Array:
    """Flow (2, h, w) of a level at the size of the next finer one, (2, H, W), in the finer level's pixels."""
    finer = np.empty((2, *shape), np.float32)
    for component in range(2):
        _resize(flow[component], finer[component], flow.shape[1] / shape[0], flow.shape[2] / shape[1])
    finer *= np.float32(1 / scale_step)
    return finer


@njit(fastmath=True, error_model="numpy", nogil=True, cache=True)
def _resize(source: Array, out: Array, row_scale: float, column_scale: float) -> None:
    """Bilinear with pixel centres at halves and clamped edges: OpenCV's INTER_LINEAR, which does not smooth."""
    height, width = source.shape
    left = np.empty(out.shape[1], np.intp)
    weight = np.empty(out.shape[1], np.float32)
    for x in range(out.shape[1]):
        position = min(max((x + 0.5) * column_scale - 0.5, 0.0), width - 1.0)
        left[x] = min(int(position), max(width - 2, 0))
        weight[x] = position - left[x]
    blend = np.empty(width + 1, np.float32)
    for y in range(out.shape[0]):
        position = min(max((y + 0.5) * row_scale - 0.5, 0.0), height - 1.0)
        top = min(int(position), max(height - 2, 0))
        row_weight = np.float32(position - top)
        upper, lower = source[top], source[min(top + 1, height - 1)]
        for x in range(width):
            blend[x] = upper[x] + row_weight * (lower[x] - upper[x])
        blend[width] = blend[width - 1]
        for x in range(out.shape[1]):
            i = left[x]
            out[y, x] = blend[i] + weight[x] * (blend[i + 1] - blend[i])
