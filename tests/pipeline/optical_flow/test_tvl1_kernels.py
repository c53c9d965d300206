"""The solver's image operations, each against the OpenCV function whose values it must give."""

from __future__ import annotations

from itertools import product

import cv2
import numpy as np
import pytest

from pipeline.optical_flow import tvl1_numba
from pipeline.optical_flow.median_network import MEDIAN_OF_SORTED_COLUMNS, SORT_5, live_comparators
from pipeline.optical_flow.params import DEFAULT_PARAMS, TVL1Params
from pipeline.optical_flow.pyramid_numba import enlarge, pyramid
from pipeline.optical_flow.warp_numba import warp, with_gradients
from tests.pipeline.optical_flow import cuda_reference

CUDA = TVL1Params(variant="opencv-cuda")
CUDA_24 = TVL1Params(variant="opencv24-cuda")


def plane_of(image: np.ndarray) -> tuple[np.ndarray, int]:
    """The image in the solver's padded flat layout, and the row stride."""
    height, width = image.shape
    stride = (width // 16 + 1) * 16
    plane = np.zeros((height + 2, stride), np.float32)
    plane[1:-1, :width] = image
    return plane.reshape(-1), stride


def image_of(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    return plane.reshape(height + 2, -1)[1:-1, :width]


def test_the_network_finds_the_median_of_every_input():
    """By the 0-1 principle: 0-1 inputs with sorted columns suffice, and of those there are 6^5."""
    ones = np.array(list(product(range(6), repeat=5)))  # how many ones are in each column
    wires = [ones[:, column] >= 5 - row for row in range(5) for column in range(5)]
    for low, high in MEDIAN_OF_SORTED_COLUMNS:
        wires[low], wires[high] = wires[low] & wires[high], wires[low] | wires[high]
    np.testing.assert_array_equal(wires[12], ones.sum(axis=1) >= 13)


def test_the_median_needs_only_the_live_comparators():
    ones = np.array(list(product(range(6), repeat=5)))
    wires = [ones[:, column] >= 5 - row for row in range(5) for column in range(5)]
    dead = np.zeros(len(ones), bool)
    for low, high, keeps_low, keeps_high in live_comparators():
        a, b = wires[low], wires[high]
        wires[low], wires[high] = a & b if keeps_low else dead, a | b if keeps_high else dead
    np.testing.assert_array_equal(wires[12], ones.sum(axis=1) >= 13)


def test_five_values_are_sorted():
    wires = list(np.array(list(product((0, 1), repeat=5))).T)
    for low, high in SORT_5:
        wires[low], wires[high] = wires[low] & wires[high], wires[low] | wires[high]
    assert (np.diff(wires, axis=0) >= 0).all()


@pytest.mark.parametrize(("height", "width"), [(3, 3), (16, 16), (17, 40), (31, 5), (20, 77)])
def test_median_is_opencvs(height, width, rng):
    image = rng.normal(0, 5, (height, width)).astype(np.float32)
    plane, stride = plane_of(image)
    columns = np.empty((5, width + 4), np.float32)
    tvl1_numba._median(plane, np.empty_like(plane), columns, height, width, stride)
    np.testing.assert_array_equal(image_of(plane, height, width), cv2.medianBlur(image, 5))


@pytest.mark.parametrize(("height", "width"), [(256, 340), (100, 75), (21, 53)])
def test_pyramid_is_opencvs(height, width, rng):
    frame = rng.integers(0, 256, (height, width)).astype(np.uint8)
    levels = pyramid(frame, params=DEFAULT_PARAMS)
    expected = frame.astype(np.float32)
    for level in levels:
        np.testing.assert_allclose(level, expected, atol=1e-3)
        expected = cv2.resize(expected, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_LINEAR)
    assert len(levels) == 5 or min(expected.shape) < 16


def test_flow_is_enlarged_as_by_opencv(rng):
    flow = rng.normal(0, 3, (2, 105, 139)).astype(np.float32)
    finer = enlarge(flow, (131, 174), params=DEFAULT_PARAMS)
    for component in range(2):
        expected = cv2.resize(flow[component], (174, 131), interpolation=cv2.INTER_LINEAR) / 0.8
        np.testing.assert_allclose(finer[component], expected, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(256, 340), (101, 75), (36, 63), (32, 31)])
def test_gaussian_pyramid_is_opencvs(height, width, rng):
    frame = rng.integers(0, 256, (height, width)).astype(np.uint8)
    levels = pyramid(frame, params=CUDA_24)
    expected = frame.astype(np.float32)
    for level in levels:
        np.testing.assert_allclose(level, expected, atol=1e-3)
        expected = cv2.pyrDown(expected)
    assert len(levels) == 5 or min(expected.shape) < 16


@pytest.mark.parametrize("params", [CUDA, CUDA_24], ids=lambda params: params.variant)
@pytest.mark.parametrize(("height", "width"), [(131, 174), (37, 66)])
def test_cuda_pyramids_are_those_of_the_reference(params, height, width, rng):
    frame = rng.integers(0, 256, (height, width)).astype(np.uint8)
    gaussian = params is CUDA_24
    expected = cuda_reference.pyramid(frame, nscales=5, scale_step=params.scale_step, gaussian=gaussian)
    levels = pyramid(frame, params=params)
    assert [level.shape for level in levels] == params.level_shapes(height, width)
    for level, wanted in zip(levels, expected, strict=True):
        np.testing.assert_allclose(level, wanted, atol=1e-3)


@pytest.mark.parametrize("params", [CUDA, CUDA_24], ids=lambda params: params.variant)
def test_cuda_flow_is_enlarged_as_in_the_reference(params, rng):
    (height, width), (h, w) = params.level_shapes(131, 174)[:2]
    flow = rng.normal(0, 3, (2, h, w)).astype(np.float32)
    finer = enlarge(flow, (height, width), params=params)
    for component, got in zip(flow, finer, strict=True):
        wanted = cuda_reference.resized(component, height, width, h / height, w / width) / params.scale_step
        np.testing.assert_allclose(got, wanted, atol=1e-4)


def warped(frame: np.ndarray, flow: np.ndarray, params: TVL1Params) -> tuple[np.ndarray, ...]:
    """x and y gradient, 1 / square and rho of a frame against a black one."""
    height, width = frame.shape
    u, size = np.stack([plane_of(component)[0] for component in flow]), plane_of(frame)[0].size
    linear, variant = np.zeros((4, size), np.float32), params.discretisation
    image = with_gradients(frame, variant.edges_repeat)
    warp(image, u, np.zeros(size, np.float32), linear, height, width, 64, np.float32(variant.cubic))
    return tuple(image_of(plane, height, width) for plane in linear)


def test_warp_is_opencvs_also_across_the_frame(rng):
    """Sampling points reach far outside, where OpenCV counts zero."""
    height, width = 40, 55
    frame = rng.integers(0, 256, (height, width)).astype(np.float32)
    flow = rng.normal(0, 4, (2, height, width)).astype(np.float32)
    flow[:, :5] = -1000
    gx, gy, inverse, rho = warped(frame, flow, DEFAULT_PARAMS)

    channels = [frame, *cuda_reference.gradient(frame)]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    value, *gradient = (cv2.remap(image, x + flow[0], y + flow[1], cv2.INTER_CUBIC) for image in channels)
    # OpenCV 4 rounds sampling points to 1/32 px, OpenCV 5 does not
    tolerance = 0.01 if int(cv2.__version__.split(".")[0]) >= 5 else 8
    np.testing.assert_allclose(gx, gradient[0], atol=tolerance)
    np.testing.assert_allclose(gy, gradient[1], atol=tolerance)
    np.testing.assert_allclose(rho + gx * flow[0] + gy * flow[1], value, atol=2 * tolerance, rtol=1e-3)
    some = gx**2 + gy**2 > 1e-3
    np.testing.assert_allclose(inverse[some], 1 / (gx**2 + gy**2)[some], rtol=1e-4)


def test_cuda_warp_is_that_of_the_reference_also_across_the_frame(rng):
    """Sampling points reach far outside, where the CUDA kernels read the nearest edge pixel."""
    height, width = 40, 55
    frame = rng.integers(0, 256, (height, width)).astype(np.float32)
    flow = rng.normal(0, 4, (2, height, width)).astype(np.float32)
    flow[:, :5], flow[:, :, 50:] = -1000, 1000
    flow[:, 10:15] = np.rint(flow[:, 10:15])
    gx, gy, _, rho = warped(frame, flow, CUDA)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    channels = [frame, *cuda_reference.gradient(frame)]
    value, *gradient = cuda_reference.sampled(channels, y + flow[1], x + flow[0])
    np.testing.assert_allclose(gx, gradient[0], atol=0.01)
    np.testing.assert_allclose(gy, gradient[1], atol=0.01)
    np.testing.assert_allclose(rho + gx * flow[0] + gy * flow[1], value, atol=0.02, rtol=1e-3)


def test_one_iteration_is_that_of_the_equations(rng):
    """Against the two separate passes of the paper in float64, with whole-array operations and explicit borders."""
    height, width, stride = 37, 50, 64
    l_t, tau, theta = 0.045, 0.25, 0.3
    values = rng.normal(0, 1, (10, height, width))
    u, g, rho, p = values[:2], values[2:4] * 10, values[5] * 10, values[6:10].reshape(2, 2, height, width) * 0.3
    p[:, 0, :, -1] = 0  # never leaves zero: no gradient across the edges
    p[:, 1, -1] = 0
    planes = np.zeros((12, (height + 2) * stride), np.float32)
    for index, image in enumerate([*u, *g, 1 / (g**2).sum(axis=0), rho, *(theta * p).reshape(4, height, width)]):
        planes[index] = plane_of(image)[0]
    error = tvl1_numba._iterate(
        planes, height, width, stride, np.float32(l_t), np.float32(tau), np.float32(tau / theta)
    )

    residual = rho + (g * u).sum(axis=0)
    square = (g**2).sum(axis=0)
    step = np.where(residual < -l_t * square, l_t, np.where(residual > l_t * square, -l_t, -residual / square))
    along = np.diff(p[:, 0], axis=2, prepend=0) + np.diff(p[:, 1], axis=1, prepend=0)
    new_u = u + step * g + theta * along
    dx = np.diff(new_u, axis=2, append=new_u[:, :, -1:])
    dy = np.diff(new_u, axis=1, append=new_u[:, -1:])
    norm = 1 + tau / theta * np.hypot(dx, dy)
    new_p = (p + tau / theta * np.stack([dx, dy], axis=1)) / norm[:, None]

    got = np.stack([image_of(planes[index], height, width) for index in (0, 1, 6, 7, 8, 9)])
    np.testing.assert_allclose(got[:2], new_u, atol=1e-4)
    np.testing.assert_allclose(got[2:].reshape(p.shape) / theta, new_p, atol=1e-5)
    assert error == pytest.approx(((new_u - u) ** 2).sum(), rel=1e-4)
