"""From another tool's folders through the stages probe, flow and index to what training reads; no Snakemake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.config import Config, FlowConfig, FramesConfig, WarpedFlowConfig, load
from pipeline.dataset.plan import stage_recipes, write_plan
from pipeline.dataset.receipts import Receipt
from pipeline.learning.readers import open_reader
from pipeline.stores.exchange import export_folders, import_folders
from pipeline.stores.imports import NOT_IMPORTED, arrivals_file, count_arrivals, import_flow
from pipeline.stores.shared import SharedStore
from pipeline.stores.sharing import Sharing
from stages import flow, frames, manifest, probe, warped_flow
from stages.index import index

Clip = Callable[..., Path]
FLOW = {"size": [40, 30], "nscales": 2, "warps": 1, "outer_iterations": 2}
COUNTS = {"a": 7, "b": 5}


@pytest.fixture
def videos(tmp_path: Path, make_clip: Clip) -> Path:
    for name, count in COUNTS.items():
        for label in ("run", "jump"):
            source = f"testsrc2=size=48x36:rate=25,trim=start={0.2 * len(label)}:duration=2,setpts=PTS-STARTPTS"
            make_clip(tmp_path / "videos" / label / f"{label}_{name}.avi", source, "-frames:v", str(count))
    return tmp_path / "videos"


class Project:
    """A class folder dataset with one shard, whose stages are called by their functions."""

    def __init__(self, work: Path, videos: Path, **settings: Any) -> None:
        given = {"name": "x", "work": str(work), "dataset": "class_folders", "videos": str(videos), "shards": 1}
        self.config: Config = load({**given, "frames": {"size": [40, 30]}, "flow": FLOW, **settings})
        self.work, self.recipes = work, stage_recipes(self.config)
        found = manifest.select(manifest.find(self.config), self.config)
        found = manifest.digest(found, cache=work / "digests.sqlite", image_fps=self.config.image_fps)
        (self.shard,) = write_plan(found, shards=1, folder=work / "plan")
        rows = json.loads((work / "plan" / "media" / f"{self.shard}.json").read_text())
        self.probed = probe.probe_shard(rows, shard=self.shard, store=work / "probe")

    def flow(self, **options: Any) -> Receipt:
        store = self.config.store_folder("flow", "")
        return flow.solve_shard(self.probed, shard=self.shard, store=store, config=self.config.flow, **options)

    def frames(self) -> Receipt:
        store = self.config.store_folder("frames", self.recipes["frames"])
        return frames.pack_shard(self.probed, shard=self.shard, store=store, config=self.config.frames)

    def index(self, receipt: Receipt) -> Any:
        section: FlowConfig | FramesConfig = getattr(self.config, receipt.stage)
        recipe = self.recipes[receipt.stage]
        parameters = json.loads(section.model_dump_json(by_alias=True))
        store = str(self.config.store_folder(receipt.stage, recipe))
        table = index([receipt], stage=receipt.stage, store=store, parameters=parameters)
        file = self.work / "index" / f"{receipt.stage}-{recipe}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(table))
        return json.loads(file.read_text())

    def read(self, receipt: Receipt) -> dict[str, np.ndarray]:
        """All fields of every video, by the reader of training."""
        table = self.index(receipt)
        reader = open_reader(table)
        return {v: reader.read(v, np.arange(facts["frames"])[None])[0] for v, facts in table["videos"].items()}


def imported(tool: str = "dense_flow", **stated: Any) -> dict[str, Any]:
    return {"bound": 20, "imported": {"tool": tool, "images": "png", "quantiser": "round", **stated}}


@pytest.mark.parametrize("tool", ["denseflow", "dense_flow", "mmaction2"])
def test_training_reads_what_the_tool_wrote(tool: Any, videos: Path, tmp_path: Path) -> None:
    ours = Project(tmp_path / "ours", videos)
    computed = ours.read(ours.flow())
    export_folders(ours.config, root=tmp_path / tool, tool=tool, what=["flow"], images="png", jobs=1)

    theirs = Project(tmp_path / "theirs", videos, flow=imported(tool))
    assert import_folders(theirs.config, root=tmp_path / tool, stage="flow", jobs=1) == 0
    receipt = theirs.flow()
    assert receipt.count() == {"reused": 4}
    found = theirs.read(receipt)
    assert found.keys() == computed.keys()
    assert all((found[name] == computed[name]).all() for name in found)
    facts = receipt.usable()["run--run_a"]
    assert (facts["frames"], facts["width"], facts["height"], facts["fps"]) == (6, 40, 30, 25.0)
    assert theirs.recipes["flow"] != ours.recipes["flow"]


def test_strided_flow_has_fewer_fields_a_second(videos: Path, tmp_path: Path) -> None:
    ours = Project(tmp_path / "ours", videos, flow={**FLOW, "step": 2})
    computed = ours.read(ours.flow())
    export_folders(ours.config, root=tmp_path / "out", tool="dense_flow", what=["flow"], images="png", jobs=1)
    theirs = Project(tmp_path / "theirs", videos, flow={**imported(), "step": 2})
    import_folders(theirs.config, root=tmp_path / "out", stage="flow", jobs=1)
    receipt = theirs.flow()
    assert {facts["fps"] for facts in receipt.usable().values()} == {12.5}
    assert all((found == computed[name][::2]).all() for name, found in theirs.read(receipt).items())


def test_folders_of_frames_and_flow_are_videos_without_any_video_file(videos: Path, tmp_path: Path) -> None:
    """TSN's folders: images of frames from the second on, and flow, side by side; the folder is the video."""
    ours = Project(tmp_path / "ours", videos)
    computed, shown = ours.read(ours.flow()), ours.index(ours.frames())
    assert shown["videos"]
    root, what = tmp_path / "tsn", ["flow", "frames"]
    assert export_folders(ours.config, root=root, tool="dense_flow", what=what, images="png", jobs=1) == 0
    assert len(list((root / "run/run_a").iterdir())) == 3 * 6

    theirs = Project(tmp_path / "theirs", root, flow=imported(own_images=True))
    assert {facts["frames"] for facts in theirs.probed.usable().values()} == {6, 4}
    assert import_folders(theirs.config, root=root, stage="flow", jobs=1) == 0
    found = theirs.read(theirs.flow())
    assert all((found[name] == computed[name][1:]).all() for name in computed)
    (frame,) = open_reader(theirs.index(theirs.frames())).read("run--run_a", np.array([[0]]))[0]
    second = cv2.imread(str(root / "run/run_a/img_00001.jpg"))[..., ::-1].astype(int)
    assert np.abs(np.moveaxis(frame, 0, -1) - second).mean() < 3
    wrong = Project(tmp_path / "wrong", root, flow=imported())  # the shift is not stated
    import_folders(wrong.config, root=root, stage="flow", jobs=1)
    reasons = {outcome.reason for outcome in wrong.flow().quarantined().values()}
    assert any("6 fields were imported for it where its 6 frames make 5" in str(reason) for reason in reasons)


def test_what_is_not_imported_is_quarantined_until_it_comes(videos: Path, tmp_path: Path) -> None:
    ours = Project(tmp_path / "ours", videos)
    ours.index(ours.flow())
    root = tmp_path / "out"
    export_folders(ours.config, root=root, tool="dense_flow", what=["flow"], images="png", jobs=1)
    (root / "run/run_a").rename(tmp_path / "away")

    theirs = Project(tmp_path / "theirs", videos, flow=imported())
    options: Any = {"shards": [theirs.shard]}
    assert import_folders(theirs.config, root=root, stage="flow", jobs=1) == 0
    receipt = theirs.flow()
    recipe = theirs.recipes["flow"]
    receipt.write(theirs.work / "receipts" / f"flow-{recipe}" / f"{theirs.shard}.json")
    assert receipt.count() == {"reused": 3, "quarantined": 1}
    assert receipt.quarantined()["run--run_a"].reason.startswith(NOT_IMPORTED)  # type: ignore[union-attr]
    file = arrivals_file(theirs.work / "plan", "flow", recipe, theirs.shard)
    assert list(count_arrivals(theirs.config, theirs.recipes, **options)) == []
    before = file.read_text()

    (tmp_path / "away").rename(root / "run/run_a")
    import_folders(theirs.config, root=root, stage="flow", jobs=1)
    (told,) = count_arrivals(theirs.config, theirs.recipes, **options)
    assert told == "flow: imported flow has come since the last run for run--run_a"
    assert file.read_text() != before
    again = theirs.flow()
    again.write(theirs.work / "receipts" / f"flow-{recipe}" / f"{theirs.shard}.json")
    assert again.count() == {"reused": 4}
    after = file.read_text()
    assert list(count_arrivals(theirs.config, theirs.recipes, **options)) == []
    assert file.read_text() == after


def test_a_teammate_takes_imported_flow_from_the_shared_store(videos: Path, tmp_path: Path) -> None:
    ours = Project(tmp_path / "ours", videos)
    ours.index(ours.flow())
    export_folders(ours.config, root=tmp_path / "out", tool="mmaction2", what=["flow"], images="png", jobs=1)
    first = Project(tmp_path / "first", videos, flow=imported("mmaction2"))
    import_folders(first.config, root=tmp_path / "out", stage="flow", jobs=1)
    first.flow(sharing=Sharing(SharedStore(str(tmp_path / "shared"), writable=True)))
    second = Project(tmp_path / "second", videos, flow=imported("mmaction2"))
    receipt = second.flow(sharing=Sharing(SharedStore(str(tmp_path / "shared"))))
    assert receipt.count() == {"fetched": 4}
    assert {name: f.tolist() for name, f in second.read(receipt).items()} == {
        name: f.tolist() for name, f in first.read(first.flow()).items()
    }


def test_imported_warped_flow_is_kept_apart(videos: Path, tmp_path: Path) -> None:
    ours = Project(tmp_path / "ours", videos)
    ours.index(ours.flow())
    export_folders(ours.config, root=tmp_path / "out", tool="dense_flow", what=["flow"], images="png", jobs=1)
    theirs = Project(tmp_path / "theirs", videos, flow=imported())
    section = WarpedFlowConfig.model_validate(imported())
    options: Any = {"shard": "0", "store": tmp_path / "store", "config": section}
    rows = [{"id": name, **facts} for name, facts in theirs.probed.usable().items()]
    import_flow(rows, tmp_path / "out", store=tmp_path / "store", config=theirs.config.flow)
    assert warped_flow.solve_shard(theirs.probed, **options).count() == {"quarantined": 4}
    import_flow(rows, tmp_path / "out", store=tmp_path / "store", config=section, stage="warped_flow")
    assert warped_flow.solve_shard(theirs.probed, **options).count() == {"reused": 4}


def test_the_commands_need_a_plan_and_a_run(tmp_path: Path) -> None:
    config = load({"name": "x", "work": str(tmp_path), "dataset": "demo", "flow": imported()})
    with pytest.raises(ValueError, match="there is no plan in .*--dry-run"):
        import_folders(config, root=tmp_path, stage="flow", jobs=1)
    with pytest.raises(ValueError, match="there is no index .*preprocess_all"):
        export_folders(config, root=tmp_path, tool="dense_flow", what=["flow"], images="jpg", jobs=1)
    with pytest.raises(ValueError, match="export them to two folders"):
        export_folders(config, root=tmp_path, tool="denseflow", what=["flow", "warped_flow"], images="jpg", jobs=1)
