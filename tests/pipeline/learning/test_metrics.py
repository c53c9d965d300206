"""Metrics against loops over videos."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learning import metrics


@st.composite
def scored(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, and labels that leave some classes out."""
    videos, classes = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    return rng.integers(-2, 3, (videos, classes)).astype(np.float32), rng.integers(0, classes, videos)


@given(scored(), st.integers(1, 6))
def test_topk_is_a_place_in_the_sorted_list(case: tuple[np.ndarray, np.ndarray], k: int) -> None:
    scores, labels = case
    hits = 0
    for row, label in zip(scores, labels, strict=True):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))
        hits += int(label) in order[:k]
    assert metrics.topk(scores, labels, k=k) == pytest.approx(hits / len(labels))


@given(scored())
def test_confusion_and_accuracies_count_videos(case: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = case
    classes = scores.shape[1]
    counts = [[0] * classes for _ in range(classes)]
    for row, label in zip(scores, labels, strict=True):
        counts[label][max(range(classes), key=lambda c: (row[c], -c))] += 1
    assert metrics.confusion(scores, labels).tolist() == counts
    assert metrics.top1(scores, labels) == pytest.approx(sum(counts[c][c] for c in range(classes)) / len(labels))
    present = [c for c in range(classes) if sum(counts[c])]
    expected = sum(counts[c][c] / sum(counts[c]) for c in present) / len(present)
    assert metrics.mean_class_accuracy(scores, labels) == pytest.approx(expected)


def test_mean_class_accuracy_counts_classes_alike() -> None:
    """Nine of nine right in one class, none of one in the other: 90% of the videos, half of the classes."""
    scores = np.tile(np.float32([1, 0, 0]), (10, 1))
    labels = np.array([0] * 9 + [1])
    assert metrics.top1(scores, labels) == pytest.approx(0.9)
    assert metrics.mean_class_accuracy(scores, labels) == pytest.approx(0.5)


def test_softmax_is_the_equation_and_survives_large_scores() -> None:
    logits = np.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 5.0]])
    expected = [[math.exp(v) / sum(math.exp(w) for w in row) for v in row] for row in logits]
    np.testing.assert_allclose(metrics.softmax(logits), expected)
    np.testing.assert_allclose(metrics.softmax(logits + 1e4), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, int), "no videos"),
        (np.zeros((2, 2)), np.zeros(3, int), "do not fit"),
        (np.zeros((1, 2)), np.array([2]), "there are 2 classes"),
        (np.full((1, 2), np.nan), np.array([0]), "not finite"),
    ],
)
def test_what_cannot_be_scored_is_refused(scores: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.top1(scores, labels)
