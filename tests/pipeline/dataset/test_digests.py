"""The digest cache: right digests, and no file read twice."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.dataset import digests
from pipeline.dataset.digests import Source, digest_files, planned_source
from pipeline.media.errors import UnusableVideo


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
    expected = [(hashlib.blake2b(p.read_bytes(), digest_size=16).hexdigest(), p.stat().st_size, False) for p in paths]
    assert digest_files(paths, cache=tmp_path / "c.sqlite", image_fps=25.0) == expected


def test_only_what_changed_is_read_again(tmp_path: Path, read: list[Path]) -> None:
    paths, cache = files(tmp_path, 5), tmp_path / "c.sqlite"
    first = digest_files(paths, cache=cache, image_fps=25.0)
    assert sorted(read) == paths
    read.clear()
    assert digest_files(paths, cache=cache, image_fps=25.0) == first
    assert read == []

    os.utime(paths[1])
    paths[2].write_bytes(b"new")
    second = digest_files(paths, cache=cache, image_fps=25.0)
    assert sorted(read) == paths[1:3]
    assert [i for i in range(5) if second[i] != first[i]] == [2]


def test_same_size_and_old_time_is_still_noticed_by_the_inode(tmp_path: Path) -> None:
    path, cache = tmp_path / "a.bin", tmp_path / "c.sqlite"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    first = digest_files([path], cache=cache, image_fps=25.0)
    other = tmp_path / "b.bin"
    other.write_bytes(b"two")
    os.utime(other, ns=(1, 1))
    os.replace(other, path)  # as rsync does
    assert digest_files([path], cache=cache, image_fps=25.0) != first


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read the video .*gone\.avi: No such file"):
        digest_files([tmp_path / "gone.avi"], cache=tmp_path / "c.sqlite", image_fps=25.0)


def test_many_videos_keep_their_order_and_the_first_missing_one_is_named(tmp_path: Path) -> None:
    paths = files(tmp_path, 5) * 300  # several chunks, looked at by several threads
    found = digest_files(paths, cache=tmp_path / "c.sqlite", image_fps=25.0)
    assert [source.bytes for source in found] == [1, 2, 3, 4, 5] * 300
    paths[700], paths[1400] = tmp_path / "gone.avi", tmp_path / "lost.avi"
    with pytest.raises(ValueError, match=r"cannot read the video .*gone\.avi"):
        digest_files(paths, cache=tmp_path / "c.sqlite", image_fps=25.0)


def images(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:03d}.jpg").write_bytes(b"image %d" % i)
    return folder


def of_folder(folder: Path, *, image_fps: float = 25.0) -> Source:
    return digest_files([folder], cache=folder.parent / "c.sqlite", image_fps=image_fps)[0]


def by_definition(folder: Path, image_fps: float) -> str:
    """Names and digests of the files, in the order of the names; then the rate. A folder's digest may never change."""
    content = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.iterdir()):
        inner = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        content.update(path.name.encode() + b"\0" + inner.encode() + b"\0")
    return hashlib.blake2b(f"{content.hexdigest()} {image_fps!r}".encode(), digest_size=16).hexdigest()


def test_a_folders_digest_is_that_of_its_names_bytes_and_rate(tmp_path: Path) -> None:
    folder = images(tmp_path / "a")
    expected = Source(by_definition(folder, 29.97), 6 * len("image 0"), is_folder=True)
    assert of_folder(folder, image_fps=29.97) == expected
    copy = shutil.copytree(folder, tmp_path / "copy")  # other inodes, and wherever it lies
    assert of_folder(Path(copy), image_fps=29.97) == expected
    assert of_folder(folder, image_fps=25) == of_folder(folder, image_fps=25.0)


def _change(folder: Path) -> None:
    (folder / "003.jpg").write_bytes(b"image X")


def _add(folder: Path) -> None:
    (folder / "006.jpg").write_bytes(b"image 6")


def _remove(folder: Path) -> None:
    (folder / "005.jpg").unlink()


def _rename(folder: Path) -> None:
    (folder / "005.jpg").rename(folder / "006.jpg")


def _swap(folder: Path) -> None:
    (folder / "001.jpg").rename(folder / "x")
    (folder / "002.jpg").rename(folder / "001.jpg")
    (folder / "x").rename(folder / "002.jpg")


def _stray(folder: Path) -> None:
    (folder / "Thumbs.db").write_bytes(b"")


def _subfolder(folder: Path) -> None:
    (folder / "more").mkdir()


def _dead_link(folder: Path) -> None:
    (folder / "006.jpg").symlink_to("nowhere")


@pytest.mark.parametrize("edit", [_change, _add, _remove, _rename, _swap, _stray, _subfolder, _dead_link])
def test_any_change_to_a_folder_is_another_digest_and_undoing_it_the_old_one(
    edit: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = images(tmp_path / "a")
    before = of_folder(folder)
    edit(folder)
    after = of_folder(folder)
    assert after.digest != before.digest
    assert of_folder(folder) == after
    shutil.rmtree(folder)
    assert of_folder(images(folder)) == before


def test_a_folder_is_read_again_only_if_touched(tmp_path: Path, read: list[Path]) -> None:
    folder, other = images(tmp_path / "a"), images(tmp_path / "b", 3)
    cache = tmp_path / "c.sqlite"
    first = digest_files([folder, other], cache=cache, image_fps=25.0)
    assert sorted(read) == sorted([*folder.iterdir(), *other.iterdir()])
    read.clear()
    assert digest_files([folder, other], cache=cache, image_fps=25.0) == first
    assert read == []
    os.utime(folder / "003.jpg")
    (folder / ".hidden").write_bytes(b"x")
    assert digest_files([folder, other], cache=cache, image_fps=25.0) == first
    assert sorted(read) == sorted(folder.glob("[!.]*"))


def test_another_rate_is_another_digest_but_reads_nothing(tmp_path: Path, read: list[Path]) -> None:
    folder, (file,) = images(tmp_path / "a"), files(tmp_path, 1)
    cache = tmp_path / "c.sqlite"
    slow = digest_files([folder, file], cache=cache, image_fps=25.0)
    read.clear()
    fast = digest_files([folder, file], cache=cache, image_fps=30.0)
    assert read == []
    assert fast[0].digest != slow[0].digest
    assert fast[1] == slow[1]  # a file has its own rate


def test_a_folder_in_the_place_of_a_file_is_noticed(tmp_path: Path) -> None:
    (path,) = files(tmp_path, 1)
    before = of_folder(path)
    path.unlink()
    after = of_folder(images(path))
    assert (before.is_folder, after.is_folder) == (False, True)
    assert before.digest != after.digest


def test_a_folder_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    folder = images(tmp_path / "a")
    digest = of_folder(folder).digest
    with planned_source(folder, digest=digest, image_fps=25.0):
        pass
    with pytest.raises(OSError, match="changed while"), planned_source(folder, digest=digest, image_fps=30.0):
        pass
    with pytest.raises(UnusableVideo), planned_source(folder, digest=digest, image_fps=25.0):
        raise UnusableVideo("a fault of its own")
    with pytest.raises(OSError, match="changed while"), planned_source(folder, digest=digest, image_fps=25.0):
        _add(folder)
        raise UnusableVideo("a fault of what it has become")
    shutil.rmtree(folder)
    with pytest.raises(OSError, match="cannot read"), planned_source(folder, digest=digest, image_fps=25.0):
        pass
