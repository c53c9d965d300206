"""Score files come back as they were, with the same bytes whenever they are written."""

from __future__ import annotations

import zipfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from pipeline.learning.scores import Scores, read_scores, write_scores


def example() -> Scores:
    rng = np.random.default_rng(0)
    return Scores(
        ids=np.array(["a", "b.c d", "ü"]),
        logits=rng.normal(size=(3, 2)).astype(np.float32),
        weights=rng.random((3, 5), np.float32),
        positions=rng.integers(0, 9, (3, 5)),
        classes=np.array(["run", "walk"]),
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    scores = example()
    write_scores(tmp_path / "new" / "scores.npz", scores)
    found = read_scores(tmp_path / "new" / "scores.npz")
    for field in fields(Scores):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(scores, field.name))
        assert getattr(found, field.name).dtype == getattr(scores, field.name).dtype


def test_the_bytes_carry_no_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_scores(tmp_path / name, example())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with zipfile.ZipFile(tmp_path / "one") as archive:
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_another_file_is_refused_in_a_sentence(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "scores.npz"
    if content is None:
        np.savez(path, ids=np.array(["a"]))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"scores\.npz is not a score file"):
        read_scores(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no score file"):
        read_scores(tmp_path / "scores.npz")


def test_scores_that_are_not_finite_are_refused() -> None:
    values = vars(example()) | {"logits": np.full((3, 2), np.nan, np.float32)}
    with pytest.raises(ValueError, match="not finite"):
        Scores(**values)
