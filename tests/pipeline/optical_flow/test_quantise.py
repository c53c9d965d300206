"""8-bit flow against its formula in exact arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.optical_flow.quantise import clipped_fraction, dequantise, quantise

BOUNDS = st.sampled_from([20.0, 15.0, 32.0, 0.1, 7.3, 1000.0])


def exact(value: float, bound: float) -> int:
    """The formula in fractions; Python rounds them half to even."""
    if value < -bound:
        return 0
    if value > bound:
        return 255
    return round(255 * (Fraction(value) + Fraction(bound)) / (2 * Fraction(bound)))


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=50), BOUNDS)
def test_float32_codes_are_exact(values, bound):
    assert quantise(np.array(values, np.float32), bound=bound).tolist() == [exact(value, bound) for value in values]


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50), BOUNDS)
def test_float64_codes_are_exact(values, bound):
    assert quantise(np.array(values), bound=bound).tolist() == [exact(value, bound) for value in values]


@pytest.mark.parametrize("bound", [20.0, 25.5, 15.0, 0.3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_codes_are_exact_on_both_sides_of_every_limit(bound, dtype):
    """Where rounding is decided: the floats nearest to each half-way point, and their neighbours."""
    halves = [dtype(float(Fraction(bound) * (2 * code + 1 - 255) / 255)) for code in range(255)]
    values = [dtype(np.nextafter(half, dtype(side))) for half in halves for side in (-np.inf, np.inf)] + halves
    assert quantise(np.array(values), bound=bound).tolist() == [exact(float(value), bound) for value in values]


def test_conventions():
    """Zero is 128 (127.5 to the even code), the bound itself is a code, beyond it is clipped."""
    flow = np.array([0.0, -0.0, 20.0, -20.0, 20.001, -20.001, np.inf, -np.inf], np.float32)
    assert quantise(flow).tolist() == [128, 128, 255, 0, 255, 0, 255, 0]
    # bound 25.5: a code every 0.2 px; -25 is 2.5 codes and 25 is 252.5, both ties, which go to the even code
    assert quantise(np.array([-25.0, 25.0]), bound=25.5).tolist() == [2, 252]


@settings(deadline=None)
@given(st.integers(0, 255), BOUNDS)
def test_codes_come_back(code, bound):
    value = dequantise(np.array([code], np.uint8), bound=bound)
    assert value.dtype == np.float32
    assert value[0] == np.float32(float(Fraction(bound) * (2 * code - 255) / 255))
    assert quantise(value, bound=bound).tolist() == [code]


@settings(deadline=None)
@given(st.floats(-1, 1), BOUNDS)
def test_the_error_within_the_bound_is_half_a_step(share, bound):
    value = share * bound
    back = float(dequantise(quantise(np.array([value]), bound=bound), bound=bound)[0])
    assert abs(back - value) <= bound / 255 * (1 + 1e-5)


@settings(deadline=None)
@given(arrays(np.float32, array_shapes(min_dims=0, max_dims=4, max_side=5), elements=st.floats(-40, 40, width=32)))
def test_shape_and_layout_stay(flow):
    codes = quantise(flow)
    assert codes.shape == flow.shape
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(quantise(flow.T), codes.T)
    np.testing.assert_array_equal(dequantise(codes).shape, flow.shape)


def test_clipped_fraction_counts_vectors():
    flow = np.zeros((2, 2, 3), np.float32)
    flow[0, 0, 0] = 20.5
    flow[:, 1, 2] = -21
    flow[1, 0, 1] = 20  # on the bound is not clipped
    assert clipped_fraction(flow) == pytest.approx(2 / 6)
    assert clipped_fraction(np.stack([flow, np.zeros_like(flow)])) == pytest.approx(2 / 12)
    assert clipped_fraction(flow, bound=25) == 0
    assert clipped_fraction(np.zeros((0, 2, 3, 3), np.float32)) == 0


@pytest.mark.parametrize("bound", [0, -20, math.nan, math.inf])
def test_bad_bounds_are_refused(bound):
    flow = np.zeros((2, 1, 1), np.float32)
    for function in (quantise, clipped_fraction):
        with pytest.raises(ValueError, match="bound is"):
            function(flow, bound=bound)
    with pytest.raises(ValueError, match="bound is"):
        dequantise(np.zeros(1, np.uint8), bound=bound)


def test_bad_flow_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        quantise(np.array([0.0, np.nan], np.float32))
    with pytest.raises(ValueError, match="dtype int64"):
        quantise(np.array([1]))
    with pytest.raises(ValueError, match="must be uint8"):
        dequantise(np.array([1]))
    with pytest.raises(ValueError, match=r"must be \(\.\.\., 2, H, W\)"):
        clipped_fraction(np.zeros((3, 4), np.float32))
