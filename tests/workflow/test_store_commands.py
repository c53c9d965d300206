"""The commands on stores among real runs: what they delete is made anew, what they pull is not computed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.workflow.project import Project, environment


def store(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stages.store", *arguments, "--configfile", "config.yaml"]
    return subprocess.run(command, cwd=project.folder, capture_output=True, text=True, env=environment())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_what_verify_deletes_the_next_run_makes_anew(project: Project) -> None:
    whole = project.stores()
    flip(sorted(project.work.glob("stores/flow/*/*/c/0/0/0/0"))[3])
    flip(sorted(project.work.glob("stores/frames-*/*.tar"))[0])
    found = store(project, "verify", "--remove")
    assert found.returncode == 1
    assert found.stdout.count("damaged: ") == 2
    run = project.run()
    assert run.computed == Counter({"flow": 1, "frames": 1})
    assert project.stores() == whole
    assert store(project, "verify").returncode == 0
    assert project.run(target="train_all").jobs == Counter()  # what was made is what was there


def test_after_a_pull_nothing_is_computed(project: Project, fresh: Project) -> None:
    shared = f"store={{shared: {project.folder}/shared, mode: read-write}}"
    assert store(project, "push", "--config", shared).returncode == 0
    fresh.run("--dry-run")
    assert store(fresh, "diff", "--config", shared).returncode == 0
    assert store(fresh, "pull", "--config", shared).returncode == 0
    run = fresh.run()
    assert run.computed == Counter({"probe": 8})
    assert run.reused == Counter({"flow": 8, "frames": 8})
    assert fresh.stores() == project.stores()
