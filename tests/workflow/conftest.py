"""Projects to run: one finished and shared, one finished to change, one untouched. And a shard for single jobs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset.receipts import Receipt
from pipeline.optical_flow.quantise import quantise
from pipeline.optical_flow.solve import solve
from tests.workflow.jobs import VIDEOS, job, receipt
from tests.workflow.jobs import run as run_job
from tests.workflow.project import Project, Run, make_project

Once = Callable[[str, Callable[[Path], Any]], Any]


@pytest.fixture(scope="session")
def root(root: Path, once: Once) -> Path:
    """The checkout with its solver compiled: projects are copies of it, each of which would compile its own."""
    once("compiled", lambda _: quantise(solve(*np.zeros((2, 32, 40), np.uint8), backend="numba")).shape)
    return root


@pytest.fixture(scope="session")
def trained(once: Once, root: Path) -> tuple[Project, Run]:
    """A project on which everything has run once, undisturbed. Do not change it: copy it."""

    def build(folder: Path) -> tuple[Project, Run]:
        project = make_project(folder, root)
        return project, project.run(target="train_all")

    return once("trained", build)


@pytest.fixture
def project(trained: tuple[Project, Run], tmp_path: Path) -> Project:
    """A copy of the finished project to change and run again."""
    return trained[0].copy(tmp_path / "project")


@pytest.fixture
def fresh(root: Path, tmp_path: Path) -> Project:
    """A project on which nothing has run."""
    return make_project(tmp_path / "fresh", root)


@pytest.fixture(scope="session")
def job_plan(once: Once, make_clip: Callable[..., Path]) -> Path:
    """The plan's list of a shard of six videos."""
    return once("job_plan", lambda folder: write_plan(folder, make_clip))


def write_plan(folder: Path, make_clip: Callable[..., Path]) -> Path:
    """Render six videos and list them."""
    videos = []
    for number in range(VIDEOS):
        source = f"mandelbrot=size=96x72:rate=25:start_scale={1 + number}"
        path = make_clip(folder / f"{number}.avi", source, "-frames:v", "12", "-c:v", "mpeg4", "-q:v", "2")
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        videos.append({"id": path.stem, "path": str(path), "digest": digest, "bytes": path.stat().st_size})
    (folder / "7.json").write_text(json.dumps(videos))
    return folder / "7.json"


@pytest.fixture(scope="session")
def jobs_done(once: Once, job_plan: Path, root: Path) -> Path:
    """A folder with receipts and stores of all stages, whose jobs nothing disturbed. Do not change it."""
    return once("jobs_done", lambda work: run_jobs(work, job_plan, root))


def run_jobs(work: Path, job_plan: Path, root: Path) -> Path:
    """Every stage on the shard."""
    work.mkdir()
    for stage in ("probe", "frames", "flow"):
        done = run_job(job(stage, job_plan if stage == "probe" else receipt(work, "probe"), work), root)
        assert done.returncode == 0, done.stderr
        assert Receipt.read(receipt(work, stage)).count() == {"done": VIDEOS}
    return work
