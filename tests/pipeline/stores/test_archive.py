"""Archives of arrays: equal bytes, readable by zarr, and nothing comes out of one that should not."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr

from pipeline.stores.archive import check_archive, pack_array, unpack_array
from pipeline.stores.checksum import crc32c
from pipeline.stores.flow import FlowStore

KEY = "ab" * 16


@pytest.fixture
def array(tmp_path: Path, rng: np.random.Generator) -> Path:
    fields = rng.integers(0, 256, (5, 2, 8, 12), np.uint8)
    store = FlowStore(tmp_path / "store")
    store.write(KEY, iter(fields), describe=lambda count: {}, pairs=lambda: {"inliers": np.arange(5)})
    return store.path(KEY)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_zarr_and_unzip_read_an_archive(array: Path, tmp_path: Path) -> None:
    pack_array(array, tmp_path / "a.zip")
    with zarr.storage.ZipStore(tmp_path / "a.zip", mode="r") as store:
        assert (zarr.open_array(store, mode="r")[:] == zarr.open_array(array, mode="r")[:]).all()
    with zipfile.ZipFile(tmp_path / "a.zip") as packed:
        assert packed.testzip() is None
        assert {name: packed.read(name) for name in packed.namelist()} == files(array)


def test_equal_arrays_give_equal_archives(array: Path, tmp_path: Path) -> None:
    pack_array(array, tmp_path / "a.zip")
    unpack_array(tmp_path / "a.zip", tmp_path / "other")
    assert files(tmp_path / "other") == files(array)
    for path in (tmp_path / "other").rglob("*"):
        os.utime(path, (1, 1))
    pack_array(tmp_path / "other", tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_every_byte_of_an_archive_is_checked(array: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    pack_array(array, archive)
    whole = archive.read_bytes()
    assert check_archive(archive) == len(whole)
    for position in range(len(whole)):
        archive.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << position % 8)]) + whole[position + 1 :])
        with pytest.raises(ValueError, match="checksum|does not end"):
            check_archive(archive)
    for length in (0, 1, 30, len(whole) // 2, len(whole) - 1):
        archive.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="checksum|does not end|no archive"):
            unpack_array(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def sealed(archive: Path) -> None:
    """End a ZIP as ``pack_array`` does, so that only its content is at fault."""
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
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(member("zarr.json"), "{}")
        packed.writestr(info, "content of it " * 9)
    sealed(tmp_path / "a.zip")
    check_archive(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="no plain file"):
        unpack_array(tmp_path / "a.zip", tmp_path / "in" / "out")
    assert files(tmp_path).keys() == {"a.zip"}


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr(member("zarr.json"), "{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            packed.writestr(member("zarr.json"), "[]")
    sealed(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="twice"):
        unpack_array(tmp_path / "a.zip", tmp_path / "out")
