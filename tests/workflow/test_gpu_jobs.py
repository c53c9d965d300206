"""How many GPUs, and shares of one for flow, Snakemake is told that jobs take. Dry runs: nothing is computed."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest
import yaml

from tests.workflow.project import Project


def resources(project: Project, *, accelerator: str, backend: str) -> dict[str, set[str]]:
    """Values of `flow_gpu` and `gpu` in the jobs' resources."""
    path = project.folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["compute"] = {**config.get("compute", {}), "accelerator": accelerator}
    config["flow"]["backend"] = backend
    path.write_text(yaml.safe_dump(config))
    output = project.run("-n", target="train_all").output
    return {name: set(re.findall(rf"\b{name}=(\d+)", output)) for name in ("flow_gpu", "gpu")}


@pytest.mark.skipif(find_spec("triton") is None, reason="the package triton is not installed")
def test_flow_takes_a_share_of_a_gpu_where_its_solver_runs_on_one(fresh: Project) -> None:
    """`cuda` promises GPUs, wherever this is read; numba's jobs are never held to the number that share one."""
    assert resources(fresh, accelerator="cuda", backend="auto") == {"flow_gpu": {"1"}, "gpu": {"1"}}
    assert resources(fresh, accelerator="cuda", backend="numba") == {"flow_gpu": {"0"}, "gpu": {"1"}}
