"""Members of a shard have the headers that Python's tarfile would give them, byte for byte."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.stores import tar
from pipeline.stores.frames import ShardWriter


@pytest.mark.parametrize("name", ["a", "a.b/c d", "é" * 20, "x" * 80, "x" * 89, "x" * 90, "x" * 200])
def test_headers_are_those_of_tarfile(name: str, tmp_path: Path) -> None:
    images = [bytes(range(256)) * 40 * n for n in range(4)]
    path = tmp_path / "shard.tar"
    with path.open("w+b") as file:
        writer = ShardWriter(file, folder=tmp_path)
        writer.add(images, metadata={"id": name, "artifact_key": "0" * 32})
        writer.finish()
    rebuilt = b""
    with tarfile.open(path) as tar:
        for info in tar:
            plain = tarfile.TarInfo(info.name)
            plain.size = info.size
            content = tar.extractfile(info)
            assert content is not None
            rebuilt += plain.tobuf(tarfile.PAX_FORMAT) + content.read() + bytes(-info.size % tarfile.BLOCKSIZE)
    assert path.read_bytes() == rebuilt + bytes(2 * tarfile.BLOCKSIZE)


@pytest.mark.parametrize("key", ["a", "x%2Ey", "k" * 88, "k" * 89, "k" * 90, "k" * 91])
def test_headers_of_many_images_are_those_of_each(
    key: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar, "_AT_ONCE", 7)
    sizes = [0, 1, 7, 8, 511, 512, 513, 8**7, *rng.integers(1, 200_000, 20).tolist()]
    for given in (sizes, [], [8**11, 5]):  # the last has one too large for octal digits
        expected = []
        for number, size in enumerate(given):
            info = tarfile.TarInfo(f"{key}.{number:06d}.jpg")
            info.size = size
            expected.append(info.tobuf(tarfile.PAX_FORMAT))
        assert list(tar.image_headers(key, given)) == expected


@pytest.mark.parametrize("key", ["a", "k" * 89])
def test_a_sample_of_more_than_a_million_images(key: str) -> None:
    """The number then has a digit more, and with it a name of 100 characters a header more."""
    count = 10**6 + 3
    jpegs = tar.laid_out(key, [(512, "")] * count)
    end = 0
    for (content, size, _), before in zip(jpegs, tar.image_headers(key, [512] * count), strict=True):
        assert content == end + len(before)
        end = content + size
    assert len(before) == (512 if key == "a" else 1536)
