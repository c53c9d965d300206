"""Pictures: a data URI decodes to what went in."""

from __future__ import annotations

import base64
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.optical_flow.colour import flow_to_rgb
from pipeline.report.pictures import evenly, flow_scale_px, flow_uri, jpeg_uri, matrix_uri, png_uri, wheel_uri


def _decoded(uri: str, kind: str) -> np.ndarray[Any, Any]:
    head, _, data = uri.partition(",")
    assert head == f"data:image/{kind};base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(96, 240, (40, 100)), (256, 340, (75, 100)), (30, 50, (30, 50))]
)
def test_a_thumbnail_keeps_the_shape_and_is_never_enlarged(height: int, width: int, expected: tuple[int, int]) -> None:
    shade = np.zeros((height, width, 3), np.uint8)
    shade[..., 0] = 200
    picture = _decoded(jpeg_uri(shade, width_px=100), "jpeg")
    assert picture.shape == (*expected, 3)
    np.testing.assert_allclose(picture.mean(axis=(0, 1)), [0, 0, 200], atol=3)  # OpenCV decodes to BGR


def test_png_is_lossless(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    np.testing.assert_array_equal(_decoded(png_uri(image), "png")[..., [2, 1, 0, 3]], image)


def test_flow_pictures_are_in_the_colours_of_the_wheel() -> None:
    flow = np.stack([np.full((8, 8), -2.0), np.full((8, 8), 1.0)]).astype(np.float32)
    picture = _decoded(flow_uri(flow, max_px=3.0, width_px=100), "jpeg")[..., ::-1]
    np.testing.assert_allclose(picture, flow_to_rgb(flow, max_px=3.0), atol=4)
    assert _decoded(wheel_uri(64), "png").shape == (64, 64, 4)


def test_the_scale_passes_over_outliers_and_noise() -> None:
    flow = np.zeros((2, 20, 20), np.float32)
    assert flow_scale_px([flow]) == 2.0
    assert flow_scale_px([]) == 2.0
    flow[0] = 4.0
    flow[0, 0, 0] = 20.0
    assert flow_scale_px([flow, flow]) == 4.0


def test_matrix_cells_are_the_shares() -> None:
    shares = np.array([[1.0, 0.0], [0.25, 0.75]])
    picture = _decoded(matrix_uri(shares, side_px=10), "png")
    assert picture.shape == (10, 10, 4)
    np.testing.assert_allclose(picture[[2, 2, 7, 7], [2, 7, 2, 7], 3], 255 * np.sqrt([1, 0, 0.25, 0.75]), atol=0.5)


@pytest.mark.parametrize(("length", "number"), [(60, 6), (7, 6), (6, 6), (3, 6), (1, 6), (100, 1)])
def test_moments_are_the_middles_of_equal_parts(length: int, number: int) -> None:
    moments = evenly(length, number)
    assert moments == sorted({int((part + 0.5) * length / number) for part in range(number)})
    assert len(moments) == min(length, number)


def test_no_frames_have_no_moments() -> None:
    assert evenly(0, 6) == []
