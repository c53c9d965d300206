"""A team's store in a folder, on a simulated and on a real S3 server: killed publishers, two at once, an empty disk.

The real server is one that the environment names (tests/conftest.py); ``pytest -m s3`` runs these tests. Each makes a
bucket of its own and deletes it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from pipeline.config import StoreConfig
from pipeline.dataset.receipts import Receipt
from pipeline.stores.archive import check_archive
from pipeline.stores.frames import check_shard
from pipeline.stores.shared import SharedStore
from tests.workflow.jobs import VIDEOS, content, job, receipt, run, start
from tests.workflow.project import Project, environment, kill_tree, make_project

REAL = pytest.param("real s3", marks=[pytest.mark.slow, pytest.mark.s3])


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "folder":
            return str(tmp_path / "shared")
        case "s3":
            return str(request.getfixturevalue("s3_url"))
        case _:
            return str(request.getfixturevalue("real_s3_url"))


def keys(url: str, kind: str) -> set[str]:
    """Of the objects of a kind, all of which are whole."""
    store = SharedStore(url, writable=True)
    found = dict(store.keys(kind))  # type: ignore[arg-type]
    for key in found:
        with store.local(kind, key, folder=Path(os.curdir)) as path:  # type: ignore[arg-type]
            if kind == "flow":
                check_archive(path)
            else:
                assert check_shard(path)[1] == []
    return set(found)


@pytest.mark.parametrize("url", ["folder", "s3", REAL], indirect=True)
@pytest.mark.parametrize("stage", [pytest.param("frames", marks=pytest.mark.slow), "flow"])
def test_killed_publisher_then_two_at_once_then_a_teammate(
    stage: str, url: str, jobs_done: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given, sharing = receipt(jobs_done, "probe"), StoreConfig(shared=url, mode="read-write")
    watched = SharedStore(url, writable=True)
    killed = start(job(stage, given, tmp_path / "killed", sharing=sharing), root)
    while killed.poll() is None and len(list(watched.keys(stage))) < 2:  # type: ignore[arg-type]
        time.sleep(0.002)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL, "it ended before it was killed"
    published = keys(url, stage)
    assert len(published) >= 2

    both = [start(job(stage, given, tmp_path / name, sharing=sharing), root) for name in "ab"]
    told = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    for name in "ab":
        counts = Receipt.read(receipt(tmp_path / name, stage)).count()
        assert counts["fetched"] >= len(published)
        assert counts["fetched"] + counts.get("done", 0) == VIDEOS
        assert content(tmp_path / name / stage) == content(jobs_done / stage)
    assert len(keys(url, stage)) == VIDEOS

    assert run(job(stage, given, tmp_path / "c", sharing=StoreConfig(shared=url)), root).returncode == 0
    assert Receipt.read(receipt(tmp_path / "c", stage)).count() == {"fetched": VIDEOS}
    assert content(tmp_path / "c" / stage) == content(jobs_done / stage)


def use(project: Project, url: str, **settings: str) -> None:
    path = project.folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**config, "store": {"shared": url, **settings}}))


def statuses(project: Project) -> Counter[tuple[str, str]]:
    """Number of videos by stage and status, of all receipts."""
    receipts = [Receipt.read(path) for path in project.work.glob("receipts/*/*.json")]
    return Counter((one.stage, video.status) for one in receipts for video in one.videos.values())


def begin(project: Project) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    command = project.command("preprocess_all")
    return subprocess.Popen(command, cwd=project.folder, env=environment(), stdout=quiet, stderr=quiet)


@pytest.mark.slow
@pytest.mark.parametrize("url", ["s3", REAL], indirect=True)
def test_whole_runs_of_a_team(url: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is killed while publishing, two go on at once, and two teammates with empty disks compute nothing."""
    monkeypatch.chdir(tmp_path)
    projects = {name: make_project(tmp_path / name, root) for name in ("killed", "a", "b", "copy", "in-place")}
    for name, project in projects.items():
        use(project, url, **({"access": name} if name in ("copy", "in-place") else {"mode": "read-write"}))
    first = begin(projects["killed"])
    watched = SharedStore(url, writable=True)
    while first.poll() is None and len(list(watched.keys("flow"))) < 2:
        time.sleep(0.01)
    assert first.poll() is None, "it ended before it was killed"
    kill_tree(first)
    both = [begin(projects[name]) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    assert (len(keys(url, "flow")), len(keys(url, "frames"))) == (8, 8)
    whole = projects["a"].stores()
    assert projects["b"].stores() == whole
    seconds = {}
    for access in ("copy", "in-place"):
        begun = time.monotonic()
        assert projects[access].run(target="train_all").computed == Counter({"probe": 8})
        seconds[access] = round(time.monotonic() - begun, 1)
        expected = {("probe", "done"): 8, ("frames", "fetched"): 8, ("flow", "fetched"): 8}
        assert statuses(projects[access]) == Counter(expected)
        mine = {name: data for name, data in whole.items() if access == "copy" or not name.startswith("flow/")}
        assert projects[access].stores() == mine
    results = [(projects[access].work / "results.json").read_bytes() for access in ("copy", "in-place")]
    assert results[0] == results[1]
    print(f"teammates with empty disks, seconds to the report: {seconds}")
