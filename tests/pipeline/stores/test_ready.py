"""What a run does about its stores before it plans."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config, load
from pipeline.dataset.plan import stage_recipes
from pipeline.stores.ready import make_ready
from pipeline.stores.shared import SharedStore


@pytest.fixture(autouse=True)
def private() -> Iterator[None]:
    """Of somebody who lets nobody else write by default."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def configured(tmp_path: Path, **store: Any) -> Config:
    return load({"name": "x", "dataset": "demo", "work": str(tmp_path / "work"), "store": store})


def test_all_of_a_team_may_write_where_it_may_write_in_the_store(tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    local.chmod(0o2775)
    config = configured(tmp_path, local=str(local))
    assert list(make_ready(config, dry_run=True)) == []
    assert list(local.iterdir()) == []
    assert list(make_ready(config, dry_run=False)) == []
    made = {path for path in local.rglob("*") if path.is_dir()}
    folders = {config.store_folder(stage, recipe) for stage, recipe in stage_recipes(config).items()}
    assert folders < made
    assert {path.stat().st_mode & 0o7777 for path in made} == {0o2775}
    assert {path.parent for path in folders} == {local, local / "x"}


def test_a_store_of_ones_own_is_as_private_as_all_else(tmp_path: Path) -> None:
    assert list(make_ready(configured(tmp_path), dry_run=False)) == []
    assert not (tmp_path / "work").exists()


def test_who_would_make_a_store_is_told(tmp_path: Path) -> None:
    (tmp_path / "mount").mkdir()  # and nothing is mounted there
    url = str(tmp_path / "mount" / "team")
    assert list(make_ready(configured(tmp_path, shared=url), dry_run=False)) == []
    writing = configured(tmp_path, shared=url, mode="read-write")
    for dry_run in (True, False):
        (told,) = make_ready(writing, dry_run=dry_run)
        assert told.startswith(f"there is no shared store at {url} yet")
    SharedStore(url, writable=True).has("flow", "0" * 32)
    assert list(make_ready(writing, dry_run=False)) == []
