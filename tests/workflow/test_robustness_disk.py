"""Jobs in trouble, as real processes: two at once on one store, and a disk that fills up."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import StoreConfig
from pipeline.dataset.receipts import Receipt
from pipeline.stores.archive import check_archive
from pipeline.stores.frames import check_shard
from tests.workflow.jobs import VIDEOS, content, job, receipt, run, start
from tests.workflow.project import Project, environment, make_project


@pytest.mark.parametrize("stage", ["frames", "flow"])
def test_two_at_once_on_one_local_and_one_shared_store(stage: str, jobs_done: Path, root: Path, tmp_path: Path) -> None:
    sharing = StoreConfig(shared=str(tmp_path / "shared"), mode="read-write")
    one_store, given = tmp_path / "store", receipt(jobs_done, "probe")
    both = [start(job(stage, given, tmp_path / name, store=one_store, sharing=sharing), root) for name in "ab"]
    told = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert content(one_store) == content(jobs_done / stage)
    for name in "ab":
        counts = Receipt.read(receipt(tmp_path / name, stage)).count()
        assert sum(counts.values()) == VIDEOS
        assert counts.keys() <= {"done", "reused", "fetched"}
    objects = [path for path in (tmp_path / "shared" / stage).rglob("*") if path.is_file()]
    assert len(objects) == VIDEOS
    for path in objects:
        if stage == "flow":
            check_archive(path)
        else:
            assert check_shard(path)[1] == []


PAGE = os.sysconf("SC_PAGESIZE")


class SmallDisk:
    """A file system in memory with room for little."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(self.folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command for a small disk")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield SmallDisk(folder)
    subprocess.run(["umount", str(folder)], check=True)


def full(stderr: str, stage: str) -> bool:
    """Whether the last line, below the progress, is one sentence about it."""
    last = stderr.strip().splitlines()[-1]
    return last.startswith(f"{stage}: ") and "No space left on device" in last and "Traceback" not in stderr


@pytest.mark.parametrize("stage", ["frames", "flow"])
def test_a_full_disk_is_told_breaks_nothing_and_is_gone_when_there_is_room(
    stage: str, jobs_done: Path, root: Path, tmp_path: Path, small_disk: SmallDisk
) -> None:
    given, expected = receipt(jobs_done, "probe"), content(jobs_done / stage)
    total = sum(map(len, expected.values()))
    store = small_disk.folder / stage
    small_disk.resize(total // 2)
    command = job(stage, given, tmp_path, store=store)
    failed = run(command, root)
    assert failed.returncode == 1
    assert full(failed.stderr, stage), failed.stderr
    assert not receipt(tmp_path, stage).exists()
    assert content(store).items() <= expected.items()  # nothing but whole artifacts
    small_disk.resize(8 * total)
    assert run(command, root).returncode == 0
    assert content(store) == expected
    counts = Receipt.read(receipt(tmp_path, stage)).count()
    assert sum(counts.values()) == VIDEOS
    if stage == "flow":
        assert counts["reused"] >= 1


@pytest.mark.parametrize("stage", [pytest.param("frames", marks=pytest.mark.slow), "flow"])
def test_a_full_shared_store_is_told_and_keeps_only_whole_objects(
    stage: str, jobs_done: Path, root: Path, tmp_path: Path, small_disk: SmallDisk
) -> None:
    given, expected = receipt(jobs_done, "probe"), content(jobs_done / stage)
    total = sum(map(len, expected.values()))
    small_disk.resize(total // 2)
    shared = small_disk.folder / "team"
    command = job(stage, given, tmp_path, sharing=StoreConfig(shared=str(shared), mode="read-write"))
    failed = run(command, root)
    assert failed.returncode == 1
    assert full(failed.stderr, stage), failed.stderr
    kept = content(shared)
    assert not [name for name in kept if ".tmp-" in name]
    small_disk.resize(8 * total)
    assert run(command, root).returncode == 0
    published = content(shared)
    assert kept.items() <= published.items()
    assert len(published) == VIDEOS + 1
    assert content(tmp_path / stage) == expected


def test_a_full_disk_for_what_probing_found_and_for_receipts(
    job_plan: Path, jobs_done: Path, root: Path, tmp_path: Path, small_disk: SmallDisk
) -> None:
    filler = small_disk.folder / "filler"
    filler.write_bytes(bytes(64 << 10))
    failed = run(job("probe", job_plan, small_disk.folder), root)
    assert failed.returncode == 1
    assert full(failed.stderr, "probe"), failed.stderr
    filler.unlink()
    assert run(job("probe", job_plan, small_disk.folder), root).returncode == 0
    assert content(small_disk.folder / "probe") == content(jobs_done / "probe")


def occupied(work: Path) -> int:
    """Bytes that preprocessing takes up of a disk."""
    files = [path for path in work.rglob("*") if path.is_file() and "runs" not in path.parts]
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in files)


@pytest.mark.slow
def test_a_whole_run_on_a_disk_that_is_full_completes_once_there_is_room(
    trained: tuple[Project, object], root: Path, tmp_path: Path, small_disk: SmallDisk
) -> None:
    project = make_project(tmp_path / "project", root)
    work = f"work={small_disk.folder / 'work'}"
    expected = trained[0].stores()
    failed = 0
    for part in (3, 6, 9):
        small_disk.resize(occupied(trained[0].work) * part // 10)
        done = project.run("--config", work, check=False)
        logs = "".join(path.read_text() for path in (small_disk.folder / "work").glob("logs/*/*.log"))
        assert done.returncode == 0 or "No space left on device" in done.output + logs
        assert "Traceback" not in logs
        failed += done.returncode != 0
    assert failed, "the disk was never full"
    small_disk.resize(64 << 20)
    assert project.run("--config", work).returncode == 0
    stores = Project(small_disk.folder).stores()
    assert {name: data for name, data in stores.items() if ".tmp-" not in name} == expected


@pytest.mark.slow
@pytest.mark.parametrize("common", ["local", "shared"])
def test_two_whole_runs_at_once(common: str, trained: tuple[Project, object], root: Path, tmp_path: Path) -> None:
    """Two datasets' runs that share a store: every artifact whole, and the bytes of a run alone."""
    mode = ", mode: read-write" if common == "shared" else ""
    store = f"store={{{common}: {tmp_path / 'common'}{mode}}}"
    projects = [make_project(tmp_path / name, root) for name in "ab"]
    both = [
        subprocess.Popen(
            project.command("preprocess_all", "--config", store), cwd=project.folder, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for project in projects
    ]  # fmt: skip
    told = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    expected = trained[0].stores()
    if common == "shared":
        assert all(project.stores() == expected for project in projects)
        kinds = Counter(path.parts[-3] for path in (tmp_path / "common").glob("*/*/*"))
        assert kinds == Counter({"flow": 8, "frames": 8})
    else:
        flow = {name.removeprefix("flow/"): data for name, data in expected.items() if name.startswith("flow/")}
        assert content(tmp_path / "common" / "flow") == flow
        tars = {os.path.basename(name): data for name, data in expected.items() if name.endswith(".tar")}
        assert {path.name: path.read_bytes() for path in (tmp_path / "common").rglob("*.tar")} == tars
