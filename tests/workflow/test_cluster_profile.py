"""What a cluster is told of the jobs, as far as that shows without one."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.workflow.project import Project


def profile(root: Path, name: str) -> dict[str, object]:
    settings = yaml.safe_load((root / f"profiles/{name}/config.yaml").read_text())
    assert isinstance(settings, dict)
    return settings


def resources(output: str) -> dict[str, str]:
    """The line of resources of a job of each rule, from a dry run."""
    jobs = re.findall(r"^(?:local)?rule (\w+):\n((?: {4}.*\n)+)", output, flags=re.MULTILINE)
    return {rule: "".join(re.findall(r"resources: .*", text)) for rule, text in jobs}


def test_every_rule_says_what_it_needs(root: Path) -> None:
    """Also those that only some configurations have."""
    rules = []
    for path in sorted((root / "pipeline/rules").glob("*.smk")):
        rules += re.split(r"^\s*rule\b.*:\n", path.read_text(), flags=re.MULTILINE)[1:]
    assert len(rules) > 10
    for rule in rules:
        for needed in ("threads:", "mem_mb=", "runtime="):
            assert needed in rule, f"{needed} is missing in: {rule[:200]}"


def test_profiles_do_not_contradict_each_other(root: Path) -> None:
    """Snakemake puts profiles/default above a profile that is named."""
    assert not profile(root, "default").keys() & profile(root, "slurm").keys()


@pytest.mark.skipif(find_spec("snakemake_executor_plugin_slurm") is None, reason="the extra slurm is not installed")
def test_all_gpus_of_a_training_are_asked_for(fresh: Project) -> None:
    """And no limit that holds on the machine where it is started, which may have none."""
    path = fresh.folder / "config.yaml"
    compute = {"accelerator": "cuda", "devices": 4, "workers": 3}
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"compute": compute}))
    told = resources(fresh.run("-n", "--profile", "profiles/slurm", target="train_all").output)
    assert {"gpu=4", "mem_mb=40000"} <= set(re.split(r"[ ,]+", told["train_rgb"]))
    assert "gpu=1" in told["predict_rgb"]
    del told["train_all"]
    assert all(re.search(r"\bmem_mb=\d+", said) and "runtime=" in said for said in told.values()), told
    assert not re.search(r"(?<!flow_)gpu=", "".join(told[rule] for rule in ("probe", "frames", "flow", "baseline")))


def test_a_machine_runs_a_training_on_each_of_its_gpus(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fresh.folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"compute": {"accelerator": "cuda"}}))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5")
    many = ["-n", "--set-resources", "train_rgb:gpu=99"]  # is told as what there is
    assert "gpu=3" in resources(fresh.run(*many, target="train_all").output)["train_rgb"]
    assert "gpu=2" in resources(fresh.run(*many, "--resources", "gpu=2", target="train_all").output)["train_rgb"]
