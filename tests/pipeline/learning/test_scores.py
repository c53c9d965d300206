"""Score files come back as they were, with the same bytes whenever they are written."""

from __future__ import annotations

import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.learning.scores import Scores, read_scores, write_scores


def example(**more: Any) -> Scores:
    rng = np.random.default_rng(0)
    return Scores(
        **more,
        ids=np.array(["a", "b.c d", "ü"]),
        logits=rng.normal(size=(3, 2)).astype(np.float32),
        weights=rng.random((3, 5), np.float32),
        positions=rng.integers(0, 9, (3, 5)),
        classes=np.array(["run", "walk"]),
    )


LOOKS = {
    "maps": np.random.default_rng(1).random((3, 5, 2, 4)).astype(np.float16),
    "view": np.array([[0.25, 0.0, 0.75, 1.0]] * 3, np.float32),
}


@pytest.mark.parametrize("more", [{}, {"view": LOOKS["view"]}, LOOKS], ids=["plain", "view", "maps"])
def test_what_is_written_is_read(tmp_path: Path, more: dict[str, Any]) -> None:
    scores = example(**more)
    write_scores(tmp_path / "new" / "scores.npz", scores)
    found = read_scores(tmp_path / "new" / "scores.npz")
    for field in fields(Scores):
        one, two = getattr(found, field.name), getattr(scores, field.name)
        assert (one is None) == (two is None) == (field.name in LOOKS and field.name not in more)
        if two is not None:
            np.testing.assert_array_equal(one, two)
            assert one.dtype == two.dtype


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"maps": LOOKS["maps"][:, :4]}, "maps of shape .* do not fit weights"),
        ({"maps": LOOKS["maps"][..., 0]}, "maps of shape .* do not fit weights"),
        ({"maps": np.full_like(LOOKS["maps"], np.inf)}, "not finite"),
        ({"view": LOOKS["view"][:2]}, "a view of shape .* does not fit 3 videos"),
    ],
)
def test_maps_and_views_belong_to_the_videos(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        example(**more)


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
