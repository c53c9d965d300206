"""The stages frames and flow with a shared store: local, then shared, then computed, then published."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import FlowConfig, FramesConfig, StoreConfig, WarpedFlowConfig
from pipeline.dataset.receipts import Receipt
from pipeline.stores.damage import DamagedArtifact, Note, Notes
from pipeline.stores.flow import FlowStore
from pipeline.stores.frames import samples
from pipeline.stores.shared import Kind, SharedStore
from pipeline.stores.sharing import Sharing
from stages import flow, frames, probe, warped_flow
from tests.servers import web_server

FRAMES = FramesConfig(size=(40, 30))
FLOW = FlowConfig(size=(40, 30), nscales=2, warps=1, outer_iterations=2)
WARPED = WarpedFlowConfig(size=(40, 30), nscales=2, warps=1, outer_iterations=2)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[..., Path]) -> Receipt:
    """Two videos of 5 and 6 frames."""
    folder = tmp_path_factory.mktemp("clips")
    videos = []
    for name, count in (("a.x", 5), ("b", 6)):
        path = make_clip(folder / f"{name}.mp4", "testsrc2=size=64x48:rate=25", "-frames:v", str(count))
        digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        videos.append({"id": name, "path": str(path), "digest": digest, "bytes": path.stat().st_size})
    return probe.probe_shard(videos, shard="7", store=folder / "probe")


def use(url: object, *, notes: Path | None = None, **settings: Any) -> Sharing:
    return Sharing.of(StoreConfig(shared=str(url), **settings), notes=notes)


def run(stage: str, probed: Receipt, folder: Path, sharing: Sharing | None) -> Receipt:
    store = folder / stage
    match stage:
        case "frames":
            return frames.pack_shard(probed, shard="7", store=store, config=FRAMES, sharing=sharing)
        case "flow":
            return flow.solve_shard(probed, shard="7", store=store, config=FLOW, sharing=sharing)
        case _:
            return warped_flow.solve_shard(probed, shard="7", store=store, config=WARPED, sharing=sharing)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def objects(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*/*") if path.is_file())


@pytest.mark.parametrize("stage", ["frames", "flow", "warped_flow"])
@pytest.mark.parametrize("place", ["folder", "s3"])
def test_what_one_publishes_the_other_fetches(
    stage: str, place: str, probed: Receipt, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = tmp_path / "shared" if place == "folder" else request.getfixturevalue("s3_url")
    assert run(stage, probed, tmp_path / "one", use(url, mode="read-write")).count() == {"done": 2}
    assert run(stage, probed, tmp_path / "one", use(url, mode="read-write")).count() == {"reused": 2}
    two = run(stage, probed, tmp_path / "two", use(url))
    assert two.count() == {"fetched": 2}
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert two.usable() == run(stage, probed, tmp_path / "one", None).usable()


def test_a_web_server_is_enough_to_fetch(probed: Receipt, tmp_path: Path) -> None:
    for stage in ("frames", "flow"):
        run(stage, probed, tmp_path / "one", use(tmp_path / "shared", mode="read-write"))
    with web_server(tmp_path) as address:
        for stage in ("frames", "flow"):
            assert run(stage, probed, tmp_path / "two", use(f"{address}/shared")).count() == {"fetched": 2}
    assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.mark.parametrize("mode", ["read", "read-write"])
@pytest.mark.parametrize(("stage", "access"), [("frames", "copy"), ("flow", "copy"), ("flow", "in-place")])
def test_what_vanishes_after_it_was_seen_is_computed(
    stage: str,
    access: str,
    mode: str,
    probed: Receipt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(stage, probed, tmp_path / "one", use(tmp_path / "shared", mode="read-write"))
    seen = SharedStore.size

    def and_then_removed(store: SharedStore, kind: Kind, key: str) -> int | None:
        size = seen(store, kind, key)
        for path in (tmp_path / "shared" / kind).glob(f"*/{key}*"):
            path.unlink()
        return size

    with monkeypatch.context() as patch:
        patch.setattr(SharedStore, "size", and_then_removed)
        found = run(stage, probed, tmp_path / "two", use(tmp_path / "shared", access=access, mode=mode))
    assert found.count() == {"done": 2}
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert "is not used" not in capsys.readouterr().err
    assert len(objects(tmp_path / "shared")) == (2 if mode == "read-write" else 0)


@pytest.mark.parametrize("stage", ["frames", "flow"])
def test_reading_publishes_nothing_and_writing_what_is_there_already(
    stage: str, probed: Receipt, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    SharedStore(str(shared), writable=True).has("flow", "0" * 32)
    assert run(stage, probed, tmp_path / "one", use(shared)).count() == {"done": 2}
    assert objects(shared) == []
    assert run(stage, probed, tmp_path / "one", use(shared, mode="read-write")).count() == {"reused": 2}
    assert len(objects(shared)) == 2
    times = [path.stat().st_mtime_ns for path in objects(shared)]
    assert run(stage, probed, tmp_path / "two", use(shared, mode="read-write")).count() == {"fetched": 2}
    assert [path.stat().st_mtime_ns for path in objects(shared)] == times


def test_shared_frames_carry_no_ones_names(probed: Receipt, tmp_path: Path) -> None:
    run("frames", probed, tmp_path / "one", use(tmp_path / "shared", mode="read-write"))
    for path in objects(tmp_path / "shared"):
        (sample,) = samples(path)
        assert sample.id == sample.artifact_key == path.stem
        assert b"a.x" not in path.read_bytes()


def test_flow_in_place_is_not_copied(probed: Receipt, tmp_path: Path) -> None:
    run("flow", probed, tmp_path / "one", use(tmp_path / "shared", mode="read-write"))
    found = run("flow", probed, tmp_path / "two", use(tmp_path / "shared", access="in-place"))
    assert found.count() == {"fetched": 2}
    assert content(tmp_path / "two") == {}
    here = FlowStore(tmp_path / "two" / "flow", shared=SharedStore(str(tmp_path / "shared")))
    for facts in found.usable().values():
        fields = here.read(facts["key"], 0, facts["frames"])
        assert (fields == FlowStore(tmp_path / "one" / "flow").read(facts["key"], 0, facts["frames"])).all()


@pytest.mark.parametrize("stage", ["frames", "flow"])
@pytest.mark.parametrize("mode", ["read", "read-write"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "another"])
def test_a_damaged_object_is_computed_and_replaced_if_that_is_allowed(
    stage: str, mode: str, damage: str, probed: Receipt, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(stage, probed, tmp_path / "one", use(tmp_path / "shared", mode="read-write"))
    broken, other = objects(tmp_path / "shared")
    whole = broken.read_bytes()
    middle = len(whole) // 2
    made = {
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        "cut": whole[:middle],
        "empty": b"",
        "another": other.read_bytes(),  # whole, but not what the address says
    }[damage]
    broken.write_bytes(made)
    receipt = run(stage, probed, tmp_path / "two", use(tmp_path / "shared", mode=mode))
    assert receipt.count() == {"done": 1, "fetched": 1}
    assert f"{broken} is not used: " in capsys.readouterr().err
    assert content(tmp_path / "one") == content(tmp_path / "two")
    assert broken.read_bytes() == (whole if mode == "read-write" else made)


@pytest.mark.parametrize("stage", ["frames", "flow"])
def test_a_damaged_local_artifact_is_not_published(
    stage: str, probed: Receipt, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(stage, probed, tmp_path / "one", None)
    before = content(tmp_path / "one")
    file = next(path for path in sorted((tmp_path / "one").rglob("*")) if path.is_file() and path.name != "zarr.json")
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)
    receipt = run(stage, probed, tmp_path / "one", use(tmp_path / "shared", mode="read-write"))
    assert receipt.count() == {"done": 1, "reused": 1}
    assert "damaged" in capsys.readouterr().err
    assert content(tmp_path / "one") == before
    assert run(stage, probed, tmp_path / "two", use(tmp_path / "shared")).count() == {"fetched": 2}
    assert content(tmp_path / "two") == before


def test_flow_that_has_lost_its_metadata_is_solved_again(probed: Receipt, tmp_path: Path) -> None:
    run("flow", probed, tmp_path, None)
    before = content(tmp_path)
    next(tmp_path.rglob("zarr.json")).unlink()
    assert run("flow", probed, tmp_path, None).count() == {"done": 1, "reused": 1}
    assert content(tmp_path) == before


def test_what_a_note_names_is_not_taken(probed: Receipt, tmp_path: Path) -> None:
    one = run("flow", probed, tmp_path / "one", use(tmp_path / "shared", mode="read-write"))
    key, notes = one.usable()["b"]["key"], tmp_path / "damaged"
    Notes(notes).leave(Note(stage="train", made_by="flow", video="b", key=key, reason="it is damaged"))
    two = run("flow", probed, tmp_path / "two", use(tmp_path / "shared", notes=notes, access="in-place"))
    assert {name: outcome.status for name, outcome in two.videos.items()} == {"a.x": "fetched", "b": "done"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_cannot_be_written_to_is_one_sentence(probed: Receipt, tmp_path: Path) -> None:
    SharedStore(str(tmp_path / "shared"), writable=True).has("flow", "0" * 32)
    (tmp_path / "shared").chmod(0o555)
    with pytest.raises(OSError, match="the shared store .* cannot be used"):
        run("flow", probed, tmp_path / "one", use(tmp_path / "shared", mode="read-write"))


def test_a_damaged_object_stays_until_there_is_a_whole_one(probed: Receipt, tmp_path: Path) -> None:
    run("flow", probed, tmp_path / "one", use(tmp_path / "shared", mode="read-write"))
    broken = objects(tmp_path / "shared")[0]
    broken.write_bytes(b"")
    sharing, local = use(tmp_path / "shared", mode="read-write"), FlowStore(tmp_path / "one" / "flow")
    assert not sharing.take_flow(FlowStore(tmp_path / "two"), broken.stem)
    next(path for path in local.path(broken.stem).rglob("0") if path.is_file()).write_bytes(b"")
    with pytest.raises(DamagedArtifact):
        sharing.give_flow(local, broken.stem)
    assert broken.exists()
