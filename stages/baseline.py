"""Stage baseline: histograms of optical flow and the nearest class mean. No learned features, nothing tuned.

What a trained model has to beat. A video is described by HOF (Laptev et al., "Learning realistic human actions from
movies", CVPR 2008, section 3.1) over a grid: for each of 4 x 4 cells the motion in 8 directions, weighted by its
magnitude, and one bin for pixels that hardly move; summed over 16 evenly spaced fields, normalised to sum 1, square
root (the Hellinger kernel). A class is the mean of its training videos; the score is minus the distance to it.

Shapes: V videos, F fields, H W pixels, D = 4 * 4 * 9 numbers of a description, C classes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.learning.loader import Clip, select
from pipeline.learning.readers import Index, Reader, open_reader, read_index
from pipeline.learning.sampling import scoring_positions
from pipeline.learning.scores import Scores, write_scores
from pipeline.optical_flow.quantise import dequantise
from pipeline.progress import track
from pipeline.stores.sharing import Sharing, add_arguments

FIELDS = 16
"""Flow fields looked at in a video, evenly spaced."""
GRID = 4
"""Cells along each side."""
DIRECTIONS = 8
STILL_PX = 0.5
"""Slower pixels, in pixels per frame, count as still; each of them weighs as much as one at this speed."""


def baseline(manifest: Manifest, index: Index, *, split: str, sharing: Sharing | None = None) -> Scores:
    """Score the test videos of ``split``.

    Raises:
        ValueError: a class has no training video, or there is nothing to test.
    """
    reader, bound = open_reader(index, sharing=sharing, by="baseline"), float(index["parameters"]["bound"])
    train_clips, _ = select(manifest, index, split=split, part="train")
    test_clips, left_out = select(manifest, index, split=split, part="test")
    if left_out:
        line = f"{len(left_out)} test videos have no flow and are left out: {', '.join(left_out)}"
        print(line, file=sys.stderr)
    means = class_means(
        _describe(train_clips, reader, bound=bound, label="describe training videos"),
        np.array([clip.label for clip in train_clips]),
        classes=manifest.classes,
    )
    described = _describe(test_clips, reader, bound=bound, label="describe test videos")
    distances = np.linalg.norm(described[:, None] - means[None], axis=-1)  # V C
    return Scores(
        ids=np.array([clip.id for clip in test_clips]),
        logits=(-distances).astype(np.float32),
        weights=np.full((len(test_clips), FIELDS), 1 / FIELDS, np.float32),
        positions=np.stack([scoring_positions(clip.frames, snippet=1, segments=FIELDS) for clip in test_clips]),
        classes=np.array(manifest.classes),
    )


def class_means(
    described: NDArray[np.float64], labels: NDArray[np.int64], *, classes: Sequence[str]
) -> NDArray[np.float64]:
    """(V, D) descriptions and (V,) class numbers -> (C, D) means.

    Raises:
        ValueError: a class has no video.
    """
    for number, name in enumerate(classes):
        if not (labels == number).any():
            raise ValueError(f"the class {name!r} has no training video with flow; list it in exclude_labels")
    return np.stack([described[labels == number].mean(axis=0) for number in range(len(classes))])


def describe(fields_px: NDArray[np.float32]) -> NDArray[np.float64]:
    """The description of one video.

    Args:
        fields_px: (F, 2, H, W) flow in pixels per frame, x then y.

    Returns:
        (D,) not negative, of Euclidean length 1.
    """
    _, _, height, width = fields_px.shape
    x, y = fields_px[:, 0], fields_px[:, 1]
    speed = np.hypot(x, y)
    turn = np.arctan2(y, x) / (2 * np.pi) * DIRECTIONS  # direction d is centred on d eighths of a turn
    direction = np.rint(turn).astype(np.int64) % DIRECTIONS
    still = speed < STILL_PX
    bins = np.where(still, DIRECTIONS, direction)
    cell = (np.arange(height) * GRID // height)[:, None] * GRID + np.arange(width) * GRID // width  # H W
    places = cell * (DIRECTIONS + 1) + bins  # F H W
    sums = np.bincount(
        places.ravel(), weights=np.maximum(speed, STILL_PX).ravel(), minlength=GRID * GRID * (DIRECTIONS + 1)
    )
    return np.sqrt(sums / sums.sum())


def _describe(clips: Sequence[Clip], reader: Reader, *, bound: float, label: str) -> NDArray[np.float64]:
    """(V, D) descriptions of videos in the flow store."""
    found = []
    for clip in track(clips, total=len(clips), label=label):
        positions = scoring_positions(clip.frames, snippet=1, segments=FIELDS)
        quantised = reader.read(clip.id, positions[:, None])[:, 0]  # F 2 H W
        found.append(describe(dequantise(quantised, bound=bound)))
    return np.stack(found)


def main(argv: list[str] | None = None) -> None:
    """Score the test videos of one split by flow histograms."""
    parser = argparse.ArgumentParser(prog="python -m stages.baseline", description=main.__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="the dataset's manifest")
    parser.add_argument("--index", type=Path, required=True, help="index of the flow store")
    parser.add_argument("--split", required=True, help="name of the split")
    parser.add_argument("--out", type=Path, required=True, help="score file to write")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    try:
        scores = baseline(
            read_manifest(arguments.manifest),
            read_index(arguments.index, stage="flow"),
            split=arguments.split,
            sharing=Sharing.of(arguments.sharing, notes=arguments.damaged),
        )
    except (OSError, ValueError) as error:
        sys.exit(f"baseline: {error}")
    write_scores(arguments.out, scores)


if __name__ == "__main__":
    main()
