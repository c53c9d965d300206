"""The image pyramid of TV-L1, with OpenCV's values. Shapes: H W, rows and columns."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

if TYPE_CHECKING:
    from pipeline.optical_flow.params import TVL1Params

Array = np.ndarray[Any, np.dtype[np.float32]]

_OUTER, _INNER, _MIDDLE = np.float32(1 / 16), np.float32(4 / 16), np.float32(6 / 16)


def pyramid(frame: np.ndarray[Any, np.dtype[Any]], *, params: "TVL1Params") -> list[Array]:
    """Float32 levels of a frame (H, W), finest first, of the sizes that `params` has for it."""
    levels = [np.ascontiguousarray(frame, dtype=np.float32)]
    for shape in params.level_shapes(*frame.shape)[1:]:
        level = np.empty(shape, np.float32)
        if params.discretisation.gaussian_pyramid:
            _halve(levels[-1], level)
        else:
            step = 1 / params.scale_step
            _resize(levels[-1], level, step, step, _centre(params))
        levels.append(level)
    return levels


def enlarge(flow: Array, shape: tuple[int, ...], *, params: "TVL1Params") -> Array:
    """Flow (2, h, w) of a level at the size of the next finer one, (2, H, W), in the finer level's pixels."""
    finer = np.empty((2, *shape), np.float32)
    for component in range(2):
        row_scale, column_scale = flow.shape[1] / shape[0], flow.shape[2] / shape[1]
        _resize(flow[component], finer[component], row_scale, column_scale, _centre(params))
    finer *= np.float32(1 / params.scale_step)
    return finer


def _centre(params: "TVL1Params") -> float:
    return 0.5 if params.discretisation.pixel_centres else 0.0


@njit(fastmath=True, error_model="numpy", nogil=True, cache=True)
def _resize(source: Array, out: Array, row_scale: float, column_scale: float, centre: float) -> None:
    """Bilinear with clamped edges, pixel centres at `centre`: OpenCV's INTER_LINEAR (0.5; CUDA: 0)."""
    height, width = source.shape
    left = np.empty(out.shape[1], np.intp)
    weight = np.empty(out.shape[1], np.float32)
    for x in range(out.shape[1]):
        position = min(max((x + centre) * column_scale - centre, 0.0), width - 1.0)
        left[x] = min(int(position), max(width - 2, 0))
        weight[x] = position - left[x]
    blend = np.empty(width + 1, np.float32)
    for y in range(out.shape[0]):
        position = min(max((y + centre) * row_scale - centre, 0.0), height - 1.0)
        top = min(int(position), max(height - 2, 0))
        row_weight = np.float32(position - top)
        upper, lower = source[top], source[min(top + 1, height - 1)]
        for x in range(width):
            blend[x] = upper[x] + row_weight * (lower[x] - upper[x])
        blend[width] = blend[width - 1]
        for x in range(out.shape[1]):
            i = left[x]
            out[y, x] = blend[i] + weight[x] * (blend[i + 1] - blend[i])


@njit(fastmath=True, error_model="numpy", nogil=True, cache=True)
def _halve(source: Array, out: Array) -> None:
    """Every second pixel of the image under the 5x5 binomial filter, mirrored about edge pixels: OpenCV's pyrDown."""
    height, width = source.shape
    column = np.empty(width + 4, np.float32)  # a filtered row with two pixels on either side
    for y in range(out.shape[0]):
        a, b, c = source[abs(2 * y - 2)], source[abs(2 * y - 1)], source[2 * y]
        d, e = source[_mirror(2 * y + 1, height)], source[_mirror(2 * y + 2, height)]
        for x in range(width):
            column[x + 2] = _OUTER * (a[x] + e[x]) + _INNER * (b[x] + d[x]) + _MIDDLE * c[x]
        column[0], column[1] = column[4], column[3]
        column[width + 2], column[width + 3] = column[width], column[width - 1]
        for x in range(out.shape[1]):
            v = column[2 * x : 2 * x + 5]
            out[y, x] = _OUTER * (v[0] + v[4]) + _INNER * (v[1] + v[3]) + _MIDDLE * v[2]


@njit(inline="always")
def _mirror(index: int, size: int) -> int:
    return index if index < size else 2 * (size - 1) - index
