"""Archives of arrays: equal bytes, readable by zarr, and nothing comes out of one that should not."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.dataset.keys import artifact_key
from pipeline.stores import flow
from pipeline.stores.archive import ArchiveWriter, check_archive, extract
from pipeline.stores.checksum import crc32c, seal, unseal
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.flow import FlowStore
from pipeline.stores.provenance import made_by

PARAMETERS = {"bound": 20.0}
KEY = artifact_key("flow", PARAMETERS, "0" * 32)
OWN = {**made_by("flow"), "parameters": PARAMETERS, "source_digest": "0" * 32}


@pytest.fixture
def store(tmp_path: Path, rng: np.random.Generator) -> FlowStore:
    """Of one array, of two shards and with pairs beside it."""
    fields = rng.integers(0, 256, (5, 2, 8, 12), np.uint8)
    store = FlowStore(tmp_path / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flow, "SHARD_FIELDS", 3)
        store.write(KEY, iter(fields), describe=lambda count: OWN, pairs=lambda: {"inliers": np.arange(5)})
    return store


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_zarr_and_unzip_read_an_archive(store: FlowStore, tmp_path: Path) -> None:
    size = store.pack(KEY, tmp_path / "a.zip")
    assert size == (tmp_path / "a.zip").stat().st_size
    array = store.path(KEY)
    with zarr.storage.ZipStore(tmp_path / "a.zip", mode="r") as packed:
        assert (zarr.open_array(packed, mode="r")[:] == zarr.open_array(array, mode="r")[:]).all()
    with zipfile.ZipFile(tmp_path / "a.zip") as packed:
        assert packed.testzip() is None
        assert {name: packed.read(name) for name in packed.namelist()} == files(array)
        assert len(packed.namelist()) == 4


def test_an_archive_is_the_one_that_zipfile_writes(store: FlowStore, tmp_path: Path) -> None:
    store.pack(KEY, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as packed:
        for name, data in sorted(files(store.path(KEY)).items()):
            info = member(name)
            info.create_system = 3
            packed.writestr(info, data)
    sealed(tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_an_archive_over_four_gigabytes_has_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With zipfile's limit for 32 bits set low, so that few bytes do."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    with (tmp_path / "a.zip").open("wb") as file:
        packed = ArchiveWriter(file)
        for name in ("a", "b", "c"):
            data = name.encode() * 700
            packed.add(name, [data[:300], data[300:]], size=700, crc32=zlib.crc32(data))
        packed.finish()
    assert b"PK\x06\x06" in (tmp_path / "a.zip").read_bytes()  # the record for 64 bits
    with zipfile.ZipFile(tmp_path / "a.zip") as read:
        assert read.testzip() is None
        assert read.namelist() == ["a", "b", "c"]
    (tmp_path / "out").mkdir()
    assert extract(tmp_path / "a.zip", tmp_path / "out") == {"a", "b", "c"}
    assert (tmp_path / "out" / "c").read_bytes() == b"c" * 700


def test_equal_arrays_give_equal_archives(store: FlowStore, tmp_path: Path) -> None:
    store.pack(KEY, tmp_path / "a.zip")
    other = FlowStore(tmp_path / "other")
    other.adopt(KEY, tmp_path / "a.zip")
    assert files(other.path(KEY)) == files(store.path(KEY))
    for path in other.root.rglob("*"):
        os.utime(path, (1, 1))
    other.pack(KEY, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def change(store: FlowStore, files: object) -> None:
    """Put something else in the place of what an array says of its files, with a right checksum; None is nothing."""
    path = store.path(KEY) / "zarr.json"
    metadata = unseal(path.read_bytes(), part="attributes")
    metadata["attributes"].pop("files", None)
    if files is not None:
        metadata["attributes"]["files"] = files
    path.write_bytes(seal(metadata, part="attributes"))


def test_an_array_that_says_nothing_of_its_files_is_checked_and_packed_alike(store: FlowStore, tmp_path: Path) -> None:
    """As those of versions before."""
    change(store, None)
    assert store.verify(KEY) == sum(map(len, files(store.path(KEY)).values()))
    store.pack(KEY, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as packed:
        assert packed.testzip() is None
        assert {name: packed.read(name) for name in packed.namelist()} == files(store.path(KEY))


@pytest.mark.parametrize("said", [[], {"c/0/0/0/0": 5}, {"c/0/0/0/0": {"crc32": None, "crc32c": 5}}, {"pairs.npz": {}}])
def test_what_an_array_says_of_its_files_may_be_anything(said: object, store: FlowStore, tmp_path: Path) -> None:
    change(store, said)
    for read in (store.verify, lambda key: store.pack(key, tmp_path / "a.zip")):
        with pytest.raises(DamagedArtifact, match=KEY):
            read(KEY)


def test_every_byte_of_an_archive_is_checked(store: FlowStore, tmp_path: Path) -> None:
    archive, out = tmp_path / "a.zip", tmp_path / "out"
    store.pack(KEY, archive)
    whole = archive.read_bytes()
    assert check_archive(archive) == len(whole)
    for position in range(0, len(whole), 3):
        archive.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << position % 8)]) + whole[position + 1 :])
        with pytest.raises(ValueError, match="checksum|does not end"):
            check_archive(archive)
        if position % 5 == 0:
            out.mkdir()
            with pytest.raises(ValueError):
                extract(archive, out)
            shutil.rmtree(out)
    for length in (0, 1, 30, len(whole) // 2, len(whole) - 1):
        archive.write_bytes(whole[:length])
        for check in (check_archive, lambda path: extract(path, tmp_path / "none")):
            with pytest.raises(ValueError, match="does not end|no archive"):
                check(archive)
    assert not (tmp_path / "none").exists()


def sealed(archive: Path) -> None:
    """End a ZIP as ``ArchiveWriter`` does, so that only its content is at fault."""
    with zipfile.ZipFile(archive, "a") as packed:
        packed.comment = b"wherewhen crc32c=" + bytes(8)
    data = archive.read_bytes()[:-8]
    archive.write_bytes(data + crc32c(data).encode())


def member(name: str, *, mode: int = stat.S_IFREG | 0o644, compression: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, compression
    return info


@pytest.mark.parametrize(
    "info",
    [
        member("../../x"),
        member("/etc/x"),
        member("c/../../x"),
        member("c//x"),
        member("c/."),
        member("a\\b"),
        member("link", mode=stat.S_IFLNK | 0o777),
        member("folder/", mode=stat.S_IFDIR | 0o755),
        member("x", compression=zipfile.ZIP_DEFLATED),
    ],
    ids=lambda info: info.filename,
)
def test_what_is_no_plain_file_of_the_array_is_refused(info: zipfile.ZipInfo, tmp_path: Path) -> None:
    out = tmp_path / "in" / "out"
    out.mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(member("zarr.json"), "{}")
        packed.writestr(info, "content of it " * 9)
    sealed(tmp_path / "a.zip")
    check_archive(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="no plain file"):
        extract(tmp_path / "a.zip", out)
    assert files(tmp_path).keys() == {"a.zip"}


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(member("zarr.json"), "{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            packed.writestr(member("zarr.json"), "[]")
    sealed(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="twice"):
        extract(tmp_path / "a.zip", tmp_path)


def test_a_file_that_is_a_folder_too_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in ("c", "c/0/0"):
            packed.writestr(member(name), "content")
    sealed(tmp_path / "a.zip")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="in what is a file"):
        extract(tmp_path / "a.zip", tmp_path / "out")


def test_files_that_lie_over_each_other_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for name in ("a", "b"):
            packed.writestr(member(name), name * 100)
        packed.getinfo("b").header_offset = 3  # in what is written of the directory
    sealed(tmp_path / "a.zip")
    check_archive(tmp_path / "a.zip")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="where another file lies"):
        extract(tmp_path / "a.zip", tmp_path / "out")
