"""kill -9 of a run over twenty videos, again and again: what is stored is whole and stays, and the end is the same.

The long version, a hundred kills: ``pytest -m slow -k kill``.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from pipeline.dataset.keys import artifact_key
from pipeline.stores.flow import FlowStore
from pipeline.stores.frames import check_shard
from tests.workflow.project import STAGES, Project, environment, kill_tree, make_project, render

VIDEOS = 20
Keys = dict[str, set[str]]
"""Artifact keys by stage."""


class Undisturbed(NamedTuple):
    project: Project
    seconds: float
    """Wall time of its run."""
    keys: Keys


def make_twenty(folder: Path, root: Path) -> Project:
    """Twelve videos more than a project has."""
    project = make_project(folder, root)
    rows = project.rows()
    for number in range(4, 10):
        for label in ("bars", "fractal"):
            render(folder / f"videos/{label}{number}.avi", label, start=0.2 * number)
            rows.append(f"videos/{label}{number}.avi,{label},train\n")
    project.write_rows(rows)
    return project


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Undisturbed:
    project = make_twenty(tmp_path_factory.mktemp("kills") / "undisturbed", root)
    begun = time.monotonic()
    run = project.run()
    seconds = time.monotonic() - begun
    assert run.computed == Counter(dict.fromkeys(STAGES, VIDEOS))
    return Undisturbed(project, seconds, whole(project.work))


def whole(work: Path) -> Keys:
    """What is stored. Fails if anything that is visible is not whole to the last byte."""
    stores = work / "stores"
    probed = [json.loads(path.read_text()) for path in stores.glob("probe-*/[!.]*.json")]
    arrays = FlowStore(stores / "flow")
    flow = [path.name for path in stores.glob("flow/*/[!.]*")]
    packed = []
    for tar in stores.glob("frames-*/*.tar"):
        samples, wrong = check_shard(tar)
        assert not wrong
        packed += samples
    for key in flow:
        arrays.verify(key)
    for unfinished in stores.glob("frames-*/.tmp-*.tar-*"):  # what the next job takes over
        packed += check_shard(unfinished)[0]
    return {
        "probe": {key for facts in probed for key in facts},
        "frames": {sample.artifact_key for sample in packed},
        "flow": set(flow),
    }


def computed(work: Path, *, since: int) -> Keys:
    """What the receipts written after a time say was computed."""
    keys: Keys = {stage: set() for stage in STAGES}
    for path in work.glob("receipts/*/[!.]*.json"):
        if path.stat().st_mtime_ns >= since:
            receipt = json.loads(path.read_text())
            facts = [video["facts"] for video in receipt["videos"].values() if video["status"] == "done"]
            found = (one.get("key") or artifact_key("probe", {}, one["digest"]) for one in facts)
            keys[receipt["stage"]].update(found)
    return keys


def visible(project: Project) -> dict[str, bytes]:
    return {name: data for name, data in project.stores().items() if "/.tmp-" not in name}


def run_for(project: Project, seconds: float) -> int | None:
    """Run until the end, or kill all of it after a time; the exit status, None if it was killed."""
    process = subprocess.Popen(
        project.command("preprocess_all"),
        cwd=project.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        kill_tree(process)
        return None


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments_nothing_is_lost_torn_or_computed_twice(
    kills: int, undisturbed: Undisturbed, root: Path, tmp_path: Path
) -> None:
    project = make_twenty(tmp_path / "project", root)
    moments = random.Random(kills)
    kept: Keys = {stage: set() for stage in STAGES}
    killed = finished = 0
    while killed < kills or not finished:
        since = time.time_ns()
        left = moments.uniform(0, undisturbed.seconds) if killed < kills else 1000.0
        status = run_for(project, left)
        stored, made = whole(project.work), computed(project.work, since=since)
        for stage in STAGES:
            assert kept[stage] <= stored[stage], "a whole artifact is gone"
            assert not made[stage] & kept[stage], "an artifact that was whole is computed again"
        before, kept = kept, stored
        if status is None:
            killed += 1
            continue
        assert status == 0
        assert stored == undisturbed.keys
        assert made == {stage: stored[stage] - before[stage] for stage in STAGES}
        assert visible(project) == visible(undisturbed.project)
        finished += 1
        shutil.rmtree(project.work)
        shutil.rmtree(project.folder / ".snakemake")
        kept = {stage: set() for stage in STAGES}
    print(f"{killed} kills, {finished} runs to the end, each byte for byte the undisturbed one")
