"""Intervals of weights against runs of snippets, and their scores against counting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.dataset.manifest import Segment
from pipeline.learning.detection import mean_over_classes, temporal_average_precisions
from pipeline.learning.localisation import (
    AttendedInterval,
    Overlap,
    TimeNorm,
    attended_intervals,
    normalised_weights,
    snippet_edges,
    temporal_detections,
    window_accuracy,
)

ALPHAS = (0.1, 0.3, 0.5)


def test_weights_are_put_on_the_scale_asked_for() -> None:
    weights = np.float32([[0.1, 0.3, 0.6], [0.2, 0.2, 0.2], [0.0, 0.0, 0.0], [-1.0, 0.0, 1.0], [-2.0, -1.0, -3.0]])
    maximum = [[1 / 6, 0.5, 1], [1, 1, 1], [0, 0, 0], [-1, 0, 1], [0, 0, 0]]
    stretched = [[0, 0.4, 1], [0, 0, 0], [0, 0, 0], [0, 0.5, 1], [0.5, 1, 0]]
    np.testing.assert_allclose(normalised_weights(weights), maximum, atol=1e-6)
    np.testing.assert_allclose(normalised_weights(weights, "minmax"), stretched, atol=1e-6)
    np.testing.assert_array_equal(normalised_weights(weights, "raw"), weights)
    np.testing.assert_allclose(normalised_weights(weights[0]), maximum[0], atol=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        normalised_weights(np.array([0.5, np.nan]))


@settings(deadline=None)
@given(st.lists(st.integers(0, 70), min_size=1, max_size=8), st.integers(0, 9), st.integers(0, 99))
def test_each_moment_belongs_to_the_nearest_snippet(middles: list[int], rest: int, seed: int) -> None:
    places = np.array(sorted(middles)) / 8
    duration = places[-1] + rest / 8
    edges = snippet_edges(places, duration=duration)
    assert (edges[0], edges[-1], len(edges)) == (0, duration, len(places) + 1)
    for moment in np.random.default_rng(seed).uniform(0, duration, 20):
        holds = [k for k in range(len(places)) if edges[k] <= moment < edges[k + 1]]
        assert len(holds) == (duration > 0)
        for k in holds:
            assert abs(places[k] - moment) == pytest.approx(np.abs(places - moment).min())


@pytest.mark.parametrize("middles", [[], [2.0, 1.0], [-0.1, 1.0], [1.0, 5.1]])
def test_snippets_out_of_order_or_of_the_video_are_refused(middles: list[float]) -> None:
    with pytest.raises(ValueError, match="do not ascend"):
        snippet_edges(np.array(middles), duration=5.0)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=12),
    st.sampled_from(["max", "minmax", "raw"]),
    st.integers(0, 99),
    st.booleans(),
)
def test_intervals_are_the_runs_of_snippets_above(sizes: list[int], norm: TimeNorm, seed: int, repeats: bool) -> None:
    weights = np.array(sizes) / 8
    edges = np.cumsum(np.random.default_rng(seed).integers(0 if repeats else 1, 3, len(sizes) + 1)).astype(np.float64)
    above = normalised_weights(weights, norm) > 0.5
    expected, run = [], []
    for k in range(len(sizes) + 1):
        if k < len(sizes) and above[k]:
            run.append(k)
        elif run:
            if edges[run[0]] < edges[k]:
                expected.append((edges[run[0]], edges[k], sum(weights[j] for j in run) / len(run)))
            run = []
    found = attended_intervals(weights, edges, time_norm=norm)
    np.testing.assert_allclose(np.reshape(found, (-1, 3)), np.reshape(expected, (-1, 3)))


def test_a_softmax_over_many_snippets_needs_its_maximum() -> None:
    weights = np.full(50, 0.5 / 45)
    weights[10:15] = 0.1
    edges = np.arange(51.0)
    assert attended_intervals(weights, edges) == [AttendedInterval(10.0, 15.0, pytest.approx(0.1))]
    assert attended_intervals(weights, edges, time_norm="raw") == []
    assert attended_intervals(np.full(50, 0.02), edges) == [AttendedInterval(0.0, 50.0, pytest.approx(0.02))]
    with pytest.raises(ValueError, match="do not fit 49 snippets"):
        attended_intervals(weights, edges[:-1])


def test_attention_on_the_actions_has_a_mean_average_precision_of_one() -> None:
    """Two videos of two classes, the action in seconds 2 to 4 of 8; the right class is likelier, and ranked first."""
    edges = snippet_edges(np.arange(0.5, 8), duration=8.0)
    weights = np.array([0.02, 0.02, 0.4, 0.48, 0.02, 0.02, 0.02, 0.02])
    intervals = attended_intervals(weights, edges)
    assert intervals == [(2.0, 4.0, pytest.approx(0.44))]
    truth = {"a": [Segment("run", 2.0, 4.0)], "b": [Segment("jump", 2.0, 4.0)]}
    found = temporal_detections("a", intervals, np.array([0.1, 0.9]), ["jump", "run"])
    found += temporal_detections("b", intervals, np.array([0.7, 0.3]), ["jump", "run"])
    assert [detection.score for detection in found] == pytest.approx([0.044, 0.396, 0.308, 0.132])
    assert mean_over_classes(temporal_average_precisions(found, truth)).tolist() == [1] * 5


@st.composite
def windows(draw: st.DrawFn) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Weights, what is annotated, and whether the class is right."""
    videos, snippets = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    return rng.integers(0, 9, (videos, snippets)) / 8, rng.random((videos, snippets)) < 0.5, rng.random(videos) < 0.7


@settings(deadline=None)
@given(
    windows(),
    st.booleans(),
    st.sampled_from(["max", "minmax", "raw"]),
    st.sampled_from(["iou", "recall"]),
    st.sampled_from([0.25, 0.5]),
)
def test_window_accuracy_counts_snippets(
    case: tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]],
    judged: bool,
    norm: TimeNorm,
    overlap: Overlap,
    level: float,
) -> None:
    weights, annotated, correct = case
    assume(annotated.any())
    shares = []
    for row, inside, right in zip(normalised_weights(weights, norm), annotated, correct, strict=True):
        attended, action = set(np.flatnonzero(row > level)), set(np.flatnonzero(inside))
        if action:
            share = len(attended & action) / len(action if overlap == "recall" else attended | action)
            shares.append(share if right or not judged else 0.0)
    found = window_accuracy(
        weights,
        annotated,
        thresholds=ALPHAS,
        correct=correct if judged else None,
        weight_threshold=level,
        time_norm=norm,
        overlap=overlap,
    )
    np.testing.assert_allclose(found, [np.mean([share > alpha for share in shares]) for alpha in ALPHAS])


def test_looking_everywhere_is_perfect_by_recall_only() -> None:
    """A window of 50 with 30 in the action: the union is 50."""
    weights, annotated = np.full((1, 50), 0.02), np.zeros((1, 50), bool)
    annotated[0, 10:40] = True
    assert window_accuracy(weights, annotated, thresholds=[0.59, 0.61]).tolist() == [1, 0]
    assert window_accuracy(weights, annotated, thresholds=[0.99], overlap="recall").tolist() == [1]


def test_windows_that_cannot_be_scored_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        window_accuracy(np.zeros((2, 5)), np.zeros((2, 4), bool))
    with pytest.raises(ValueError, match="no window has an annotated snippet"):
        window_accuracy(np.ones((2, 5)), np.zeros((2, 5), bool))
