"""The 5x5 median of planes as a kernel in Triton: the comparators of `median_network.py`, written out.

Triton has no indexed registers, and its sort of a window of 32 costs several times the comparators.
Shapes: B pairs, H W rows and columns.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
import triton
import triton.language as tl
from torch import Tensor

_TILE = 256  # pixels a program


def median(u: Tensor, error: Tensor, threshold: float) -> Tensor:
    """5x5 median of u (B, 2, H, W) where a pair's error (B,) is above the threshold, edges replicated; elsewhere u."""
    count, _, height, width = u.shape
    filtered = u.new_empty(u.shape)
    grid = (triton.cdiv(height * width, _TILE), 2 * count)
    _median_kernel[grid](u, filtered, error, threshold, height, width, tile=_TILE)
    return filtered


@triton.jit
def _median_kernel(u, filtered, errors, threshold, height, width, tile: tl.constexpr):
    """A tile of flat pixels, i = y * W + x, of one plane."""
    plane = tl.program_id(1)
    size = height * width
    u += plane * size
    i = tl.program_id(0) * tile + tl.arange(0, tile)
    inside = i < size
    if tl.load(errors + plane // 2) > threshold:
        value = _median(u, tl.minimum(i, size - 1), height, width)
    else:
        value = tl.load(u + i, mask=inside, other=0.0)
    tl.store(filtered + plane * size + i, value, mask=inside)


@triton.jit
def _order(a, b):
    return tl.minimum(a, b), tl.maximum(a, b)


@triton.jit
def _sorted_column(plane, y, x, height, width):
    """The five values of a window's column, sorted."""
    a = tl.load(plane + tl.maximum(y - 2, 0) * width + x)
    b = tl.load(plane + tl.maximum(y - 1, 0) * width + x)
    c = tl.load(plane + y * width + x)
    d = tl.load(plane + tl.minimum(y + 1, height - 1) * width + x)
    e = tl.load(plane + tl.minimum(y + 2, height - 1) * width + x)
    a, b = _order(a, b)
    d, e = _order(d, e)
    c, e = _order(c, e)
    c, d = _order(c, d)
    b, e = _order(b, e)
    a, d = _order(a, d)
    a, c = _order(a, c)
    b, d = _order(b, d)
    b, c = _order(b, c)
    return a, b, c, d, e


@triton.jit
def _median(plane, i, height, width):
    """Wire 5 r + c has the r-th smallest of column c; comparators whose second output is not used give one."""
    y = i // width
    x = i % width
    w0, w5, w10, w15, w20 = _sorted_column(plane, y, tl.minimum(tl.maximum(x - 2, 0), width - 1), height, width)
    w1, w6, w11, w16, w21 = _sorted_column(plane, y, tl.minimum(tl.maximum(x - 1, 0), width - 1), height, width)
    w2, w7, w12, w17, w22 = _sorted_column(plane, y, tl.minimum(tl.maximum(x, 0), width - 1), height, width)
    w3, w8, w13, w18, w23 = _sorted_column(plane, y, tl.minimum(tl.maximum(x + 1, 0), width - 1), height, width)
    w4, w9, w14, w19, w24 = _sorted_column(plane, y, tl.minimum(tl.maximum(x + 2, 0), width - 1), height, width)
    w21, w20 = _order(w21, w20)
    w10, w11 = _order(w10, w11)
    w15, w16 = _order(w15, w16)
    w18, w17 = _order(w18, w17)
    w10, w18 = _order(w10, w18)
    w5, w6 = _order(w5, w6)
    w12, w13 = _order(w12, w13)
    w19 = tl.minimum(w19, w20)
    w6, w12 = _order(w6, w12)
    w3, w7 = _order(w3, w7)
    w13, w14 = _order(w13, w14)
    w9 = tl.maximum(w6, w9)
    w19, w18 = _order(w19, w18)
    w21 = tl.minimum(w21, w14)
    w16 = tl.minimum(w16, w17)
    w12, w18 = _order(w12, w18)
    w4, w1 = _order(w4, w1)
    w11, w13 = _order(w11, w13)
    w22, w15 = _order(w22, w15)
    w7, w19 = _order(w7, w19)
    w23, w22 = _order(w23, w22)
    w23, w9 = _order(w23, w9)
    w5 = tl.maximum(w4, w5)
    w16, w19 = _order(w16, w19)
    w15 = tl.minimum(w15, w22)
    w18 = tl.minimum(w18, w13)
    w11 = tl.maximum(w10, w11)
    w1, w8 = _order(w1, w8)
    w11 = tl.maximum(w3, w11)
    w15 = tl.minimum(w15, w18)
    w9, w16 = _order(w9, w16)
    w23 = tl.maximum(w2, w23)
    w7 = tl.maximum(w5, w7)
    w0 = tl.maximum(w1, w0)
    w21, w12 = _order(w21, w12)
    w8, w23 = _order(w8, w23)
    w8 = tl.maximum(w0, w8)
    w8, w7 = _order(w8, w7)
    w15, w23 = _order(w15, w23)
    w11, w7 = _order(w11, w7)
    w15, w21 = _order(w15, w21)
    w24 = tl.minimum(w24, w23)
    w8 = tl.maximum(w9, w8)
    w7, w15 = _order(w7, w15)
    w12 = tl.minimum(w12, w24)
    w16, w21 = _order(w16, w21)
    w8, w16 = _order(w8, w16)
    w11 = tl.maximum(w7, w11)
    w19 = tl.minimum(w19, w16)
    w12 = tl.minimum(w12, w21)
    w8 = tl.maximum(w11, w8)
    w15 = tl.minimum(w15, w19)
    w12, w8 = _order(w12, w8)
    w8 = tl.minimum(w8, w15)
    return tl.maximum(w8, w12)
