"""Projects to run: one finished and shared, one finished to change, one untouched. And a shard for single jobs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.dataset.receipts import Receipt
from tests.workflow.jobs import VIDEOS, job, receipt
from tests.workflow.jobs import run as run_job
from tests.workflow.project import Project, Run, make_project


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, root: Path) -> tuple[Project, Run]:
    """A project on which everything has run once, undisturbed. Do not change it: copy it."""
    project = make_project(tmp_path_factory.mktemp("workflow") / "base", root)
    return project, project.run(target="train_all")


@pytest.fixture
def project(trained: tuple[Project, Run], tmp_path: Path) -> Project:
    """A copy of the finished project to change and run again."""
    return trained[0].copy(tmp_path / "project")


@pytest.fixture
def fresh(root: Path, tmp_path: Path) -> Project:
    """A project on which nothing has run."""
    return make_project(tmp_path / "fresh", root)


@pytest.fixture(scope="session")
def job_plan(tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[..., Path]) -> Path:
    """The plan's list of a shard of six videos."""
    folder = tmp_path_factory.mktemp("videos")
    videos = []
    for number in range(VIDEOS):
        source = f"mandelbrot=size=96x72:rate=25:start_scale={1 + number}"
        path = make_clip(folder / f"{number}.avi", source, "-frames:v", "12", "-c:v", "mpeg4", "-q:v", "2")
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        videos.append({"id": path.stem, "path": str(path), "digest": digest, "bytes": path.stat().st_size})
    (folder / "7.json").write_text(json.dumps(videos))
    return folder / "7.json"


@pytest.fixture(scope="session")
def jobs_done(job_plan: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with receipts and stores of all stages, whose jobs nothing disturbed. Do not change it."""
    work = tmp_path_factory.mktemp("undisturbed")
    for stage in ("probe", "frames", "flow"):
        done = run_job(job(stage, job_plan if stage == "probe" else receipt(work, "probe"), work), root)
        assert done.returncode == 0, done.stderr
        assert Receipt.read(receipt(work, stage)).count() == {"done": VIDEOS}
    return work
