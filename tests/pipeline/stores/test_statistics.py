"""Statistics of flow stores against the same numbers by brute force over the dequantised values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.dataset.keys import artifact_key
from pipeline.optical_flow.quantise import dequantise
from pipeline.stores.flow import FlowStore
from pipeline.stores.provenance import made_by
from pipeline.stores.shared import SharedStore
from pipeline.stores.statistics import EDGES_PX, FlowArray, flow_statistics

CLIPPED = (0.01, 0.04, 0.0)
COUNTS = (3, 40, 7)


@pytest.fixture
def videos(tmp_path: Path, rng: np.random.Generator) -> dict[str, NDArray[np.uint8]]:
    """Fields by key, in a store ``local``; more of one than are read at a time."""
    found = {}
    for i, (count, clipped) in enumerate(zip(COUNTS, CLIPPED, strict=True)):
        fields = np.clip(rng.normal(128, 40, (count, 2, 12, 16)), 0, 255).astype(np.uint8)
        found[write(tmp_path / "local", fields, digest=str(i), clipped=clipped)] = fields
    return found


def write(root: Path, fields: NDArray[np.uint8], *, digest: str, clipped: float, **stated: Any) -> str:
    parameters = {"bound": 20.0, **stated}
    key = artifact_key("flow", parameters, digest)
    own = {**made_by("flow"), "parameters": parameters, "source_digest": digest, "bound": 20.0, **stated}
    found = {"frames": len(fields), "clipped_fraction": clipped}
    FlowStore(root).write(key, iter(fields), describe=lambda _: {**own, **found})
    return key


def test_numbers_are_those_of_brute_force(videos: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    root = tmp_path / "local"
    (found,), damaged = flow_statistics([FlowArray(root, key) for key in videos], threads=2)
    assert damaged == []
    assert (found.stage, found.arrays, found.fields) == ("flow", 3, sum(COUNTS))
    assert found.bytes == sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    flow = [dequantise(fields, bound=20.0) for fields in videos.values()]
    magnitudes = np.concatenate([np.hypot(one[:, 0], one[:, 1]).ravel() for one in flow])
    expected = np.histogram(magnitudes, [*EDGES_PX, np.inf])[0] / magnitudes.size
    assert found.histogram() == pytest.approx(expected, abs=1e-12)
    assert found.values == 2 * magnitudes.size
    for part in (0.0, 0.5, 0.9, 0.999, 1.0):
        assert found.quantile_px(part) == pytest.approx(np.quantile(magnitudes, part, method="inverted_cdf"), abs=1e-5)
    assert found.clipped / found.fields == pytest.approx(np.average(CLIPPED, weights=COUNTS))
    assert found.most_clipped == (0.04, list(videos)[1])


def test_a_shift_of_codes_counts_and_stands_apart(videos: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    root = tmp_path / "local"
    zeros = np.full((2, 2, 12, 16), 127, np.uint8)
    key = write(root, zeros, digest="z", clipped=0.0, code_shift=0.5)
    groups, _ = flow_statistics([FlowArray(root, key) for key in (*videos, key)], threads=1)
    assert [(one.code_shift, one.arrays) for one in groups] == [(0.0, 3), (0.5, 1)]
    assert groups[1].quantile_px(1.0) == pytest.approx(0.0, abs=1e-9)  # 127.5 is the middle of the codes


def test_what_is_damaged_is_named_and_left_out(videos: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    root = tmp_path / "local"
    first = FlowStore(root).path(next(iter(videos))) / "c/0/0/0/0"
    data = bytearray(first.read_bytes())
    data[100] ^= 1
    first.write_bytes(data)
    (found,), damaged = flow_statistics([FlowArray(root, key) for key in videos], threads=1)
    assert found.arrays == 2
    assert len(damaged) == 1
    assert next(iter(videos)) in damaged[0]


def test_a_shared_store_is_read_in_place(videos: dict[str, NDArray[np.uint8]], tmp_path: Path) -> None:
    local, shared = FlowStore(tmp_path / "local"), SharedStore(str(tmp_path / "shared"), writable=True)
    for key in videos:
        with shared.incoming("flow", key, folder=tmp_path) as archive:
            local.pack(key, archive)
    (here,), _ = flow_statistics([FlowArray(local.root, key) for key in videos], threads=1)
    (there,), _ = flow_statistics([FlowArray(tmp_path / "none", key, shared) for key in videos], threads=1)
    assert (there.counts == here.counts).all()
    assert there.bytes == sum(size for _, size in shared.keys("flow"))
    assert there.clipped == here.clipped
