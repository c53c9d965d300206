"""Readers: what the stores hold is what is read; what was made otherwise, or is damaged, is refused and noted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from pipeline.dataset.keys import artifact_key
from pipeline.learning import readers
from pipeline.learning.loader import Clip, ScoringSnippets
from pipeline.learning.readers import Index
from pipeline.stores.damage import DamagedArtifact, Notes
from pipeline.stores.flow import FlowStore
from pipeline.stores.frames import ShardWriter
from pipeline.stores.provenance import made_by
from pipeline.stores.shared import SharedStore
from pipeline.stores.sharing import Sharing

INDICES = np.array([[0, 1], [5, 6], [6, 7], [19, 19], [2, 0]])
BOUND = {"bound": 20.0}
KEY = artifact_key("flow", BOUND, "d1")


def flow_index(folder: Path, fields: np.ndarray, *, digest: str = "d1") -> Index:
    """A store with the flow of one video, "a"."""
    made = {**made_by("flow"), "parameters": BOUND, "source_digest": "d1"}
    FlowStore(folder).write(KEY, fields, describe=lambda count: made)
    facts = {"key": KEY, "frames": len(fields), "digest": digest, "width": 24, "height": 16}
    return {"stage": "flow", "store": str(folder), "parameters": BOUND, "videos": {"a": facts}, "quarantined": {}}


def frame_index(folder: Path, jpegs: list[bytes], *, digest: str = "d1") -> Index:
    made = {**made_by("frames"), "parameters": {"qscale": 2}, "source_digest": "d1"}
    with (folder / "00000.tar").open("w+b") as file:
        writer = ShardWriter(file, folder=folder)
        sample = writer.add(jpegs, metadata={"id": "a", "artifact_key": KEY, **made})
        writer.finish()
    place = {"key": KEY, "shard": "00000.tar", "offset": sample.offset, "length": sample.length, "digest": digest}
    facts = {**place, "frames": len(jpegs), "width": 24, "height": 16}
    made_with = {"qscale": 2}
    return {"stage": "frames", "store": str(folder), "parameters": made_with, "videos": {"a": facts}, "quarantined": {}}


@pytest.fixture
def fields(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (20, 2, 16, 24), dtype=np.uint8)


@pytest.fixture
def jpegs(rng: np.random.Generator) -> list[bytes]:
    return [cv2.imencode(".jpg", rng.integers(0, 256, (16, 24, 3), dtype=np.uint8))[1].tobytes() for _ in range(20)]


def test_the_flow_reader_gives_the_stored_fields(tmp_path: Path, fields: np.ndarray) -> None:
    index = flow_index(tmp_path, fields)
    np.testing.assert_array_equal(readers.open_reader(index).read("a", INDICES), fields[INDICES])


def test_the_frame_reader_gives_the_stored_frames_in_rgb(tmp_path: Path, jpegs: list[bytes]) -> None:
    found = readers.open_reader(frame_index(tmp_path, jpegs)).read("a", INDICES)
    assert found.shape == (5, 2, 3, 16, 24)
    for place in np.ndindex(5, 2):
        bgr = cv2.imdecode(np.frombuffer(jpegs[INDICES[place]], np.uint8), cv2.IMREAD_COLOR)
        for channel in range(3):
            np.testing.assert_array_equal(found[place][channel], bgr[..., 2 - channel])


@pytest.mark.parametrize("kind", ["flow", "frames"])
def test_what_was_made_otherwise_is_refused_with_both_values(
    kind: str, tmp_path: Path, fields: np.ndarray, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def index(**options: Any) -> Index:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return flow_index(folder, fields, **options) if kind == "flow" else frame_index(folder, jpegs, **options)

    with pytest.raises(DamagedArtifact, match="source_digest 'd1' where 'd2' is wanted"):
        readers.open_reader(index(digest="d2")).read("a", INDICES)
    other: Any = index() | {"parameters": {"bound": 15.0}}
    with pytest.raises(DamagedArtifact, match=r"where (15\.0|\{'bound': 15\.0\}) is wanted"):
        readers.open_reader(other).read("a", INDICES)
    made = index()
    monkeypatch.setitem(readers.made_by.__globals__["VERSIONS"], kind, 99)
    with pytest.raises(DamagedArtifact, match="stage_version [0-9]+ where 99 is wanted"):
        readers.open_reader(made).read("a", INDICES)


@pytest.mark.parametrize("in_place", [True, False])
def test_flow_that_is_not_here_is_read_in_the_shared_store_or_copied(
    in_place: bool, tmp_path: Path, fields: np.ndarray
) -> None:
    index = flow_index(tmp_path / "local", fields)
    arrays = FlowStore(tmp_path / "local")
    shared = SharedStore(str(tmp_path / "shared"), writable=True)
    with shared.incoming("flow", KEY, folder=tmp_path) as archive:
        arrays.pack(KEY, archive)
    arrays.remove(KEY)
    with pytest.raises(DamagedArtifact, match="there is no flow"):
        readers.open_reader(index).read("a", INDICES)
    reader = readers.open_reader(index, sharing=Sharing(SharedStore(str(tmp_path / "shared")), in_place))
    np.testing.assert_array_equal(reader.read("a", INDICES), fields[INDICES])
    assert arrays.has(KEY) is not in_place
    if not in_place:
        shutil.rmtree(tmp_path / "shared")  # it is not looked into again
        np.testing.assert_array_equal(reader.read("a", INDICES), fields[INDICES])


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_named_and_noted_from_any_process(workers: int, tmp_path: Path, fields: np.ndarray) -> None:
    index = flow_index(tmp_path / "flow", fields)
    shard = tmp_path / "flow" / KEY[:2] / KEY / "c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    reader = readers.open_reader(index, sharing=Sharing(notes=tmp_path / "damaged"), by="predict")
    snippets = ScoringSnippets(clips=[Clip("a", 0, 20)], reader=reader, snippet=5, segments=4, crops=1, chunk=4)
    with pytest.raises(DamagedArtifact) as caught:
        list(DataLoader(snippets, batch_size=None, num_workers=workers))  # type: ignore[arg-type]
    said = str(caught.value)
    assert said.startswith(f"video 'a': flow {KEY} in ")
    assert "\n" not in said
    ((_, note),) = Notes(tmp_path / "damaged")
    assert (note.stage, note.made_by, note.video, note.key) == ("predict", "flow", "a", KEY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no index"),
        ("{", "is not an index"),
        ("{}", "is not an index"),
        (json.dumps({"stage": "frames"}), "is an index of frames, but flow is needed"),
    ],
)
def test_another_file_than_the_index_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "index.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        readers.read_index(tmp_path / "index.json", stage="flow")
