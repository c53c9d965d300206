"""TV-L1 optical flow on one CPU core, compiled by numba.

The functional and its splitting are those of Zach, Pock and Bischof, "A Duality Based Approach for Realtime TV-L1
Optical Flow" (DAGM 2007), the median is that of Wedel et al., "An Improved Algorithm for TV-L1 Optical Flow" (2009),
the discretisation that of Sanchez, Meinhardt-Llopis and Facciolo, "TV-L1 Optical Flow Estimation" (IPOL 2013):

    rho(u) = I1(x + u0) + g . (u - u0) - I0,  g = gradient of I1 at x + u0                        (once a warp)
    v = u + l_t g if rho < -l_t |g|^2;  u - l_t g if rho > l_t |g|^2;  u - rho g / |g|^2 otherwise   (1) threshold step
    u = v + theta div p                                                                            (2) primal update
    p = (p + tau / theta grad u) / (1 + tau / theta |grad u|),  for each component of u              (3) dual update

with l_t = lambda theta. The choices are those of OpenCV's CPU `DualTVL1OpticalFlow`: pyramid by bilinear resize,
bicubic warp of I1 and of its gradient (a = -0.75, zero outside; OpenCV 4 samples at 1/32 px, OpenCV 5 and we do not),
5x5 median of u before every outer iteration, stop once the summed squared change of u is at most epsilon^2 * area.

Deviations from OpenCV, each far below the agreement that the tests ask for:
  * (1) is written as a clamp, v = u + clamp(-rho / |g|^2, -l_t, l_t) * g, with 1 / |g|^2
    computed once a warp; only pixels with 0 < |g|^2 <= 1.2e-7 can differ, by at most l_t * 3.5e-4 px;
  * the dual variable is kept as theta * p, which saves a multiplication (tau / theta becomes tau);
  * `fastmath`: sums are re-associated, and square root and division in the dual update may be a hardware estimate plus
    one Newton step (relative error about 2^-23), so the last bits depend on the processor;
  * gamma (illumination) and a 3x3 median are not implemented.

Shapes: H W rows and columns of a level; S = row stride of a plane, a multiple of 16 and > W.
A plane is flat: pixel (y, x) is at (y + 1) * S + x; there is one row above and one below the image and S - W columns on
the right, so that neither the divergence nor the gradient needs a border case in its loop. Invariants: in the padding
theta * p = 0, the gradient and rho are 0, and u[y, W] = u[y, W - 1], u[H] = u[H - 1] when the dual is updated.
Loops run over 1-D views of several rows: indices from 0 need no test for negative ones, so LLVM vectorises them.
Compiled functions that call one another share this file: numba's cache sees no change in another.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from pipeline.optical_flow.median_network import MEDIAN_OF_SORTED_COLUMNS
from pipeline.optical_flow.pyramid_numba import enlarge, pyramid
from pipeline.optical_flow.warp_numba import warp, with_gradients

if TYPE_CHECKING:
    from pipeline.optical_flow.params import TVL1Params

Array = np.ndarray[Any, np.dtype[np.float32]]

_compile: Callable[[Any], Any] = njit(fastmath=True, error_model="numpy", nogil=True, cache=True)

_U1, _U2, _GX, _GY, _INVERSE, _RHO, _P11, _P12, _P21, _P22, _PREV, _SCRATCH = range(12)
_PLANES = 12
_LANES = 16
_STRIP_ROWS = (
    16  # rows updated together: long enough to hide the loop's set-up, short enough for the second-level cache
)
_ZERO, _ONE, _TINY = np.float32(0), np.float32(1), np.float32(1e-30)


def prepare(frame: np.ndarray[Any, np.dtype[Any]], *, params: "TVL1Params") -> list[Array]:
    """The part of the work that concerns one frame (H, W) in 0-255, whatever its neighbour: its pyramid."""
    return pyramid(frame, params=params)


def solve_prepared(prev: list[Array], next: list[Array], *, params: "TVL1Params") -> Array:
    """Flow (2, H, W) float32 in pixels, channel 0 = x, between two prepared frames. Releases the GIL."""
    workspace = _aligned_zeros(_PLANES * _plane_size(*prev[0].shape))
    flow = np.zeros((2, *prev[-1].shape), np.float32)
    for prev_level, next_level in zip(reversed(prev), reversed(next), strict=True):
        height, width = prev_level.shape
        if flow.shape[1:] != (height, width):
            flow = enlarge(flow, (height, width), params=params)
        planes = workspace[: _PLANES * _plane_size(height, width)].reshape(_PLANES, -1)
        _solve_level(prev_level, next_level, flow, planes, params)
    return flow


def _plane_size(height: int, width: int) -> int:
    stride = (width // _LANES + 1) * _LANES
    return (height + 2) * stride


def _aligned_zeros(size: int) -> Array:
    """float32 zeros that start on a 64-byte line: an unaligned vector load costs two."""
    raw = np.zeros(size + _LANES, np.float32)
    start = -raw.ctypes.data // 4 % _LANES
    return raw[start : start + size]


def _solve_level(prev: Array, next: Array, flow: Array, planes: Array, params: "TVL1Params") -> None:
    """Refine `flow` (2, H, W) in place at one level. Each part is compiled alone, and so can have its own file."""
    height, width = prev.shape
    size = (height, width, planes.shape[1] // (height + 2))
    variant, median = params.discretisation, params.median_filtering > 1
    counts = (params.outer_iterations, params.inner_iterations, median, not variant.stops_anywhere)
    steps = [np.float32(step) for step in (params.lambda_ * params.theta, params.tau, params.tau / params.theta)]
    threshold = np.float32(params.threshold(height, width))
    planes[:] = _ZERO
    for image, plane in zip((prev, *flow), (_PREV, _U1, _U2), strict=True):
        _load(image, planes[plane], size[2])
    image = with_gradients(next, variant.edges_repeat)
    columns = np.empty((5, width + 4), np.float32)
    for _ in range(params.warps):
        warp(image, planes[:2], planes[_PREV], planes[_GX : _RHO + 1], *size, np.float32(variant.cubic))
        _relax(planes, columns, *size, *counts, threshold, *steps)
    for image, plane in zip(flow, (_U1, _U2), strict=True):
        _store(planes[plane], image, size[2])


@_compile
def _relax(
    planes: Array,
    columns: Array,
    height: int,
    width: int,
    stride: int,
    outer: int,
    inner: int,
    median: bool,
    stops_rarely: bool,
    threshold: float,
    l_t: float,
    tau: float,
    taut: float,
) -> int:
    """Iterate until the flow hardly changes; returns the number of iterations.

    `stops_rarely` is the rule of OpenCV's CUDA solvers, which sum the change only after odd iterations, and not before
    the last sum, less one threshold for every iteration since, is below the threshold.
    """
    done = 0
    error, expected = np.float32(np.inf), _ZERO
    for _ in range(outer):
        if error <= threshold:
            break
        if median:
            _median(planes[_U1], planes[_SCRATCH], columns, height, width, stride)
            _median(planes[_U2], planes[_SCRATCH], columns, height, width, stride)
        for _ in range(inner):
            if error <= threshold:
                break
            change = _iterate(planes, height, width, stride, l_t, tau, taut)
            if not stops_rarely or (done % 2 == 1 and expected < threshold):
                error = expected = change
            else:
                expected -= threshold
            done += 1
    return done


@_compile
def _iterate(planes: Array, height: int, width: int, stride: int, l_t: float, tau: float, taut: float) -> Any:
    """One iteration of (1) to (3) in place; returns the summed squared change of the flow.

    In one pass over strips of rows: u of the strip, then p of the same rows moved up by one. u[y] reads p[y - 1] and
    p[y] as they were, p[y] reads u[y] and u[y + 1] as they have become: exactly the values of two separate passes.
    """
    u1, u2 = planes[_U1], planes[_U2]
    p11, p12, p21, p22 = planes[_P11], planes[_P12], planes[_P21], planes[_P22]
    error = _ZERO
    for top in range(0, height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, height)
        error += _update_u(planes, (top + 1) * stride, (bottom + 1) * stride, stride, l_t)
        for row in range(top, bottom):  # no gradient across the right edge
            edge = (row + 1) * stride + width
            u1[edge] = u1[edge - 1]
            u2[edge] = u2[edge - 1]
        first, last = max(top - 1, 0), bottom - 1
        if bottom == height:  # none across the lower edge
            last = height
            below = (height + 1) * stride
            u1[below : below + stride] = u1[below - stride : below]
            u2[below : below + stride] = u2[below - stride : below]
        _update_p(u1, p11, p12, (first + 1) * stride, (last + 1) * stride, stride, tau, taut)
        _update_p(u2, p21, p22, (first + 1) * stride, (last + 1) * stride, stride, tau, taut)
        for row in range(first, last):  # the padding beside a pixel: after its row, and before the next one
            for edge in ((row + 1) * stride + width, (row + 2) * stride - 1):
                p11[edge] = p12[edge] = p21[edge] = p22[edge] = _ZERO
    return error


@_compile
def _update_u(planes: Array, start: int, stop: int, stride: int, l_t: float) -> Any:
    """Threshold step (1) and primal update (2) of flat pixels [start, stop); returns their summed squared change."""
    u1, u2 = planes[_U1, start:stop], planes[_U2, start:stop]
    gx, gy = planes[_GX, start:stop], planes[_GY, start:stop]
    inverse, rho = planes[_INVERSE, start:stop], planes[_RHO, start:stop]
    p11, p11_left = planes[_P11, start:stop], planes[_P11, start - 1 : stop - 1]
    p12, p12_above = planes[_P12, start:stop], planes[_P12, start - stride : stop - stride]
    p21, p21_left = planes[_P21, start:stop], planes[_P21, start - 1 : stop - 1]
    p22, p22_above = planes[_P22, start:stop], planes[_P22, start - stride : stop - stride]
    error = _ZERO
    for i in range(stop - start):
        residual = rho[i] + gx[i] * u1[i] + gy[i] * u2[i]
        step = min(max(-residual * inverse[i], -l_t), l_t)
        d1 = step * gx[i] + (p11[i] - p11_left[i] + p12[i] - p12_above[i])
        d2 = step * gy[i] + (p21[i] - p21_left[i] + p22[i] - p22_above[i])
        u1[i] += d1
        u2[i] += d2
        error += d1 * d1 + d2 * d2
    return error


@_compile
def _update_p(u: Array, px: Array, py: Array, start: int, stop: int, stride: int, tau: float, taut: float) -> None:
    """Dual update (3), times theta, of flat pixels [start, stop), for one component of the flow.

    |g| = s / sqrt(s + tiny) with s = |g|^2 lets the compiler estimate the reciprocal root, far cheaper than a root.
    """
    here, right, below = u[start:stop], u[start + 1 : stop + 1], u[start + stride : stop + stride]
    px, py = px[start:stop], py[start:stop]
    for i in range(stop - start):
        dx = right[i] - here[i]
        dy = below[i] - here[i]
        square = dx * dx + dy * dy
        scale = _ONE / (_ONE + taut * (square * (_ONE / math.sqrt(square + _TINY))))
        px[i] = (px[i] + tau * dx) * scale
        py[i] = (py[i] + tau * dy) * scale


@_compile
def _median(u: Array, scratch: Array, columns: Array, height: int, width: int, stride: int) -> None:
    """5x5 median of a plane in place, edges replicated. columns (5, W + 4): the columns of the window, each sorted."""
    scratch[:] = u
    for y in range(height):
        _sort_columns(
            scratch[(max(y - 2, 0) + 1) * stride :],
            scratch[(max(y - 1, 0) + 1) * stride :],
            scratch[(y + 1) * stride :],
            scratch[(min(y + 1, height - 1) + 1) * stride :],
            scratch[(min(y + 2, height - 1) + 1) * stride :],
            columns,
            width,
        )
        start = (y + 1) * stride
        _median_of_columns(columns, u[start : start + width])


@_compile
def _sort_columns(a: Array, b: Array, c: Array, d: Array, e: Array, columns: Array, width: int) -> None:
    """Sort five values per column by nine comparators into columns[:, 2:-2] and replicate the edges."""
    c0, c1, c2, c3, c4 = columns[0, 2:], columns[1, 2:], columns[2, 2:], columns[3, 2:], columns[4, 2:]
    for x in range(width):
        v0, v1 = min(a[x], b[x]), max(a[x], b[x])
        v3, v4 = min(d[x], e[x]), max(d[x], e[x])
        v2, v4 = min(c[x], v4), max(c[x], v4)
        v2, v3 = min(v2, v3), max(v2, v3)
        v1, v4 = min(v1, v4), max(v1, v4)
        v0, v3 = min(v0, v3), max(v0, v3)
        v0, v2 = min(v0, v2), max(v0, v2)
        v1, v3 = min(v1, v3), max(v1, v3)
        v1, v2 = min(v1, v2), max(v1, v2)
        c0[x], c1[x], c2[x], c3[x], c4[x] = v0, v1, v2, v3, v4
    for row in range(5):
        columns[row, :2] = columns[row, 2]
        columns[row, width + 2 :] = columns[row, width + 1]


@_compile
def _median_of_columns(columns: Array, out: Array) -> None:
    c0, c1, c2, c3, c4 = columns[0], columns[1], columns[2], columns[3], columns[4]
    for x in range(out.size):
        first = (c0[x], c0[x + 1], c0[x + 2], c0[x + 3], c0[x + 4])
        second = (c1[x], c1[x + 1], c1[x + 2], c1[x + 3], c1[x + 4])
        third = (c2[x], c2[x + 1], c2[x + 2], c2[x + 3], c2[x + 4])
        fourth = (c3[x], c3[x + 1], c3[x + 2], c3[x + 3], c3[x + 4])
        fifth = (c4[x], c4[x + 1], c4[x + 2], c4[x + 3], c4[x + 4])
        out[x] = _select_median(first + second + third + fourth + fifth)  # type: ignore[call-arg]


@_compile
def _load(image: Array, plane: Array, stride: int) -> None:
    height, width = image.shape
    for y in range(height):
        row, source = plane[(y + 1) * stride :], image[y]
        for x in range(width):
            row[x] = source[x]


@_compile
def _store(plane: Array, image: Array, stride: int) -> None:
    height, width = image.shape
    for y in range(height):
        row, target = plane[(y + 1) * stride :], image[y]
        for x in range(width):
            target[x] = row[x]


@intrinsic
def _select_median(typing_context: Any, values: Any) -> Any:
    """Median of 25 float32, ordered as MEDIAN_OF_SORTED_COLUMNS asks: its comparators, unrolled."""
    signature = types.float32(values)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wires = cgutils.unpack_tuple(builder, arguments[0])
        for low, high in MEDIAN_OF_SORTED_COLUMNS:
            a, b = wires[low], wires[high]
            less = builder.fcmp_ordered("<", a, b, flags=("fast",))
            wires[low], wires[high] = builder.select(less, a, b), builder.select(less, b, a)
        return wires[12]

    return signature, generate
