"""Stage warped_flow, and step and direction of stage flow: what is stored of a small video, and what a kill leaves."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from pipeline.config import FlowConfig, WarpedFlowConfig
from pipeline.dataset.receipts import Receipt
from pipeline.media.decode import gray_frames
from pipeline.optical_flow.camera import DEFECTS
from pipeline.optical_flow.quantise import dequantise, quantise
from pipeline.optical_flow.solve import choose_solver, solve
from pipeline.optical_flow.warped import warped_flow
from pipeline.stores.flow import FlowStore
from stages import flow, probe
from stages import warped_flow as stage

Clip = Callable[..., Path]
SIZE = (120, 96)
CONFIG = WarpedFlowConfig(size=SIZE)
PAN_PX = (2, 1)
"""By which the picture moves to the left and up from one frame to the next."""


def panning(path: Path, make_clip: Clip, *, frames: int = 5, scale: float = 1.5) -> dict[str, Any]:
    """A video of a still picture over which the camera pans, as the plan lists it."""
    still = f"mandelbrot=size=240x180:rate=25:start_scale={scale}:inner=mincol,trim=end_frame=1,loop=-1:1"
    pan = f"setpts=N/25/TB,crop={SIZE[0]}:{SIZE[1]}:20+{PAN_PX[0]}*n:20+{PAN_PX[1]}*n"
    make_clip(path, f"{still},{pan}", "-frames:v", str(frames), "-c:v", "ffv1")
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return {"id": path.stem, "path": str(path), "digest": digest, "bytes": path.stat().st_size}


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, make_clip: Clip) -> Receipt:
    folder = tmp_path_factory.mktemp("pan")
    return probe.probe_shard([panning(folder / "pan.avi", make_clip)], shard="7", store=folder / "probe")


def gray(probed: Receipt) -> list[NDArray[np.uint8]]:
    return list(gray_frames(Path(probed.videos["pan"].facts["path"]), width=SIZE[0], height=SIZE[1]))


def store_of(folder: Path, config: FlowConfig) -> FlowStore:
    return FlowStore(folder, parameters=config.model_dump(mode="json", by_alias=True))


def test_flow_and_camera_are_stored_together(probed: Receipt, tmp_path: Path) -> None:
    receipt = stage.solve_shard(probed, shard="7", store=tmp_path, config=CONFIG)
    facts = receipt.usable()["pan"]
    assert receipt.count() == {"done": 1}
    assert (facts["frames"], facts["width"], facts["height"], facts["fps"]) == (4, *SIZE, 25.0)

    expected = list(warped_flow(gray(probed), choose_solver()))
    store = store_of(tmp_path, CONFIG)
    fields = store.read(facts["key"], 0, 4)
    assert (fields == np.stack([quantise(pair.flow, bound=20.0) for pair in expected])).all()
    pairs = store.pairs(facts["key"])
    assert {name: (array.shape, str(array.dtype)) for name, array in pairs.items()} == {
        "homography": ((4, 3, 3), "float32"),
        "inliers": ((4,), "int32"),
        "motion_px": ((4,), "float32"),
        "residual_px": ((4,), "float32"),
    }
    for number, pair in enumerate(expected):
        assert (pairs["homography"][number] == pair.homography.astype(np.float32)).all()
        assert pairs["inliers"][number] == pair.inliers
        assert pairs["homography"][number, :2, 2] == pytest.approx([-PAN_PX[0], -PAN_PX[1]], abs=0.3)
    assert facts["camera"] == {
        "motion_px": pytest.approx(np.hypot(*PAN_PX), abs=0.15),
        "residual_px": pytest.approx(pairs["residual_px"].mean()),
        "moved": 1.0,
    }
    assert np.median(np.abs(dequantise(fields))) < 0.2


def test_the_array_opens_plainly_and_says_what_it_is(probed: Receipt, tmp_path: Path) -> None:
    facts = stage.solve_shard(probed, shard="7", store=tmp_path, config=CONFIG).usable()["pan"]
    array = zarr.open_array(FlowStore(tmp_path).path(facts["key"]), mode="r")
    assert array.shape == (4, 2, SIZE[1], SIZE[0])
    assert (array[:] == FlowStore(tmp_path).read(facts["key"], 0, 4)).all()
    attributes = dict(array.attrs)
    assert attributes["artifact"] == "optical flow without camera motion"
    assert attributes["parameters"] == json.loads(CONFIG.model_dump_json(by_alias=True))
    assert attributes["source_digest"] == probed.videos["pan"].facts["digest"]
    assert (attributes["alignment"], attributes["step"], attributes["direction"]) == (
        "flow[t]: frame t -> t+1",
        1,
        "forward",
    )
    assert attributes["camera"] == facts["camera"]
    assert {"camera_defects", "border", "pairs", "keypoints", "software"} <= attributes.keys()
    assert attributes["keypoints"].items() >= {"detector": "SIFT", "descriptor": "BEBLID"}.items()


def test_one_store_holds_both_kinds_and_finds_them_again(probed: Receipt, tmp_path: Path) -> None:
    plain = flow.solve_shard(probed, shard="7", store=tmp_path, config=FlowConfig(size=SIZE))
    warped = stage.solve_shard(probed, shard="7", store=tmp_path, config=CONFIG)
    again = stage.solve_shard(probed, shard="8", store=tmp_path, config=CONFIG)
    assert (plain.count(), warped.count(), again.count()) == ({"done": 1}, {"done": 1}, {"reused": 1})
    assert again.usable() == warped.usable()
    key, other = plain.usable()["pan"]["key"], warped.usable()["pan"]["key"]
    assert key != other
    assert "camera" not in plain.usable()["pan"]
    assert FlowStore(tmp_path).pairs(key) == {}
    moved = dequantise(FlowStore(tmp_path).read(key, 0, 4))
    assert np.median(moved, axis=(0, 2, 3)) == pytest.approx([-PAN_PX[0], -PAN_PX[1]], abs=0.2)
    with pytest.raises(ValueError, match="was made with .* mode 'correct' where None is wanted"):
        store_of(tmp_path, FlowConfig(size=SIZE)).read(other, 0, 1)


def test_the_mode_and_its_defects_reach_the_solver(probed: Receipt, tmp_path: Path) -> None:
    told = []
    for defects in (None, [], ["corners_of_next_frame"]):
        config = WarpedFlowConfig.model_validate({"size": SIZE, "mode": "dense_flow", "defects": defects})
        receipt = stage.solve_shard(probed, shard="7", store=tmp_path, config=config)
        store = FlowStore(tmp_path)
        key = receipt.usable()["pan"]["key"]
        told.append(store.attributes(key)["camera_defects"])
        assert store.attributes(key)["keypoints"]["descriptor"] == "SIFT"
        params = stage.camera_params(config)
        expected = [
            pair.homography.astype(np.float32) for pair in warped_flow(gray(probed), choose_solver(), params=params)
        ]
        assert (store.pairs(key)["homography"] == np.stack(expected)).all()
    assert told == [sorted(DEFECTS), [], ["corners_of_next_frame"]]


@pytest.mark.parametrize(
    ("settings", "ends", "alignment", "direction"),
    [
        ({"step": 2}, (0, 2), "flow[t]: frame t -> t+2", "forward"),
        ({"reverse": True}, (1, 0), "flow[t]: frame t+1 -> t", "reverse"),
        ({"step": 3, "reverse": True}, (3, 0), "flow[t]: frame t+3 -> t", "reverse"),
    ],
)
def test_step_and_direction_of_flow(
    probed: Receipt, tmp_path: Path, settings: dict[str, Any], ends: tuple[int, int], alignment: str, direction: str
) -> None:
    config = FlowConfig.model_validate({"size": SIZE, **settings})
    facts = flow.solve_shard(probed, shard="7", store=tmp_path, config=config).usable()["pan"]
    frames = gray(probed)
    assert facts["frames"] == len(frames) - config.step
    store = store_of(tmp_path, config)
    for t in range(facts["frames"]):
        field = solve(frames[t + ends[0]], frames[t + ends[1]])
        assert (store.read(facts["key"], t, t + 1)[0] == quantise(field, bound=20.0)).all()
    attributes = store.attributes(facts["key"])
    assert (attributes["alignment"], attributes["direction"], attributes["step"]) == (alignment, direction, config.step)


def test_a_step_longer_than_the_video_is_quarantined(probed: Receipt, tmp_path: Path) -> None:
    for module, section in ((flow, FlowConfig), (stage, WarpedFlowConfig)):
        receipt = module.solve_shard(probed, shard="7", store=tmp_path, config=section(size=SIZE, step=5))
        assert "5 decode, 6 needed" in (receipt.videos["pan"].reason or "")
    assert not list(tmp_path.glob("*/*/zarr.json"))


def test_a_killed_job_leaves_nothing_half_and_is_continued(make_clip: Clip, tmp_path: Path, root: Path) -> None:
    videos = [panning(tmp_path / f"{i}.avi", make_clip, frames=12, scale=1.0 + i) for i in range(4)]
    work = [tmp_path / name for name in ("killed", "undisturbed")]
    probe.probe_shard(videos, shard="7", store=tmp_path / "probe").write(tmp_path / "7.json")
    command = [sys.executable, "-m", "stages.warped_flow", "--shard", str(tmp_path / "7.json")]
    command += ["--params", CONFIG.model_dump_json(by_alias=True)]
    jobs = [[*command, "--store", str(folder), "--receipt", str(folder / "receipt.json")] for folder in work]
    call = partial(subprocess.run, check=True, cwd=root)
    call(jobs[1])
    running = subprocess.Popen(jobs[0], cwd=root, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(work[0].glob("*/[!.]*/zarr.json")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, "the job was through before it could be killed"
    assert not (work[0] / "receipt.json").exists()
    call(jobs[0])
    counts = Receipt.read(work[0] / "receipt.json").count()
    assert counts["reused"] >= 1
    assert sum(counts.values()) == 4
    found, expected = (
        {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and ".tmp-" not in str(path) and path.name != "receipt.json"
        }
        for folder in work
    )
    assert found == expected
    assert sum(name.endswith("pairs.npz") for name in found) == 4


def test_a_wrong_receipt_ends_with_one_sentence(tmp_path: Path, root: Path) -> None:
    (tmp_path / "7.json").write_text("[]")
    command = [sys.executable, "-m", "stages.warped_flow", "--shard", str(tmp_path / "7.json")]
    command += ["--store", str(tmp_path), "--params", CONFIG.model_dump_json(by_alias=True)]
    command += ["--receipt", str(tmp_path / "out.json")]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("warped_flow: ")
    assert len(run.stderr.splitlines()) == 1
