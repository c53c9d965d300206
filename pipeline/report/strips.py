"""Film strips for a page: frames with the flow at the same moments, and what temporal attention looked at.

Shapes: ``H W 3`` RGB uint8, ``2 H W`` flow in pixels, ``T`` scored snippets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.learning import readers
from pipeline.learning.localised import attended_snippets, is_uniform
from pipeline.optical_flow.quantise import dequantise
from pipeline.report.charts import attention_bars, interval_bands
from pipeline.report.pictures import evenly, flow_scale_px, flow_uri, jpeg_uri
from pipeline.stores.sharing import Sharing

MOMENTS = 6
MOMENT_PX = 160
"""Width of a picture in a sample's strip."""
SNIPPETS_SHOWN = 12
SNIPPET_PX = 96
"""Width of a picture over the attention bars."""

Index = Mapping[str, Any]
Reader = Callable[[str, Sequence[int]], list[NDArray[Any]]]
"""Video id and numbers of frames or flow fields -> the arrays, in the order asked."""


def picture_reader(index: readers.Index, *, sharing: Sharing | None = None) -> Reader:
    """Read RGB frames, ``(H, W, 3)`` uint8, or flow fields, ``(2, H, W)`` float32 pixels, by the index of their store.

    The code of no motion stands for half a step of quantisation; that half step is taken off, so that what is still is
    drawn as still.
    """
    stored = readers.open_reader(index, sharing=sharing, by="report")
    if index["stage"] == "frames":
        return lambda video, numbers: list(np.moveaxis(_read(stored, video, numbers), 1, -1))
    bound = index["parameters"]["bound"]
    half_px = np.float32(bound / 255)
    return lambda video, numbers: list(dequantise(_read(stored, video, numbers), bound=bound) - half_px)


def _read(stored: readers.Reader, video: str, numbers: Sequence[int]) -> NDArray[np.uint8]:
    """(len(numbers), C, H, W)."""
    return stored.read(video, np.array(numbers)[:, None])[:, 0]


def sample_strip(
    video: str, *, frames: Index, read_frames: Reader, flows: Sequence[tuple[Index, Reader]] = ()
) -> dict[str, Any]:
    """Frames at even moments and, under each, the flow nearest in time: the stores may have different rates.

    Args:
        video: id.
        frames: what the index says of the video in the frame store.
        read_frames: of the frame store.
        flows: the same for each flow store to show, in the order from top to bottom.

    Returns:
        ``columns``: frame number, picture, and a list of field number and picture for each flow store that has the
        video; ``scale_px``: the length that has full colour, in all of them alike, None without flow.
    """
    moments = evenly(frames["frames"], MOMENTS)
    pictures = [jpeg_uri(frame, width_px=MOMENT_PX) for frame in read_frames(video, moments)]
    rows, read = [], []
    for flow, read_flow in flows:
        if flow["frames"]:
            rows.append([min(round(n / frames["fps"] * flow["fps"]), flow["frames"] - 1) for n in moments])
            read += read_flow(video, rows[-1])
    coloured, scale_px = _coloured(read, width_px=MOMENT_PX) if read else ([], None)
    below = [
        [(row[i], coloured[number * len(moments) + i]) for number, row in enumerate(rows)] for i in range(len(moments))
    ]
    return {"columns": list(zip(moments, pictures, below, strict=True)), "scale_px": scale_px}


def attention_strip(
    video: str,
    weights: NDArray[np.floating[Any]],
    positions: NDArray[np.integer[Any]],
    *,
    snippet: int,
    length: int,
    read: Reader,
    is_flow: bool,
    stride: int = 1,
    acting: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Bars of the temporal weights under pictures of the snippets.

    Where there are more snippets than fit, a picture stands for a few neighbours and shows that of the largest weight.

    Args:
        video: id.
        weights: ``(T,)``, without padding.
        positions: ``(T,)`` first frame or field of each snippet.
        snippet: frames or fields a snippet; its middle one is shown.
        length: frames or fields of the video in the store.
        read: of the store that the stream reads.
        is_flow: the store holds flow.
        stride: from one frame or field of a snippet to its next.
        acting: ``(T,)`` whether a snippet is inside the action; None if that is not known.
    """
    columns = min(len(weights), SNIPPETS_SHOWN)
    column = (2 * np.arange(len(weights)) + 1) * columns // (2 * len(weights))  # the one that a bar's middle lies under
    groups = [np.flatnonzero(column == number) for number in range(columns)]
    shown = [int(group[weights[group].argmax()]) for group in groups]
    numbers = [min(int(positions[i]) + snippet // 2 * stride, length - 1) for i in shown]
    arrays = read(video, numbers)
    if is_flow:
        pictures, scale_px = _coloured(arrays, width_px=SNIPPET_PX)
    else:
        pictures, scale_px = [jpeg_uri(array, width_px=SNIPPET_PX) for array in arrays], None
    peak = int(weights.argmax())
    names = [f"frame {position}" for position in positions]
    return {
        "cells": [
            {"snippet": i, "frame": number, "picture": picture, "peak": i == peak}
            for i, number, picture in zip(shown, numbers, pictures, strict=True)
        ],
        "bars": attention_bars(
            weights.tolist(),
            names,
            title=f"temporal attention weights of {len(weights)} snippets",
            acting=[] if acting is None else acting.tolist(),
        ),
        "bands": _bands(attended_snippets(weights), acting),
        "truth": acting is not None,
        "scale_px": scale_px,
        "peak": float(weights[peak]),
        "peak_frame": numbers[shown.index(peak)],
        "snippets": len(weights),
        "flat": is_uniform(weights),
    }


def _bands(found: NDArray[np.bool_], acting: NDArray[np.bool_] | None) -> str:
    """Intervals found over those that are true; nothing if there are neither."""
    if acting is None and not found.any():
        return ""
    title = f"intervals found: {int(found.sum())} of {len(found)} snippets"
    title += "" if acting is None else f"; inside the action: {int(acting.sum())}"
    return interval_bands(found.tolist(), [] if acting is None else acting.tolist(), title=title)


def _coloured(fields: list[NDArray[Any]], *, width_px: int) -> tuple[list[str], float]:
    """Flow pictures with one scale for all."""
    scale_px = flow_scale_px(fields)
    return [flow_uri(field, max_px=scale_px, width_px=width_px) for field in fields], scale_px
