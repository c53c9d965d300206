"""Film strips: which frames and fields are asked for, and what is said about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.learning.readers import Index
from pipeline.optical_flow.quantise import quantise
from pipeline.report.strips import Reader, attention_strip, picture_reader, sample_strip
from pipeline.stores.flow import FlowStore
from pipeline.stores.provenance import made_by


class Recorder:
    """A reader that remembers what it was asked for."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape, self.asked = shape, list[int]()

    def __call__(self, video: str, numbers: Any) -> list[NDArray[Any]]:
        self.asked = list(numbers)
        dtype = np.uint8 if self.shape[-1] == 3 else np.float32
        return [np.zeros(self.shape, dtype) for _ in numbers]


@pytest.fixture
def frames() -> Recorder:
    return Recorder((10, 20, 3))


@pytest.fixture
def flow() -> Recorder:
    return Recorder((2, 10, 20))


def test_flow_is_taken_at_the_time_of_the_frame(frames: Recorder, flow: Recorder) -> None:
    """60 frames at 30 a second; flow at 10 a second has 19 fields."""
    flows = [({"frames": 19, "fps": 10.0}, flow)]
    strip = sample_strip("v", frames={"frames": 60, "fps": 30.0}, read_frames=frames, flows=flows)
    assert frames.asked == [5, 15, 25, 35, 45, 55]
    assert flow.asked == [2, 5, 8, 12, 15, 18]
    assert [(frame, field) for frame, _, [(field, _)] in strip["columns"]] == list(
        zip(frames.asked, flow.asked, strict=True)
    )


def test_the_last_frame_shows_the_last_field(frames: Recorder, flow: Recorder) -> None:
    facts = {"frames": 3, "fps": 25.0}
    sample_strip("v", frames=facts, read_frames=frames, flows=[({"frames": 2, "fps": 25.0}, flow)])
    assert frames.asked == [0, 1, 2]
    assert flow.asked == [0, 1, 1]


def test_no_flow(frames: Recorder) -> None:
    strip = sample_strip("v", frames={"frames": 9, "fps": 25.0}, read_frames=frames)
    assert strip["scale_px"] is None
    assert all(flows == [] for _, _, flows in strip["columns"])


def test_two_kinds_of_flow_have_one_scale(frames: Recorder) -> None:
    """Otherwise the little that is left of the camera's motion would look like all of it."""

    def fields(length_px: float) -> Reader:
        return lambda video, numbers: [np.full((2, 10, 20), length_px / np.sqrt(2), np.float32) for _ in numbers]

    facts = {"frames": 2, "fps": 25.0}
    strip = sample_strip("v", frames=facts, read_frames=frames, flows=[(facts, fields(8.0)), (facts, fields(0.1))])
    assert strip["scale_px"] == pytest.approx(8.0)
    alone = sample_strip("v", frames=facts, read_frames=frames, flows=[(facts, fields(8.0))])
    for (_, _, [plain, warped]), (_, _, [same]) in zip(strip["columns"], alone["columns"], strict=True):
        assert plain == same
        assert warped[0] == plain[0]
        assert warped[1] != plain[1]


def test_few_snippets_have_a_picture_each(frames: Recorder) -> None:
    weights, positions = np.array([0.2, 0.5, 0.3]), np.array([4, 10, 16])
    strip = attention_strip("v", weights, positions, snippet=1, length=20, read=frames, is_flow=False)
    assert frames.asked == [4, 10, 16]
    assert [cell["peak"] for cell in strip["cells"]] == [False, True, False]
    assert (strip["peak"], strip["peak_frame"], strip["snippets"], strip["flat"]) == (0.5, 10, 3, False)


def test_a_snippet_shows_its_middle_but_never_passes_the_end(flow: Recorder) -> None:
    strip = attention_strip("v", np.full(2, 0.5), np.array([0, 8]), snippet=5, length=9, read=flow, is_flow=True)
    assert flow.asked == [2, 8]
    assert strip["flat"]


def test_a_stride_moves_the_frame_shown(frames: Recorder) -> None:
    weights, positions = np.array([0.4, 0.6]), np.array([0, 20])
    attention_strip("v", weights, positions, snippet=8, stride=2, length=26, read=frames, is_flow=False)
    assert frames.asked == [8, 25]


def test_intervals_found_stand_over_the_action(frames: Recorder) -> None:
    weights, acting = np.array([0.1, 0.4, 0.4, 0.1]), np.array([False, False, True, True])
    settings: dict[str, Any] = {"snippet": 1, "length": 4, "read": frames, "is_flow": False}
    bands = str(attention_strip("v", weights, np.arange(4), acting=acting, **settings)["bands"])
    assert '<path class="found" d="M1 0.20h2v0.7h-2z"/>' in bands
    assert '<path class="truth" d="M2 1.20h2v0.7h-2z"/>' in bands
    assert bands.count("<path") == 2
    flat = str(attention_strip("v", np.full(4, 0.25), np.arange(4), acting=acting, **settings)["bands"])
    assert ("found" in flat.split("<path", 1)[1], flat.count("<path")) == (False, 1)
    assert attention_strip("v", np.full(4, 0.25), np.arange(4), **settings)["bands"] == ""


@pytest.mark.parametrize("count", [12, 13, 25, 80, 81])
def test_many_snippets_share_pictures_in_order_and_the_peak_is_shown(
    count: int, frames: Recorder, rng: np.random.Generator
) -> None:
    weights, positions = rng.dirichlet(np.ones(count)), np.arange(count)
    strip = attention_strip("v", weights, positions, snippet=1, length=count, read=frames, is_flow=False)
    assert len(frames.asked) == 12
    assert frames.asked == sorted(set(frames.asked))
    for column, number in enumerate(frames.asked):  # the picture's snippet lies under the picture
        assert column <= (number + 0.5) * 12 / count < column + 1
        below = [i for i in range(count) if int((i + 0.5) * 12 / count) == column]
        assert weights[number] == weights[below].max()
    assert [cell["frame"] for cell in strip["cells"] if cell["peak"]] == [int(weights.argmax())]


def test_still_flow_is_read_as_still(tmp_path: Path) -> None:
    field = quantise(np.zeros((2, 4, 6), np.float32))
    field[0, 0, 0] = 255
    made = {**made_by("flow"), "parameters": {"bound": 20.0}}
    FlowStore(tmp_path).write("ab" * 16, [field], describe=lambda _: made)
    index: Index = {
        "stage": "flow",
        "store": str(tmp_path),
        "parameters": {"bound": 20.0},
        "videos": {"v": {"key": "ab" * 16, "frames": 1, "width": 6, "height": 4}},
        "quarantined": {},
    }
    (read,) = picture_reader(index)("v", [0])
    assert read[0, 0, 0] == pytest.approx(20, abs=0.08)
    read[0, 0, 0] = 0
    np.testing.assert_allclose(read, 0, atol=1e-5)
