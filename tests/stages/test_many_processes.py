"""Training by several processes: what each sees, that a step is the same whoever shares it, that no failure hangs."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pipeline.config import ComputeConfig, canonical
from pipeline.dataset.manifest import Manifest, Video, write_manifest
from pipeline.stores.frame_reader import FrameShards
from pipeline.stores.frames import ShardWriter
from pipeline.stores.provenance import made_by
from tests.stages import ranks

ROOT = Path(__file__).resolve().parents[2]
SHARDS = (("00000.tar", 8), ("00001.tar", 1), ("00002.tar", 4))
"""Videos to train on in each shard: 13, which neither two nor three processes share evenly."""
TESTS = 7
BATCH = 6


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def torchrun(processes: int, *command: str) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "localhost"]
    return [sys.executable, *launcher, "--nproc-per-node", str(processes), *command]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory, learnable: Any) -> Path:
    """A dataset whose videos lie unevenly in three shards; those of the first are tested too."""
    folder = tmp_path_factory.mktemp("uneven")
    source = learnable.index("frames")
    names = [name for name in sorted(source["videos"]) if name.startswith("train")]
    videos, facts, number = [], {}, 0
    (folder / "frames").mkdir()
    for shard, count in SHARDS:
        trained = count
        with (folder / "frames" / shard).open("w+b") as file:
            writer = ShardWriter(file, folder=folder)
            for place in range(trained + (TESTS if shard == "00000.tar" else 0)):
                name = names[number % len(names)]
                part = "train" if place < trained else "test"
                label = name.split("-")[1]
                videos.append(video(f"{shard[:5]}-{place:02d}", label, part))
                facts[videos[-1].id] = copied(writer, source, name, videos[-1].id) | {"shard": shard}
                number += 1
            writer.finish()
    (folder / "frames.json").write_text(json.dumps({**source, "store": str(folder / "frames"), "videos": facts}))
    write_manifest(folder / "manifest.tsv", Manifest(tuple(sorted(videos, key=lambda video: video.id))))
    return folder


def video(name: str, label: str, part: str) -> Video:
    return Video(id=name, path=name, digest=name, bytes=1, labels=(label,), splits={"split1": part})


def copied(writer: ShardWriter, source: Any, name: str, video_id: str) -> dict[str, Any]:
    """A video of the learnable dataset under another name."""
    facts = source["videos"][name]
    images = FrameShards(Path(source["store"])).read_jpegs(facts, range(facts["frames"]))
    about = {**made_by("frames"), "parameters": source["parameters"], "id": video_id, "artifact_key": facts["key"]}
    sample = writer.add(images, metadata={**about, "width": facts["width"], "height": facts["height"]})
    return {**facts, "offset": sample.offset}


@pytest.fixture(scope="module")
def twelve(uneven: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without the shard of one video, so that two processes share evenly and no order is filled up."""
    facts = json.loads((uneven / "frames.json").read_text())
    kept = {name: found for name, found in facts["videos"].items() if not name.startswith("00001")}
    folder = tmp_path_factory.mktemp("twelve")
    (folder / "frames.json").write_text(json.dumps({**facts, "videos": kept}))
    (folder / "manifest.tsv").write_bytes((uneven / "manifest.tsv").read_bytes())
    return folder


def job(
    folder: Path, out: Path, learnable: Any, *, shuffle: str, processes: int, accumulate: int = 1
) -> dict[str, Any]:
    optim = {"epochs": 2, "batch_size": BATCH, "shuffle": shuffle, "shuffle_buffer": 3}
    compute = ComputeConfig(accelerator="cpu", devices=processes, accumulate=accumulate)
    settings = learnable.experiment("frames", optim=optim).model_dump(mode="json")
    return {"folder": str(folder), "settings": settings, "compute": compute.model_dump(), "out": str(out)}


@pytest.fixture(scope="module")
def seen(
    uneven: Path, twelve: Path, learnable: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], list[Any]]:
    """What each process saw, by kind of training and number of processes."""
    out = tmp_path_factory.mktemp("seen")
    kinds: dict[str, tuple[Path, dict[str, Any]]] = {
        "videos": (uneven, {"shuffle": "videos"}),
        "shards": (uneven, {"shuffle": "shards"}),
        "twelve": (twelve, {"shuffle": "videos"}),
        "twelve in parts": (twelve, {"shuffle": "videos", "accumulate": 4}),
    }
    found = {}
    for processes in (1, 2, 3):
        jobs = [
            job(folder, out / f"{kind} {processes}", learnable, processes=processes, **settings)
            for kind, (folder, settings) in kinds.items()
        ]
        if processes == 1:
            ranks.main(jobs)
        else:
            run = torchrun(processes, "-m", "tests.stages.ranks", json.dumps(jobs))
            done = subprocess.run(run, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
        for kind in kinds:
            folder = out / f"{kind} {processes}"
            found[kind, processes] = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]
    return found


@pytest.mark.parametrize("shuffle", ["videos", "shards"])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_video_is_seen_whatever_the_processes_and_shards(
    uneven: Path, seen: dict[tuple[str, int], list[Any]], processes: int, shuffle: str
) -> None:
    """Shards of 8, 1 and 4 videos; the order of an epoch is filled up from its start to be shared."""
    ids = json.loads((uneven / "frames.json").read_text())["videos"]
    tested = {name for name in ids if name.startswith("00000") and int(name.split("-")[1]) >= SHARDS[0][1]}
    found = seen[shuffle, processes]
    assert Counter(name for rank in found for name in rank["tested"]) == dict.fromkeys(tested, 1)
    assert len({tuple(len(step) for step in rank["seen"]) for rank in found}) == 1  # as many steps, of equal size
    steps = [[name for rank in found for name in rank["seen"][step]] for step in range(len(found[0]["seen"]))]
    assert len(steps) == 2 * 3  # two epochs of 13 videos, six a step
    for epoch in (steps[:3], steps[3:]):
        assert [len(step) for step in epoch[:2]] == [BATCH, BATCH]
        once = [name for step in epoch[:2] for name in step]
        assert len(set(once)) == len(once)  # nothing again before all
        counts = Counter(name for step in epoch for name in step)
        assert set(counts) == set(ids) - tested
        assert sum(counts.values()) - len(counts) < processes
    if shuffle == "shards":  # a buffer of three: at most three shards are read at a time, and most videos from one
        order = [name[:5] for step in steps[:3] for name in step][: len(ids) - len(tested)]
        assert sum(one != other for one, other in pairwise(order)) <= 6
    (alone,) = seen[shuffle, 1]
    for step, wanted in zip(steps, alone["seen"], strict=True):
        assert set(wanted) <= set(step)  # the videos of a step do not depend on how many share it


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("kind", ["twelve", "twelve in parts"])
def test_a_step_is_the_same_whoever_shares_it(
    seen: dict[tuple[str, int], list[Any]], kind: str, processes: int
) -> None:
    """By one process at once, by several, and in parts: the weights of twelve steps with momentum agree."""
    (alone,) = seen["twelve", 1]
    assert alone["losses"][1] < alone["losses"][0]
    for found in seen[kind, processes]:
        assert found["weights"] == pytest.approx(alone["weights"], abs=1e-6)
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-6)
    parts = [len(batch) for batch in seen["twelve in parts", processes][0]["seen"]]
    assert parts[:4] == {1: [2, 2, 1, 1], 2: [1, 1, 1, 1], 3: [1, 1, 1, 1]}[processes]


def command(learnable: Any, out: Path, index: Path, **optim: Any) -> list[str]:
    experiment = learnable.experiment("frames", optim={"batch_size": 4, **optim})
    options = {
        "--manifest": learnable.folder / "manifest.tsv",
        "--index": index,
        "--experiment": canonical(experiment),
        "--compute": canonical(ComputeConfig(accelerator="cpu", devices=2)),
        "--split": "split1",
        "--seed": 0,
        "--out": out,
    }
    return [sys.executable, "-m", "stages.train", *(str(word) for pair in options.items() for word in pair)]


def test_a_process_that_fails_ends_the_job(learnable: Any, tmp_path: Path) -> None:
    """One video's place in its shard is wrong: one process says so, and the other does not wait for it."""
    index = learnable.index("frames")
    index["videos"]["train-up-2"]["offset"] += 512
    (tmp_path / "frames.json").write_text(json.dumps(index))
    job = command(learnable, tmp_path / "out", tmp_path / "frames.json", epochs=2)
    done = subprocess.run(job, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "train: frames" in done.stderr
    assert "does not hold what the index says" in done.stderr
    assert not (tmp_path / "out" / "model.pt").exists()


@pytest.mark.parametrize("whom", ["a process", "torchrun"])
def test_a_kill_ends_the_job_and_leaves_no_process(learnable: Any, tmp_path: Path, whom: str) -> None:
    job = command(learnable, tmp_path / "out", learnable.index_path("frames"), epochs=10_000)
    with subprocess.Popen(job, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as running:
        deadline = time.monotonic() + 120
        while not (tmp_path / "out" / "last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        ranks = [one for one in psutil.Process(running.pid).children() if "stages.train" in one.cmdline()]
        assert len(ranks) == 2
        os.kill(ranks[1].pid if whom == "a process" else running.pid, signal.SIGKILL)
        _, said = running.communicate(timeout=60)
        assert running.returncode != 0
    _, left = psutil.wait_procs(ranks, timeout=20)
    assert not left
    if whom == "a process":
        assert "Signal 9 (SIGKILL)" in said


def test_a_killed_training_continues_with_as_many_processes_and_with_others(learnable: Any, tmp_path: Path) -> None:
    """Killed within an epoch of 36 steps: two processes end with the bytes of an undisturbed run, others end, too."""
    index = learnable.index("flow")
    index["videos"] = {f"{name}-{i}": facts for name, facts in index["videos"].items() for i in range(12)}
    (tmp_path / "flow.json").write_text(json.dumps(index))
    videos = [replace(one, id=f"{one.id}-{i}") for one in learnable.manifest.videos for i in range(12)]
    write_manifest(tmp_path / "manifest.tsv", Manifest(tuple(sorted(videos, key=lambda one: one.id))))

    def job(out: Path, **compute: Any) -> list[str]:
        settings = ComputeConfig(accelerator="cpu", checkpoint_minutes=0.0, **compute)
        options = {
            "--manifest": tmp_path / "manifest.tsv",
            "--index": tmp_path / "flow.json",
            "--experiment": canonical(learnable.experiment("flow", optim={"epochs": 2, "clip_norm": 5.0})),
            "--compute": canonical(settings),
            "--split": "split1",
            "--seed": 0,
            "--out": out,
        }
        return [sys.executable, "-m", "stages.train", *(str(word) for pair in options.items() for word in pair)]

    def run(out: Path, **compute: Any) -> str:
        done = subprocess.run(job(out, **compute), cwd=ROOT, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    killed = tmp_path / "killed"
    with subprocess.Popen(job(killed, devices=2), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL) as running:
        while not (killed / "last.pt").exists() and running.poll() is None:
            time.sleep(0.002)
        ranks = [one for one in psutil.Process(running.pid).children() if "stages.train" in one.cmdline()]
        running.kill()
    psutil.wait_procs(ranks, timeout=20)
    assert torch.load(killed / "last.pt", weights_only=True)["progress"]["step"] > 0
    shutil.copytree(killed, tmp_path / "other")
    assert "continuing after step" in run(killed, devices=2)
    run(tmp_path / "whole", devices=2)
    assert (killed / "model.pt").read_bytes() == (tmp_path / "whole" / "model.pt").read_bytes()
    assert "continuing after step" in run(tmp_path / "other", devices=1, accumulate=2)
    with (tmp_path / "other" / "history.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def test_a_second_job_of_the_same_training_leaves_it_alone(learnable: Any, tmp_path: Path) -> None:
    job = command(learnable, tmp_path / "out", learnable.index_path("frames"), epochs=10_000)
    with subprocess.Popen(job, cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL) as first:
        while not (tmp_path / "out" / "last.pt").exists() and first.poll() is None:
            time.sleep(0.05)
        second = subprocess.run(job, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120)
        assert second.returncode != 0
        assert "train: another run holds" in second.stderr
        assert first.poll() is None
        first.terminate()


@pytest.mark.slow
def test_nodes_are_torchruns_to_tell(learnable: Any, tmp_path: Path) -> None:
    """Two nodes of one process each, both on this machine, whatever ``devices`` says: one training of as many steps."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    told = command(learnable, tmp_path / "out", learnable.index_path("frames"), epochs=3)[1:]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--local-addr", "localhost"]
    nodes = [
        subprocess.Popen([*launcher, "--node-rank", str(rank), *told], cwd=ROOT, env=environment()) for rank in range(2)
    ]
    assert [node.wait(timeout=120) for node in nodes] == [0, 0]
    with (tmp_path / "out" / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["3", "6", "9"]  # twelve videos, four a step
