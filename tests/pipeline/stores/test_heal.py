"""Notes about damage and what a run makes of them: only what is really damaged goes, with all that vouches for it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import Config, load
from pipeline.dataset.keys import artifact_key
from pipeline.dataset.receipts import Outcome, Receipt
from pipeline.stores.damage import DamagedArtifact, Note, Notes
from pipeline.stores.flow import FlowStore
from pipeline.stores.frames import ShardWriter, samples
from pipeline.stores.heal import discard, heal
from pipeline.stores.provenance import made_by
from pipeline.stores.shared import SharedStore

PARAMETERS = {"bound": 20.0}
VIDEOS = ("a", "b.x", "c")
KEYS = {name: artifact_key("flow", PARAMETERS, name) for name in VIDEOS}
FRAME_KEYS = {name: artifact_key("frames", {}, name) for name in VIDEOS}


def says(stage: str, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {**made_by(stage), "parameters": parameters, "source_digest": name}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Three videos in both stores, with receipts and indexes that vouch for them."""
    config = load({"name": "x", "dataset": "demo", "work": str(tmp_path / "work")})
    arrays = FlowStore(config.store_folder("flow", ""))
    for name, key in KEYS.items():
        fields = np.random.default_rng(len(name)).integers(0, 256, (4, 2, 8, 12), np.uint8)
        arrays.write(key, fields, describe=lambda _, name=name: says("flow", name, PARAMETERS))
    vouch(config, "flow-r", {name: {"key": key} for name, key in KEYS.items()})
    tar = config.store_folder("frames", "r") / "00000.tar"
    tar.parent.mkdir()
    facts = {}
    with tar.open("w+b") as file:
        writer = ShardWriter(file, folder=tar.parent)
        for name, key in FRAME_KEYS.items():
            metadata = {"id": name, "artifact_key": key, **says("frames", name, {})}
            sample = writer.add([name.encode() * 300] * 2, metadata=metadata)
            facts[name] = {"key": key, "offset": sample.offset}
        writer.finish()
    vouch(config, "frames-r", facts)
    return config


def vouch(config: Config, place: str, facts: dict[str, dict[str, Any]]) -> None:
    outcomes = {name: Outcome(status="done", facts=known) for name, known in facts.items()}
    receipt = Receipt(stage=place.split("-")[0], shard="00000", seconds=0.0, videos=outcomes)
    receipt.write(config.work_dir / "receipts" / place / "00000.json")
    (config.work_dir / "index").mkdir(exist_ok=True)
    (config.work_dir / "index" / f"{place}.json").write_text(json.dumps({"videos": facts}))


def note(config: Config, made_by: str, video: str, key: str) -> None:
    Notes(config.work_dir / "damaged").leave(
        Note(stage="train", made_by=made_by, video=video, key=key, reason="it is damaged")
    )


def vouchers(config: Config) -> set[str]:
    return {
        f"{p.parent.name}/{p.name}" for part in ("receipts/*", "index") for p in config.work_dir.glob(f"{part}/*.json")
    }


EVERYTHING = {"flow-r/00000.json", "frames-r/00000.json", "index/flow-r.json", "index/frames-r.json"}


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_notes_are_read_as_they_were_left(tmp_path: Path) -> None:
    notes, one = Notes(tmp_path), Note(stage="train", made_by="flow", video="../a/\udce9", key="k", reason="r")
    for written in (one, one, replace(one, video="b" * 300), replace(one, stage="predict")):
        notes.leave(written)
    (tmp_path / "other.json").write_text("{")
    assert sorted(path.parent for path, _ in notes) == [tmp_path] * 3
    assert {found for _, found in notes} == {one, replace(one, video="b" * 300), replace(one, stage="predict")}
    assert notes.keys() == {"k"}
    assert list(Notes(tmp_path / "none")) == []


def test_an_error_arrives_whole_from_another_process() -> None:
    error = DamagedArtifact("flow k is damaged")
    name = f"{DamagedArtifact.__module__}.{DamagedArtifact.__name__}"
    as_torch_does = f"Caught DamagedArtifact in worker 0.\nTraceback:\n  x\n{name}: {error}\n"
    assert str(DamagedArtifact(as_torch_does)) == "flow k is damaged"


def test_what_is_whole_is_left_alone(config: Config) -> None:
    note(config, "flow", "a", KEYS["a"])
    note(config, "frames", "c", FRAME_KEYS["c"])
    assert list(heal(config)) == []
    assert vouchers(config) == EVERYTHING
    assert not list(Notes(config.work_dir / "damaged"))


@pytest.mark.parametrize("how", ["flipped", "deleted chunk", "deleted"])
def test_damaged_flow_goes_with_all_that_vouches_for_it(how: str, config: Config) -> None:
    arrays = FlowStore(config.store_folder("flow", ""))
    chunk = arrays.path(KEYS["b.x"]) / "c/0/0/0/0"
    match how:
        case "flipped":
            flip(chunk, 20)
        case "deleted chunk":
            chunk.unlink()
        case _:
            arrays.remove(KEYS["b.x"])
    note(config, "flow", "b.x", KEYS["b.x"])
    (told,) = heal(config)
    assert told.startswith(f"video 'b.x': its flow {KEYS['b.x']} was damaged or gone and is made anew")
    assert {name: arrays.path(key).exists() for name, key in KEYS.items()} == {"a": True, "b.x": False, "c": True}
    assert vouchers(config) == EVERYTHING - {"flow-r/00000.json", "index/flow-r.json"}
    assert list(heal(config)) == []


@pytest.mark.parametrize("position", [3, 530, 2000, -600])
def test_of_a_damaged_shard_the_other_videos_stay(position: int, config: Config) -> None:
    tar = config.store_folder("frames", "r") / "00000.tar"
    place = {sample.id: sample for sample in samples(tar)}["b.x"]
    flip(tar, place.offset + (position if position > 0 else place.length + position))
    note(config, "frames", "b.x", FRAME_KEYS["b.x"])
    (told,) = heal(config)
    assert told.startswith(f"video 'b.x': its frames {FRAME_KEYS['b.x']} were damaged and are made anew")
    assert [sample.id for sample in samples(tar)] == ["a", "c"]
    assert vouchers(config) == EVERYTHING - {"frames-r/00000.json", "index/frames-r.json"}


def test_a_shard_that_is_gone_is_made_again(config: Config) -> None:
    (config.store_folder("frames", "r") / "00000.tar").unlink()
    note(config, "frames", "a", FRAME_KEYS["a"])
    assert len(list(heal(config))) == 1
    assert vouchers(config) == EVERYTHING - {"frames-r/00000.json", "index/frames-r.json"}


def test_damage_in_the_shared_store_is_remembered_until_the_flow_is_here(config: Config, tmp_path: Path) -> None:
    shared = SharedStore(str(tmp_path / "shared"), writable=True)
    arrays, key = FlowStore(config.store_folder("flow", "")), KEYS["a"]
    with shared.incoming("flow", key, folder=tmp_path) as archive:
        arrays.pack(key, archive)
    aside = arrays.path(key).rename(tmp_path / "aside")
    flip(tmp_path / "shared" / "flow" / key[:2] / f"{key}.zip", 100)
    using = load({"name": "x", "dataset": "demo", "work": str(config.work), "store": {"shared": shared.url}})
    note(using, "flow", "a", key)
    (told,) = heal(using)
    assert told.startswith("video 'a': its flow is not taken from the shared store but computed: ")
    assert Notes(using.work_dir / "damaged").keys() == {key}
    assert shared.has("flow", key)
    assert vouchers(using) == EVERYTHING - {"flow-r/00000.json", "index/flow-r.json"}
    aside.rename(arrays.path(key))  # as the stage does
    assert list(heal(using)) == []
    assert not list(Notes(using.work_dir / "damaged"))


@pytest.mark.parametrize("access", ["copy", "in-place"])
def test_flow_that_is_whole_in_the_shared_store_is_left_alone(access: str, config: Config, tmp_path: Path) -> None:
    shared = SharedStore(str(tmp_path / "shared"), writable=True)
    arrays, key = FlowStore(config.store_folder("flow", "")), KEYS["a"]
    with shared.incoming("flow", key, folder=tmp_path) as archive:
        arrays.pack(key, archive)
    arrays.remove(key)
    store = {"shared": shared.url, "access": access}
    using = load({"name": "x", "dataset": "demo", "work": str(config.work), "store": store})
    note(using, "flow", "a", key)
    assert list(heal(using)) == []
    assert vouchers(using) == EVERYTHING
    assert not list(Notes(using.work_dir / "damaged"))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_says_the_same_and_changes_nothing(config: Config) -> None:
    arrays, tar = FlowStore(config.store_folder("flow", "")), config.store_folder("frames", "r") / "00000.tar"
    flip(arrays.path(KEYS["b.x"]) / "c/0/0/0/0", 20)
    flip(tar, 2000)
    note(config, "flow", "a", KEYS["a"])  # whole
    note(config, "flow", "b.x", KEYS["b.x"])
    note(config, "frames", "a", FRAME_KEYS["a"])
    before = everything(config.work_dir)
    told = list(heal(config, dry_run=True))
    assert everything(config.work_dir) == before
    assert len(told) == 2
    assert list(heal(config)) == told
    assert list(heal(config, dry_run=True)) == []


# a local store that two datasets use


@pytest.fixture
def two(tmp_path: Path) -> list[Config]:
    """Datasets with the same videos, receipts that vouch for them, and one store of flow."""
    configs = []
    for name in ("one", "two"):
        own = {"work": str(tmp_path / name), "store": {"local": str(tmp_path / "common")}}
        configs.append(load({"name": name, "dataset": "demo", **own}))
        vouch(configs[-1], "flow-r", {video: {"key": key} for video, key in KEYS.items()})
    arrays = FlowStore(configs[0].store_folder("flow", ""))
    for name, key in KEYS.items():
        make(arrays, name, key)
    return configs


def make(arrays: FlowStore, name: str, key: str) -> None:
    fields = np.zeros((4, 2, 8, 12), np.uint8)
    arrays.write(key, iter(fields), describe=lambda _: says("flow", name, PARAMETERS))


def test_the_other_dataset_learns_what_was_removed(two: list[Config], tmp_path: Path) -> None:
    one, other = two
    arrays = FlowStore(one.store_folder("flow", ""))
    flip(arrays.path(KEYS["a"]) / "c/0/0/0/0", 20)
    note(one, "flow", "a", KEYS["a"])
    (told,) = heal(one)
    assert "made anew" in told
    assert vouchers(one) == set()
    assert vouchers(other) == {"flow-r/00000.json", "index/flow-r.json"}
    before = everything(tmp_path)
    (told,) = heal(other, dry_run=True)
    assert everything(tmp_path) == before
    assert list(heal(other)) == [told]
    assert "another run has removed flow" in told
    assert vouchers(other) == set()
    make(arrays, "a", KEYS["a"])
    for config in two:
        vouch(config, "flow-r", {video: {"key": key} for video, key in KEYS.items()})
        assert list(heal(config)) == []
        assert vouchers(config) == {"flow-r/00000.json", "index/flow-r.json"}
    assert not list((tmp_path / "common" / "gone").iterdir())


def test_what_was_made_again_meanwhile_is_left_alone(two: list[Config]) -> None:
    discard(two[0], "flow", KEYS["a"])
    make(FlowStore(two[0].store_folder("flow", "")), "a", KEYS["a"])
    assert list(heal(two[1])) == []
    assert vouchers(two[1]) == {"flow-r/00000.json", "index/flow-r.json"}


def test_of_flow_that_nobody_made_again_the_mark_goes_in_the_end(two: list[Config], tmp_path: Path) -> None:
    discard(two[0], "flow", KEYS["a"])
    (mark,) = (tmp_path / "common" / "gone").iterdir()
    os.utime(mark, (1, 1))
    assert list(heal(two[1])) == []
    assert not mark.exists()
