"""What runs again, and for how many videos, after each kind of change. Nothing more and nothing less."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import yaml

from pipeline.dataset.keys import VERSIONS
from tests.workflow.project import STAGES, Project, Run, render

# Beside the shards' own jobs these gather, whenever a shard changed.
GATHER = {"manifest": 1, "index_frames": 1, "index_flow": 1}
TRAIN_BOTH = {
    "train_rgb": 1,
    "train_flow": 1,
    "predict_rgb": 1,
    "predict_flow": 1,
    "baseline": 1,
    "evaluate": 1,
    "report": 1,
}


def edit_config(project: Project, **changes: object) -> None:
    path = project.folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            config[section][name] = value
        else:
            config[section] = value
    path.write_text(yaml.safe_dump(config))


def edit_code(project: Project, file: str, old: str, new: str) -> None:
    path = project.folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_first_run_computes_everything_once(trained: tuple[Project, Run]) -> None:
    project, first = trained
    shards = len(json.loads((project.work / "plan/shards.json").read_text()))
    assert shards == 2  # so that there is one which a change leaves alone
    assert first.jobs == Counter({**dict.fromkeys(STAGES, shards), **GATHER, **TRAIN_BOTH})
    assert first.computed == Counter(dict.fromkeys(STAGES, 8))
    assert "The report lies at work/report.html" in first.output
    assert (project.work / "report.html").stat().st_size > 10_000


def test_again_nothing_runs(project: Project) -> None:
    assert project.run(target="train_all").jobs == Counter()


def test_touching_every_file_runs_nothing(project: Project) -> None:
    for path in project.folder.rglob("*"):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path)
    assert project.run(target="train_all").jobs == Counter()


def test_reordering_the_list_runs_nothing(project: Project) -> None:
    head, *rows = project.rows()
    project.write_rows([head, *rows[::-1]])
    assert project.run(target="train_all").jobs == Counter()


def test_adding_a_video_computes_that_video(project: Project) -> None:
    render(project.folder / "videos/bars9.avi", "bars", start=1.3)
    project.write_rows([*project.rows(), "videos/bars9.avi,bars,train\n"])
    planned = project.run("-n", target="train_all")
    assert planned.jobs == Counter({**dict.fromkeys(STAGES, 1), **GATHER, **TRAIN_BOTH})
    run = project.run()
    assert run.computed == Counter(dict.fromkeys(STAGES, 1))
    assert run.jobs == Counter({**dict.fromkeys(STAGES, 1), **GATHER})
    assert project.run("-n", target="train_all").jobs == Counter(TRAIN_BOTH)


def test_changing_a_video_computes_that_video(project: Project) -> None:
    before = project.stores()
    render(project.folder / "videos/bars1.avi", "bars", start=1.7)
    run = project.run()
    assert run.computed == Counter(dict.fromkeys(STAGES, 1))
    assert run.jobs == Counter({**dict.fromkeys(STAGES, 1), **GATHER})
    after = project.stores()
    kept = [name for name in before if name.startswith("flow/")]
    assert all(after[name] == before[name] for name in kept)
    assert len([name for name in after if name.startswith("flow/")]) > len(kept)


def test_removing_a_video_computes_nothing(project: Project) -> None:
    project.write_rows([row for row in project.rows() if "bars1" not in row])
    run = project.run()
    assert run.computed == Counter()
    assert run.jobs == Counter({**dict.fromkeys(STAGES, 1), **GATHER})
    tars = {name: data for name, data in project.stores().items() if name.endswith(".tar")}
    assert not any(b"bars1." in data for data in tars.values())
    assert any(b"bars2." in data for data in tars.values())


def test_relabelling_computes_no_frame_and_no_flow(project: Project) -> None:
    text = "".join(project.rows())
    project.write_rows([text.replace("bars,test", "bars,train")])
    assert project.run("-n", target="train_all").jobs == Counter({"manifest": 1, **TRAIN_BOTH})
    project.write_rows([text.replace("bars0.avi,bars", "bars0.avi,fractal")])
    run = project.run(target="train_all")
    assert run.computed == run.reused == Counter()
    assert run.jobs == Counter({"manifest": 1, **TRAIN_BOTH})


def test_a_flow_parameter_there_and_back(project: Project) -> None:
    edit_config(project, flow__bound=15)
    there = project.run()
    assert there.computed == Counter({"flow": 8})
    assert set(there.jobs) == {"flow", "index_flow"}
    edit_config(project, flow__bound=20.0)
    back = project.run()
    assert back.jobs == back.computed == Counter()


def test_a_flow_parameter_does_not_retrain_the_rgb_stream(project: Project) -> None:
    edit_config(project, flow__bound=15)
    jobs = project.run("-n", target="train_all").jobs
    assert jobs["train_flow"] == jobs["baseline"] == jobs["report"] == 1
    assert jobs["train_rgb"] == jobs["predict_rgb"] == jobs["frames"] == 0


def test_testing_and_fusion_parameters_do_not_retrain(project: Project) -> None:
    config = yaml.safe_load((project.folder / "config.yaml").read_text())
    config["experiments"]["rgb"]["weight"] = 2.0
    (project.folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert project.run(target="train_all").jobs == Counter({"evaluate": 1, "report": 1})
    config["experiments"]["rgb"]["sampling"]["test_segments"] = 4
    (project.folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert project.run("-n", target="train_all").jobs == Counter({"predict_rgb": 1, "evaluate": 1, "report": 1})


def test_fusions_and_what_a_paper_gives_are_evaluated_alone(project: Project) -> None:
    fusions = {"both": {"experiments": {"rgb": 1, "flow": 2}, "fuse_on": "prob", "paper": 90}}
    edit_config(project, fusions=fusions)
    assert project.run(target="train_all").jobs == Counter({"evaluate": 1, "report": 1})
    results = json.loads((project.work / "results.json").read_text())
    papers = {row["name"]: row["paper"] for row in results["rows"]}
    assert papers == {"both": 90, "rgb": None, "flow": None, "baseline": None}
    assert set(results["summary"]) == {"both", "rgb", "flow", "baseline"}


def test_only_a_run_for_the_report_says_where_it_lies(project: Project) -> None:
    (project.work / "report.html").unlink()
    report = project.run(target="report")
    assert report.jobs == Counter({"report": 1})
    assert "The report lies at work/report.html" in report.output
    for path in project.work.glob("manifest-*.tsv"):
        path.unlink()
    manifest = project.run(target="manifest")
    assert manifest.jobs == Counter({"manifest": 1})
    assert "The report lies at" not in manifest.output


def test_where_it_runs_is_no_parameter(project: Project) -> None:
    edit_config(project, compute={"threads": 2}, on_error="fail", max_quarantined=0.4)
    assert set(project.run(target="train_all").jobs) <= {"report"}  # which shows the configuration


def test_equal_settings_written_otherwise_run_nothing(project: Project) -> None:
    edit_config(project, flow={"warps": 2.0, "size": [40, 32], "lambda": 0.150})
    assert project.run(target="train_all").jobs == Counter()


def test_bumping_a_version_recomputes_that_stage(project: Project) -> None:
    was = VERSIONS["flow"]
    edit_code(project, "pipeline/dataset/keys.py", f'"flow": {was}', f'"flow": {was + 1}')
    run = project.run()
    assert run.computed == Counter({"flow": 8})
    assert set(run.jobs) == {"flow", "index_flow"}


def test_a_comment_in_code_recomputes_nothing(project: Project) -> None:
    for file, old in (
        ("stages/flow.py", "import numpy as np"),
        ("pipeline/rules/preprocess.smk", "rule flow:"),
        ("models/atw.py", "import torch"),
    ):
        edit_code(project, file, old, f"# a new comment\n{old}")
    assert project.run(target="train_all").jobs == Counter()


def test_two_runs_at_once(project: Project) -> None:
    """The second says who is at work and does nothing."""
    import fcntl

    with (project.work / ".lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        edit_config(project, shards=1, flow__bound=15)
        before = {path: path.read_bytes() for path in project.work.rglob("*") if path.is_file()}
        for arguments in ([], ["-n"]):
            run = project.run(*arguments, check=False)
            assert run.returncode != 0
            assert "wherewhen: another run holds" in run.output
    assert {path: path.read_bytes() for path in project.work.rglob("*") if path.is_file()} == before


def test_the_evaluations_version_counts_too(project: Project) -> None:
    was = VERSIONS["evaluate"]
    edit_code(project, "pipeline/dataset/keys.py", f'"evaluate": {was}', f'"evaluate": {was + 1}')
    assert project.run(target="train_all").jobs == Counter({"evaluate": 1, "report": 1})


def test_flow_of_another_shard_count_is_reused(project: Project, tmp_path: Path) -> None:
    edit_config(project, shards=3)
    run = project.run()
    assert run.computed["flow"] == 0
    assert run.reused["flow"] == 8
