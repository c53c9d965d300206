"""Maps over frames: the colour is where the map is, and only where the model looked."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.dataset.manifest import Tube, Video
from pipeline.report import maps
from pipeline.report.strips import SNIPPET_PX

WHOLE = np.array([0.0, 0.0, 1.0, 1.0])
GREY = np.full((60, 80, 3), 100, np.uint8)
NO_BOX = np.zeros((0, 4))


def test_the_largest_value_is_the_strongest_colour_and_none_is_the_frame() -> None:
    map_ = np.zeros((3, 4))
    map_[1, 2] = 0.5
    out = maps.heat(GREY, map_, view=WHOLE, boxes=NO_BOX)
    opacity = 0.8 * (1 - 0.5 / 20) ** 2  # half a pixel from the middle of the cell, rows 20-40, columns 40-60
    expected = (1 - opacity) * 100 + opacity * np.array(maps.HEAT_RGB)
    np.testing.assert_allclose(out[29:31, 49:51].reshape(-1, 3), np.tile(expected, (4, 1)), atol=0.6)
    np.testing.assert_array_equal(out[:10], GREY[:10])  # half a cell and more from the cell: nothing
    np.testing.assert_array_equal(GREY, 100)


def test_a_uniform_map_is_one_colour_whatever_its_sum() -> None:
    for size in (1.0, 1e-6):
        out = maps.heat(GREY, np.full((7, 7), size), view=WHOLE, boxes=NO_BOX)
        assert (out == out[0, 0]).all()
        assert out[0, 0, 0] > 200
    np.testing.assert_array_equal(maps.heat(GREY, np.zeros((7, 7)), view=WHOLE, boxes=NO_BOX), GREY)


def test_what_the_model_does_not_see_is_dark() -> None:
    out = maps.heat(GREY, np.zeros((2, 2)), view=np.array([0.25, 0.0, 0.75, 1.0]), boxes=NO_BOX)
    np.testing.assert_array_equal(out[:, 20:60], 100)
    np.testing.assert_array_equal(out[:, :20], 45)
    np.testing.assert_array_equal(out[:, 60:], 45)


def test_boxes_are_outlined_and_may_leave_the_frame() -> None:
    boxes = np.array([[0.25, 0.5, 0.5, 1.0], [0.9, -0.1, 1.1, 0.1]])
    out = maps.heat(GREY, np.zeros((2, 2)), view=WHOLE, boxes=boxes)
    outline = (out == maps.BOX_RGB).all(axis=2)
    expected = np.zeros((60, 80), bool)
    for top, bottom, left, right in ((30, 60, 20, 40), (0, 6, 72, 80)):
        expected[top:bottom, left:right] = True
        expected[top + 1 : bottom - 1, left + 1 : right - 1] = False
    np.testing.assert_array_equal(outline, expected)


def test_the_box_found_is_outlined_below_the_true_one() -> None:
    found, true = np.array([[0.25, 0.5, 0.5, 1.0]]), np.array([[0.25, 0.5, 0.375, 1.0]])
    out = maps.heat(GREY, np.zeros((2, 2)), view=WHOLE, boxes=true, found=found)
    assert (out[30, 20:30] == maps.BOX_RGB).all()
    assert (out[30, 30:40] == maps.FOUND_RGB).all()
    assert (out[30:60, 39] == maps.FOUND_RGB).all()


def test_the_box_found_is_that_of_the_evaluation_in_parts_of_the_frame() -> None:
    """The view is the right half of 200 x 100 px, its left cells are above half: 100 to 150."""
    video = Video(id="v", path="v", digest="", bytes=1, labels=("run",), width=200, height=100, frames=9, fps=25.0)
    map_, view = np.array([[0.4, 0.4, 0.0, 0.0]]), np.array([0.5, 0.0, 1.0, 1.0])
    np.testing.assert_allclose(maps.found_boxes(map_, video, view=view, family="sta_cnn"), [[0.5, 0.0, 0.75, 1.0]])
    assert maps.found_boxes(map_, video, view=view, family="where_when").shape == (0, 4)


@pytest.mark.parametrize("fps", [25.0, 5.0])
def test_pictures_are_of_the_frames_at_their_moments(fps: float) -> None:
    """The store may have another rate than the video, whose boxes are frame by frame."""
    tube = Tube("run", 0, tuple((float(i), 0.0, float(i) + 10.0, 20.0) for i in range(50)))
    facts = {"frames": 50, "fps": 25.0, "width": 100, "height": 50}
    video = Video(id="v", path="v", digest="", bytes=1, labels=("run",), tubes=(tube,), **facts)
    asked: list[list[int]] = []

    def read(name: str, numbers: list[int]) -> list[NDArray[np.uint8]]:
        asked.append(list(numbers))
        return [np.full((96, 192, 3), 20 + number, np.uint8) for number in numbers]

    stored = {"frames": int(2 * fps), "fps": fps}
    moments = [0.0, 1.0, 1.99, 7.0]
    uris = maps.map_pictures(
        video, np.zeros((4, 2, 2)), moments, view=WHOLE, family="sta_cnn", frames=stored, read=read
    )  # type: ignore[arg-type]
    last = int(2 * fps) - 1
    assert asked == [[0, int(fps), last, last]]
    pictures = [
        cv2.imdecode(np.frombuffer(base64.b64decode(uri.partition(",")[2]), np.uint8), cv2.IMREAD_COLOR_RGB)
        for uri in uris
    ]
    assert {picture.shape for picture in pictures} == {(SNIPPET_PX // 2, SNIPPET_PX, 3)}
    for picture, number, left in zip(pictures, asked[0], (0, 25, 49), strict=False):
        assert abs(int(picture[40, 80, 1]) - 20 - number) < 6
        side = picture[6, max(left - 4, 0) : left + 5, 1].astype(int)
        assert side.max() - 20 - number > 90  # the left side of the box, in green
    assert pictures[3].std() < 4  # no box after the end
