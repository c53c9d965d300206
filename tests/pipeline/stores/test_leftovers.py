"""Temporary files of killed jobs: the old ones go, those of running jobs stay."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pipeline.stores.leftovers import DAY_SECONDS, remove_leftovers


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_only_old_temporary_names_are_deleted(tmp_path: Path) -> None:
    for name in (".tmp-old", ".tmp-young", "kept.tar"):
        (tmp_path / name).write_text("x")
    folder = tmp_path / ".tmp-folder"
    (folder / "c").mkdir(parents=True)
    (folder / "c" / "0").write_text("x")
    for path in (tmp_path / ".tmp-old", tmp_path / "kept.tar", folder / "c", folder):
        age(path, 2 * DAY_SECONDS)
    assert remove_leftovers(tmp_path) == 1  # a file in the folder was written just now
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-folder", ".tmp-young", "kept.tar"]
    age(folder / "c" / "0", 2 * DAY_SECONDS)
    assert remove_leftovers(tmp_path) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-young", "kept.tar"]
    assert remove_leftovers(tmp_path / "none") == 0
