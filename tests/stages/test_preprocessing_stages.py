"""Probe, frames and flow on small real videos: what is computed, reused and refused, and what a killed job leaves."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zarr

from pipeline.config import FlowConfig, FramesConfig
from pipeline.dataset.receipts import Receipt
from pipeline.media.decode import gray_frames
from pipeline.media.errors import UnusableVideo
from pipeline.optical_flow.params import TVL1Params
from pipeline.optical_flow.quantise import quantise
from pipeline.optical_flow.solve import solve
from pipeline.stores.flow import FlowStore
from pipeline.stores.frame_reader import FrameShards
from pipeline.stores.frames import check_shard, samples
from pipeline.stores.publish import unfinished
from stages import flow, frames, probe

Clip = Callable[..., Path]
FRAMES = FramesConfig(size=(40, 30))
FLOW = FlowConfig(size=(40, 30), nscales=2, warps=1, outer_iterations=2)


def listed(path: Path, name: str | None = None) -> dict[str, Any]:
    """A video as the plan lists it."""
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return {"id": name or path.stem, "path": str(path), "digest": digest, "bytes": path.stat().st_size}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, make_clip: Clip) -> dict[str, dict[str, Any]]:
    """Three good videos of 5, 6 and 7 frames, one of a single frame, and one that is none."""
    folder = tmp_path_factory.mktemp("clips")
    videos = {}
    for name, count in (("a.x", 5), ("b", 6), ("c", 7), ("single", 1)):
        clip = make_clip(folder / f"{name}.mp4", "testsrc2=size=64x48:rate=25", "-frames:v", str(count))
        videos[name] = listed(clip, name)
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    return videos | {"broken": listed(folder / "broken.mp4")}


def probed(videos: list[dict[str, Any]], store: Path, **options: Any) -> Receipt:
    return probe.probe_shard(videos, shard="7", store=store, **options)


def status(receipt: Receipt) -> dict[str, str]:
    return {name: outcome.status for name, outcome in sorted(receipt.videos.items())}


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_probe_finds_reuses_and_quarantines(clips: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    first = probed(list(clips.values()), tmp_path)
    assert status(first) == {"a.x": "done", "b": "done", "c": "done", "single": "quarantined", "broken": "quarantined"}
    assert first.videos["b"].facts == {
        "path": clips["b"]["path"],
        "digest": clips["b"]["digest"],
        "frames": 6,
        "fps": 25.0,
        "width": 64,
        "height": 48,
        "sar": "1:1",
    }
    assert first.videos["single"].reason == "too few frames: 1 decode, 2 needed"
    before = content(tmp_path)
    again = probed(list(clips.values()), tmp_path)
    assert status(again) == {**status(first), "a.x": "reused", "b": "reused", "c": "reused"}
    assert again.usable() == first.usable()
    assert content(tmp_path) == before


def test_probe_notices_what_changed_since_the_plan(clips: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """That is no property of the video: the job fails, and nothing is quarantined or stored."""
    gone = {"id": "gone", "path": str(tmp_path / "gone.mp4"), "digest": "0", "bytes": 1}
    with pytest.raises(OSError, match=r"cannot read .*gone\.mp4 any more"):
        probed([gone], tmp_path)
    for other in ("b", "broken"):
        with pytest.raises(OSError, match="changed while the run was reading it"):
            probed([clips["a.x"] | {"path": clips[other]["path"]}], tmp_path)
    assert content(tmp_path) == {}
    moved = probed([clips["a.x"]], tmp_path).usable()["a.x"] | {"path": "elsewhere.mp4"}
    assert probed([clips["a.x"] | {"path": "elsewhere.mp4"}], tmp_path).usable()["a.x"] == moved


def test_fail_names_the_video(clips: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(UnusableVideo, match="video 'broken': ffmpeg cannot open it"):
        probed([clips["broken"], clips["c"]], tmp_path, on_error="fail")


def pack(videos: list[dict[str, Any]], folder: Path, config: FramesConfig = FRAMES) -> Receipt:
    receipt = probed(videos, folder / "probe")
    return frames.pack_shard(receipt, shard="7", store=folder / "frames", config=config)


def test_no_other_video_is_stored_under_the_planned_ones_address(
    clips: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    receipt = probed([clips["a.x"]], tmp_path / "probe")
    swapped = receipt.videos["a.x"].facts | {"path": clips["b"]["path"]}
    lying = replace(receipt, videos={"a.x": replace(receipt.videos["a.x"], facts=swapped)})
    with pytest.raises(OSError, match="changed while the run was reading it"):
        frames.pack_shard(lying, shard="7", store=tmp_path / "frames", config=FRAMES)
    with pytest.raises(OSError, match="changed while the run was reading it"):
        flow.solve_shard(lying, shard="7", store=tmp_path / "flow", config=FLOW)
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".tar" or path.name == "zarr.json"]


def test_frames_are_packed_reused_and_removed(clips: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    a, b, c = clips["a.x"], clips["b"], clips["c"]
    first = pack([a, b, clips["broken"]], tmp_path)
    assert status(first) == {"a.x": "done", "b": "done", "broken": "quarantined"}
    assert first.videos["broken"].stage == "probe"
    tar = tmp_path / "frames" / "7.tar"
    written = tar.read_bytes(), tar.stat().st_ino
    again = pack([b, a, clips["broken"]], tmp_path)
    assert status(again) == {"a.x": "reused", "b": "reused", "broken": "quarantined"}
    assert again.usable() == first.usable()
    assert (tar.read_bytes(), tar.stat().st_ino) == written  # not even written again
    more = pack([a, b, c], tmp_path)
    assert status(more) == {"a.x": "reused", "b": "reused", "c": "done"}
    assert status(pack([a, c], tmp_path)) == {"a.x": "reused", "c": "reused"}
    assert [sample.id for sample in samples(tar)] == ["a.x", "c"]
    pack([a, c], tmp_path / "fresh")
    assert tar.read_bytes() == (tmp_path / "fresh" / "frames" / "7.tar").read_bytes()


def test_frames_are_those_of_the_video(clips: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    facts = pack([clips["a.x"], clips["c"]], tmp_path).usable()
    shards = FrameShards(tmp_path / "frames")
    for name, count in (("a.x", 5), ("c", 7)):
        assert facts[name]["frames"] == count
        found = shards.read_frames(facts[name], range(count))
        for pixels, gray in zip(found, gray_frames(Path(clips[name]["path"]), width=40, height=30), strict=True):
            assert np.abs(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(int) - gray).mean() < 4


def test_equal_videos_are_decoded_once(clips: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    twin = clips["b"] | {"id": "z.twin"}
    receipt = pack([clips["b"], twin], tmp_path)
    assert status(receipt) == {"b": "done", "z.twin": "reused"}
    shards, facts = FrameShards(tmp_path / "frames"), receipt.usable()
    pair = (shards.read_frames(facts[name], range(6)) for name in ("b", "z.twin"))
    assert all((one == other).all() for one, other in zip(*pair, strict=True))
    assert status(pack([twin], tmp_path)) == {"z.twin": "reused"}
    assert status(pack([clips["b"] | {"id": "renamed"}], tmp_path)) == {"renamed": "reused"}
    pack([clips["b"] | {"id": "renamed"}], tmp_path / "fresh")
    assert content(tmp_path / "frames") == content(tmp_path / "fresh" / "frames")


def test_another_parameter_decodes_again(clips: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    pack([clips["b"]], tmp_path)
    other = pack([clips["b"]], tmp_path, FramesConfig(short_side=24, fps=12.5))
    assert status(other) == {"b": "done"}
    facts = other.usable()["b"]
    assert (facts["width"], facts["height"], facts["fps"], facts["frames"]) == (32, 24, 12.5, 3)


def test_a_damaged_tar_is_made_again(clips: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    pack([clips["a.x"], clips["b"]], tmp_path)
    tar = tmp_path / "frames" / "7.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 2])
    assert status(pack([clips["a.x"], clips["b"]], tmp_path)) == {"a.x": "reused", "b": "done"}
    assert tar.read_bytes() == whole
    tar.write_bytes(whole[: len(whole) // 8])
    assert status(pack([clips["a.x"], clips["b"]], tmp_path)) == {"a.x": "done", "b": "done"}
    assert tar.read_bytes() == whole


def miscounted(clips: dict[str, dict[str, Any]], store: Path) -> Receipt:
    """A probe receipt that says 6 of a video that has 7 frames."""
    receipt = probed([clips["a.x"], clips["c"]], store)
    receipt.videos["c"].facts["frames"] = 6
    return receipt


def test_another_number_of_frames_than_probed_is_quarantined(clips: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    receipt = miscounted(clips, tmp_path / "probe")
    packed = frames.pack_shard(receipt, shard="7", store=tmp_path / "frames", config=FRAMES)
    solved = flow.solve_shard(receipt, shard="7", store=tmp_path / "flow", config=FLOW)
    for result in (packed, solved):
        assert status(result) == {"a.x": "done", "c": "quarantined"}
        assert "7 frames decode where probing counted 6" in (result.videos["c"].reason or "")
    assert [sample.id for sample in samples(tmp_path / "frames" / "7.tar")] == ["a.x"]
    assert len(list((tmp_path / "flow").glob("*/*/zarr.json"))) == 1


def test_flow_is_the_solvers_and_says_what_it_is(clips: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    receipt = probed([clips["b"], clips["single"], clips["broken"]], tmp_path / "probe")
    solved = flow.solve_shard(receipt, shard="7", store=tmp_path / "flow", config=FLOW)
    assert status(solved) == {"b": "done", "broken": "quarantined", "single": "quarantined"}
    assert solved.videos["broken"].stage == "probe"
    assert "1 decode, 2 needed" in (solved.videos["single"].reason or "")
    facts = solved.usable()["b"]
    assert (facts["frames"], facts["width"], facts["height"], facts["fps"]) == (5, 40, 30, 25.0)
    gray = list(gray_frames(Path(clips["b"]["path"]), width=40, height=30))
    parameters = {"nscales": 2, "warps": 1, "outer_iterations": 2}
    expected = [
        quantise(solve(one, other, backend="numba", params=TVL1Params(**parameters)), bound=20.0)
        for one, other in pairwise(gray)
    ]
    store = FlowStore(tmp_path / "flow", parameters=FLOW.model_dump(mode="json", by_alias=True))
    assert (store.read(facts["key"], 0, 5) == np.stack(expected)).all()
    attributes = dict(zarr.open_array(store.path(facts["key"]), mode="r").attrs)
    assert attributes["parameters"] == json.loads(FLOW.model_dump_json(by_alias=True))
    assert attributes["source_digest"] == clips["b"]["digest"]
    assert attributes["alignment"] == "flow[t]: frame t -> t+1"
    assert {"ffmpeg", "numba", "zarr"} <= set(attributes["software"])  # type: ignore[arg-type]


@pytest.mark.parametrize(("backend", "variant"), [("numba", "opencv24-cuda"), ("torch", "opencv-cuda")])
def test_variant_and_backend_reach_the_store(
    clips: dict[str, dict[str, Any]], tmp_path: Path, backend: Any, variant: Any
) -> None:
    receipt = probed([clips["b"]], tmp_path / "probe")
    config = FlowConfig(size=(40, 30), nscales=2, warps=1, backend=backend, variant=variant, step=2, reverse=True)
    facts = flow.solve_shard(receipt, shard="7", store=tmp_path / "flow", config=config).usable()["b"]
    assert facts["frames"] == 4
    gray = list(gray_frames(Path(clips["b"]["path"]), width=40, height=30))
    params = TVL1Params(variant=variant, nscales=2, warps=1)
    expected = solve(np.stack(gray[2:]), np.stack(gray[:-2]), backend=backend, params=params)
    store = FlowStore(tmp_path / "flow")
    steps = store.read(facts["key"], 0, 4).astype(int) - np.stack([quantise(each, bound=20.0) for each in expected])
    assert abs(steps).max() <= 1  # torch rounds by the shape of its batch
    assert (steps != 0).mean() < 0.01
    attributes = store.attributes(facts["key"])
    assert (attributes["variant"], attributes["backend"]) == (variant, backend)
    assert backend in attributes["software"]
    assert attributes["parameters"]["inner_iterations"] == 300
    assert attributes["alignment"] == "flow[t]: frame t+2 -> t"


def test_flow_is_shared_by_content(clips: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    receipt = probed([clips["b"], clips["b"] | {"id": "twin"}], tmp_path / "probe")
    first = flow.solve_shard(receipt, shard="7", store=tmp_path / "flow", config=FLOW)
    assert status(first) == {"b": "done", "twin": "reused"}
    again = flow.solve_shard(receipt, shard="8", store=tmp_path / "flow", config=FLOW)
    assert status(again) == {"b": "reused", "twin": "reused"}
    assert again.usable() == first.usable()


def test_clipped_vectors_are_counted(make_clip: Clip, tmp_path: Path) -> None:
    moving = "mandelbrot=size=64x48:rate=25,scroll=horizontal=0.05"  # two pixels a frame at the size of the flow
    video = listed(make_clip(tmp_path / "a.mp4", moving, "-frames:v", "6"))
    receipt = probed([video], tmp_path / "probe")
    narrow = FLOW.model_copy(update={"bound": 0.5})
    facts = flow.solve_shard(receipt, shard="7", store=tmp_path / "flow", config=narrow).usable()["a"]
    values = FlowStore(tmp_path / "flow").read(facts["key"], 0, 5)
    extreme = ((values == 0) | (values == 255)).any(axis=1).mean()  # some of them lie just inside the bound
    assert 0.2 < facts["clipped"] <= extreme < facts["clipped"] + 0.1


def command(stage: str, folder: Path, work: Path) -> list[str]:
    given = folder / "media" / "7.json" if stage == "probe" else work / "receipts" / "probe" / "7.json"
    made = {"frames": FRAMES, "flow": FLOW}
    options = ["--params", made[stage].model_dump_json(by_alias=True)] if stage in made else []
    paths = ["--shard", str(given), "--store", str(work / "stores" / stage)]
    receipt = ["--receipt", str(work / "receipts" / stage / "7.json")]
    return [sys.executable, "-m", f"stages.{stage}", *paths, *receipt, *options]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, make_clip: Clip, root: Path) -> tuple[Path, Path]:
    """A folder with the plan of five videos, and one with what all three stages make of it, by their commands."""
    folder, work = tmp_path_factory.mktemp("plan"), tmp_path_factory.mktemp("work")
    videos = []
    for number in range(5):
        source = f"mandelbrot=size=160x120:rate=25:start_scale={1 + number}"
        clip = make_clip(folder / f"{number}.avi", source, "-frames:v", "60", "-c:v", "mpeg4")
        videos.append(listed(clip))
    (folder / "media").mkdir()
    (folder / "media" / "7.json").write_text(json.dumps(videos))
    for stage in ("probe", "frames", "flow"):
        subprocess.run(command(stage, folder, work), check=True, cwd=root)
        assert Receipt.read(work / "receipts" / stage / "7.json").count() == {"done": 5}
    return folder, work


def kept(stage: str, store: Path) -> int:
    """Number of videos whose results a job has stored, whether it is through or not."""
    match stage:
        case "probe":
            return len(json.loads((store / "7.json").read_text())) if (store / "7.json").exists() else 0
        case "frames":
            return sum(len(check_shard(tar)[0]) for tar in unfinished(store / "7.tar"))
        case _:
            return len(list(store.glob("*/[!.]*/zarr.json")))


@pytest.mark.parametrize("stage", ["probe", "frames", "flow"])
def test_a_killed_job_leaves_nothing_half_and_is_continued(
    stage: str, undisturbed: tuple[Path, Path], tmp_path: Path, root: Path
) -> None:
    folder, expected = undisturbed
    if stage != "probe":
        subprocess.run(command("probe", folder, tmp_path), check=True, cwd=root)
    job, store = command(stage, folder, tmp_path), tmp_path / "stores" / stage
    running = subprocess.Popen(job, cwd=root, start_new_session=True)
    deadline = time.monotonic() + 60
    while running.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):  # a tar that has just been finished
            if kept(stage, store) >= 2:
                break
        time.sleep(0.002)
    os.killpg(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, "the job was through before it could be killed"
    assert not (store / "7.tar").exists()
    assert not (tmp_path / "receipts" / stage / "7.json").exists()
    found = kept(stage, store)
    subprocess.run(job, check=True, cwd=root)
    counts = Receipt.read(tmp_path / "receipts" / stage / "7.json").count()
    assert counts == {"reused": found, "done": 5 - found}
    visible = {name: data for name, data in content(store).items() if ".tmp-" not in name}
    assert visible == content(expected / "stores" / stage)


@pytest.mark.parametrize("stage", ["probe", "frames", "flow"])
def test_a_command_run_again_finds_everything(stage: str, undisturbed: tuple[Path, Path], root: Path) -> None:
    folder, work = undisturbed
    before = content(work / "stores")
    subprocess.run(command(stage, folder, work), check=True, cwd=root)
    assert Receipt.read(work / "receipts" / stage / "7.json").count() == {"reused": 5}
    assert content(work / "stores") == before


@pytest.mark.parametrize("stage", ["frames", "flow"])
def test_a_wrong_receipt_ends_with_one_sentence(stage: str, tmp_path: Path, root: Path) -> None:
    (tmp_path / "receipts" / "probe").mkdir(parents=True)
    (tmp_path / "receipts" / "probe" / "7.json").write_text("[]")
    run = subprocess.run(command(stage, tmp_path, tmp_path), cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith(f"{stage}: ")
    assert "is not a receipt" in run.stderr
    assert len(run.stderr.splitlines()) == 1
