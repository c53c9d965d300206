"""Score files: what a model says about every test video, and where in time and space it looked.

Shapes: V videos, C classes, T test snippets a video, h w cells of a map.
"""

from __future__ import annotations

import zipfile
from dataclasses import MISSING, dataclass, fields
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
    """(V, C) scores before the softmax, larger is better; of a prediction in probabilities their logarithm."""
    weights: NDArray[np.float32]
    """(V, T) temporal attention; sums to one over T unless the prediction is of another kind; 0 at padding."""
    positions: NDArray[np.int64]
    """(V, T) first frame of each snippet, ascending; -1 is padding, after the snippets of a video that has fewer."""
    classes: NDArray[np.str_]
    """(C,) names of the classes."""
    maps: NDArray[np.float16] | None = None
    """(V, T, h, w) spatial attention of the centre crop, 0 at padding; None without spatial attention.

    A map sums to one; where_when's is a mask of values in 0 to 1.
    """
    view: NDArray[np.float32] | None = None
    """(V, 4) x0, y0, x1, y1 of the centre crop as parts of the frame; None if frames were seen whole or not at all."""

    def __post_init__(self) -> None:
        videos, classes = len(self.ids), len(self.classes)
        if self.logits.shape != (videos, classes):
            raise ValueError(f"logits of shape {self.logits.shape} do not fit {videos} videos and {classes} classes")
        if self.weights.shape != self.positions.shape or len(self.weights) != videos:
            raise ValueError(
                f"weights {self.weights.shape} and positions {self.positions.shape} do not fit {videos} videos"
            )
        if self.maps is not None and (self.maps.ndim != 4 or self.maps.shape[:2] != self.weights.shape):
            raise ValueError(f"maps of shape {self.maps.shape} do not fit weights of shape {self.weights.shape}")
        if self.view is not None and self.view.shape != (videos, 4):
            raise ValueError(f"a view of shape {self.view.shape} does not fit {videos} videos")
        numbers: list[NDArray[Any]] = [self.logits, self.weights]
        if self.maps is not None:
            numbers.append(self.maps)
        if not all(np.isfinite(values).all() for values in numbers):
            raise ValueError("scores are not finite: the training diverged; lower the learning rate")


def write_scores(path: Path, scores: Scores) -> None:
    """Write a NumPy archive, atomically; equal scores give equal bytes."""
    every: dict[str, Any] = {field.name: getattr(scores, field.name) for field in fields(scores)}
    arrays = {name: array for name, array in every.items() if array is not None}
    with atomic_file(path) as file:
        np.savez(file, **arrays)


def read_scores(path: Path) -> Scores:
    """Read what ``write_scores`` wrote.

    Raises:
        ValueError: the file is missing or is not a score file.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            needed = {field.name for field in fields(Scores) if field.default is MISSING}
            return Scores(**{name: archive[name] for name in sorted(needed | set(archive.files))})
    except FileNotFoundError:
        raise ValueError(f"there is no score file {path}; run the prediction first") from None
    except (KeyError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a score file ({error}); delete it and run again") from None
