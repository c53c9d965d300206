"""The store of features: other readers read the same, equal input gives equal bytes, and no changed byte passes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.dataset.keys import artifact_key
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.features import FeatureStore
from pipeline.stores.provenance import made_by, provenance
from pipeline.stores.publish import TEMPORARY

PARAMETERS = {"test_segments": 5, "network": "n"}
KEY = artifact_key("features", PARAMETERS, "source")
SAYS = provenance("features", parameters=PARAMETERS, digest="source", software={"torch": "2"})


def clips(rng: np.random.Generator, count: int = 5) -> np.ndarray:
    return rng.normal(size=(count, 24)).astype(np.float32)


def maps(rng: np.random.Generator, count: int = 5) -> np.ndarray:
    return np.maximum(rng.normal(size=(count, 6, 3, 4)), 0).astype(np.float16)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("kind", [clips, maps])
@pytest.mark.parametrize("count", [1, 5])
def test_what_was_written_is_read_by_us_and_by_zarr(tmp_path: Path, kind: Any, count: int) -> None:
    features = kind(np.random.default_rng(0), count)
    store = FeatureStore(tmp_path)
    assert not store.has(KEY)
    store.write(KEY, features, SAYS)
    assert store.has(KEY)
    assert store.path(KEY) == tmp_path / KEY[:2] / KEY
    found = store.read(KEY)
    assert found.dtype == features.dtype
    np.testing.assert_array_equal(found, features)
    theirs: Any = zarr.open_array(store.path(KEY), mode="r")
    np.testing.assert_array_equal(theirs[:], features)
    assert store.shape(KEY) == features.shape
    assert store.attributes(KEY).items() >= {**SAYS, "artifact_key": KEY}.items()
    assert store.verify(KEY) == sum(map(len, files(store.path(KEY)).values()))


def test_maps_of_zeros_are_maps(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.write(KEY, np.zeros((3, 2, 2, 2), np.float16), SAYS)
    np.testing.assert_array_equal(store.read(KEY), 0)
    assert store.verify(KEY) > 0


def test_equal_features_give_equal_bytes_and_the_first_stay(tmp_path: Path, rng: np.random.Generator) -> None:
    features = maps(rng)
    for name in ("a", "b"):
        FeatureStore(tmp_path / name).write(KEY, features, SAYS)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    before = files(tmp_path / "a")
    FeatureStore(tmp_path / "a").write(KEY, features, SAYS)
    assert files(tmp_path / "a") == before  # and nothing is left over beside it


def test_every_byte_counts(tmp_path: Path, rng: np.random.Generator) -> None:
    """A bit is flipped in places all over each file: each is found by ``verify``, and no other values are read."""
    features = maps(rng)
    whole = FeatureStore(tmp_path / "whole")
    whole.write(KEY, features, SAYS)
    store = FeatureStore(tmp_path / "damaged")
    for name, data in files(whole.path(KEY)).items():
        for place in {*range(0, len(data), max(1, len(data) // 40)), len(data) - 1}:
            shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
            shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
            flip(store.path(KEY) / name, place)
            with pytest.raises(DamagedArtifact, match=f"features {KEY} .*is damaged .*run again"):
                store.verify(KEY)
            with pytest.raises(DamagedArtifact):
                store.read(KEY)


@pytest.mark.parametrize("lost", ["zarr.json", "c/0/0/0/0"])
def test_a_file_that_is_missing_or_short_is_damage(tmp_path: Path, rng: np.random.Generator, lost: str) -> None:
    store = FeatureStore(tmp_path)
    store.write(KEY, maps(rng), SAYS)
    path = store.path(KEY) / lost
    path.write_bytes(path.read_bytes()[:-9])
    for look in (store.read, store.verify):
        with pytest.raises(DamagedArtifact):
            look(KEY)
    path.unlink()
    for look in (store.read, store.verify):
        with pytest.raises(DamagedArtifact, match="there are no features|it has no|is missing"):
            look(KEY)


def test_a_file_too_many_and_another_address_are_damage(tmp_path: Path, rng: np.random.Generator) -> None:
    store = FeatureStore(tmp_path)
    store.write(KEY, maps(rng), SAYS)
    (store.path(KEY) / "more").write_bytes(b"")
    with pytest.raises(DamagedArtifact, match="more is missing, or is none of its files"):
        store.verify(KEY)
    other = "0" * 32
    store.path(other).parent.mkdir()
    shutil.copytree(store.path(KEY), store.path(other))
    with pytest.raises(DamagedArtifact, match=f"it is the array {KEY}"):
        store.read(other)
    store.write("1" * 32, maps(rng), SAYS)
    with pytest.raises(DamagedArtifact, match=f"has the address {KEY}"):
        store.verify("1" * 32)


def test_what_was_made_otherwise_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    FeatureStore(tmp_path).write(KEY, clips(rng), SAYS)
    FeatureStore(tmp_path, wanted={**made_by("features"), "parameters": PARAMETERS}).read(KEY)
    with pytest.raises(DamagedArtifact, match="was made with parameters .* where .* is wanted"):
        FeatureStore(tmp_path, wanted={"parameters": PARAMETERS | {"network": "m"}}).read(KEY)


@pytest.mark.parametrize(
    "features",
    [
        np.zeros((0, 4), np.float32),
        np.zeros((3, 4), np.float64),
        np.zeros((3, 4, 2), np.float32),
        np.zeros((3, 4, 2, 2), np.float32),
        np.full((3, 4), np.nan, np.float32),
        np.full((3, 4, 2, 2), np.inf, np.float16),
    ],
)
def test_what_is_no_features_is_not_stored(tmp_path: Path, features: np.ndarray) -> None:
    with pytest.raises(ValueError, match="are neither clips|are not finite"):
        FeatureStore(tmp_path).write(KEY, features, SAYS)
    assert not list(tmp_path.rglob("*"))


def test_a_broken_folder_does_not_keep_the_place(tmp_path: Path, rng: np.random.Generator) -> None:
    features, store = clips(rng), FeatureStore(tmp_path)
    store.write(KEY, features, SAYS)
    (store.path(KEY) / "zarr.json").unlink()
    assert not store.has(KEY)
    store.write(KEY, features, SAYS)
    np.testing.assert_array_equal(store.read(KEY), features)
    store.remove(KEY)
    store.remove(KEY)
    assert [path.name for path in tmp_path.rglob("*")] == [KEY[:2]]


def _killed(root: Path, features: np.ndarray) -> None:
    """Die when the array is written and not yet in its place."""
    os.rename = lambda *_: os._exit(9)  # type: ignore[assignment]
    FeatureStore(root).write(KEY, features, SAYS)


def _read(root: Path, features: np.ndarray) -> None:
    np.testing.assert_array_equal(FeatureStore(root).read(KEY), features)


def test_a_writer_that_was_killed_leaves_nothing_that_counts(tmp_path: Path, rng: np.random.Generator) -> None:
    features, fork = clips(rng), multiprocessing.get_context("fork")
    (tmp_path / KEY[:2]).mkdir()
    victim = fork.Process(target=_killed, args=(tmp_path, features))
    victim.start()
    victim.join()
    assert victim.exitcode == 9
    assert any(path.name.startswith(TEMPORARY) for path in (tmp_path / KEY[:2]).iterdir())
    store = FeatureStore(tmp_path)
    assert not store.has(KEY)
    store.write(KEY, features, SAYS)
    reader = fork.Process(target=_read, args=(tmp_path, features))  # after this process has read and written itself
    reader.start()
    reader.join()
    assert reader.exitcode == 0
