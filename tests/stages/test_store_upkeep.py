"""What the commands on stores delete, what they leave alone, and what is left of them when they are killed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.config import load
from pipeline.dataset.manifest import Manifest, Video
from pipeline.dataset.plan import write_plan
from pipeline.stores import audit, transfer
from pipeline.stores.flow import FlowStore
from pipeline.stores.heal import heal
from pipeline.stores.inventory import Need, needs
from pipeline.stores.provenance import provenance
from pipeline.stores.shared import SharedStore
from tests.stages.store_project import (
    ARRAYS,
    CONFIG,
    CONFIGURED,
    TARS,
    Store,
    age,
    arrays,
    configure,
    files,
    flip,
    process,
    rows,
    run,
    tars,
)


def test_gc_keeps_what_a_configuration_refers_to(project: Path, store: Store) -> None:
    whole = files(Path("work/stores"))
    shutil.copy("config.yaml", "old.yaml")
    configure(flow={"size": [32, 24], "nscales": 1}, frames={"size": [40, 30]})
    run(load(Path("config.yaml")))
    both = files(Path("work/stores"))
    given = ("--configfile", "config.yaml", "--configfile", "old.yaml")
    age(Path("work"), seconds=2 * 3600)
    assert store("gc", *given)[1].startswith("0 files and folders, 0 B, would be deleted")
    status, out, _ = store("gc", *CONFIGURED)
    assert (status, len(out.splitlines())) == (0, ARRAYS + TARS + 1)
    assert files(Path("work/stores")) == both
    assert "deleted" in store("gc", *CONFIGURED, "--delete")[1]
    kept = files(Path("work/stores"))
    assert kept == {name: data for name, data in both.items() if name not in whole or "probe" in name}
    counts = run(load(Path("old.yaml")))  # back again: the receipts are gone too
    assert counts["flow"] == {"done": 6, "reused": 1, "quarantined": 1}
    assert files(Path("work/stores")) == both


def test_another_dataset_learns_what_gc_took_from_a_common_store(project: Path, store: Store) -> None:
    configure(store={"local": "common"})
    run(load(Path("config.yaml")))
    shutil.copy("config.yaml", "unknown.yaml")
    unknown = load(Path("unknown.yaml"))
    configure(work="other", flow={"size": [32, 24], "nscales": 1})
    run(load(Path("config.yaml")))
    age(Path("common"), seconds=2 * 3600)
    assert f"{ARRAYS} files and folders" in store("gc", *CONFIGURED, "--delete")[1]
    assert len(list(heal(unknown))) == 1
    assert run(unknown)["flow"] == {"done": 6, "reused": 1, "quarantined": 1}
    assert list(heal(unknown)) == []
    assert list(Path("common/gone").iterdir()) == []


def test_gc_leaves_what_is_young(project: Path, store: Store) -> None:
    before = files(project)
    configure(flow={"size": [32, 24], "nscales": 1})
    run(load(Path("config.yaml")))
    out = store("gc", *CONFIGURED, "--delete")[1]
    assert f"0 files and folders, 0 B, deleted; {ARRAYS} are too young" in out
    assert {name for name in before if name.startswith("work/stores")} <= files(project).keys()


def test_gc_clears_old_temporary_files(project: Path, store: Store) -> None:
    left = [Path("work/stores/flow/.tmp-a"), arrays()[0].parent / ".tmp-b", tars()[0].parent / ".tmp-c"]
    left += [Path("work/receipts/.tmp-d"), Path("shared/flow/ab/.tmp-e")]
    assert store("push", *CONFIGURED)[0] == 0
    for path in left:
        (path / "c").mkdir(parents=True)
        (path / "c" / "0").write_bytes(bytes(100))
    assert store("gc", *CONFIGURED)[1].startswith("0 files")
    for path in left[:-1]:
        age(path, seconds=25 * 3600)
    assert "4 files and folders, 400 B" in store("gc", *CONFIGURED, "--delete")[1]
    assert [path.exists() for path in left] == [False] * 4 + [True]
    age(left[-1], seconds=25 * 3600)
    assert store("gc", *CONFIGURED, "--shared")[1].startswith("    100 B  temporary  shared/flow/ab/.tmp-e")
    assert "1 files and folders" in store("gc", *CONFIGURED, "--shared", "--delete")[1]
    assert not left[-1].exists()


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_gc_of_the_shared_store(
    place: str, project: Path, store: Store, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = request.getfixturevalue("s3_url") if place == "s3" else "shared"
    configure(store={"shared": url, "mode": "read-write"})
    assert store("push", *CONFIGURED)[0] == 0
    settings = ("--config", "flow={nscales: 1}")
    assert f"{ARRAYS} are too young" in store("gc", *CONFIGURED, *settings, "--shared", "--delete")[1]
    monkeypatch.setattr("pipeline.stores.garbage.HOUR_SECONDS", 0.0)
    assert f"{ARRAYS} files and folders" in store("gc", *CONFIGURED, *settings, "--shared")[1]
    assert f"{ARRAYS} files and folders" in store("gc", *CONFIGURED, *settings, "--shared", "--delete")[1]
    assert rows(store("diff", *CONFIGURED)[1]) == {"frames": [8, 7, 7, 0, 1], "flow": [8, 7, 0, 0, 1]}


def test_gc_leaves_a_folder_from_which_a_file_vanishes(
    project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    active = arrays()[0].parent / ".tmp-active"
    active.mkdir()
    for name in ("moving", "staying"):
        (active / name).write_bytes(b"1")
    listed = Path.rglob

    def rglob(path: Path, pattern: str) -> list[Path]:
        found = list(listed(path, pattern))
        (active / "moving").unlink(missing_ok=True)  # by its job, before anybody asks for its time
        return found

    monkeypatch.setattr(Path, "rglob", rglob)
    assert "0 files and folders, 0 B, deleted; 1 are too young" in store("gc", *CONFIGURED, "--delete")[1]
    assert [path.name for path in active.iterdir()] == ["staying"]


def test_workers_in_another_folder_find_the_same(
    project: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    assert store("push", *CONFIGURED)[0] == 0
    before = files(project)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    settings = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(host="127.0.0.1", **settings) as cluster:
        monkeypatch.chdir(project)
        there = ("--scheduler", cluster.scheduler_address)
        for command in (("verify", "--remove", *CONFIGURED), ("verify", "--remove", "--shared", *CONFIGURED)):
            status, out, _ = store(*command, *there)
            assert (status, "none damaged" in out) == (0, True), out
        assert store("stats", "work/stores", *there)[1] == store("stats", "work/stores")[1]
        assert store("stats", "shared", *there)[1] == store("stats", "shared")[1]
    assert files(project) == before


@pytest.mark.parametrize("place", [(), ("--shared",)])
def test_what_only_workers_miss_is_not_deleted(
    place: tuple[str, ...], project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store("push", *CONFIGURED)[0] == 0
    before = files(project)

    def without_the_mount(pieces: Sequence[audit.Piece], **_: object) -> list[audit.Checked]:
        return [audit.Checked(piece, 0, ("it is gone",)) for piece in pieces]

    monkeypatch.setattr(audit, "verify", without_the_mount)
    status, out, err = store("verify", *CONFIGURED, *place, "--remove")
    count = out.count("damaged: ")
    assert (status, count > ARRAYS) == (1, True)
    assert f"{count} of them stay" in err
    assert "is deleted" not in err
    assert {name: data for name, data in files(project).items() if name != "work/.lock"} == before


def test_verify_removes_nothing_in_read_mode(project: Path, store: Store) -> None:
    assert store("push", *CONFIGURED)[0] == 0
    damaged = sorted(Path("shared").glob("flow/*/*"))[0]
    flip(damaged)
    before = files(project)
    configure(store={"shared": "shared", "mode": "read"})
    status, _, err = store("verify", *CONFIGURED, "--shared", "--remove")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "set store.mode to read-write" in err
    assert store("verify", *CONFIGURED, "--shared")[0] == 1
    assert files(Path("shared")) == {name[7:]: data for name, data in before.items() if name.startswith("shared/")}


@pytest.mark.parametrize(
    "command",
    [
        ("verify", "file://{}/mistyped", "--remove"),
        ("verify", *CONFIGURED, "--config", "store={{shared: mistyped, mode: read-write}}", "--shared", "--remove"),
        ("gc", *CONFIGURED, "--config", "store={{shared: mistyped, mode: read-write}}", "--shared", "--delete"),
    ],
)
def test_a_store_is_not_made_to_delete_from_it(command: tuple[str, ...], project: Path, store: Store) -> None:
    Path("mistyped").mkdir()
    status, _, err = store(*(word.format(project) for word in command))
    assert (status, len(err.splitlines())) == (2, 1)
    assert "is no shared store" in err
    assert files(Path("mistyped")) == {}


def test_pull_compares_each_video_only_with_its_own_array(project: Path, store: Store) -> None:
    assert store("push", *CONFIGURED)[0] == 0
    compared = []

    class Counted(Need):
        def __eq__(self, other: object) -> bool:
            compared.append(other)
            return super().__eq__(other)

        __hash__ = Need.__hash__

    found = [Counted("flow", f"v{i}", f"{i // 2:032x}", "00000") for i in range(100)]  # two videos an array
    moved = transfer.pull(load(Path("config.yaml")), found, shared=SharedStore("shared"), threads=2)
    assert [(one.need.video, one.outcome) for one in moved] == [(f"v{i}", "absent") for i in range(100)]
    assert len(compared) <= len(found)


@pytest.mark.parametrize("command", [("gc", "--delete"), ("pull",), ("verify", "--remove")])
def test_a_running_job_is_not_disturbed(command: tuple[str, ...], project: Path, root: Path) -> None:
    with Path("work/.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Path("shared").mkdir()
        shutil.rmtree(arrays()[0])
        before = files(Path("work/stores"))
        done = process(*command, *CONFIGURED, root=root)
    assert done.returncode == 1
    assert "another run holds work/.lock" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert files(Path("work/stores")) == before


# killed


@pytest.fixture
def heavy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A planned project with 80 arrays of noise that no codec makes smaller, 20 MB."""
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(CONFIG))
    config = load(Path("config.yaml"))
    digests = {f"v{i}": hashlib.blake2b(bytes([i]), digest_size=16).hexdigest() for i in range(80)}
    videos = [Video(id=v, path=v, digest=d, bytes=1, labels=("a",), splits={}) for v, d in sorted(digests.items())]
    write_plan(Manifest(tuple(videos)), shards=2, folder=config.work_dir / "plan")
    rng, parameters = np.random.default_rng(0), config.flow.model_dump(mode="json", by_alias=True)
    for need in needs(config, stages=["flow"]):
        own = provenance("flow", parameters=parameters, digest=digests[need.video], software={})
        fields = rng.integers(0, 256, (12, 2, 96, 112), np.uint8)
        FlowStore(config.store_folder("flow", "")).write(need.key, iter(fields), describe=lambda _, own=own: own)
    return tmp_path


def kill_halfway(command: str, target: str, root: Path) -> int:
    """Start a command and kill it when it has made something; gives how much. Begins again if it was too fast."""
    for _ in range(10):
        argv = [sys.executable, "-m", "stages.store", command, *CONFIGURED, "--stage", "flow", "--threads", "2"]
        running = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(list(Path().glob(target))) < 5 and running.poll() is None and time.monotonic() < deadline:
            pass
        running.send_signal(signal.SIGKILL)
        if running.wait() == -signal.SIGKILL and 5 <= len(list(Path().glob(target))) < 80:
            return len(list(Path().glob(target)))
        for path in Path().glob(target):
            path.unlink() if path.is_file() else shutil.rmtree(path)
    pytest.fail("it always ended before it was killed")


def test_a_killed_push_and_pull_go_on_where_they_were(heavy: Path, store: Store, root: Path) -> None:
    flow = (*CONFIGURED, "--stage", "flow")
    for command, target in (("push", "shared/flow/[!.]*/[!.]*"), ("pull", "work/stores/flow/[!.]*/[!.]*")):
        if command == "pull":
            whole = files(Path("work/stores/flow"))
            shutil.rmtree("work/stores/flow")
        done = kill_halfway(command, target, root)
        assert 5 <= done < 80
        assert store("verify", "shared" if command == "push" else "work/stores")[0] == 0
        status, out, _ = store(command, *flow)
        assert status == 0
        assert f"{80 - done} copied" in out
        assert f"{done} there already" in out
    found = files(Path("work/stores/flow"))
    assert {name: data for name, data in found.items() if ".tmp-" not in name} == whole
