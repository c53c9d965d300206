"""The colour coding of flow: neutral at rest, complementary for opposite directions, stronger for longer vectors."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from pipeline.optical_flow.colour import colour_wheel, flow_to_rgb


def _uniform(x: float, y: float) -> np.ndarray:
    return np.full((2, 2, 3), [[[x]], [[y]]], np.float32)


def test_no_motion_is_white() -> None:
    assert (flow_to_rgb(np.zeros((2, 4, 5), np.float32), max_px=3.0) == 255).all()


@pytest.mark.parametrize("degrees", range(0, 180, 15))
def test_opposite_directions_are_complementary(degrees: int) -> None:
    x, y = 4 * np.cos(np.radians(degrees)), 4 * np.sin(np.radians(degrees))
    there = flow_to_rgb(_uniform(x, y), max_px=4.0).astype(int)
    back = flow_to_rgb(_uniform(-x, -y), max_px=4.0).astype(int)
    assert abs(there + back - 255).max() <= 1  # one for rounding


def test_longer_vectors_are_more_saturated_up_to_the_scale() -> None:
    flow = np.stack([np.linspace(0, 8, 33), np.linspace(0, 4, 33)])[:, None].astype(np.float32)
    rgb = flow_to_rgb(flow, max_px=5.0)[0].astype(int)
    spread = rgb.max(axis=1) - rgb.min(axis=1)
    inside = np.hypot(*flow[:, 0]) < 5
    assert (np.diff(spread[inside]) > 0).all()
    assert (rgb[~inside] == rgb[~inside][0]).all()


def test_colours_are_those_of_hsv() -> None:
    random = np.random.default_rng(0)
    flow = random.normal(0, 3, (2, 6, 7)).astype(np.float32)
    rgb = flow_to_rgb(flow, max_px=4.0)
    for row, column in np.ndindex(6, 7):
        x, y = flow[:, row, column]
        hue = np.arctan2(y, x) / (2 * np.pi) % 1
        expected = colorsys.hsv_to_rgb(hue, min(np.hypot(x, y) / 4.0, 1.0), 1.0)
        np.testing.assert_allclose(rgb[row, column], np.multiply(expected, 255), atol=0.51)


def test_the_wheel_is_the_coding_itself() -> None:
    wheel = colour_wheel(41)
    assert wheel.shape == (41, 41, 4)
    assert wheel[0, 0, 3] == 0
    assert wheel[20, 20].tolist() == [255, 255, 255, 255]
    right = flow_to_rgb(_uniform(0.9, 0), max_px=1.0)[0, 0]
    np.testing.assert_array_equal(wheel[20, 38, :3], right)
    assert wheel[20, 38].tolist() == [255, 26, 26, 255]  # red points right


@pytest.mark.parametrize(("shape", "max_px"), [((3, 4, 5), 1.0), ((2, 4), 1.0), ((2, 4, 5), 0.0), ((2, 4, 5), np.nan)])
def test_bad_input_is_refused(shape: tuple[int, ...], max_px: float) -> None:
    with pytest.raises(ValueError, match="give"):
        flow_to_rgb(np.zeros(shape, np.float32), max_px=max_px)
