"""Which frames a model sees: the segment sampling of TSN (Wang et al., ECCV 2016, section 3), as index functions.

Positions are the first frames of snippets, counted from 0. A video of L frames (or flow fields) has L - n + 1 places
for a snippet of n; a video shorter than a snippet has one, and the snippet repeats the last frame.

Shapes: N segments, n frames a snippet.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def train_positions(frames: int, *, snippet: int, segments: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """One random position in each of ``segments`` equal parts of the video, in order.

    A video with fewer places than segments gives sorted random places; with no more frames than segments, zeros.

    Args:
        frames: length of the video (L), at least 1.
        snippet: frames a snippet (n).
        segments: number of snippets (N).
        rng: source of the draws.

    Returns:
        (N,) int64 in [0, max(L - n + 1, 1)).

    Raises:
        ValueError: a number is below 1.
    """
    places = _places(frames, snippet=snippet, segments=segments)
    part = places // segments
    if part > 0:
        return np.arange(segments, dtype=np.int64) * part + rng.integers(part, size=segments)
    if frames > segments:
        return np.sort(rng.integers(places, size=segments))
    return np.zeros(segments, dtype=np.int64)


def test_positions(frames: int, *, snippet: int, segments: int) -> NDArray[np.int64]:
    """The middles of ``segments`` equal parts of the video: int(tick / 2 + tick * k), tick = (L - n + 1) / N.

    Args:
        frames: length of the video (L), at least 1.
        snippet: frames a snippet (n).
        segments: number of snippets (N).

    Returns:
        (N,) int64 in [0, max(L - n + 1, 1)), not decreasing.

    Raises:
        ValueError: a number is below 1.
    """
    tick = _places(frames, snippet=snippet, segments=segments) / segments
    return (tick / 2 + tick * np.arange(segments)).astype(np.int64)


def snippet_indices(positions: NDArray[np.int64], snippet: int, frames: int) -> NDArray[np.int64]:
    """Frame numbers of the snippets that start at ``positions``; past the end the last frame is repeated.

    Args:
        positions: (N,) first frames.
        snippet: frames a snippet (n).
        frames: length of the video (L).

    Returns:
        (N, n) int64 in [0, L).
    """
    return np.minimum(positions[:, None] + np.arange(snippet), frames - 1)


def _places(frames: int, *, snippet: int, segments: int) -> int:
    """Number of positions that a snippet can take."""
    for name, value in (("frames", frames), ("snippet", snippet), ("segments", segments)):
        if value < 1:
            raise ValueError(f"{name} is {value}; sampling needs at least 1")
    return max(frames - snippet + 1, 1)
