"""Exporting to folders of other tools and importing back: bytes, names, numbers and alignment survive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.config import FlowConfig, load
from pipeline.stores.exports import Exported, FlowSource, FrameSource, check_rates, export, export_layout
from pipeline.stores.flow import FlowStore
from pipeline.stores.folders import count_fields
from pipeline.stores.frame_reader import FrameShards
from pipeline.stores.frames import ShardWriter
from pipeline.stores.imports import import_flow
from pipeline.stores.layouts import FolderLayout, Suffix, Tool
from pipeline.stores.publish import atomic_file

HEIGHT, WIDTH, FRAMES = 16, 24, 8
VIDEOS = [
    {"id": "v1", "path": "videos/run/clip.one.avi", "digest": "1" * 32, "labels": ["run"]},
    {"id": "v2", "path": "videos/jump/two.avi", "digest": "2" * 32, "labels": ["jump", "run"]},
]


def own(**given: Any) -> FlowConfig:
    return FlowConfig.model_validate({"size": [WIDTH, HEIGHT], **given})


def pair_fields(config: FlowConfig, frames: int = FRAMES) -> np.ndarray:
    """(F, 2, H, W) uint8: x is ten times the frame that a field leads from, y that which it leads to."""
    pairs = [(i, i + config.step)[:: -1 if config.reverse else 1] for i in range(frames - config.step)]
    return np.stack([np.stack([np.full((HEIGHT, WIDTH), 10 * end, np.uint8) for end in pair]) for pair in pairs])


def smooth(count: int, seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(60, 200, (count, 2, 3, 5), np.uint8)
    return np.stack([[cv2.resize(p, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR) for p in f] for f in coarse])


def flow_source(root: Path, fields: dict[str, np.ndarray], *, every: int = 1) -> FlowSource:
    store, facts = FlowStore(root), {}
    for number, (name, codes) in enumerate(fields.items()):
        key = f"{number:032x}"
        store.write(key, iter(codes), describe=lambda count: {"parameters": {}})
        facts[name] = {"key": key, "frames": len(codes)}
    return FlowSource(store, facts, every)


def picture(number: int) -> bytes:
    pixels = np.full((HEIGHT, WIDTH, 3), 20 * number, np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def frame_source(root: Path, names: list[str]) -> FrameSource:
    facts = {}
    with atomic_file(root / "0.tar") as file:
        writer = ShardWriter(file, folder=root)
        for name in names:
            metadata = {"id": name, "artifact_key": name, "width": WIDTH, "height": HEIGHT, "fps": 25.0}
            sample = writer.add(map(picture, range(FRAMES)), metadata=metadata)
            place = {"shard": "0.tar", "offset": sample.offset, "length": sample.length, "key": name}
            facts[name] = place | {"frames": FRAMES, "width": WIDTH, "height": HEIGHT}
        writer.finish()
    return FrameSource(FrameShards(root), facts)


def level(path: Path) -> int:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return round(float(image.mean()) / 10)


@pytest.mark.parametrize(
    ("tool", "config", "names"),
    [
        ("denseflow", own(), [("flow_{}_00000", 0, 1), ("flow_{}_00006", 6, 7)]),
        ("denseflow", own(step=2), [("flow_{}_p2_00000", 0, 2), ("flow_{}_p2_00005", 5, 7)]),
        ("denseflow", own(step=3, reverse=True), [("flow_{}_m3_00000", 3, 0), ("flow_{}_m3_00004", 7, 4)]),
        ("denseflow", own(reverse=True), [("flow_{}_m1_00000", 1, 0), ("flow_{}_m1_00006", 7, 6)]),
        ("dense_flow", own(), [("flow_{}_00001", 0, 1), ("flow_{}_00007", 6, 7)]),
        ("dense_flow", own(step=2), [("flow_{}_00001", 0, 2), ("flow_{}_00003", 4, 6)]),
        ("dense_flow", own(step=3), [("flow_{}_00001", 0, 3), ("flow_{}_00002", 3, 6)]),
        ("mmaction2", own(), [("{}_00001", 0, 1), ("{}_00007", 6, 7)]),
    ],
)
def test_names_lead_to_the_fields_of_their_frames(
    tool: Tool, config: FlowConfig, names: list[tuple[str, int, int]], tmp_path: Path
) -> None:
    """First and last name of each layout, by hand, and the frames that the field under it joins."""
    layout, every = export_layout(tool, config=config)
    source = flow_source(tmp_path / "store", {"v1": pair_fields(config)}, every=every)
    done = export(VIDEOS, tmp_path / "out", layout=layout, sources=[source])
    assert done == Exported(done=("v1",), already=(), lacking=("v2",))
    folder = tmp_path / "out/run/clip.one"
    for name, start, end in names:
        assert [level(folder / f"{name.format(c)}.jpg") for c in "xy"] == [start, end]
    files = sorted(path.stem for path in folder.iterdir())
    first, last = names[0][0], names[-1][0]
    assert (files[0], files[-1]) == (first.format("x"), last.format("y"))
    assert len(files) == 2 * count_fields(folder, layout) == 2 * layout.fields(FRAMES)


@pytest.mark.parametrize(
    ("tool", "step", "images"),
    [
        ("denseflow", 1, {f"img_{i:05d}.jpg": i for i in range(FRAMES)}),
        ("mmaction2", 1, {f"img_{i + 1:05d}.jpg": i for i in range(FRAMES)}),
        ("dense_flow", 1, {f"img_{i:05d}.jpg": i for i in range(1, FRAMES)}),
        ("dense_flow", 3, {"img_00001.jpg": 3, "img_00002.jpg": 6}),
    ],
)
def test_frames_are_copied_under_their_tools_numbers(
    tool: Tool, step: int, images: dict[str, int], tmp_path: Path
) -> None:
    layout, _ = export_layout(tool, config=own(step=step))
    export(VIDEOS, tmp_path / "out", layout=layout, sources=[frame_source(tmp_path, ["v1", "v2"])])
    for folder in ("run/clip.one", "jump/two"):
        found = {path.name: path.read_bytes() for path in (tmp_path / "out" / folder).iterdir()}
        assert found == {name: picture(number) for name, number in images.items()}


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("tool", ["denseflow", "dense_flow", "mmaction2"])
def test_what_is_exported_is_imported_again(tool: Tool, suffix: Suffix, tmp_path: Path) -> None:
    fields = {"v1": smooth(FRAMES - 1, 1), "v2": smooth(FRAMES - 1, 2)}
    layout, every = export_layout(tool, config=own(), suffix=suffix)
    sources = [flow_source(tmp_path / "store", fields, every=every), frame_source(tmp_path, ["v1", "v2"])]
    assert export(VIDEOS, tmp_path / "out", layout=layout, sources=sources, processes=2).done == ("v1", "v2")

    values = {"bound": 20, "imported": {"tool": tool, "images": suffix, "quantiser": "round"}}
    config = FlowConfig.model_validate(values)
    assert import_flow(VIDEOS, tmp_path / "out", store=tmp_path / "back", config=config).done == ("v1", "v2")
    for video in VIDEOS:
        (key,) = [
            path.parent.name
            for path in (tmp_path / "back").glob("*/*/zarr.json")
            if json.loads(path.read_text())["attributes"]["source_digest"] == video["digest"]
        ]
        difference = FlowStore(tmp_path / "back").read(key, 0, FRAMES - 1).astype(int) - fields[str(video["id"])]
        if suffix == "png":
            assert not difference.any()
        else:
            assert 0 < np.abs(difference).mean() < 1.5  # the loss of JPEG at 95


def test_folders_that_are_there_stay(tmp_path: Path) -> None:
    layout, _ = export_layout("mmaction2", config=own())
    source = flow_source(tmp_path / "store", {"v1": smooth(2, 1)})
    (tmp_path / "out/run/clip.one").mkdir(parents=True)
    assert export(VIDEOS, tmp_path / "out", layout=layout, sources=[source]).already == ("v1",)
    assert list((tmp_path / "out/run/clip.one").iterdir()) == []


def test_a_damaged_artifact_leaves_no_folder(tmp_path: Path) -> None:
    layout, _ = export_layout("mmaction2", config=own())
    source = flow_source(tmp_path / "store", {"v1": smooth(40, 1)})
    (shard,) = (tmp_path / "store").rglob("c/0/0/0/0")
    data = bytearray(shard.read_bytes())
    data[-1000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        export(VIDEOS, tmp_path / "out", layout=layout, sources=[source])
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"labels": ["../up"]}, "the label '../up' of 'v1' is no name of a folder"),
        ({"labels": [".."]}, "the label '..' of 'v1'"),
        ({"path": "elsewhere/two.mp4", "labels": ["jump"]}, "'v1' and 'v2' would share the folder .*jump/two"),
    ],
)
def test_videos_that_have_no_folder_of_their_own_are_refused(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    layout, _ = export_layout("mmaction2", config=own())
    source = flow_source(tmp_path / "store", {"v1": smooth(2, 1), "v2": smooth(2, 1)})
    with pytest.raises(ValueError, match=sentence):
        export([VIDEOS[0] | change, VIDEOS[1]], tmp_path / "out", layout=layout, sources=[source])
    assert not (tmp_path / "out").exists()


def imported(tool: str, step: int = 1, **stated: Any) -> FlowConfig:
    return FlowConfig.model_validate({"bound": 20, "step": step, "imported": {"tool": tool, **stated}})


@pytest.mark.parametrize(
    ("tool", "config", "sentence"),
    [
        ("mmaction2", own(step=2), "mmaction2 has no step 2"),
        ("dense_flow", own(reverse=True), "dense_flow does not compute reverse flow"),
        ("denseflow", imported("dense_flow", step=3), "one for 3 frames is stored"),
    ],
)
def test_layouts_that_cannot_hold_the_flow_are_refused(tool: Tool, config: FlowConfig, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        export_layout(tool, config=config)


def test_imported_flow_goes_out_again() -> None:
    assert export_layout("dense_flow", config=imported("dense_flow", step=3))[1] == 1
    assert export_layout("dense_flow", config=imported("denseflow", step=3))[1] == 3
    layout, every = export_layout("denseflow", config=imported("dense_flow", step=3, own_images=True))
    assert (layout, every) == (FolderLayout(tool="denseflow", first_number=0), 1)


def test_frames_and_flow_of_other_rates_do_not_share_a_folder() -> None:
    config = load({"name": "x", "dataset": "demo", "frames": {"size": [9, 9], "fps": 10}})
    with pytest.raises(ValueError, match="other fps or max_seconds"):
        check_rates(config, flow=config.flow)
    check_rates(load({"name": "x", "dataset": "demo"}), flow=config.flow)
