"""Where the time of training went: against numbers added up by hand."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.pace import MEASURED, PARTS, slow_loaders, training_pace

COLUMNS = [column for column, _ in MEASURED.values()]


def history(*epochs: tuple[float, ...], rate: float = 10.0, memory: float = math.nan) -> dict[str, list[float]]:
    """Of seconds in all and of the five measured parts, an epoch each."""
    columns = dict(zip(["seconds", *COLUMNS], map(list, zip(*epochs, strict=True)), strict=True))
    count = len(epochs)
    rest = {"samples_per_second": [rate] * count, "gpu_memory_mb": [memory] * count}
    return {"epoch": [1.0 + i for i in range(count)], **columns, **rest}


def test_runs_and_epochs_are_added_up_but_for_the_first_epoch() -> None:
    long = history((99.0, 90.0, 1.0, 1.0, 1.0, 1.0), (10.0, 1.0, 0.5, 2.0, 4.0, 1.5), (6.0, 0.6, 0.5, 1.0, 2.0, 0.5))
    short = history((4.0, 0.4, 0.0, 1.0, 2.0, 0.0), rate=30.0)  # its only epoch
    (row,) = training_pace({"rgb": [long, short]})
    assert row.epochs == 3
    assert row.seconds == pytest.approx(20 / 3)
    assert row.samples_per_second == pytest.approx((160 + 120) / 20)  # videos of all by the seconds of all
    expected = {"wait": 0.1, "cut": 0.05, "forward": 0.2, "backward": 0.4, "update": 0.1, "rest": 0.15}
    assert row.shares == pytest.approx(expected)
    assert math.isnan(row.gpu_memory_mb)


@given(st.lists(st.tuples(st.floats(0, 1e4), *[st.floats(0, 1e3)] * 5), min_size=1, max_size=5))
def test_shares_are_of_the_whole(epochs: list[tuple[float, ...]]) -> None:
    (row,) = training_pace({"rgb": [history(*epochs)]})
    assert list(row.shares) == list(PARTS)
    assert all(0 <= share <= 1 for share in row.shares.values())
    total = sum(row.shares.values())
    assert total == pytest.approx(1) or not any(map(sum, epochs[1:] or epochs))


def test_the_bar_is_as_long_as_the_shares() -> None:
    (row,) = training_pace({"<rgb>": [history((8.0, 2.0, 0.4, 0.0, 2.4, 1.6))]})
    svg = ElementTree.fromstring(row.bar)
    assert svg.attrib["aria-label"].startswith("an epoch of <rgb>: waiting for data 25.0%, cutting 5.0%, forward 0.0%")
    drawn = {part.attrib["class"]: (float(part.attrib["x"]), float(part.attrib["width"])) for part in svg}
    assert drawn == {"wait": (0, 25), "cut": (25, 5), "backward": (30, 30), "update": (60, 20), "rest": (80, 20)}
    assert [part[0].text for part in svg][:2] == ["waiting for data: 25.0%", "cutting: 5.0%"]


def test_what_was_not_measured_has_no_row() -> None:
    whole = history((4.0, 0.4, 0.2, 1.0, 2.0, 0.2), (4.0, 0.4, 0.2, 1.0, 2.0, 0.2))
    old = {name: values for name, values in whole.items() if name != "cut_seconds"}
    empty = history((4.0, math.nan, 0.2, 1.0, 2.0, 0.2))
    assert training_pace({"old": [old], "empty": [empty], "none": [{}], "untrained": []}) == []
    (row,) = training_pace({"rgb": [old, whole]})
    assert row.epochs == 1


def test_memory_is_the_largest_peak_and_waiting_is_named() -> None:
    waits, works = (8.0, 4.0, 0.0, 1.0, 2.0, 0.0), (8.0, 0.4, 0.0, 2.0, 4.0, 0.0)
    rows = training_pace({"a": [history(waits, memory=900.0), history(waits, memory=1200.0)], "b": [history(works)]})
    assert rows[0].gpu_memory_mb == 1200
    assert slow_loaders(rows) == ["a"]
