"""Which frames a model sees: the segment sampling of TSN (Wang et al., ECCV 2016, section 3) and the clips of 3D CNNs
(Hara et al., CVPR 2018, section 3.3), as index functions.

Positions are the first frames of snippets, counted from 0. A snippet of n frames at stride s spans (n - 1) s + 1 of
them, its span; a video of L frames (or flow fields) has L - span + 1 places for it. A video shorter than that has one,
and the snippet goes on with the last frame ("hold") or from the start again ("loop").

Shapes: N segments, n frames a snippet.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Short = Literal["hold", "loop"]


def train_positions(
    frames: int, *, snippet: int, segments: int, rng: np.random.Generator, stride: int = 1
) -> NDArray[np.int64]:
    """One random position in each of ``segments`` equal parts of the video, in order.

    A video with fewer places than segments gives sorted random places; with no more frames than segments, zeros.

    Args:
        frames: length of the video (L), at least 1.
        snippet: frames a snippet (n).
        segments: number of snippets (N).
        rng: source of the draws.
        stride: from one frame of a snippet to its next.

    Returns:
        (N,) int64 in [0, max(L - span + 1, 1)).

    Raises:
        ValueError: a number is below 1.
    """
    places = _places(frames, snippet=snippet, segments=segments, stride=stride)
    part = places // segments
    if part > 0:
        return np.arange(segments, dtype=np.int64) * part + rng.integers(part, size=segments)
    if frames > segments:
        return np.sort(rng.integers(places, size=segments))
    return np.zeros(segments, dtype=np.int64)


def run_positions(
    frames: int, *, snippet: int, segments: int, rng: np.random.Generator, stride: int = 1
) -> NDArray[np.int64]:
    """One run of frames from a random place, cut into ``segments`` snippets that follow one another.

    A video shorter than the run gives it from its first frame on; later snippets may start past its end.

    Args:
        frames, snippet, segments, rng, stride: as ``train_positions``.

    Returns:
        (N,) int64, n * stride apart.

    Raises:
        ValueError: a number is below 1.
    """
    places = _places(frames, snippet=segments * snippet, segments=segments, stride=stride)
    return rng.integers(places) + np.arange(segments, dtype=np.int64) * snippet * stride


def scoring_positions(frames: int, *, snippet: int, segments: int | None, stride: int = 1) -> NDArray[np.int64]:
    """The middles of ``segments`` equal parts of the video: int(tick / 2 + tick * k), tick = (L - span + 1) / N.

    Args:
        frames: length of the video (L), at least 1.
        snippet: frames a snippet (n).
        segments: number of snippets (N); None: all that have room one after the other from the first frame on, one at
            least; what is left at the end is dropped.
        stride: from one frame of a snippet to its next.

    Returns:
        (N,) int64 in [0, max(L - span + 1, 1)), not decreasing.

    Raises:
        ValueError: a number is below 1.
    """
    places = _places(frames, snippet=snippet, segments=1 if segments is None else segments, stride=stride)
    if segments is None:
        return np.arange(0, places, snippet * stride, dtype=np.int64)
    tick = places / segments
    return (tick / 2 + tick * np.arange(segments)).astype(np.int64)


def snippet_indices(
    positions: NDArray[np.int64], snippet: int, frames: int, *, stride: int = 1, short: Short = "hold"
) -> NDArray[np.int64]:
    """Frame numbers of the snippets that start at ``positions``.

    Args:
        positions: (N,) first frames.
        snippet: frames a snippet (n).
        frames: length of the video (L).
        stride: from one frame of a snippet to its next.
        short: past the end "hold" repeats the last frame, "loop" goes on from the first.

    Returns:
        (N, n) int64 in [0, L).
    """
    indices = positions[:, None] + np.arange(snippet) * stride
    return indices % frames if short == "loop" else np.minimum(indices, frames - 1)


def _places(frames: int, *, snippet: int, segments: int, stride: int) -> int:
    """Number of positions that a snippet can take."""
    for name, value in (("frames", frames), ("snippet", snippet), ("segments", segments), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name} is {value}; sampling needs at least 1")
    return max(frames - (snippet - 1) * stride, 1)
