"""The flow store: what zarr itself reads, atomic writing, refusal of other parameters and of damage, forked readers."""

from __future__ import annotations

import json
import os
import pickle
import signal
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.checksum32 import CRC32C

from pipeline.dataset.keys import artifact_key
from pipeline.stores import flow as module
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.flow import FlowStore
from pipeline.stores.provenance import made_by

KEY = "ab" + "0" * 30
PARAMETERS = {"bound": 20.0, "lambda": 0.15, "size": [12, 8]}


def make_fields(count: int) -> np.ndarray:
    """(count, 2, 8, 12) uint8; the second field is all zeros, zarr's fill value."""
    fields = np.random.default_rng(count).integers(0, 256, (count, 2, 8, 12), np.uint8)
    fields[1:2] = 0
    return fields


def describe(count: int) -> dict[str, Any]:
    return {"parameters": PARAMETERS, "frames": count}


def write(root: Path, count: int, key: str = KEY) -> np.ndarray:
    fields = make_fields(count)
    FlowStore(root).write(key, iter(fields), describe=describe)
    return fields


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("count", [1, 2, 9])
def test_plain_zarr_reads_what_was_written(count: int, tmp_path: Path) -> None:
    fields = write(tmp_path, count)
    array = zarr.open_array(tmp_path / "ab" / KEY, mode="r")
    assert (array[:] == fields).all()
    assert dict(array.attrs).items() >= {**describe(count), "artifact_key": KEY}.items()
    store = FlowStore(tmp_path, parameters=PARAMETERS)
    assert (store.read(KEY, 0, count) == fields).all()
    assert store.has(KEY)
    assert not store.has("cd" + KEY[2:])
    shard = content(tmp_path / "ab" / KEY)["c/0/0/0/0"]
    (crc32c,) = np.frombuffer(CRC32C(location="end").encode(shard)[-4:], "<u4").tolist()  # another implementation's
    sums = {"c/0/0/0/0": {"crc32": zlib.crc32(shard), "crc32c": crc32c}}
    assert store.attributes(KEY) == {**describe(count), "artifact_key": KEY, "files": sums}


def test_a_short_video_is_one_shard_file(tmp_path: Path) -> None:
    write(tmp_path, 9)
    assert sorted(content(tmp_path / "ab" / KEY)) == ["c/0/0/0/0", "zarr.json"]


def test_what_is_known_of_the_pairs_is_kept_beside_the_flow(tmp_path: Path) -> None:
    pairs = {"homography": np.random.default_rng(0).normal(size=(3, 3, 3)), "inliers": np.array([7, 0, 9], np.int32)}
    store = FlowStore(tmp_path)
    store.write(KEY, iter(make_fields(3)), describe=describe, pairs=lambda: pairs)
    found = store.pairs(KEY)
    assert found.keys() == pairs.keys()
    assert all((found[name] == pairs[name]).all() and found[name].dtype == pairs[name].dtype for name in pairs)
    assert (zarr.open_array(tmp_path / "ab" / KEY, mode="r")[:] == make_fields(3)).all()
    assert sorted(content(tmp_path / "ab" / KEY)) == ["c/0/0/0/0", "pairs.npz", "zarr.json"]
    FlowStore(tmp_path / "again").write(KEY, iter(make_fields(3)), describe=describe, pairs=lambda: pairs)
    assert content(tmp_path / "again" / "ab") == content(tmp_path / "ab")

    write(tmp_path, 2, key="cd" + KEY[2:])
    assert store.pairs("cd" + KEY[2:]) == {}
    with pytest.raises(ValueError, match="there is no flow"):
        store.pairs("ef" + KEY[2:])
    file = tmp_path / "ab" / KEY / "pairs.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DamagedArtifact, match=rf"flow {KEY} in .* is damaged \(pairs.npz: its checksum is wrong\)"):
        store.pairs(KEY)


def test_pairs_that_fail_leave_no_array(tmp_path: Path) -> None:
    def pairs() -> dict[str, Any]:
        raise ValueError("they do not stack")

    with pytest.raises(ValueError, match="do not stack"):
        FlowStore(tmp_path).write(KEY, iter(make_fields(3)), describe=describe, pairs=pairs)
    assert content(tmp_path) == {}


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_interval_of_any_video_is_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    count = data.draw(st.integers(1, 23))
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_BYTES", 5 * 2 * 8 * 12)  # five fields a shard
        fields = write(root, count)
    assert (FlowStore(root, parameters=PARAMETERS).read(KEY, start, stop) == fields[start:stop]).all()
    assert (zarr.open_array(root / "ab" / KEY, mode="r")[:] == fields).all()


def test_a_long_video_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_BYTES", 5 * 2 * 8 * 12)
    monkeypatch.setattr(np, "stack", track := Largest(np.stack))
    write(tmp_path, 23)
    assert track.most == 5


class Largest:
    """Passes a call on and remembers the longest list it was given."""

    def __init__(self, function: Any) -> None:
        self.function, self.most = function, 0

    def __call__(self, values: list[Any]) -> Any:
        self.most = max(self.most, len(values))
        return self.function(values)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 2), (0, 10), (9, 10)])
def test_fields_that_are_not_there_are_refused(start: int, stop: int, tmp_path: Path) -> None:
    write(tmp_path, 9)
    with pytest.raises(ValueError, match=f"fields {start} to {stop} were asked for; .* has fields 0 to 9"):
        FlowStore(tmp_path, parameters=PARAMETERS).read(KEY, start, stop)


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one", 9)
    write(tmp_path / "two", 9)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_nothing_is_seen_of_an_array_that_is_not_whole(tmp_path: Path) -> None:
    store = FlowStore(tmp_path)

    def failing() -> Iterator[np.ndarray]:
        yield from make_fields(3)
        assert not store.has(KEY)
        raise OSError("the disk is on fire")

    with pytest.raises(OSError, match="on fire"):
        store.write(KEY, failing(), describe=describe)
    assert content(tmp_path) == {}
    with pytest.raises(ValueError, match="no flow field"):
        store.write(KEY, iter(()), describe=describe)
    with pytest.raises(ValueError, match="there is no flow"):
        FlowStore(tmp_path).read(KEY, 0, 1)


def test_of_two_writers_of_one_key_one_wins(tmp_path: Path) -> None:
    def meanwhile() -> Iterator[np.ndarray]:
        yield from make_fields(4)[:2]
        write(tmp_path, 4)
        yield from make_fields(4)[2:]

    FlowStore(tmp_path).write(KEY, meanwhile(), describe=describe)
    assert (FlowStore(tmp_path).read(KEY, 0, 4) == make_fields(4)).all()
    assert [path.name for path in (tmp_path / "ab").iterdir()] == [KEY]


@pytest.mark.parametrize("change", [{"bound": 15.0}, {"size": None}, {"extra": 1}])
def test_flow_made_otherwise_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, 9)
    with pytest.raises(ValueError, match=rf"was made with {next(iter(change))} .* is wanted"):
        FlowStore(tmp_path, parameters=PARAMETERS | change).read(KEY, 0, 1)


def test_an_array_of_another_layout_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 3)
    array = zarr.create_array(
        tmp_path / "ab" / ("ab" + "1" * 30), shape=(3, 2, 8, 12), chunks=(1, 2, 8, 12), dtype="uint8"
    )
    array[:] = 5
    with pytest.raises(DamagedArtifact, match="as this version writes it"):
        FlowStore(tmp_path).read("ab" + "1" * 30, 0, 1)


def test_every_damaged_byte_of_a_field_is_noticed(tmp_path: Path) -> None:
    fields = write(tmp_path, 2)
    shard = tmp_path / "ab" / KEY / "c" / "0" / "0" / "0" / "0"
    whole, store = shard.read_bytes(), FlowStore(tmp_path)
    for position in range(len(whole)):
        shard.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            store.read(KEY, 0, 2)
    for length in range(0, len(whole), 7):
        shard.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged"):
            store.read(KEY, 0, 2)
    shard.unlink()
    with pytest.raises(ValueError, match="damaged"):
        store.read(KEY, 0, 2)
    shard.write_bytes(whole)
    assert (store.read(KEY, 0, 2) == fields).all()


def test_a_forked_reader_does_not_hang(tmp_path: Path) -> None:
    fields, store = write(tmp_path, 9), FlowStore(tmp_path, parameters=PARAMETERS)
    assert (store.read(KEY, 0, 9) == fields).all()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # ends a child that waits for threads that it does not have
        os._exit(0 if (store.read(KEY, 2, 7) == fields[2:7]).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (pickle.loads(pickle.dumps(store)).read(KEY, 2, 7) == fields[2:7]).all()


def test_attributes_are_plain_json_and_their_checksum_is_of_the_rest(tmp_path: Path) -> None:
    write(tmp_path, 2)
    metadata = json.loads((tmp_path / "ab" / KEY / "zarr.json").read_text())
    checksum = metadata["attributes"].pop("checksum")
    assert metadata["attributes"].items() >= {**describe(2), "artifact_key": KEY}.items()
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":")).encode()
    (expected,) = np.frombuffer(CRC32C(location="end").encode(text)[-4:], "<u4")  # another implementation's
    assert int(checksum, 16) == expected


PROVENANCE = {**made_by("flow"), "parameters": PARAMETERS, "source_digest": "0" * 32}
OWN_KEY = artifact_key("flow", PARAMETERS, "0" * 32)


def write_warped(root: Path) -> FlowStore:
    """An array of several shards with pairs beside it, under its own address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARD_BYTES", 3 * 2 * 8 * 12)
        pairs = {"inliers": np.arange(7)}
        FlowStore(root).write(OWN_KEY, iter(make_fields(7)), describe=lambda _: PROVENANCE, pairs=lambda: pairs)
    return FlowStore(root)


def test_verify_counts_every_byte(tmp_path: Path) -> None:
    store = write_warped(tmp_path)
    assert store.verify(OWN_KEY) == sum(map(len, content(store.path(OWN_KEY)).values()))


@pytest.mark.parametrize("name", ["zarr.json", "pairs.npz", "c/0/0/0/0", "c/2/0/0/0"])
def test_verify_notices_any_damaged_byte_of_any_file(name: str, tmp_path: Path) -> None:
    store = write_warped(tmp_path)
    file = store.path(OWN_KEY) / name
    whole = file.read_bytes()
    for position in range(len(whole)):
        flip = (0x01, 0x80, 0x2A)[position % 3]
        file.write_bytes(whole[:position] + bytes([whole[position] ^ flip]) + whole[position + 1 :])
        with pytest.raises(DamagedArtifact, match=OWN_KEY):
            store.verify(OWN_KEY)
    for length in range(0, len(whole), 37):
        file.write_bytes(whole[:length])
        with pytest.raises(DamagedArtifact, match=OWN_KEY):
            store.verify(OWN_KEY)
    file.unlink()
    with pytest.raises(DamagedArtifact, match=OWN_KEY):
        store.verify(OWN_KEY)
    file.write_bytes(whole)
    store.verify(OWN_KEY)


def test_verify_notices_what_does_not_belong(tmp_path: Path) -> None:
    store = write_warped(tmp_path)
    (store.path(OWN_KEY) / "c/0/0/0/1").write_bytes(b"")
    with pytest.raises(DamagedArtifact, match="c/0/0/0/1"):
        store.verify(OWN_KEY)
    (store.path(OWN_KEY) / "c/0/0/0/1").unlink()
    other = "cd" + OWN_KEY[2:]
    store.path(other).parent.mkdir()
    store.path(OWN_KEY).rename(store.path(other))
    with pytest.raises(DamagedArtifact, match=f"it is the array {OWN_KEY}"):
        store.verify(other)
    store.write(KEY, iter(make_fields(2)), describe=lambda _: PROVENANCE)
    with pytest.raises(DamagedArtifact, match=f"has the address {OWN_KEY}"):
        store.verify(KEY)  # whole, but another array's


def test_an_array_goes_into_an_archive_and_comes_out_the_same(tmp_path: Path) -> None:
    store, other = write_warped(tmp_path / "one"), FlowStore(tmp_path / "two")
    store.pack(OWN_KEY, tmp_path / "a.zip")
    other.adopt(OWN_KEY, tmp_path / "a.zip")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    with pytest.raises(DamagedArtifact, match="it is the array"):
        other.adopt("cd" + OWN_KEY[2:], tmp_path / "a.zip")
    whole = (tmp_path / "a.zip").read_bytes()
    other.remove(OWN_KEY)
    for position in range(0, len(whole), 41):
        (tmp_path / "a.zip").write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(DamagedArtifact, match=OWN_KEY):
            other.adopt(OWN_KEY, tmp_path / "a.zip")
    assert content(tmp_path / "two") == {}


def test_a_damaged_array_is_not_packed(tmp_path: Path) -> None:
    store = write_warped(tmp_path)
    whole = content(store.path(OWN_KEY))
    for name, data in whole.items():
        path = store.path(OWN_KEY) / name
        path.unlink()
        with pytest.raises(DamagedArtifact, match=rf"{name}|there is no flow"):
            store.pack(OWN_KEY, tmp_path / "a.zip")
        for position in range(0, len(data), 5):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            with pytest.raises(DamagedArtifact, match=OWN_KEY):
                store.pack(OWN_KEY, tmp_path / "a.zip")
        path.write_bytes(data)
    assert store.pack(OWN_KEY, tmp_path / "a.zip") == (tmp_path / "a.zip").stat().st_size


def test_an_array_has_the_mode_of_the_store(tmp_path: Path) -> None:
    tmp_path.chmod(0o2775)
    write(tmp_path, 3)
    assert {path.stat().st_mode & 0o7777 for path in tmp_path.rglob("*") if path.is_dir()} == {0o2775}


def test_what_is_broken_is_removed_and_what_is_whole_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 3)
    store, before = FlowStore(tmp_path), content(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(store, "has", lambda key: False)  # it was not there yet when that was asked
        store.remove_broken(KEY)
    assert content(tmp_path) == before
    (store.path(KEY) / "zarr.json").unlink()
    with pytest.raises(OSError, match="was not stored"):
        write(tmp_path, 3)
    store.remove_broken(KEY)
    assert content(tmp_path) == {}
    write(tmp_path, 3)
    assert content(tmp_path) == before
