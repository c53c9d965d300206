"""Score files: what a model says about every test video, and where in time it looked.

Shapes: V videos, C classes, T test snippets a video.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.stores.publish import atomic_file


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of one run on the test part of one split."""

    ids: NDArray[np.str_]
    """(V,) video ids."""
    logits: NDArray[np.float32]
    """(V, C) scores before the softmax, larger is better."""
    weights: NDArray[np.float32]
    """(V, T) temporal attention; a softmax over T unless the model's consensus is of another kind."""
    positions: NDArray[np.int64]
    """(V, T) first frame of each snippet."""
    classes: NDArray[np.str_]
    """(C,) names of the classes."""

    def __post_init__(self) -> None:
        videos, classes = len(self.ids), len(self.classes)
        if self.logits.shape != (videos, classes):
            raise ValueError(f"logits of shape {self.logits.shape} do not fit {videos} videos and {classes} classes")
        if self.weights.shape != self.positions.shape or len(self.weights) != videos:
            raise ValueError(
                f"weights {self.weights.shape} and positions {self.positions.shape} do not fit {videos} videos"
            )
        if not (np.isfinite(self.logits).all() and np.isfinite(self.weights).all()):
            raise ValueError("scores are not finite: the training diverged; lower the learning rate")


def write_scores(path: Path, scores: Scores) -> None:
    """Write a NumPy archive, atomically; equal scores give equal bytes."""
    arrays: dict[str, Any] = {field.name: getattr(scores, field.name) for field in fields(scores)}
    with atomic_file(path) as file:
        np.savez(file, **arrays)


def read_scores(path: Path) -> Scores:
    """Read what ``write_scores`` wrote.

    Raises:
        ValueError: the file is missing or is not a score file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return Scores(**{field.name: archive[field.name] for field in fields(Scores)})
    except FileNotFoundError:
        raise ValueError(f"there is no score file {path}; run the prediction first") from None
    except (KeyError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a score file ({error}); delete it and run again") from None
