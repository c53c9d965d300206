"""Sampling against the loops of the published definition, one position at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learning import sampling

LENGTHS = st.integers(1, 200)
SNIPPETS = st.integers(1, 12)
SEGMENTS = st.integers(1, 30)


@given(LENGTHS, SNIPPETS, SEGMENTS)
def test_test_positions_are_the_middles_of_equal_parts(frames: int, snippet: int, segments: int) -> None:
    places = max(frames - snippet + 1, 1)
    expected = [int(places / segments / 2 + places / segments * k) for k in range(segments)]
    found = sampling.test_positions(frames, snippet=snippet, segments=segments)
    assert found.tolist() == expected
    assert found.dtype == np.int64
    assert found.max() < places


@given(LENGTHS, SNIPPETS, SEGMENTS, st.integers(0, 10))
def test_train_positions_lie_one_in_each_part(frames: int, snippet: int, segments: int, seed: int) -> None:
    found = sampling.train_positions(
        frames, snippet=snippet, segments=segments, rng=np.random.default_rng(seed)
    ).tolist()
    places = max(frames - snippet + 1, 1)
    assert len(found) == segments
    part = places // segments
    if part > 0:
        assert [position // part for position in found] == list(range(segments))
    else:
        assert found == sorted(found)
        assert 0 <= found[0] <= found[-1] < places


def test_train_positions_reach_every_place() -> None:
    rng = np.random.default_rng(0)
    drawn = [sampling.train_positions(12, snippet=3, segments=2, rng=rng) for _ in range(400)]
    assert np.unique(drawn).tolist() == list(range(10))


def test_train_positions_follow_the_generator() -> None:
    one, two, other = (
        sampling.train_positions(900, snippet=1, segments=8, rng=np.random.default_rng(seed)).tolist()
        for seed in (3, 3, 4)
    )
    assert one == two != other


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_video_shorter_than_the_snippet_repeats_its_last_frame(frames: int) -> None:
    positions = sampling.test_positions(frames, snippet=5, segments=3)
    indices = sampling.snippet_indices(positions, 5, frames)
    assert indices.tolist() == [[min(i, frames - 1) for i in range(5)]] * 3


def test_snippets_run_on_from_their_position_and_stop_at_the_end() -> None:
    assert sampling.snippet_indices(np.array([0, 4, 7]), 3, 8).tolist() == [[0, 1, 2], [4, 5, 6], [7, 7, 7]]


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_counts_below_one_are_refused(numbers: tuple[int, int, int]) -> None:
    frames, snippet, segments = numbers
    with pytest.raises(ValueError, match="is 0; sampling needs at least 1"):
        sampling.test_positions(frames, snippet=snippet, segments=segments)
