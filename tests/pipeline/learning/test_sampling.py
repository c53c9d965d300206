"""Sampling against the loops of the published definition, one position at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.learning import sampling

LENGTHS = st.integers(1, 200)
SNIPPETS = st.integers(1, 12)
SEGMENTS = st.integers(1, 30)


def one_based(frames: int, *, snippet: int, offset: int) -> list[int]:
    """Frame numbers from 1 that TSN loads for the snippet at ``offset``: the last one again at the end of the video."""
    number, loaded = offset + 1, []
    for _ in range(snippet):
        loaded.append(number)
        if number < frames:
            number += 1
    return loaded


@given(LENGTHS, SNIPPETS, SEGMENTS, st.integers(0, 5))
@example(7, 5, 6, 0)  # too short for a place in each part, and longer than segments
@example(6, 5, 6, 0)  # not longer
@example(3, 5, 2, 0)  # shorter than a snippet
def test_train_snippets_are_those_of_the_definition(frames: int, snippet: int, segments: int, seed: int) -> None:
    """d = (L - n + 1) // N; offsets k d + randint(d) if d > 0, else sorted draws if L > N, else zeros; then frames."""
    draws, places = np.random.default_rng(seed), max(frames - snippet + 1, 1)
    d = (frames - snippet + 1) // segments
    if d > 0:
        random = draws.integers(d, size=segments)
        offsets = [k * d + int(random[k]) for k in range(segments)]
    elif frames > segments:
        offsets = sorted(int(place) for place in draws.integers(places, size=segments))
    else:
        offsets = [0] * segments
    positions = sampling.train_positions(frames, snippet=snippet, segments=segments, rng=np.random.default_rng(seed))
    indices = sampling.snippet_indices(positions, snippet, frames)
    assert (indices + 1).tolist() == [one_based(frames, snippet=snippet, offset=offset) for offset in offsets]


@pytest.mark.parametrize("segments", [25, 80])
@pytest.mark.parametrize("snippet", [1, 2, 5])
@pytest.mark.parametrize("frames", [1, 4, 24, 25, 29, 80, 84, 187, 1776])
def test_test_snippets_are_those_of_the_definition(frames: int, snippet: int, segments: int) -> None:
    """tick = (L - n + 1) / N; offsets int(tick / 2 + tick k)."""
    tick = max(frames - snippet + 1, 1) / segments
    offsets = [int(tick / 2 + tick * k) for k in range(segments)]
    positions = sampling.scoring_positions(frames, snippet=snippet, segments=segments)
    indices = sampling.snippet_indices(positions, snippet, frames)
    assert (indices + 1).tolist() == [one_based(frames, snippet=snippet, offset=offset) for offset in offsets]
    steps = [after - before for before, after in pairwise(positions.tolist())]
    assert max(steps) - min(steps) <= 1  # evenly spread
    assert abs(int(positions[0]) - (frames - snippet - int(positions[-1]))) <= 1 or frames < snippet


@given(LENGTHS, SNIPPETS, SEGMENTS)
def test_test_positions_are_the_middles_of_equal_parts(frames: int, snippet: int, segments: int) -> None:
    places = max(frames - snippet + 1, 1)
    expected = [int(places / segments / 2 + places / segments * k) for k in range(segments)]
    found = sampling.scoring_positions(frames, snippet=snippet, segments=segments)
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
    positions = sampling.scoring_positions(frames, snippet=5, segments=3)
    indices = sampling.snippet_indices(positions, 5, frames)
    assert indices.tolist() == [[min(i, frames - 1) for i in range(5)]] * 3


def test_snippets_run_on_from_their_position_and_stop_at_the_end() -> None:
    assert sampling.snippet_indices(np.array([0, 4, 7]), 3, 8).tolist() == [[0, 1, 2], [4, 5, 6], [7, 7, 7]]


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_counts_below_one_are_refused(numbers: tuple[int, int, int]) -> None:
    frames, snippet, segments = numbers
    with pytest.raises(ValueError, match="is 0; sampling needs at least 1"):
        sampling.scoring_positions(frames, snippet=snippet, segments=segments)


@given(LENGTHS, SNIPPETS, st.integers(1, 4))
def test_clips_one_after_the_other_are_those_that_fit_and_the_tail_is_dropped(
    frames: int, snippet: int, stride: int
) -> None:
    clips = []
    start = 0
    while (last := start + (snippet - 1) * stride) < frames:
        clips.append(list(range(start, last + 1, stride)))
        start += snippet * stride
    positions = sampling.scoring_positions(frames, snippet=snippet, segments=None, stride=stride)
    indices = sampling.snippet_indices(positions, snippet, frames, stride=stride)
    held = [[min(k * stride, frames - 1) for k in range(snippet)]]  # the one clip of a video that is too short for any
    assert indices.tolist() == (clips or held)


@pytest.mark.parametrize(("frames", "clips"), [(7, 1), (8, 1), (15, 1), (16, 2), (83, 10)])
def test_a_video_has_an_eighth_of_its_frames_in_clips_of_eight(frames: int, clips: int) -> None:
    assert len(sampling.scoring_positions(frames, snippet=8, segments=None)) == clips


@given(LENGTHS, SNIPPETS, st.integers(1, 4), st.integers(0, 99))
def test_strided_snippets_lie_whole_in_the_video_where_they_can(
    frames: int, snippet: int, stride: int, seed: int
) -> None:
    span = (snippet - 1) * stride + 1
    for positions in (
        sampling.train_positions(frames, snippet=snippet, segments=3, rng=np.random.default_rng(seed), stride=stride),
        sampling.scoring_positions(frames, snippet=snippet, segments=3, stride=stride),
    ):
        assert positions.max() <= max(frames - span, 0)
        indices = sampling.snippet_indices(positions, snippet, frames, stride=stride)
        if frames >= span:
            assert (np.diff(indices, axis=1) == stride).all()


def test_a_run_is_one_stretch_of_frames_and_reaches_every_place() -> None:
    rng, starts = np.random.default_rng(0), set()
    for _ in range(300):
        positions = sampling.run_positions(60, snippet=8, segments=3, rng=rng, stride=2)
        indices = sampling.snippet_indices(positions, 8, 60, stride=2).ravel()
        assert (np.diff(indices) == 2).all()
        assert indices[-1] <= 59
        starts.add(int(indices[0]))
    assert starts == set(range(60 - 47 + 1))


def test_a_run_longer_than_the_video_loops_or_holds() -> None:
    positions = sampling.run_positions(5, snippet=4, segments=2, rng=np.random.default_rng(0))
    assert sampling.snippet_indices(positions, 4, 5, short="loop").tolist() == [[0, 1, 2, 3], [4, 0, 1, 2]]
    assert sampling.snippet_indices(positions, 4, 5, short="hold").tolist() == [[0, 1, 2, 3], [4, 4, 4, 4]]
