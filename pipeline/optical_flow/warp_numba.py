"""The warp of numba's TV-L1: the second image and its gradient, sampled where the flow points.

Shapes: H W rows and columns of a level; S row stride of a flat plane, in which pixel (y, x) is at (y + 1) * S + x.
Compiled functions that call one another share a file: numba's cache sees no change in another.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Array = np.ndarray[Any, np.dtype[np.float32]]

_compile: Callable[[Any], Any] = njit(fastmath=True, error_model="numpy", nogil=True, cache=True)

_BORDER = 4  # pixels around the image that is sampled: a tap further out is moved into them
_ZERO, _HALF, _ONE, _TINY = np.float32(0), np.float32(0.5), np.float32(1), np.float32(1e-30)

# Bicubic weights of the taps at -1, 0, 1, 2 as polynomials of the fraction t, lowest power first, each coefficient
# c + d a with the parameter a of Keys, "Cubic Convolution Interpolation for Digital Image Processing" (1981).
_CUBIC = (
    ((0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 0.0)),
    ((0.0, 0.0, 0.0, 0.0), (1.0, 0.0, -1.0, 0.0)),
    ((0.0, -3.0, 3.0, 0.0), (-2.0, -1.0, 2.0, 1.0)),
    ((0.0, 2.0, -2.0, 0.0), (1.0, 1.0, -1.0, -1.0)),
)


@_compile
def warp(
    image: Array, u: Array, prev: Array, linear: Array, height: int, width: int, stride: int, cubic: float
) -> None:
    """Linearise around the flow: gradient of the warped second image, 1 / |gradient|^2 and the constant part of rho.

    image: of `with_gradients`; u (2, .), prev: planes; linear (4, .): planes for x and y gradient, 1 / square, rho.
    """
    taps = image.reshape(-1)
    row_step = image.shape[1] * image.shape[2]
    shift = _BORDER - 1  # from a pixel to its first tap
    for y in range(height):
        start = (y + 1) * stride
        u1, u2 = u[0, start : start + width], u[1, start : start + width]
        gx, gy = linear[0, start : start + width], linear[1, start : start + width]
        rho = linear[3, start : start + width]
        for x in range(width):
            sx = min(max(np.float32(x + shift) + u1[x], _ZERO), np.float32(width + _BORDER))
            sy = min(max(np.float32(y + shift) + u2[x], _ZERO), np.float32(height + _BORDER))
            column, row = np.int32(sx), np.int32(sy)
            offset = row * row_step + column * 4
            tx, ty = sx - np.float32(column), sy - np.float32(row)
            rho[x], gx[x], gy[x] = _bicubic(taps, offset, row_step, tx, ty, cubic)  # type: ignore[call-arg]
    start, stop = stride, (height + 1) * stride
    u1, u2 = u[0, start:stop], u[1, start:stop]
    gx, gy, inverse, rho = linear[0, start:stop], linear[1, start:stop], linear[2, start:stop], linear[3, start:stop]
    before = prev[start:stop]
    for i in range(stop - start):
        inverse[i] = _ONE / max(gx[i] * gx[i] + gy[i] * gy[i], _TINY)
        rho[i] -= gx[i] * u1[i] + gy[i] * u2[i] + before[i]


@_compile
def with_gradients(frame: Array, edges_repeat: bool) -> Array:
    """(H + 8, W + 8, 4): value, centred x and y differences (half one-sided ones at the edge), and 0.

    The four pixels around the frame are its nearest edge pixels, or 0.
    """
    height, width = frame.shape
    out = np.zeros((height + 2 * _BORDER, width + 2 * _BORDER, 4), np.float32)
    for y in range(height):
        above, here, below = frame[max(y - 1, 0)], frame[y], frame[min(y + 1, height - 1)]
        row = out[y + _BORDER, _BORDER:]
        for x in range(width):
            row[x, 0] = here[x]
            row[x, 1] = _HALF * (here[min(x + 1, width - 1)] - here[max(x - 1, 0)])
            row[x, 2] = _HALF * (below[x] - above[x])
    if edges_repeat:
        for y in range(_BORDER, height + _BORDER):
            out[y, :_BORDER] = out[y, _BORDER]
            out[y, width + _BORDER :] = out[y, width + _BORDER - 1]
        out[:_BORDER] = out[_BORDER]
        out[height + _BORDER :] = out[height + _BORDER - 1]
    return out


@intrinsic
def _bicubic(typing_context: Any, taps: Any, offset: Any, row_step: Any, tx: Any, ty: Any, cubic: Any) -> Any:
    """Bicubic sample of four interleaved float32 channels: the first three, as a tuple.

    taps: flat image; offset: of the first of 4x4 taps; tx, ty: fractions in [0, 1); cubic: Keys' a. Written as vector
    instructions, since numba leaves short inner loops scalar: a row of taps is 16 floats, so four vector loads do for
    48 scalar ones.
    """
    floats = (types.float32,) * 3
    signature = types.UniTuple(types.float32, 3)(taps, types.intp, types.intp, *floats)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        taps, offset, row_step, tx, ty, cubic = arguments
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, taps).data
        weights_x = _cubic_weights(builder, tx, cubic, repeat=4)
        weights_y = _cubic_weights(builder, ty, cubic, repeat=1)
        total = None
        for row in range(4):
            address = builder.gep(data, [builder.add(offset, builder.mul(row_step, ir.Constant(row_step.type, row)))])
            values = builder.load(builder.bitcast(address, _vector(16).as_pointer()), align=4)
            weighted = builder.fmul(values, _shuffle(builder, weights_y, [row] * 16), flags=("contract",))
            total = weighted if total is None else builder.fadd(total, weighted, flags=("contract",))
        total = builder.fmul(total, weights_x)
        for half in (8, 4):  # add the four taps of each channel
            low, high = _shuffle(builder, total, range(half)), _shuffle(builder, total, range(half, 2 * half))
            total = builder.fadd(low, high)
        channels = [builder.extract_element(total, ir.IntType(32)(channel)) for channel in range(3)]
        return context.make_tuple(builder, signature.return_type, channels)

    return signature, generate


def _vector(lanes: int) -> ir.VectorType:
    return ir.VectorType(ir.FloatType(), lanes)


def _shuffle(builder: ir.IRBuilder, vector: ir.Value, lanes: Iterable[int]) -> ir.Value:
    mask = list(lanes)
    mask_type = ir.VectorType(ir.IntType(32), len(mask))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), ir.Constant(mask_type, mask))


def _splat(builder: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    empty = ir.Constant(_vector(lanes), ir.Undefined)
    return _shuffle(builder, builder.insert_element(empty, scalar, ir.IntType(32)(0)), [0] * lanes)


def _cubic_weights(builder: ir.IRBuilder, fraction: ir.Value, cubic: ir.Value, *, repeat: int) -> ir.Value:
    """The four weights at `fraction`, each in `repeat` consecutive lanes, by Horner's rule."""
    t, a = _splat(builder, fraction, 4 * repeat), _splat(builder, cubic, 4 * repeat)
    total = None
    for powers in reversed(_CUBIC):
        fixed, slope = (ir.Constant(_vector(4 * repeat), [tap for tap in row for _ in range(repeat)]) for row in powers)
        coefficients = builder.fadd(builder.fmul(slope, a), fixed)  # exact, and the compiler moves it out of the loop
        if total is None:
            total = coefficients
        else:
            total = builder.fadd(builder.fmul(total, t, flags=("contract",)), coefficients, flags=("contract",))
    return total
