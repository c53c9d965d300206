"""The flow-histogram baseline: motion of known direction falls where it should, and classes by movement are found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset.manifest import Manifest
from pipeline.learning.metrics import top1
from pipeline.learning.scores import read_scores
from stages import baseline as stage


def moving(angle: float, *, speed: float, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
    """Two fields of 32 x 32 with one velocity in a part of the image and rest elsewhere."""
    fields = np.zeros((2, 2, 32, 32), np.float32)
    fields[:, 0, rows, columns] = speed * math.cos(angle)
    fields[:, 1, rows, columns] = speed * math.sin(angle)
    return fields


@pytest.mark.parametrize("eighth", range(8))
def test_motion_falls_into_the_bin_of_its_direction(eighth: int) -> None:
    """Every cell holds a sixteenth of the weight, all of it in one direction; also up to 20 degrees off."""
    for off in (-20, 0, 20):
        found = stage.describe(moving(eighth * math.pi / 4 + math.radians(off), speed=3.0)).reshape(4, 4, 9)
        np.testing.assert_allclose(found[..., eighth], np.sqrt(1 / 16), rtol=1e-5)
        np.testing.assert_allclose(np.delete(found, eighth, axis=-1), 0)


def test_motion_falls_into_its_cell_weighted_by_magnitude_beside_the_still_rest() -> None:
    """One cell of 64 pixels at 3 px a frame; 960 pixels at rest weigh half a pixel each."""
    found = stage.describe(moving(0, speed=3.0, rows=slice(8, 16), columns=slice(24, 32))).reshape(4, 4, 9) ** 2
    total = 64 * 3 + 960 * 0.5
    assert found[1, 3, 0] == pytest.approx(64 * 3 / total)
    assert found[0, 0, 8] == pytest.approx(64 * 0.5 / total)
    assert found.sum() == pytest.approx(1)


def test_the_description_is_that_of_a_loop_over_pixels(rng: np.random.Generator) -> None:
    fields = rng.normal(0, 1.5, (3, 2, 10, 13)).astype(np.float32)
    sums = np.zeros((4, 4, 9))
    for f, i, j in np.ndindex(3, 10, 13):
        x, y = map(float, fields[f, :, i, j])
        speed = math.hypot(x, y)
        direction = round(math.degrees(math.atan2(y, x)) / 45) % 8
        sums[i * 4 // 10, j * 4 // 13, direction if speed >= 0.5 else 8] += max(speed, 0.5)
    np.testing.assert_allclose(stage.describe(fields), np.sqrt(sums / sums.sum()).ravel(), rtol=1e-5)


def test_it_tells_movements_apart(learnable: Any) -> None:
    scores = stage.baseline(learnable.manifest, learnable.index("flow"), split="split1")
    videos = learnable.manifest.part("split1", "test")
    assert scores.ids.tolist() == [video.id for video in videos]
    labels = np.array([learnable.manifest.classes.index(video.labels[0]) for video in videos])
    assert top1(scores.logits, labels) == 1.0
    assert (scores.logits < 0).all()
    np.testing.assert_allclose(scores.weights.sum(axis=1), 1, rtol=1e-6)
    assert scores.positions.max() < 11


def test_scores_are_distances_to_the_means_of_the_training_videos() -> None:
    described = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0]])
    means = stage.class_means(described, np.array([0, 0, 1]), classes=("a", "b"))
    assert means.tolist() == [[1, 0], [0, 4]]
    with pytest.raises(ValueError, match="the class 'c' has no training video with flow"):
        stage.class_means(described, np.array([0, 0, 1]), classes=("a", "b", "c"))


def test_the_command_writes_the_same_bytes_and_says_what_is_wrong(learnable: Any, tmp_path: Path) -> None:
    def command(out: str, index: str = "flow") -> None:
        options = {
            "--manifest": learnable.folder / "manifest.tsv",
            "--index": learnable.index_path(index),
            "--split": "split1",
            "--out": tmp_path / out,
        }
        stage.main([str(word) for pair in options.items() for word in pair])

    command("one.npz")
    command("two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    assert len(read_scores(tmp_path / "one.npz").ids) == 6
    with pytest.raises(SystemExit, match=r"baseline: .*frames\.json is an index of frames, but flow is needed"):
        command("three.npz", index="frames")


def test_an_empty_test_part_is_one_sentence(learnable: Any) -> None:
    trained = Manifest(tuple(v for v in learnable.manifest.videos if v.splits["split1"] == "train"))
    with pytest.raises(ValueError, match="the test part of split1 has no video with flow"):
        stage.baseline(trained, learnable.index("flow"), split="split1")
