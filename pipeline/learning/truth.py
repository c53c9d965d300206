"""Attention against truth: how much of it falls on the action, beside what uniform attention would put there.

A snippet stands for one moment, its middle: n frames at stride s from frame p on of a store at r frames a second reach
from p to p + (n - 1) s + 1 and are seen at (p + ((n - 1) s + 1) / 2) / r seconds. It is inside the action if a segment
[start, end) of the video's class holds that moment. Fields of flow count as frames of their store, since field t is the
motion from frame t to the next. A position of -1 is padding, not a snippet, and is left out of everything.

A map lies on a view, a part of the frame, and is constant in each of its cells. What falls into boxes is integrated:
the mass of a cell that a box cuts counts by the part of its area that is covered.

Shapes: T scored snippets of a video, ``h w`` cells of a map, P boxes.
Units: seconds; a view and boxes are x0, y0, x1, y1 as parts of the frame, 0 to 1, half-open.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.manifest import Video
from pipeline.learning.scores import Scores

Floats = NDArray[np.floating[Any]]

WHOLE_FRAME = np.array([0.0, 0.0, 1.0, 1.0])
NEXT_FRAME = 1e-6
"""A moment this part of a frame before the next one is in the next: what is left of a division."""


class Share(NamedTuple):
    """A part of the attention of one video, 0 to 1."""

    inside: float
    """Of the attention, on the action."""
    uniform: float
    """What uniform attention would put there."""


def attention_truth(
    scores: Scores,
    *,
    videos: Mapping[str, Video],
    stored: Mapping[str, Mapping[str, Any]],
    snippet: int,
    stride: int = 1,
) -> dict[str, float]:
    """Means over the videos that carry truth.

    Args:
        scores: of one run.
        videos: by id, with what is marked in them.
        stored: frames and fps by id, of the store that the run read.
        snippet: frames a snippet.
        stride: from one frame of a snippet to its next.

    Returns:
        ``temporal_inside``, ``temporal_uniform``, ``temporal_videos`` (how many carry truth), and the same of
        ``spatial``; those that no video has truth for are left out.
    """
    shares: dict[str, list[Share | None]] = {"temporal": [], "spatial": []}
    for row, name in enumerate(scores.ids.tolist()):
        video, facts, real = videos[name], stored[name], scores.positions[row] >= 0
        middles = middle_seconds(
            scores.positions[row][real], snippet=snippet, stride=stride, frames=facts["frames"], fps=facts["fps"]
        )
        shares["temporal"].append(temporal_share(scores.weights[row][real], middles, video=video))
        if scores.maps is not None:
            view = WHOLE_FRAME if scores.view is None else scores.view[row]
            shares["spatial"].append(spatial_share(scores.maps[row][real], middles, view=view, video=video))
    means: dict[str, float] = {}
    for kind, found in shares.items():
        known = [share for share in found if share is not None]
        if known:
            inside, uniform = np.mean(known, axis=0).tolist()
            means |= {f"{kind}_inside": inside, f"{kind}_uniform": uniform, f"{kind}_videos": len(known)}
    return means


def middle_seconds(
    positions: NDArray[np.integer[Any]], *, snippet: int, frames: int, fps: float, stride: int = 1
) -> NDArray[np.float64]:
    """The moments for which snippets stand: the middles of the frames that they really have.

    Args:
        positions: (T,) first frames, without padding.
        snippet: frames a snippet; past the end frames are repeated, which adds no time.
        frames: of the video in the store.
        fps: of the store, frames a second.
        stride: from one frame of a snippet to its next.

    Returns:
        (T,) seconds.
    """
    return (positions + np.minimum(positions + (snippet - 1) * stride + 1, frames)) / (2 * fps)


def temporal_share(weights: Floats, middles: Floats, *, video: Video) -> Share | None:
    """Part of the temporal attention that falls on segments of the video's class; None if none is marked.

    Snippets at moments of disputed segments count neither for nor against. Weights of fixed segments, which may be
    negative, count by their absolute values.

    Args:
        weights: (T,) of any sum.
        middles: (T,) seconds.
        video: its first label is its class.
    """
    inside = acting(middles, video=video)
    if inside is None:
        return None
    counted = inside | ~_in_segments(middles, video, label=None)
    sizes = np.abs(weights[counted].astype(np.float64))
    if not sizes.sum() > 0:
        return None
    return Share(float(sizes[inside[counted]].sum() / sizes.sum()), float(inside[counted].mean()))


def spatial_share(maps: Floats, middles: Floats, *, view: Floats, video: Video) -> Share | None:
    """Part of the maps' mass in the boxes of the video's class, mean over the snippets inside the action.

    A snippet counts if the class has a box in the video's frame at that moment and, where segments of the class are
    marked, if one holds the moment; a map of zeros counts for nothing. None if no snippet counts.

    Args:
        maps: (T, h, w) of any sum.
        middles: (T,) seconds.
        view: (4,) where the maps lie.
        video: its first label is its class; probed, since boxes are in its pixels and frames.
    """
    inside = acting(middles, video=video)
    counted = maps.any(axis=(1, 2)) if inside is None else inside & maps.any(axis=(1, 2))
    shares = [
        box_share(map_.astype(np.float64), view=view, boxes=boxes)
        for map_, seconds in zip(maps[counted], middles[counted].tolist(), strict=True)
        if len(boxes := boxes_at(video, seconds))
    ]
    return Share(*np.mean(shares, axis=0).tolist()) if shares else None


def frame_at(seconds: float, *, fps: float) -> int:
    """The number of the frame that is shown at a moment."""
    return int(seconds * fps + NEXT_FRAME)


def boxes_at(video: Video, seconds: float) -> NDArray[np.float64]:
    """The boxes of the video's class at a moment: (P, 4) parts of the frame; P is 0 where there is none."""
    if not (video.fps and video.width and video.height):
        return np.zeros((0, 4))
    frame = frame_at(seconds, fps=video.fps)
    boxes = [
        tube.boxes[frame - tube.first_frame]
        for tube in video.tubes
        if tube.label == video.labels[0] and tube.first_frame <= frame < tube.first_frame + len(tube.boxes)
    ]
    return np.reshape(boxes, (-1, 4)) / [video.width, video.height, video.width, video.height]


def box_share(map_: Floats, *, view: Floats, boxes: Floats) -> Share:
    """Part of a map's mass, and of the view's area, inside the union of boxes.

    Args:
        map_: (h, w), not negative, not zero.
        view: (4,) where the map lies.
        boxes: (P, 4); what lies outside the view does not count.
    """
    covered = _covered(view, boxes, shape=(map_.shape[0], map_.shape[1]))
    return Share(float((map_ * covered).sum() / map_.sum()), float(covered.mean()))


def _covered(view: Floats, boxes: Floats, *, shape: tuple[int, int]) -> NDArray[np.float64]:
    """(h, w) part of each cell of the view that the boxes cover.

    All edges of cells and boxes cut the view into rectangles each of which is wholly in or out of every box.
    """
    height, width = shape
    x0, y0, x1, y1 = view.astype(np.float64)
    scale = np.array([width / (x1 - x0), height / (y1 - y0)] * 2)
    placed = (boxes - np.array([x0, y0, x0, y0])) * scale  # P 4, in cells
    (x_middles, x_sizes), (y_middles, y_sizes) = _pieces(placed[:, ::2], width), _pieces(placed[:, 1::2], height)
    left, top, right, bottom = placed.T[..., None]  # P 1 each
    across, down = (left <= x_middles) & (x_middles < right), (top <= y_middles) & (y_middles < bottom)
    inside = (down[:, :, None] & across[:, None, :]).any(axis=0)
    cells = np.zeros(shape)
    rows, columns = y_middles.astype(int), x_middles.astype(int)
    np.add.at(cells, (rows[:, None], columns[None, :]), inside * np.outer(y_sizes, x_sizes))
    return cells


def _pieces(edges: Floats, cells: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middles and lengths of what is left of [0, cells) when it is cut at whole numbers and at ``edges``."""
    cuts = np.unique(np.concatenate([np.arange(cells + 1), np.clip(edges, 0, cells).ravel()]))
    return np.minimum((cuts[:-1] + cuts[1:]) / 2, np.nextafter(cells, 0)), np.diff(cuts)


def acting(middles: Floats, *, video: Video) -> NDArray[np.bool_] | None:
    """(T,) whether the class is being done at each moment; None if no segment of it is marked."""
    if not any(segment.label == video.labels[0] for segment in video.segments):
        return None
    return _in_segments(middles, video, label=video.labels[0])


def _in_segments(middles: Floats, video: Video, *, label: str | None) -> NDArray[np.bool_]:
    """(T,) whether a segment of the label, or a disputed one for None, holds each moment."""
    inside = np.zeros(len(middles), bool)
    for segment in video.segments:
        if segment.label == label:
            inside |= (segment.start <= middles) & (middles < segment.end)
    return inside
