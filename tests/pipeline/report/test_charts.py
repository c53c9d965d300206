"""Charts: what is drawn stands where its numbers say, and names cannot break out of the drawing."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.charts import BINS, Line, attention_bars, histogram, line_chart, ticks


@given(st.floats(-100, 100), st.floats(1e-6, 1e6), st.integers(3, 9))
def test_ticks_are_few_round_even_and_inside(offset: float, span: float, most: int) -> None:
    low, high = offset * span, (offset + 1) * span
    marks = ticks(low, high, most=most)
    assert len(marks) <= most
    tolerance = 1e-6 * max(abs(low), abs(high), span)
    assert all(low - tolerance <= mark <= high + tolerance for mark in marks)
    if len(marks) > 1:
        steps = np.diff(marks)
        np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
        mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-6)
        assert min(abs(mantissa - round_) for round_ in (1, 2, 5, 10)) < 1e-2


def test_ticks_of_epochs_are_whole() -> None:
    assert ticks(1, 4, whole=True) == [1, 2, 3, 4]
    assert ticks(1, 2, whole=True) == [1, 2]
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(3, 3) == [3]


def test_a_curve_passes_through_its_points() -> None:
    svg = ElementTree.fromstring(
        line_chart([Line("test", "a", [1, 2, 5], [0.0, 1.0, 0.25])], title="t", percent=True, y_range=(0, 1))
    )
    (polyline,) = svg.findall(".//polyline")
    points = np.array([[float(v) for v in pair.split(",")] for pair in polyline.attrib["points"].split()])
    grid = [float(line.attrib["y1"]) for line in svg.findall(".//line[@class='grid']")]
    bottom, top = max(grid), min(grid)  # 0% and 100%
    np.testing.assert_allclose((bottom - points[:, 1]) / (bottom - top), [0, 1, 0.25], atol=0.002)
    across = (points[:, 0] - points[0, 0]) / (points[-1, 0] - points[0, 0])
    np.testing.assert_allclose(across, [0, 0.25, 1], atol=0.002)


def test_epochs_without_a_measurement_are_passed_over() -> None:
    chart = line_chart([Line("test", "a", [1, 2, 3], [math.nan, 0.5, math.nan])], title="t")
    assert "nan" not in chart
    assert len(ElementTree.fromstring(chart).findall(".//circle")) == 1
    assert ElementTree.fromstring(line_chart([], title="nothing")).tag == "svg"


def test_the_axis_reaches_every_value() -> None:
    svg = ElementTree.fromstring(line_chart([Line("train", "a", [1, 2], [2.31, 0.7])], title="t"))
    ys = [float(pair.split(",")[1]) for pair in svg.find(".//polyline").attrib["points"].split()]  # type: ignore[union-attr]
    highest = min(float(line.attrib["y1"]) for line in svg.findall(".//line[@class='grid']"))
    assert min(ys) >= highest


def _heights(svg: str) -> list[float]:
    return [float(rect.attrib["height"]) for rect in ElementTree.fromstring(svg).findall(".//rect")]


@pytest.mark.parametrize("count", [1, 3, 12, 80])
def test_bars_are_in_proportion_to_the_weights(count: int, rng: np.random.Generator) -> None:
    weights = rng.dirichlet(np.ones(count))
    svg = attention_bars(weights.tolist(), map(str, range(count)), title="t")
    np.testing.assert_allclose(_heights(svg), weights / weights.max(), atol=1e-4)
    root = ElementTree.fromstring(svg)
    (uniform,) = root.findall("line")
    assert 1 - float(uniform.attrib["y1"]) == pytest.approx(1 / count / weights.max(), abs=1e-4)
    rects = root.findall("rect")
    for rect in rects:  # every bar stands on the same ground
        assert float(rect.attrib["y"]) + float(rect.attrib["height"]) == pytest.approx(1, abs=2e-4)
    peaks = [i for i, rect in enumerate(rects) if "peak" in rect.attrib["class"]]
    assert peaks == ([int(weights.argmax())] if count > 1 else [])  # uniform weights have no peak


def test_a_negative_weight_hangs_below_the_line() -> None:
    svg = attention_bars([0.5, -0.25, 0.75], "abc", title="t")
    np.testing.assert_allclose(_heights(svg), [0.5, 0.25, 0.75], atol=1e-4)
    tops = [float(rect.attrib["y"]) for rect in ElementTree.fromstring(svg).findall("rect")]
    np.testing.assert_allclose(tops, [0.25, 0.75, 0.0], atol=1e-4)


def test_names_are_escaped() -> None:
    nasty = "<script>\"&'"
    for svg in (
        attention_bars([1.0], [nasty], title=nasty),
        line_chart([Line("train", nasty, [1, 2], [1, 2])], title=nasty),
    ):
        root = ElementTree.fromstring(svg)  # would not parse unescaped
        assert root.attrib["aria-label"] == nasty
        assert not re.search("<script", svg)


@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=60))
def test_a_histogram_counts_every_value_in_the_bar_that_covers_it(values: list[float]) -> None:
    svg = ElementTree.fromstring(histogram(values, title="t", across="seconds"))
    bars = svg.findall(".//rect")
    told = [re.fullmatch(r"(.+) to (.+) seconds: ([\d,]+)", bar[0].text or "") for bar in bars]
    counts = [int(match[3].replace(",", "")) for match in told if match]
    assert len(counts) == len(bars) <= BINS + 2
    assert sum(counts) == len(values)
    heights = [float(bar.attrib["height"]) for bar in bars]
    np.testing.assert_allclose(heights, np.array(counts) / max(counts) * max(heights), atol=0.1)
    for match, count in zip(told, counts, strict=True):
        low, high = float(match[1]), float(match[2])  # type: ignore[index]
        slack = 1e-5 * high
        assert sum(low - slack <= value < high + slack for value in values) >= count


def test_bars_stand_side_by_side_in_order() -> None:
    svg = ElementTree.fromstring(histogram([0.2, 0.3, 2.5, 2.6, 2.7, 9.9], title="t", across="seconds"))
    bars = [(float(bar.attrib["x"]), float(bar.attrib["width"]), bar[0].text) for bar in svg.findall(".//rect")]
    assert [text for _, _, text in bars] == ["0 to 0.5 seconds: 2", "2.5 to 3 seconds: 3", "9.5 to 10 seconds: 1"]
    assert [x for x, _, _ in bars] == sorted(x for x, _, _ in bars)
    assert all(x >= 44 and x + width <= 440 - 12 for x, width, _ in bars)


def test_snippets_inside_the_action_are_shaded() -> None:
    chart = str(attention_bars([0.5, 0.2, 0.3], ["a", "b", "c"], title="t", acting=[False, True, True]))
    assert re.findall(r'class="truth" d="M(\d) 0h1v1h-1z"', chart) == ["1", "2"]
    assert chart.index("truth") < chart.index("<rect")  # behind the bars
    assert "truth" not in str(attention_bars([0.5, 0.5], ["a", "b"], title="t"))
