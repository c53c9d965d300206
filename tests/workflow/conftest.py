"""Projects to run: one finished and shared, one finished to change, one untouched."""

from __future__ import annotations

from pathlib import Path

import pytest

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
