"""kill -9 of the whole run at several moments, bad files among the inputs, and bad settings."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.dataset.manifest import read_manifest
from tests.workflow.project import Project, Run, environment, kill_tree

MOMENTS: dict[str, Callable[[Path], bool]] = {
    "first receipt": lambda work: any(work.glob("receipts/probe-*/*.json")),
    "in the frames": lambda work: any(work.glob("stores/frames-*/*")),
    "in the flow": lambda work: any(work.glob("stores/flow/*/*")),
    "in training": lambda work: any(work.glob("runs/*/*/last.pt")),
}


@pytest.mark.parametrize(
    "moment",
    [pytest.param(moment, marks=() if moment == "in training" else pytest.mark.slow) for moment in MOMENTS],
)
def test_kill_at_any_moment_and_run_again(moment: str, trained: tuple[Project, Run], fresh: Project) -> None:
    reached = MOMENTS[moment]
    process = subprocess.Popen(
        fresh.command("train_all"),
        cwd=fresh.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    while not reached(fresh.work) and process.poll() is None:
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before the moment came"
    kill_tree(process)
    assert not (fresh.work / "report.html").exists()

    fresh.run(target="train_all")
    whole = {name: data for name, data in fresh.stores().items() if "/.tmp-" not in f"/{name}"}
    assert whole == trained[0].stores()
    results = (fresh.work / "results.json").read_bytes()
    assert results == (trained[0].work / "results.json").read_bytes()
    assert fresh.run(target="train_all").jobs == Counter()


def test_bad_files_are_quarantined_and_the_run_completes_in_a_folder_with_blanks(fresh: Project) -> None:
    videos = fresh.folder / "videos"
    good = (videos / "bars0.avi").read_bytes()
    (videos / "empty.avi").write_bytes(b"")
    (videos / "text.avi").write_text("this is not a video\n" * 100)
    (videos / "torn.avi").write_bytes(good[: len(good) // 3])
    names = ("empty", "text", "torn")
    fresh.write_rows([*fresh.rows(), *(f"videos/{name}.avi,bars,train\n" for name in names)])
    fresh.run("--config", "work=a work folder", target="train_all")

    work = fresh.folder / "a work folder"
    (path,) = work.glob("manifest-*.tsv")
    manifest = read_manifest(path)
    assert {v.id: v.stage for v in manifest.quarantined} == dict.fromkeys(names, "probe")
    assert all(v.reason and "\n" not in v.reason for v in manifest.quarantined)
    assert len(manifest.part("split1", "train")) == 6
    page = (work / "report.html").read_text()
    assert all(name in page for name in names)


def test_too_many_bad_files_stop_the_run_with_the_list(fresh: Project) -> None:
    (fresh.folder / "videos/bars0.avi").write_bytes(b"")
    run = fresh.run("--config", "max_quarantined=0.1", target="train_all", check=False)
    assert run.returncode != 0
    assert "1 of 8 videos cannot be used, and max_quarantined allows 10%: bars0 (probe):" in run.output
    assert not list(fresh.work.glob("manifest-*.tsv"))


def test_on_error_fail_stops_at_the_first(fresh: Project) -> None:
    (fresh.folder / "videos/bars0.avi").write_bytes(b"")
    run = fresh.run("--config", "on_error=fail", check=False)
    assert run.returncode != 0
    assert "bars0" in run.output


def no_split(rows: list[str]) -> list[str]:
    return [row.replace(",label,", ",class,") for row in rows]


def no_training(rows: list[str]) -> list[str]:
    return [row.replace("fractal,train", "fractal,test") for row in rows]


def doubled(rows: list[str]) -> list[str]:
    return [*rows, "videos/../videos/bars0.avi,bars,train\n"]


@pytest.mark.parametrize(
    ("change", "arguments", "sentence"),
    [
        (None, ["shard=3"], "unknown key 'shard'; the nearest known key is 'shards'"),
        (None, ["shards=many"], "shards is 'many'"),
        (None, ["dataset=class_folders", "videos=nowhere"], "class_folders does not read the key 'csv'"),
        (None, ["videos=nowhere"], "8 of 8 listed videos are not in nowhere"),
        (None, ["splits=[split7]"], "no split 'split7'; it has split1"),
        (no_split, [], "has no column 'label'"),
        (no_training, [], "the class 'fractal' has no usable training video in split1"),
        (doubled, [], "the id 'bars0' is that of line 2 too"),
    ],
)
def test_bad_settings_are_one_sentence_and_write_nothing(
    fresh: Project, change: Callable[[list[str]], list[str]] | None, arguments: list[str], sentence: str
) -> None:
    if change:
        fresh.write_rows(change(fresh.rows()))
    before = {path for path in fresh.folder.rglob("*") if ".snakemake" not in path.parts}
    run = fresh.run(*(["--config", *arguments] if arguments else []), check=False)
    assert run.returncode != 0
    said = [line for line in run.output.splitlines() if line.startswith("wherewhen: ")]
    assert len(said) == 1
    assert sentence in said[0]
    assert "Traceback" not in run.output
    assert {path for path in fresh.folder.rglob("*") if ".snakemake" not in path.parts} == before
