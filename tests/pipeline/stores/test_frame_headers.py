"""Members of a shard have the headers that Python's tarfile would give them, byte for byte."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

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
