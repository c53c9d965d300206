"""A team with one store: what a teammate with an empty disk computes, and what damage leads to, in real runs."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.workflow.project import Project, Run, make_project, outcomes

EVERYTHING = Counter({"frames": 8, "flow": 8})


def share(project: Project, url: object, **settings: object) -> None:
    """Set the section ``store``."""
    path = project.folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["store"] = {"shared": str(url), **settings}
    path.write_text(yaml.safe_dump(config))


def fetched(project: Project) -> Counter[str]:
    """Videos taken from the shared store, by stage, as the receipts say."""
    receipts = [json.loads(path.read_text()) for path in project.work.glob("receipts/*/*.json")]
    return outcomes(receipts, "fetched")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, root: Path) -> tuple[Project, Path]:
    """A project preprocessed once with a shared store to write to, and the store. Do not change them: copy them."""
    folder = tmp_path_factory.mktemp("team")
    project = make_project(folder / "first", root)
    share(project, folder / "shared", mode="read-write")
    run = project.run()
    assert run.computed == EVERYTHING + Counter({"probe": 8})
    return project, folder / "shared"


def test_every_artifact_is_published_as_one_object(published: tuple[Project, Path]) -> None:
    _, shared = published
    names = [path.relative_to(shared).parts for path in shared.rglob("*") if path.is_file()]
    assert Counter(name[0] for name in names) == Counter({"flow": 8, "frames": 8, "wherewhen.json": 1})
    assert not [name for name in names if name[-1].startswith(".tmp-")]


@pytest.mark.parametrize("access", ["copy", pytest.param("in-place", marks=pytest.mark.slow)])
def test_a_teammate_with_an_empty_disk_computes_nothing(
    access: str, published: tuple[Project, Path], trained: tuple[Project, Run], root: Path, tmp_path: Path
) -> None:
    first, shared = published
    teammate = make_project(tmp_path / "teammate", root)
    share(teammate, shared, access=access)
    run = teammate.run(target="train_all")
    assert run.computed == Counter({"probe": 8})
    assert fetched(teammate) == EVERYTHING
    assert (teammate.work / "results.json").read_bytes() == (trained[0].work / "results.json").read_bytes()
    mine, theirs = teammate.stores(), first.stores()
    if access == "copy":
        assert mine == theirs
    else:
        assert mine == {name: data for name, data in theirs.items() if not name.startswith("flow/")}
    assert teammate.run(target="train_all").jobs == Counter()


@pytest.mark.slow
def test_changing_how_the_store_is_used_runs_nothing_but_the_page(
    published: tuple[Project, Path], project: Project
) -> None:
    _, shared = published
    share(project, shared, mode="read", access="in-place")
    assert project.run(target="train_all").jobs == Counter({"report": 1})


def test_a_store_that_is_not_there_is_an_error_and_nothing_is_computed(root: Path, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project", root)
    share(project, tmp_path / "not mounted")
    run = project.run(check=False)
    assert run.returncode != 0
    assert run.computed.keys() <= {"probe"}
    said = [log.read_text() for log in project.work.glob("logs/flow/*.log")]
    assert any("is no shared store: it has no wherewhen.json; mount it" in text for text in said)


@pytest.mark.slow
def test_a_damaged_object_is_named_computed_and_replaced(
    published: tuple[Project, Path], root: Path, tmp_path: Path
) -> None:
    _, shared = published
    shutil.copytree(shared, tmp_path / "shared")
    broken = [sorted((tmp_path / "shared" / kind).glob("*/*"))[0] for kind in ("flow", "frames")]
    whole = [path.read_bytes() for path in broken]
    for path, data in zip(broken, whole, strict=True):
        path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    teammate = make_project(tmp_path / "teammate", root)
    share(teammate, tmp_path / "shared", mode="read-write")
    run = teammate.run()
    assert run.computed == Counter({"probe": 8, "flow": 1, "frames": 1})
    assert fetched(teammate) == Counter({"flow": 7, "frames": 7})
    said = "".join(log.read_text() for log in teammate.work.glob("logs/*/*.log"))
    assert all(f"{path} is not used" in said for path in broken)
    assert [path.read_bytes() for path in broken] == whole


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def files(work: Path) -> dict[str, bytes]:
    """Every byte, but for the file that says which process holds the lock."""
    return {str(p): p.read_bytes() for p in work.rglob("*") if p.is_file() and p.name != ".lock"}


def test_training_on_damage_names_it_and_the_next_run_makes_it_anew(project: Project) -> None:
    whole, results = project.stores(), (project.work / "results.json").read_bytes()
    flip(sorted(project.work.glob("stores/flow/*/*/c/0/0/0/0"))[3], 1000)  # in a chunk
    flip(sorted(project.work.glob("stores/frames-*/*.tar"))[1], 600)  # in the JSON of its first, a training video
    shutil.rmtree(project.work / "runs")
    (project.work / "report.html").unlink()
    run = project.run("--keep-going", target="train_all", check=False)
    assert run.returncode != 0
    said = "".join(log.read_text() for log in project.work.glob("logs/*/*.log"))
    assert "baseline: video '" in said
    assert "train: video '" in said
    assert {json.loads(path.read_text())["made_by"] for path in project.work.glob("damaged/*.json")} == {
        "flow",
        "frames",
    }

    before = files(project.work)
    planned = project.run("--dry-run", target="train_all")
    told = [line for line in planned.output.splitlines() if line.startswith("video '")]
    assert {"its flow" in line for line in told} == {True, False}  # flow and frames
    assert files(project.work) == before

    again = project.run(target="train_all")
    assert again.computed == Counter({"flow": 1, "frames": 1})
    assert project.stores() == whole
    assert (project.work / "results.json").read_bytes() == results
    assert not list(project.work.glob("damaged/*.json"))
    assert project.run(target="train_all").jobs == Counter()
