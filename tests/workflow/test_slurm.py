"""The whole workflow on a real Slurm of at least two nodes: ``SLURM_CONF=... pytest -n 0 -m slurm``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow.project import Project, environment

ARGUMENTS = ["--profile", "profiles/slurm", "--configfile", "config.yaml", "--nocolor", "--slurm-no-account"]
ARGUMENTS += ["--slurm-init-seconds-before-status-checks", "3", "--slurm-status-command", "squeue"]


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Environment in which Slurm's commands find the cluster that SLURM_CONF names.

    The executor's jobs lose that variable, so srun stands on PATH as one that has it.
    """
    found = {name: shutil.which(name) for name in ("sinfo", "srun")}
    if "SLURM_CONF" not in os.environ or None in found.values():
        pytest.skip("SLURM_CONF does not name a cluster, or Slurm's commands are not installed")
    nodes = subprocess.run(["sinfo", "-h", "-N", "-o", "%N"], capture_output=True, text=True, timeout=60)
    if nodes.returncode or len(set(nodes.stdout.split())) < 2:
        pytest.skip(f"there are no two nodes: {nodes.stdout} {nodes.stderr}")
    (tmp_path / "bin").mkdir()
    srun = tmp_path / "bin/srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={os.environ["SLURM_CONF"]} exec {found["srun"]} "$@"\n')
    srun.chmod(0o755)
    return {**environment(), "PATH": os.pathsep.join([str(srun.parent), os.environ["PATH"]])}


def run(project: Project, slurm: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "train_all", *ARGUMENTS, *arguments]
    return subprocess.run(command, cwd=project.folder, env=slurm, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
@pytest.mark.slurm
def test_from_videos_to_report_on_several_nodes(fresh: Project, slurm: dict[str, str]) -> None:
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the extra slurm is not installed")
    done = run(fresh, slurm)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (fresh.work / "report.html").is_file()
    assert len(list(fresh.work.glob("runs/*/*/model.pt"))) == 2
    run_id = re.findall(r"SLURM run ID: (\S+)", done.stderr)[0]
    jobs = ["squeue", "-h", "-t", "all", "--name", run_id, "-o", "%T %N %k"]
    listed = subprocess.run(jobs, env=slurm, capture_output=True, text=True, check=True).stdout.splitlines()
    states, nodes, rules = zip(*(line.split(maxsplit=2) for line in listed), strict=True)
    assert set(states) == {"COMPLETED"}
    assert len(set(nodes)) >= 2, listed
    for rule in ("probe", "frames", "flow", "train_rgb", "predict_flow", "evaluate", "report"):
        assert any(f"rule_{rule}" in one for one in rules), listed
    assert not any("index" in one or "manifest" in one for one in rules), "these stay where Snakemake runs"
    assert "Nothing to be done" in run(fresh, slurm).stderr
