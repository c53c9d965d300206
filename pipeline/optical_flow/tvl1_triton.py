"""TV-L1 optical flow on a CUDA device: the iterations, the warp and the median as kernels in Triton.

The equations, their source and their order are those of `tvl1_numba.py`; pyramids and gradients are `tvl1_torch.py`'s.
One program solves one pair: it sweeps over its image as the CPU solver does, u of a strip and then p of the strip
moved up by a row, in place, and stops by itself when the flow hardly changes. So a warp of a whole batch is one launch
(with medians, two for every `inner_iterations`), pairs need not wait for one another, and the host never looks.

Shapes: B pairs, H W rows and columns of a level; u and g (B, 2, H, W); p (B, 2, 2, H, W); inverse and rho (B, 1, H, W).
Inside a kernel a plane is flat: pixel (y, x) is at y * W + x. p is zero in the last column (x derivative) and in the
last row (y derivative), so that the divergence reads the pixel before without asking whether a row has begun.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from pipeline.optical_flow import tvl1_torch
from pipeline.optical_flow.median_triton import median
from pipeline.optical_flow.tvl1_torch import Linearised

if TYPE_CHECKING:
    from pipeline.optical_flow.params import TVL1Params

Array = np.ndarray[Any, np.dtype[Any]]

_BORDER = 4  # as `tvl1_torch.with_gradients` frames an image
_STRIP = 2048  # pixels that a program updates between two barriers: ten planes of it fit the first-level cache
_STRIP_WARPS = 16
_TILE = 256  # pixels a program of the warp
_PIXELS_AT_ONCE, _PAIRS_AT_ONCE = 2**25, 4096
_BYTES_PER_PIXEL = 128  # some 100 while a batch is solved, and the pyramids of frames that wait
_JOBS = 6  # that a device's memory is for: four by the default profile, and what CUDA itself takes for each
_FUSED: dict[str, Any] = {"enable_fp_fusion": True}  # Triton's default, which releases after 3.9 will not have

prepare = tvl1_torch.prepare


def pairs_at_once(height: int, width: int) -> int:
    """Pairs of a batch: 385 of 340x256, for every multiprocessor works on pairs of its own, or what memory is for."""
    return min(max(1, _pixels_at_once() // (height * width)), _PAIRS_AT_ONCE)


@cache
def _pixels_at_once() -> int:
    """Of this process; found once, because afterwards torch itself holds what is missing."""
    free, _ = torch.cuda.mem_get_info() if torch.cuda.is_available() else (sys.maxsize, 0)
    return pixels_that_fit(free)


def pixels_that_fit(free_bytes: int) -> int:
    """Pixels of a batch in a job's share of the memory that is free on the device."""
    return min(_PIXELS_AT_ONCE, free_bytes // _JOBS // _BYTES_PER_PIXEL)


@tvl1_torch.says_when_memory_ends
@torch.inference_mode()
def solve_prepared(prev: Sequence[list[Tensor]], next: Sequence[list[Tensor]], *, params: "TVL1Params") -> Array:
    """Flow (B, 2, H, W) float32 in pixels, channel 0 = x, between B pairs of prepared frames."""
    flow: Tensor | None = None
    for before, after in tvl1_torch.stacked_levels(prev, next):
        flow = tvl1_torch.start_of_level(flow, before, params=params).contiguous()
        p = flow.new_zeros(len(flow), 2, *flow.shape[1:])
        image = tvl1_torch.with_gradients(after, edges_repeat=params.discretisation.edges_repeat)
        for _ in range(params.warps):
            data = warp(image, before, flow, cubic=params.discretisation.cubic)
            flow = relax(flow, p, data, params=params)
    assert flow is not None
    return flow.cpu().numpy()


def warp(image: Tensor, prev: Tensor, u: Tensor, *, cubic: float) -> Linearised:
    """Linearise around the flow. image: of `tvl1_torch.with_gradients`; prev (B, H, W); cubic: Keys' a."""
    count, _, height, width = u.shape
    data = Linearised(torch.empty_like(u), u.new_empty(count, 1, height, width), u.new_empty(count, 1, height, width))
    grid = (triton.cdiv(height * width, _TILE), count)
    _warp_kernel[grid](image, prev.contiguous(), u, *data, height, width, cubic, border=_BORDER, tile=_TILE, **_FUSED)
    return data


def relax(u: Tensor, p: Tensor, data: Linearised, *, params: "TVL1Params") -> Tensor:
    """Iterate until the flow hardly changes, each pair for itself; p is updated in place, and the flow is returned."""
    count, _, height, width = u.shape
    error, expected = u.new_full((count,), torch.inf), u.new_zeros(count)
    threshold = params.threshold(height, width)
    steps = (params.lambda_ * params.theta, params.tau, params.tau / params.theta)
    for _ in range(params.outer_iterations):
        if params.median_filtering > 1:
            u = median(u, error, threshold)
        _relax_kernel[(count,)](
            *(u, p, *data, error, expected, height, width, threshold, params.inner_iterations, *steps),
            stops_anywhere=params.discretisation.stops_anywhere,
            strip=_STRIP,
            num_warps=_STRIP_WARPS,
            **_FUSED,
        )
    return u


@triton.jit
def _relax_kernel(
    u,
    p,
    g,
    inverse,
    rho,
    errors,
    expectations,
    height,
    width,
    threshold,
    iterations,
    l_t,
    tau,
    taut,
    stops_anywhere: tl.constexpr,
    strip: tl.constexpr,
):
    """Iterations (1) to (3) of one pair, in place, by the stopping rule of `tvl1_numba._relax`."""
    pair = tl.program_id(0)
    size = height * width
    u += pair * 2 * size
    p += pair * 4 * size
    g += pair * 2 * size
    inverse += pair * size
    rho += pair * size
    error = tl.load(errors + pair)
    expected = tl.load(expectations + pair)
    done = 0
    while (done < iterations) & (error > threshold):
        squares = tl.zeros((strip,), tl.float32)
        for start in range(0, size + width, strip):
            i = start + tl.arange(0, strip)
            squares += _update_u(u, p, g, inverse, rho, i, size, width, l_t)
            tl.debug_barrier()  # p reads what other threads wrote to u
            _update_p(u, p, i - width, size, width, tau, taut)
        tl.debug_barrier()  # the next iteration's u reads what other threads wrote to p
        change = tl.sum(squares)
        if stops_anywhere:
            error = change
        else:
            looks = (done % 2 == 1) & (expected < threshold)
            error = tl.where(looks, change, error)
            expected = tl.where(looks, change, expected - threshold)
        done += 1
    tl.store(errors + pair, error)
    tl.store(expectations + pair, expected)


@triton.jit
def _update_u(u, p, g, inverse, rho, i, size, width, l_t):
    """Threshold step (1) and primal update (2) of flat pixels i; returns their squared change."""
    inside = i < size
    u1 = tl.load(u + i, mask=inside, other=0.0)
    u2 = tl.load(u + size + i, mask=inside, other=0.0)
    gx = tl.load(g + i, mask=inside, other=0.0)
    gy = tl.load(g + size + i, mask=inside, other=0.0)
    residual = tl.load(rho + i, mask=inside, other=0.0) + gx * u1 + gy * u2
    bounded = tl.minimum(tl.maximum(-residual * tl.load(inverse + i, mask=inside, other=0.0), -l_t), l_t)
    d1 = bounded * gx + _divergence(p, i, size, width, inside)
    d2 = bounded * gy + _divergence(p + 2 * size, i, size, width, inside)
    tl.store(u + i, u1 + d1, mask=inside)
    tl.store(u + size + i, u2 + d2, mask=inside)
    return d1 * d1 + d2 * d2


@triton.jit
def _divergence(p, i, size, width, inside):
    """Backward differences of both planes of p, zero beyond the first row and column."""
    here = tl.load(p + i, mask=inside, other=0.0) - tl.load(p + i - 1, mask=inside & (i > 0), other=0.0)
    above = tl.load(p + size + i - width, mask=inside & (i >= width), other=0.0)
    return here + tl.load(p + size + i, mask=inside, other=0.0) - above


@triton.jit
def _update_p(u, p, i, size, width, tau, taut):
    """Dual update (3), times theta, of flat pixels i."""
    inside = (i >= 0) & (i < size)
    has_right = inside & (i % width != width - 1)
    has_below = inside & (i + width < size)
    for component in tl.static_range(2):
        plane = u + component * size
        px = p + component * 2 * size + i
        py = px + size
        here = tl.load(plane + i, mask=inside, other=0.0)
        dx = tl.where(has_right, tl.load(plane + i + 1, mask=has_right, other=0.0) - here, 0.0)
        dy = tl.where(has_below, tl.load(plane + i + width, mask=has_below, other=0.0) - here, 0.0)
        scale = 1 / (1 + taut * tl.sqrt(dx * dx + dy * dy))
        tl.store(px, (tl.load(px, mask=inside, other=0.0) + tau * dx) * scale, mask=inside)
        tl.store(py, (tl.load(py, mask=inside, other=0.0) + tau * dy) * scale, mask=inside)


@triton.jit
def _warp_kernel(image, prev, u, g, inverse, rho, height, width, cubic, border: tl.constexpr, tile: tl.constexpr):
    """Gradient of the warped image, 1 / |gradient|^2 and the constant part of rho for a tile of flat pixels."""
    pair = tl.program_id(1)
    size = height * width
    i = tl.program_id(0) * tile + tl.arange(0, tile)
    inside = i < size
    row_step = width + 2 * border
    image += pair * (height + 2 * border) * row_step * 4
    u += pair * 2 * size
    u1 = tl.load(u + i, mask=inside, other=0.0)
    u2 = tl.load(u + size + i, mask=inside, other=0.0)
    x = tl.minimum(tl.maximum((i % width + border - 1).to(tl.float32) + u1, 0.0), (width + border).to(tl.float32))
    y = tl.minimum(tl.maximum((i // width + border - 1).to(tl.float32) + u2, 0.0), (height + border).to(tl.float32))
    column = x.to(tl.int32)
    row = y.to(tl.int32)
    tx = x - column.to(tl.float32)
    ty = y - row.to(tl.float32)
    value = tl.zeros((tile,), tl.float32)
    gx = tl.zeros((tile,), tl.float32)
    gy = tl.zeros((tile,), tl.float32)
    for tap_y in tl.static_range(4):
        weight_y = _cubic_weight(ty, tap_y, cubic)
        for tap_x in tl.static_range(4):
            weight = weight_y * _cubic_weight(tx, tap_x, cubic)
            tap = image + ((row + tap_y) * row_step + column + tap_x) * 4
            value += weight * tl.load(tap, mask=inside, other=0.0)
            gx += weight * tl.load(tap + 1, mask=inside, other=0.0)
            gy += weight * tl.load(tap + 2, mask=inside, other=0.0)
    before = tl.load(prev + pair * size + i, mask=inside, other=0.0)
    tl.store(g + pair * 2 * size + i, gx, mask=inside)
    tl.store(g + pair * 2 * size + size + i, gy, mask=inside)
    tl.store(inverse + pair * size + i, 1 / tl.maximum(gx * gx + gy * gy, 1e-30), mask=inside)
    tl.store(rho + pair * size + i, value - before - gx * u1 - gy * u2, mask=inside)


@triton.jit
def _cubic_weight(t, tap: tl.constexpr, a):
    """Keys' weight of the tap at -1, 0, 1 or 2 (tap 0 to 3) for a fraction t."""
    s = t if tap < 2 else 1 - t  # the last two mirror the first two
    if tap == 0 or tap == 3:
        return ((a * s - 2 * a) * s + a) * s
    return ((a + 2) * s - (a + 3)) * s * s + 1
