"""The commands on stores: on real stores in a folder, in S3 and behind a web server, and with damage."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipeline.config import load
from pipeline.stores.inventory import needs
from tests.servers import web_server
from tests.stages.store_project import (
    ARRAYS,
    BROKEN,
    CONFIG,
    CONFIGURED,
    TARS,
    USABLE,
    Store,
    arrays,
    configure,
    files,
    flip,
    rows,
    run,
    tars,
)

# ls


def test_ls_counts_what_lies_there(project: Path, store: Store) -> None:
    assert store("push", *CONFIGURED)[0] == 0
    status, out, _ = store("ls", *CONFIGURED)
    assert status == 0
    assert [line for line in out.splitlines() if "store" in line] == ["local store work/stores", "shared store shared"]
    flow, frames = out.splitlines()[2:4]
    assert flow.split()[:3] == ["flow", "2", str(ARRAYS)]
    assert frames.split()[:3] == ["frames", "2", str(USABLE)]
    assert "size=32x24" in flow
    assert "warps=1" in flow
    assert "nscales=2" in flow
    assert "epsilon" not in flow  # as by default
    assert f"small ({USABLE} of {USABLE + 1})" in flow
    assert f"small ({USABLE} of {USABLE + 1})" in frames
    size = sum(path.stat().st_size for path in Path("work/stores/flow").rglob("*") if path.is_file())
    assert f"{size / 1000:.3g} kB" in flow


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_ls_of_a_place_needs_no_configuration(
    place: str, project: Path, store: Store, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("s3_url") if place == "s3" else "shared"
    configure(store={"shared": url, "mode": "read-write"})
    assert store("push", *CONFIGURED)[0] == 0
    told = [store("ls", where)[1].splitlines()[2:] for where in ("work/stores", url)]
    assert [[line.split()[:3] for line in lines] for lines in told] == [
        [["flow", "2", str(ARRAYS)], ["frames", "2", str(USABLE)]],
        [["flow", "2", str(ARRAYS)], ["frames", "2", str(ARRAYS)]],
    ]


def test_ls_shows_what_is_damaged_and_goes_on(project: Path, store: Store) -> None:
    (arrays()[0] / "zarr.json").write_text("{}")
    out = store("ls", "work/stores")[1].splitlines()
    assert out[2].split()[:2] == ["damaged", "1"]
    assert out[3].split()[:3] == ["flow", "2", str(ARRAYS - 1)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ls", "videos"], "videos is no store"),
        (["ls", "work/stores", *CONFIGURED], "not both"),
        (["verify", "--configfile", "absent.yaml"], "absent.yaml"),
        (["diff", *CONFIGURED, "--config", "work=elsewhere"], "`snakemake --dry-run` with this configuration makes it"),
        (["pull", "--configfile", "alone.yaml"], "set store.shared"),
        (["push", *CONFIGURED, "--config", "store={mode: read}"], "set store.mode to read-write"),
        (["push", *CONFIGURED, "--videos", "nobody"], "has no video 'nobody'"),
        (["push", *CONFIGURED, "--split", "split9"], "no video of small is in split9"),
        (["push", *CONFIGURED, "--stage", "warped_flow"], "keeps no warped_flow"),
        (["diff", *CONFIGURED, "--config", "flows={}"], "unknown key 'flows'; the nearest known key is 'flow'"),
        (["gc"], "all must be given: --configfile"),
        (["verify", "work/stores", "--remove"], "--remove needs the configuration"),
        (["verify", *CONFIGURED, "--scheduler", "tcp://127.0.0.1:9"], "no dask scheduler answers at tcp://127.0.0.1:9"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    arguments: list[str], sentence: str, project: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.stores.parallel.PATIENCE_SECONDS", 1)
    Path("alone.yaml").write_text(yaml.safe_dump({**CONFIG, "store": {}}))
    before = files(project)
    status, _, err = store(*arguments)
    assert status == 2
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert files(project) == before


# diff, push, pull


def test_diff_tells_what_is_where(project: Path, store: Store) -> None:
    assert store("push", *CONFIGURED)[0] == 0
    status, out, _ = store("diff", *CONFIGURED)
    assert (status, rows(out)) == (0, {"frames": [8, 7, 7, 0, 1], "flow": [8, 7, 7, 0, 1]})
    array = arrays()[0]
    shutil.rmtree(array)
    status, out, _ = store("diff", *CONFIGURED)
    lost = [need.video for need in needs(load(Path("config.yaml"))) if need.key == array.name]
    assert (status, rows(out)["flow"]) == (0, [8, 7 - len(lost), 7, 0, 1])
    Path(f"shared/flow/{array.parent.name}/{array.name}.zip").unlink()
    tars()[0].unlink()
    status, out, _ = store("diff", *CONFIGURED)
    assert (status, rows(out)["flow"]) == (1, [8, 7 - len(lost), 7 - len(lost), len(lost), 1])
    assert f"flow lacks {', '.join(lost)}" in out
    assert rows(out)["frames"][1] < 7
    assert rows(out)["frames"][2:] == [7, 0, 1]
    assert BROKEN not in out


@pytest.mark.parametrize("place", ["folder", "s3", "web"])
def test_a_teammate_pulls_what_was_pushed(
    place: str, project: Path, store: Store, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("s3_url") if place == "s3" else "shared"
    configure(store={"shared": url, "mode": "read-write"})
    assert store("push", *CONFIGURED)[0] == 0
    assert "0 copied (0 B), 7 there already" in store("push", *CONFIGURED)[1]
    whole = files(Path("work/stores"))
    shutil.rmtree("work/stores")
    shutil.rmtree("work/receipts")
    with web_server(project) as address:
        configure(store={"shared": f"{address}/shared" if place == "web" else url})
        # nothing has run here, so nobody knows that the broken one cannot be had
        status, out, err = store("pull", *CONFIGURED)
        assert status == 1
        assert f"flow: not in the shared store: {BROKEN}" in err
        assert f"{BROKEN}," not in err
        assert {name: data for name, data in whole.items() if "probe" not in name} == files(Path("work/stores"))
        assert "pull frames: 8 videos, 7 copied" in out
        assert "pull flow: 8 videos, 6 copied" in out  # the twins have one array
        assert store("verify", *CONFIGURED, "--shared")[0] == 0
    counts = run(load(Path("config.yaml")))
    assert counts["frames"] == counts["flow"] == {"reused": 7, "quarantined": 1}
    assert store("pull", *CONFIGURED, "--config", "store={shared: shared}")[0] == (0 if place != "s3" else 2)


def test_parts_are_pushed_and_pulled(project: Path, store: Store) -> None:
    config = load(Path("config.yaml"))
    Path("ids.txt").write_text("run--run_1\n\n")
    out = store("push", *CONFIGURED, "--videos", "jump--jump_1", "--list", "ids.txt")[1]
    assert "push flow: 2 videos, 2 copied" in out
    assert store("push", *CONFIGURED, "--stage", "flow", "--split", "split1:train")[1].count("\n") == 1
    before = {tar.name: tar.read_bytes() for tar in tars()}
    shutil.rmtree("work/stores")
    shutil.rmtree("work/receipts")
    status, out, _ = store("pull", *CONFIGURED, "--videos", "jump--jump_1")
    assert (status, out.count("1 copied")) == (0, 2)
    (key,) = [need.key for need in needs(config, stages=["flow"]) if need.video == "jump--jump_1"]
    assert [array.name for array in arrays()] == [key]
    assert store("pull", *CONFIGURED, "--list", "ids.txt")[0] == 0
    run(config)  # the others are computed, into the tars that hold the pulled ones
    assert {tar.name: tar.read_bytes() for tar in tars()} == before


def test_damage_is_neither_pushed_nor_pulled(project: Path, store: Store) -> None:
    flip(arrays()[0] / "c/0/0/0/0")
    status, out, err = store("push", *CONFIGURED)
    assert status == 1
    assert "1 damaged" in out
    assert f"flow {arrays()[0].name}" in err
    assert len(list(Path("shared").glob("flow/*/*"))) == ARRAYS - 1
    for kind in ("flow", "frames"):
        flip(sorted(Path("shared").glob(f"{kind}/*/*"))[0])
    shutil.rmtree("work/stores")
    status, out, err = store("pull", *CONFIGURED)
    assert status == 1
    assert err.count("is not used") >= 2
    assert len(arrays()) == ARRAYS - 2
    assert store("verify", "work/stores")[0] == 0


# verify


def test_a_whole_store_is_whole(project: Path, store: Store, root: Path) -> None:
    assert store("push", *CONFIGURED)[0] == 0
    status, out, _ = store("verify", *CONFIGURED)
    assert (status, out.split(" in ")[0].split(",")[0]) == (0, f"{ARRAYS + TARS} arrays")
    size = sum(p.stat().st_size for p in [*tars(), *Path("work/stores/flow").rglob("*")] if p.is_file())
    assert f"{size / 1000:.0f} kB" in out
    assert store("verify", "shared")[0] == store("verify", *CONFIGURED, "--shared", "--threads", "3")[0] == 0
    before = files(project)
    code = "import sys, stages.store as s\ntry: s.main(['verify', 'work/stores'])\n"
    code += "except SystemExit as e: assert not e.code and 'dask' in sys.modules and 'distributed' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert files(project) == before


def places(folder: Path) -> Iterator[tuple[Path, int]]:
    """Some bytes of every kind of file, at random, and the first and the last of each."""
    rng = random.Random(0)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and "probe" not in str(path)):
        size = path.stat().st_size
        for place in {0, size - 1, *(rng.randrange(size) for _ in range(3))}:
            yield path, place


def test_one_flipped_bit_anywhere_is_found_and_named(project: Path, store: Store) -> None:
    assert store("push", *CONFIGURED)[0] == 0
    missed = []
    for folder in (Path("work/stores"), Path("shared")):
        found = list(places(folder))
        for path, place in random.Random(1).sample(found, min(40, len(found))):
            if path.name == "wherewhen.json":
                continue
            whole = path.read_bytes()
            flip(path, place)
            status, out, _ = store("verify", folder)
            name = path.stem if folder.name == "shared" or path.suffix == ".tar" else path.relative_to(folder).parts[2]
            if status != 1 or out.count("damaged: ") < 1 or name not in out:
                missed.append((path, place, out))
            path.write_bytes(whole)
    assert missed == []


def test_damage_is_deleted_and_made_anew(project: Path, store: Store) -> None:
    whole = files(Path("work/stores"))
    config = load(Path("config.yaml"))
    flipped, cut, gone = arrays()[:3]
    flip(flipped / "c/0/0/0/0")
    (cut / "c/0/0/0/0").write_bytes((cut / "c/0/0/0/0").read_bytes()[:-9])
    shutil.rmtree(gone)
    flip(tars()[0])
    tars()[1].unlink()
    names = {need.key: need.video for need in needs(config)}
    status, out, _ = store("verify", *CONFIGURED)
    assert status == 1
    assert all(f"{names[array.name]!r}: " in out for array in (flipped, cut))
    assert f"there is no flow {gone.name}" in out
    assert "there are no frames" in out
    assert f"{ARRAYS + TARS} arrays, tars and objects" in out
    assert out.splitlines()[-1].endswith("5 damaged")
    again = store("verify", *CONFIGURED, "--remove")
    assert again[:1] == (1,)
    assert store("verify", *CONFIGURED)[0] == 0
    assert not list(Path("work/index").glob("*.json"))
    counts = run(config)
    assert counts["flow"]["done"] == 3
    assert files(Path("work/stores")) == whole


def test_damage_in_the_shared_store_is_deleted(project: Path, store: Store) -> None:
    assert store("push", *CONFIGURED)[0] == 0
    flip(sorted(Path("shared").glob("flow/*/*"))[0])
    flip(sorted(Path("shared").glob("frames/*/*"))[0])
    assert store("verify", *CONFIGURED, "--shared")[1].count("damaged: video '") == 2
    assert store("verify", "shared", "--remove")[0] == 1
    assert store("verify", "shared")[0] == 0
    assert "1 copied" in store("push", *CONFIGURED)[1]
    assert store("diff", *CONFIGURED)[0] == 0


def test_a_running_scheduler_verifies_and_counts(project: Path, store: Store) -> None:
    distributed = pytest.importorskip("distributed")
    flip(tars()[0])
    settings = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None, "silence_logs": 50}
    with distributed.LocalCluster(host="127.0.0.1", **settings) as cluster:
        for command in (("verify", *CONFIGURED), ("stats", "work/stores")):
            here, there = store(*command), store(*command, "--scheduler", cluster.scheduler_address)
            assert here[0] == there[0] == int(command[0] == "verify")
            assert [line.partition(" in ")[0] for line in there[1].splitlines()] == [
                line.partition(" in ")[0] for line in here[1].splitlines()
            ]
