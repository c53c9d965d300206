"""The digest cache: right digests, and no file read twice."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pipeline.dataset import digests
from pipeline.dataset.digests import digest_files


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read, in order."""
    seen: list[Path] = []
    original = digests.file_digest

    def spy(path: Path) -> str:
        seen.append(path)
        return original(path)

    monkeypatch.setattr(digests, "file_digest", spy)
    return seen


def files(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{i}.bin" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]) * (i + 1))
    return paths


def test_digests_and_sizes_are_those_of_the_bytes(tmp_path: Path) -> None:
    paths = files(tmp_path, 5)
    expected = [(hashlib.blake2b(p.read_bytes(), digest_size=16).hexdigest(), p.stat().st_size) for p in paths]
    assert digest_files(paths, cache=tmp_path / "c.sqlite") == expected


def test_only_what_changed_is_read_again(tmp_path: Path, read: list[Path]) -> None:
    paths, cache = files(tmp_path, 5), tmp_path / "c.sqlite"
    first = digest_files(paths, cache=cache)
    assert sorted(read) == paths
    read.clear()
    assert digest_files(paths, cache=cache) == first
    assert read == []

    os.utime(paths[1])
    paths[2].write_bytes(b"new")
    second = digest_files(paths, cache=cache)
    assert sorted(read) == paths[1:3]
    assert [i for i in range(5) if second[i] != first[i]] == [2]


def test_same_size_and_old_time_is_still_noticed_by_the_inode(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.bin", tmp_path / "c.sqlite"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    first = digest_files([path], cache=cache)
    other = tmp_path / "b.bin"
    other.write_bytes(b"two")
    os.utime(other, ns=(1, 1))
    os.replace(other, path)  # as rsync does
    assert digest_files([path], cache=cache) != first


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the video .*gone\.avi: No such file"):
        digest_files([tmp_path / "gone.avi"], cache=tmp_path / "c.sqlite")
