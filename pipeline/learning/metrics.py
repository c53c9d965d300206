"""Accuracies from scores, in NumPy.

Shapes: V videos, C classes. Scores are (V, C), larger is better; labels are (V,) class numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]


def softmax(logits: Scores) -> NDArray[np.float64]:
    """Probabilities over the last axis; adding a constant to a row changes nothing."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def topk(scores: Scores, labels: Labels, *, k: int) -> float:
    """Share of videos whose class is among the ``k`` best; of equal scores the lower class number goes first.

    Raises:
        ValueError: there are no videos, or the shapes do not fit.
    """
    _check(scores, labels)
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1]) < labels[:, None]
    rank = ((scores > own) | ((scores == own) & before)).sum(axis=1)
    return float((rank < k).mean())


def top1(scores: Scores, labels: Labels) -> float:
    """Share of videos whose best class is right."""
    return topk(scores, labels, k=1)


def confusion(scores: Scores, labels: Labels) -> NDArray[np.int64]:
    """(C, C) counts: row = true class, column = best class.

    Raises:
        ValueError: there are no videos, or the shapes do not fit.
    """
    _check(scores, labels)
    classes = scores.shape[1]
    pairs = labels * classes + scores.argmax(axis=1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def mean_class_accuracy(scores: Scores, labels: Labels) -> float:
    """Mean of the accuracies of the classes that have videos: TSN's number, every class counts alike."""
    counts = confusion(scores, labels)
    present = counts.sum(axis=1) > 0
    return float((np.diag(counts)[present] / counts.sum(axis=1)[present]).mean())


def _check(scores: Scores, labels: Labels) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"scores of shape {scores.shape} do not fit labels of shape {labels.shape}")
    if len(labels) == 0:
        raise ValueError("there are no videos to score")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels reach from {labels.min()} to {labels.max()}, but there are {scores.shape[1]} classes")
    if not np.isfinite(scores).all():
        raise ValueError("scores are not finite: the training diverged; lower the learning rate")
