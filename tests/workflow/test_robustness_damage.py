"""Damage of every kind in the stores of a finished run: it is named, nothing is trained on it, and it is made anew."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.stores.checksum import seal, unseal
from pipeline.stores.frames import samples
from tests.workflow.project import Project, environment

Damage = Callable[[Path], None]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 9 // 10])


def other_version(path: Path) -> None:
    """Metadata as another version of the stage would write it, with a checksum that is right."""
    metadata = unseal(path.read_bytes(), part="attributes")
    metadata["attributes"]["stage_version"] += 1
    path.write_bytes(seal(metadata, part="attributes"))


SHARD, METADATA, TAR = "flow/*/*/c/0/0/0/0", "flow/*/*/zarr.json", "frames-*/*.tar"
KINDS: dict[str, tuple[str, Damage]] = {
    "a flipped byte in a field": (SHARD, flip),
    "a deleted chunk": (SHARD, Path.unlink),
    "a shard cut short": (SHARD, cut),
    "a flipped byte in the metadata": (METADATA, flip),
    "no metadata": (METADATA, Path.unlink),
    "metadata of another version": (METADATA, other_version),
    "a flipped byte in a frame": (TAR, flip),
    "a tar cut short": (TAR, cut),
    "no tar": (TAR, Path.unlink),
}


def artifacts(project: Project, pattern: str) -> list[Path]:
    return sorted((project.work / "stores").glob(pattern))


def hit(tar: Path, damage: Damage) -> list[str]:
    """Ids of the videos that damage to a tar hits."""
    size = tar.stat().st_size
    begin, end = {flip: (size // 2, size // 2 + 1), cut: (size * 9 // 10, size - 1024)}[damage]
    return [sample.id for sample in samples(tar) if sample.offset < end and begin < sample.offset + sample.length]


def key_of(path: Path, work: Path) -> str:
    """Artifact key of a file of an array; of a tar its path."""
    parts = path.relative_to(work / "stores").parts
    return parts[2] if parts[0] == "flow" else str(Path("stores", *parts))


def verify(project: Project, *arguments: str) -> tuple[int, list[str]]:
    """Exit status, and what the command says is damaged."""
    command = [sys.executable, "-m", "stages.store", "verify", "--configfile", "config.yaml", *arguments]
    done = subprocess.run(command, cwd=project.folder, env=environment(), capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, [line for line in done.stdout.splitlines() if line.startswith("damaged: ")]


def test_verify_names_what_is_damaged_and_the_next_run_makes_that_anew(project: Project) -> None:
    whole = project.stores()
    kinds = [kind for kind in KINDS if kind not in ("no tar", "no metadata")]  # nothing is there to be verified
    arrays = iter(artifacts(project, "flow/*/*"))
    tars = iter(artifacts(project, TAR))
    names, lost = [], Counter[str]()
    for kind in kinds:
        pattern, damage = KINDS[kind]
        path = next(tars) if pattern == TAR else next(arrays) / pattern.removeprefix("flow/*/*/")
        names.append(key_of(path, project.work))
        lost["flow"] += pattern != TAR
        lost["frames"] += len(hit(path, damage)) if pattern == TAR else 0
        damage(path)
    status, told = verify(project)
    assert status == 1
    for name in names:
        assert any(name in line for line in told), f"{name} is not named in {told}"
    assert all(any(name in line for name in names) for line in told)
    assert verify(project, "--remove")[0] == 1
    assert project.run().computed == lost
    assert project.stores() == whole


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_training_stops_with_its_name_and_the_next_run_makes_it_anew(kind: str, project: Project) -> None:
    pattern, damage = KINDS[kind]
    whole, results = project.stores(), (project.work / "results.json").read_bytes()
    path = artifacts(project, pattern)[0]
    damage(path)
    shutil.rmtree(project.work / "runs")
    (project.work / "report.html").unlink()
    run = project.run("--keep-going", target="train_all", check=False)
    assert run.returncode != 0
    notes = [json.loads(note.read_text()) for note in project.work.glob("damaged/*.json")]
    videos = {note["video"] for note in notes}
    assert videos
    said = "".join(log.read_text() for log in project.work.glob("logs/*/*.log"))
    for note in notes:
        assert f"video '{note['video']}'" in said
        assert note["key"] in said
    assert (key_of(path, project.work) in {note["key"] for note in notes}) is not path.name.endswith(".tar")

    made: Counter[str] = Counter()
    for _ in range(4):  # of a tar that is gone, each run may meet another video first
        again = project.run(target="train_all", check=False)
        made += again.computed
        if again.returncode == 0:
            break
    assert made["flow"] == (0 if pattern == TAR else 1)
    assert made["frames"] == 0 if pattern != TAR else made["frames"] >= 1
    assert project.stores() == whole
    assert (project.work / "results.json").read_bytes() == results
    assert project.run(target="train_all").jobs == Counter()
