"""Every family from one command, and what the cache of features does when something changes."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pipeline.learning.scores import read_scores
from tests.workflow.project import OPTIM, Project, Run, make_project

CLIPS = {
    "segments": 1, "snippet": 4, "short": "loop", "test_segments": None, "input_size": 32, "test_scale": 1.0,
}  # fmt: skip
FRAMES = {"segments": 2, "test_segments": 3, "input_size": 32}
PLAIN = {"family": "sta_net", "backbone": "resnet3d18", "width": 2, "variant": "none"}
EXPERIMENTS: dict[str, Any] = {
    "kept": {"modality": "frames", "sampling": FRAMES, "optim": {**OPTIM, "epochs": 0}},
    "where": {
        "modality": "frames",
        "features": "kept",
        "model": {"family": "where_when", "hidden": 4},
        "sampling": {**FRAMES, "test_crops": "whole"},
        "optim": OPTIM,
    },
    "clips": {"modality": "frames", "model": {"family": "jsta", "width": 2}, "sampling": CLIPS, "optim": OPTIM},
    "over_clips": {
        "modality": "frames",
        "features": "clips",
        "model": {"family": "jsta_temporal", "hidden": 4},
        "sampling": CLIPS,
        "optim": {**OPTIM, "optimizer": "rmsprop"},
    },
    "teacher": {"modality": "flow", "model": PLAIN, "sampling": CLIPS, "optim": OPTIM},
    "student": {
        "modality": "frames",
        "mars": {"teacher": "teacher"},
        "model": {**PLAIN, "variant": "sta", "stages": ["layer3"]},
        "sampling": CLIPS,
        "optim": {**OPTIM, "schedule": "plateau", "train_only": ["layer3", "layer4", "fc"]},
    },
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, root: Path) -> tuple[Project, Run]:
    """A project in which every family has run once. Do not change it: copy it."""
    project = make_project(tmp_path_factory.mktemp("families") / "base", root)
    path = project.folder / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"experiments": EXPERIMENTS, "shards": 1}))
    return project, project.run(target="train_all")


def change(project: Project, experiment: str, **sections: dict[str, Any]) -> None:
    path = project.folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for section, values in sections.items():
        config["experiments"][experiment][section] |= values
    path.write_text(yaml.safe_dump(config))


def features_of(project: Project, *, whole: bool) -> str:
    """The receipt of the features of whole frames or of clips, as a target."""
    (found,) = (
        path
        for path in project.work.glob("receipts/features-*/*/*.json")
        if (json.loads(path.read_text())["parameters"]["test_crops"] == "whole") == whole
    )
    return str(found.relative_to(project.folder))


def made(project: Project) -> Counter[str]:
    """Arrays that the last features jobs of each head made."""
    found: Counter[str] = Counter()
    for log in (project.work / "logs/features").glob("*.log"):
        (count,) = re.findall(r"features \d+: (\d+) made", log.read_text())
        found[log.name.split("-")[0]] += int(count)
    return found


def arrays(project: Project) -> dict[str, bytes]:
    return {name: data for name, data in project.stores().items() if name.startswith("features/")}


def test_every_family_runs_once_and_never_again(finished: tuple[Project, Run]) -> None:
    project, first = finished
    jobs = {name: count for name, count in first.jobs.items() if name.startswith(("train_", "predict_", "features_"))}
    trained = {f"{kind}_{name}": 1 for kind in ("train", "predict") for name in EXPERIMENTS}
    assert jobs == {**trained, "features_where": 1, "features_over_clips": 1}
    assert made(project) == Counter({"where": 8, "over_clips": 8})
    results = json.loads((project.work / "results.json").read_text())
    assert {row["experiment"] for row in results["runs"]} == {*EXPERIMENTS, "fused", "baseline"}
    assert project.run("-n", target="train_all").jobs == Counter()


def test_scores_of_heads_are_of_the_frames_that_the_features_are_of(finished: tuple[Project, Run]) -> None:
    project, _ = finished
    (where,) = project.work.glob("runs/frames-where_when-*/*/scores-*.npz")
    found = read_scores(where)
    assert found.positions.tolist() == [[1, 3, 5]] * 2  # the middles of three parts of six frames
    assert found.maps is not None
    assert found.maps.shape == (2, 3, 2, 2)
    assert found.view is not None
    assert found.view.tolist() == [[0, 0, 1, 1]] * 2
    (clips,) = project.work.glob("runs/frames-jsta_temporal-*/*/scores-*.npz")
    assert read_scores(clips).positions.tolist() == [[0]] * 2  # one clip of four fits six frames
    np.testing.assert_allclose(read_scores(clips).weights, 1.0)


def test_what_each_change_would_run(finished: tuple[Project, Run], tmp_path: Path) -> None:
    """Heads that read the same features share them; a head that changes reads what is there."""
    project = finished[0].copy(tmp_path / "project")
    config = yaml.safe_load((project.folder / "config.yaml").read_text())
    another = {**EXPERIMENTS["over_clips"], "model": {"family": "jsta_temporal", "temporal": "none"}}
    config["experiments"] |= {"without": another}
    config["experiments"]["where"]["model"] |= {"lambda_tv": 0.1}
    (project.folder / "config.yaml").write_text(yaml.safe_dump(config))
    heads = {f"{kind}_{name}": 1 for kind in ("train", "predict") for name in ("without", "where")}
    assert project.run("-n", target="train_all").jobs == Counter({**heads, "evaluate": 1, "report": 1})


def test_a_label_edit_computes_no_features_of_a_network_that_it_does_not_change(
    finished: tuple[Project, Run], tmp_path: Path
) -> None:
    project = finished[0].copy(tmp_path / "project")
    before = arrays(project)
    project.write_rows(["".join(project.rows()).replace("bars0.avi,bars", "bars0.avi,fractal")])
    run = project.run("--until", "features_where", "features_over_clips", target="train_all")
    jobs = ("manifest", "train_kept", "train_clips", "features_where", "features_over_clips")
    assert run.jobs == Counter(dict.fromkeys(jobs, 1))
    # what no epoch has trained is the same network; what has been trained on the labels is another
    assert made(project) == Counter({"where": 0, "over_clips": 8})
    after = arrays(project)
    assert all(after[name] == data for name, data in before.items())


def test_a_new_checkpoint_computes_its_features_again_and_no_others(
    finished: tuple[Project, Run], tmp_path: Path
) -> None:
    project = finished[0].copy(tmp_path / "project")
    receipts = {features_of(project, whole=whole) for whole in (True, False)}
    count = len(arrays(project))
    change(project, "clips", optim={"lr": 0.005})
    planned = project.run("-n", target="train_all")
    (new,) = set(re.findall(r"work/receipts/features-\S+json", planned.output)) - receipts
    assert project.run(target=new).jobs == Counter({"train_clips": 1, "features_over_clips": 1})
    assert made(project)["over_clips"] == 8
    assert len(arrays(project)) == count + count // 2
    change(project, "clips", optim={"lr": OPTIM["lr"]})
    assert project.run("-n", target="train_all").jobs == Counter()


@pytest.mark.slow  # each step of it is tested next to its code: notes, healing, the stage's second run
def test_damaged_features_are_named_and_made_again(finished: tuple[Project, Run], tmp_path: Path) -> None:
    project = finished[0].copy(tmp_path / "project")
    before = arrays(project)
    key = key_of(project, "bars0")
    (shard,) = (path for path in (project.work / f"stores/features/{key[:2]}/{key}/c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    change(project, "where", model={"lambda_tv": 0.1})
    planned = project.run("-n", target="train_all")
    (model,) = set(re.findall(r"work/runs/frames-where_when\S+model.pt", planned.output))
    assert project.run(target=model, check=False).returncode != 0
    (log,) = (project.work / "logs/train").glob("where-*.log")
    assert key in log.read_text()
    assert "damaged" in log.read_text()
    assert project.run(target=model).jobs == Counter({"features_where": 1, "train_where": 1})
    assert made(project)["where"] == 1
    assert arrays(project) == before


def key_of(project: Project, video: str) -> str:
    """Of the features of the frames of a video."""
    receipt = json.loads((project.folder / features_of(project, whole=True)).read_text())
    (key,) = (facts["key"] for name, facts in receipt["videos"].items() if video in name)
    return str(key)
