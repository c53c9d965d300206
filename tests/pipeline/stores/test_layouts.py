"""Names, numbers and alignment of other tools, against their documented loops played through frame by frame."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pipeline.stores.layouts import FIRST_NUMBER, FolderLayout, Tool

Written = dict[str, tuple[int, int]]
"""By name of an x image, the frames its field leads from and to."""


def denseflow(frames: int, step: int) -> tuple[Written, dict[str, int]]:
    """Every frame i with the one at i + step; a negative step swaps the two. Frames by another call, from 0."""
    part = f"p{step}_" if step > 1 else f"m{-step}_" if step < 0 else ""
    fields = {}
    for i in range(max(frames - abs(step), 0)):
        fields[f"flow_x_{part}{i:05d}.jpg"] = (i, i + step) if step > 0 else (i - step, i)
    return fields, {f"img_{i:05d}.jpg": i for i in range(frames)}


def dense_flow(frames: int, step: int) -> tuple[Written, dict[str, int]]:
    """Reads the first frame, then ``step`` frames at a time; keeps each pair's later frame; counts from 1."""
    fields: Written = {}
    images: dict[str, int] = {}
    previous, current = 0, step
    while current < frames:
        number = len(fields) + 1
        fields[f"flow_x_{number:05d}.jpg"] = (previous, current)
        images[f"img_{number:05d}.jpg"] = current
        previous, current = current, current + step
    return fields, images


def mmaction2(frames: int, step: int) -> tuple[Written, dict[str, int]]:
    """Neighbours in a list of all frames, both counted from 1."""
    every = list(range(frames))
    fields = {f"x_{i + 1:05d}.jpg": pair for i, pair in enumerate(pairwise(every))}
    return fields, {f"img_{i + 1:05d}.jpg": i for i in every}


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 12])
@pytest.mark.parametrize(
    ("tool", "step"),
    [*(("denseflow", s) for s in (1, 2, 5, -1, -3)), *(("dense_flow", s) for s in (1, 2, 3)), ("mmaction2", 1)],
)
def test_a_layout_is_what_its_tool_writes(tool: Tool, step: int, frames: int) -> None:
    fields, images = {"denseflow": denseflow, "dense_flow": dense_flow, "mmaction2": mmaction2}[tool](frames, step)
    layout = FolderLayout(tool=tool, step=abs(step), reverse=step < 0, first_number=FIRST_NUMBER[tool])
    count = layout.fields(frames)
    assert {layout.flow_name("x", i): layout.pair(i) for i in range(count)} == fields
    shown = {layout.image_name(i): layout.shown(i) for i in range(frames) if layout.shown(i) < frames}
    assert shown == images


def test_names_of_the_components() -> None:
    layout = FolderLayout(tool="denseflow", step=2, suffix="png", first_number=0)
    assert (layout.flow_name("x", 3), layout.flow_name("y", 123456)) == ("flow_x_p2_00003.png", "flow_y_p2_123456.png")


@pytest.mark.parametrize(
    ("tool", "step", "reverse", "sentence"),
    [("dense_flow", 1, True, "dense_flow does not compute reverse flow"), ("mmaction2", 2, False, "has no step 2")],
)
def test_what_a_tool_does_not_do_is_refused(tool: Tool, step: int, reverse: bool, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FolderLayout(tool=tool, step=step, reverse=reverse, first_number=1)
