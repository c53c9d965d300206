"""Folders of images beside video files, from the listing to the manifest: equal results, and only what changed anew."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from pipeline.config import FlowConfig, FramesConfig, load
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.dataset.plan import write_plan
from pipeline.dataset.receipts import Receipt
from pipeline.media import ffmpeg
from pipeline.stores.flow import FlowStore
from pipeline.stores.frame_reader import FrameShards
from stages import flow, frames, manifest, probe

Clip = Callable[..., Path]
FRAMES = FramesConfig(size=(40, 30))
FLOW = FlowConfig(size=(40, 30), nscales=2, warps=1, outer_iterations=2)
COUNT = 8


class Results(NamedTuple):
    """What the stages say of all videos."""

    media: dict[str, dict[str, object]]
    """Rows of the plan by video."""
    probe: Receipt
    frames: Receipt
    flow: Receipt
    manifest: Manifest


def run(folder: Path, **settings: object) -> Results:
    """Every preprocessing stage, by its function, on the videos in ``folder/videos``."""
    work = folder / "work"
    given = {"name": "x", "work": str(work), "dataset": "class_folders", "videos": str(folder / "videos"), "shards": 1}
    config = load({**given, "max_quarantined": 1.0, **settings})
    videos = manifest.select(manifest.find(config), config)
    videos = manifest.digest(videos, cache=work / "digests.sqlite", image_fps=config.image_fps)
    (shard,) = write_plan(videos, shards=1, folder=work / "plan")
    rows = json.loads((work / "plan" / "media" / f"{shard}.json").read_text())
    probed = probe.probe_shard(rows, shard=shard, store=work / "probe")
    probed.write(work / "receipts" / f"{shard}.json")
    out = work / "manifest.tsv"
    plan = ["--plan", str(work / "plan"), "--receipts", str(work / "receipts"), "--splits", "split1"]
    manifest.main([*plan, "--max-quarantined", "1", "--out", str(out)])
    return Results(
        {row["id"]: row for row in rows},
        probed,
        frames.pack_shard(probed, shard=shard, store=work / "frames", config=FRAMES),
        flow.solve_shard(probed, shard=shard, store=work / "flow", config=FLOW),
        read_manifest(out),
    )


def dump(video: Path, folder: Path) -> Path:
    """The frames of a video as PNG images, by the ffmpeg command line."""
    folder.mkdir(parents=True)
    plain = folder.parent / ".plain-%03d.png"  # a name that the command line can take
    subprocess.run([ffmpeg.binary(), "-nostdin", "-v", "error", "-i", str(video), str(plain)], check=True)
    for number in range(1, COUNT + 1):
        (folder.parent / f".plain-{number:03d}.png").rename(folder / f"img %{number:03d}.png")
    return folder


@pytest.fixture
def dataset(tmp_path: Path, make_clip: Clip) -> Path:
    """A file and a folder with the same frames to train on, a folder to test on, and one that misses a frame."""
    lossless = ("-frames:v", str(COUNT), "-c:v", "ffv1", "-pix_fmt", "bgr0")
    train, test = tmp_path / "videos" / "train" / "run", tmp_path / "videos" / "test" / "run"
    video = make_clip(train / "file.mkv", "testsrc2=size=64x48:rate=25", *lossless)
    dump(video, train / "100% [folder]")
    dump(make_clip(tmp_path / "other.mkv", "mandelbrot=size=64x48:rate=25", *lossless), test / "other")
    gap = dump(video, train / "gap")
    (gap / "img %005.png").unlink()
    return tmp_path


FILE, FOLDER, OTHER, GAP = "run--file", "run--100% [folder]", "run--other", "run--gap"


def status(receipt: Receipt) -> dict[str, str]:
    return {name: outcome.status for name, outcome in receipt.videos.items()}


def test_a_folder_is_a_video_like_any_other(dataset: Path) -> None:
    found = run(dataset)
    for receipt in (found.probe, found.frames, found.flow):
        assert status(receipt) == {FILE: "done", FOLDER: "done", OTHER: "done", GAP: "quarantined"}
        assert "'img %005.png' is not there" in (receipt.videos[GAP].reason or "")
        assert receipt.videos[GAP].stage in (None, "probe")

    rows = {video.id: video for video in found.manifest.videos}
    facts = [(video.frames, video.fps, video.width, video.height) for video in (rows[FILE], rows[FOLDER], rows[OTHER])]
    assert facts == [(COUNT, 25.0, 64, 48)] * 3
    assert [rows[name].usable for name in (FILE, FOLDER, OTHER, GAP)] == [True, True, True, False]
    assert rows[FOLDER].path == str(dataset / "videos" / "train" / "run" / "100% [folder]")
    assert rows[FOLDER].digest == found.media[FOLDER]["digest"] == found.probe.videos[FOLDER].facts["digest"]
    assert rows[FOLDER].bytes == sum(path.stat().st_size for path in Path(rows[FOLDER].path).iterdir())
    assert {name for name, row in found.media.items() if "image_fps" in row} == {FOLDER, OTHER, GAP}

    shards, packed = FrameShards(dataset / "work" / "frames"), found.frames.usable()
    of_file, of_folder = (shards.read_frames(packed[name], range(COUNT)) for name in (FILE, FOLDER))
    assert np.array_equal(of_file, of_folder)
    store, solved = FlowStore(dataset / "work" / "flow"), found.flow.usable()
    of_file, of_folder, of_other = (store.read(solved[name]["key"], 0, COUNT - 1) for name in (FILE, FOLDER, OTHER))
    assert np.array_equal(of_file, of_folder)
    assert not np.array_equal(of_other, of_folder)


def changed(dataset: Path, **settings: object) -> set[str]:
    """Videos that another run computes, which must be the same in every stage."""
    found = run(dataset, **settings)
    sets = [
        {name for name, became in status(receipt).items() if became == "done"}
        for receipt in (found.probe, found.frames, found.flow)
    ]
    assert sets[0] == sets[1] == sets[2]
    return sets[0]


def test_only_a_folder_whose_names_or_bytes_changed_is_computed_again(dataset: Path) -> None:
    run(dataset)
    folder = dataset / "videos" / "train" / "run" / "100% [folder]"
    assert changed(dataset) == set()

    os.utime(folder / "img %003.png")
    assert changed(dataset) == set()

    image = cv2.imread(str(folder / "img %003.png"))
    assert image is not None
    cv2.imwrite(str(folder / "img %003.png"), 255 - image)
    assert changed(dataset) == {FOLDER}

    cv2.imwrite(str(folder / f"img %{COUNT + 1:03d}.png"), image)
    assert changed(dataset) == {FOLDER}
    assert run(dataset).probe.videos[FOLDER].facts["frames"] == COUNT + 1

    whole = dataset / "videos" / "train" / "run" / "gap"
    cv2.imwrite(str(whole / "img %005.png"), image)
    assert changed(dataset) == {GAP}


def test_the_rate_of_the_images_is_part_of_their_keys_and_of_no_files(dataset: Path) -> None:
    first, other = run(dataset), run(dataset, image_fps=12.5)
    assert status(other.flow) == {FILE: "reused", FOLDER: "done", OTHER: "done", GAP: "quarantined"}
    assert {name: facts["fps"] for name, facts in other.flow.usable().items()} == {
        FILE: 25.0,
        FOLDER: 12.5,
        OTHER: 12.5,
    }
    again = run(dataset)  # the flow of the first rate is still in the store, where any run finds it
    assert set(status(again.flow).values()) == {"reused", "quarantined"}
    assert again.flow.usable() == first.flow.usable()


def test_a_folder_that_changed_since_the_plan_is_no_property_of_the_video(dataset: Path) -> None:
    found = run(dataset)
    folder = dataset / "videos" / "train" / "run" / "100% [folder]"
    (folder / "img %008.png").unlink()
    empty = dataset / "empty"
    with pytest.raises(OSError, match="changed while the run was reading it"):
        probe.probe_shard(list(found.media.values()), shard="0", store=empty / "probe")
    for stage, config in ((frames.pack_shard, FRAMES), (flow.solve_shard, FLOW)):
        with pytest.raises(OSError, match="changed while the run was reading it"):
            stage(found.probe, shard="0", store=empty / stage.__name__, config=config)  # type: ignore[operator]


def test_a_real_folder_goes_through_the_stages(tmp_path: Path, shared_data: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / "videos" / part / "makeup").mkdir(parents=True)
    source = shared_data / "clips" / "ucf101" / "v_ApplyEyeMakeup_g01_c01_jpg"
    (tmp_path / "videos" / "train" / "makeup" / "images").symlink_to(source)
    (tmp_path / "videos" / "test" / "makeup" / "file.avi").symlink_to(source.with_name(f"{source.name[:-4]}.avi"))
    found = run(tmp_path)
    rows = {video.id: video for video in found.manifest.videos}
    images = rows["makeup--images"]
    assert (images.frames, images.fps, images.width, images.height) == (len(list(source.iterdir())), 25.0, 320, 240)
    assert found.frames.usable()["makeup--images"]["frames"] == images.frames
    assert found.flow.usable()["makeup--images"]["frames"] == images.frames - 1  # type: ignore[operator]
