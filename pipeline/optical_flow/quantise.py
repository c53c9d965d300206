"""Flow in 8 bits, by the convention of denseflow, and back.

q = 0 if v < -b; 255 if v > b; else 255 (v + b) / (2 b) rounded half to even, so that zero flow is 128;
v' = 2 b q / 255 - b. Within the bound |v' - v| <= b / 255 (0.078 px for b = 20), and zero comes back as b / 255.

Rounding is exact for every float: a value is compared with the 255 limits between codes, which are computed as
fractions, not with a rounded product. So q is the number of limits below v.
"""

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit

Array = np.ndarray[Any, np.dtype[Any]]


def quantise(flow: Array, *, bound: float = 20.0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 codes of flow in pixels, float32 or float64 of any shape; values beyond `bound` are clipped.

    Raises ValueError for another dtype, for NaN, and for a bound that is not a positive number.
    """
    flow = _check_flow(flow)
    codes = np.empty(flow.shape, np.uint8)
    if _quantise(flow.reshape(-1), _limits(_check_bound(bound)), float(bound), codes.reshape(-1)):
        raise ValueError("flow holds NaN, for which there is no code; find out where it comes from")
    return codes


def dequantise(codes: Array, *, bound: float = 20.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Flow in pixels, float32, of uint8 codes of any shape: the middle of each code's interval."""
    if codes.dtype != np.uint8:
        raise ValueError(f"flow codes have dtype {codes.dtype}; they must be uint8")
    return np.take(_values(_check_bound(bound)), codes)


def clipped_fraction(flow: Array, *, bound: float = 20.0) -> float:
    """Share of the vectors of flow (..., 2, H, W) with a component beyond `bound`; 0 for no vectors."""
    flow = _check_flow(flow)
    if flow.ndim < 3 or flow.shape[-3] != 2:
        raise ValueError(f"flow has shape {flow.shape}; it must be (..., 2, H, W)")
    clipped = (np.abs(flow) > _check_bound(bound)).any(axis=-3)
    return float(clipped.mean()) if clipped.size else 0.0


def _check_flow(flow: Array) -> Array:
    if flow.dtype not in (np.float32, np.float64):
        raise ValueError(f"flow has dtype {flow.dtype}; it must be float32 or float64")
    return np.asarray(flow, order="C")


def _check_bound(bound: float) -> float:
    if not (math.isfinite(bound) and bound > 0):
        raise ValueError(f"the bound is {bound!r}; it must be a positive number of pixels")
    return float(bound)


@lru_cache(maxsize=16)
def _limits(bound: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """For each code below 255 the largest float64 that is rounded to it or to a code below it."""
    limits = np.empty(255)
    for code in range(255):
        exact = Fraction(bound) * (2 * code + 1 - 255) / 255  # halfway between this code and the next
        limit = float(exact)
        if Fraction(limit) > exact or (Fraction(limit) == exact and code % 2 == 1):  # a tie goes to the even code
            limit = math.nextafter(limit, -math.inf)
        limits[code] = limit
    limits.flags.writeable = False
    return limits


@lru_cache(maxsize=16)
def _values(bound: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The flow of each code."""
    return np.array([float(Fraction(bound) * (2 * code - 255) / 255) for code in range(256)], np.float32)


@njit(nogil=True, cache=True, error_model="numpy")
def _quantise(flow: Array, limits: Array, bound: float, codes: Array) -> int:
    """Number of limits below each value, by an estimate that is at most one off; returns the number of NaN."""
    scale = 127.5 / bound
    nan = 0
    for i in range(flow.size):
        value = np.float64(flow[i])
        if value != value:
            nan += 1
            value = np.float64(0)
        code = int(min(max((value + bound) * scale, 0.0), 254.0))
        code += value > limits[code]
        if code > 0:
            code -= value <= limits[code - 1]
        codes[i] = code
    return nan
