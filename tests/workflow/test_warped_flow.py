"""A stream on warped flow: computed only when one asks for it, without touching frames and plain flow."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.workflow.project import OPTIM, Project, Run, environment
from tests.workflow.test_interruption import kill_tree

WARPED = {
    "modality": "warped_flow",
    "sampling": {"segments": 2, "snippet": 2, "test_segments": 3, "input_size": 32},
    "optim": OPTIM,
}
GATHER = {"evaluate": 1, "report": 1}
STREAM = {"train_warped": 1, "predict_warped": 1, **GATHER}


def configure(project: Project, *, stream: bool = True, **settings: object) -> None:
    """Add the stream or take it out, and set the section warped_flow."""
    path = project.folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["experiments"].pop("warped", None)
    if stream:
        config["experiments"]["warped"] = WARPED
    config["warped_flow"] = settings
    path.write_text(yaml.safe_dump(config))


def shards(project: Project) -> int:
    return len(list((project.work / "plan/media").glob("*.json")))


@pytest.fixture(scope="module")
def warped(trained: tuple[Project, Run], tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Run]:
    """The finished project with the stream added, and the run that this took. Do not change it: copy it."""
    project = trained[0].copy(tmp_path_factory.mktemp("warped") / "project")
    configure(project)
    return project, project.run(target="train_all")


def test_a_warped_stream_computes_warped_flow_and_its_training_alone(
    trained: tuple[Project, Run], warped: tuple[Project, Run]
) -> None:
    project, run = warped
    assert run.computed == Counter({"warped_flow": 8})
    assert run.jobs == Counter({"warped_flow": shards(project), "index_warped_flow": 1, **STREAM})
    before, after = trained[0].stores(), project.stores()
    assert {name: after[name] for name in before} == before
    assert len(after) > len(before)
    page = (project.work / "report.html").read_text()
    assert "camera motion taken out" in page
    assert "warped flow 2 of" in page


@pytest.mark.slow
def test_its_settings_there_and_back(warped: tuple[Project, Run], tmp_path: Path) -> None:
    project = warped[0].copy(tmp_path / "project")
    assert project.run(target="train_all").jobs == Counter()
    configure(project, min_inliers=12)
    changed = project.run()
    assert changed.computed == Counter({"warped_flow": 8})
    assert changed.jobs == Counter({"warped_flow": shards(project), "index_warped_flow": 1})
    configure(project)
    assert project.run(target="train_all").jobs == Counter()
    configure(project, stream=False)
    assert project.run(target="train_all").jobs == Counter(GATHER)


def test_it_follows_the_settings_of_flow(warped: tuple[Project, Run], tmp_path: Path) -> None:
    project = warped[0].copy(tmp_path / "project")
    config = yaml.safe_load((project.folder / "config.yaml").read_text())
    config["flow"]["bound"] = 15
    (project.folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert project.run().computed == Counter({"flow": 8, "warped_flow": 8})


@pytest.mark.slow
def test_kill_in_the_warped_flow_and_run_again(project: Project, warped: tuple[Project, Run]) -> None:
    configure(project)
    process = subprocess.Popen(
        project.command("train_all"),
        cwd=project.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    while not any(project.work.glob("receipts/warped_flow-*/*.json")) and process.poll() is None:
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before the moment came"
    kill_tree(process)
    project.run(target="train_all")
    whole = {name: data for name, data in project.stores().items() if "/.tmp-" not in f"/{name}"}
    assert whole == warped[0].stores()
    assert (project.work / "results.json").read_bytes() == (warped[0].work / "results.json").read_bytes()
