"""make_demo as its users meet it: files, lists and truth agree, and no run harms another or a stranger's folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.dataset.builders.demo import demo
from pipeline.demo.clips import PRESETS, list_clips
from pipeline.demo.render import render_clip
from stages.make_demo import encode, main, make_demo


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny preset; tests that change it take a copy."""
    return make_demo(tmp_path_factory.mktemp("demo") / "tiny", preset="tiny")


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "demo"))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def truth(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "truth.json").read_text())


def decode(path: Path) -> np.ndarray:
    """(T, H, W, 3) RGB, by OpenCV's own decoder."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        found, frame = capture.read()
        if not found:
            return np.stack(frames)[..., ::-1]
        frames.append(frame)


def command(out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "stages.make_demo", "--out", str(out), "--preset", "tiny", *options]


def start(out: Path, *options: str) -> subprocess.Popen[bytes]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(command(out, *options), cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def alone_in_its_folder(out: Path) -> bool:
    return [path.name for path in out.parent.iterdir()] == [out.name]


def test_the_lists_name_the_files(tiny: Path) -> None:
    files = {str(path.relative_to(tiny)) for path in tiny.rglob("*.mp4")}
    assert files == {clip.path for clip in list_clips(PRESETS["tiny"], seed=0)} == set(truth(tiny)["videos"])
    listing = demo(tiny)
    assert (len(listing.videos), listing.missing, listing.extra) == (24, (), ())
    assert {path.name for path in tiny.iterdir()} == {"videos", "untrimmed", "annotations", "truth.json", "demo.json"}


def test_every_file_decodes_to_the_clip_that_was_drawn(tiny: Path) -> None:
    for clip in list_clips(PRESETS["tiny"], seed=0):
        drawn = render_clip(clip.scene, clip.acts)
        decoded = decode(tiny / clip.path)
        assert decoded.shape == drawn.shape == (24 if clip.group else 72, 48, 64, 3)
        noise = np.mean((decoded.astype(float) - drawn) ** 2)
        assert 10 * np.log10(255**2 / noise) > 28
        grey = [np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in x]).astype(float) for x in (decoded, drawn)]
        assert 10 * np.log10(255**2 / np.mean((grey[0] - grey[1]) ** 2)) > 38
    assert cv2.VideoCapture(str(tiny / clip.path)).get(cv2.CAP_PROP_FPS) == 25


def test_in_the_files_the_actor_has_its_hue_inside_its_box_and_its_action(tiny: Path) -> None:
    """The colour of the class is found where and when the truth says, by decoding alone."""
    strongest = {"red": lambda c: c[0] - c[2], "blue": lambda c: c[2] - c[0], "green": lambda c: c[1] - c[0]}
    checked = 0
    for path, video in truth(tiny)["videos"].items():
        frames = decode(tiny / path).astype(float)
        for action in video["actions"]:
            if action["look"] not in strongest:
                continue
            for t in range(action["frames"][0] + 1, action["frames"][1] - 1):  # at the ends it fades
                x0, y0, x1, y1 = video["boxes_px"][t]
                column, row = (x0 + x1) // 2, (y0 + y1) // 2
                centre = frames[t, row - 2 : row + 3, column - 2 : column + 3].mean(axis=(0, 1))
                assert strongest[action["look"]](centre) > 15
                checked += 1
    assert checked > 100


def test_in_the_files_the_background_goes_where_the_homography_says(tiny: Path) -> None:
    """By decoded pixels alone, where the actor is not; the median leaves distractors out, the blur traces of coding."""
    ours, still, backwards = [], [], []
    for path, video in truth(tiny)["videos"].items():
        frames = [cv2.GaussianBlur(frame.astype(float).mean(axis=-1), (0, 0), 1.5) for frame in decode(tiny / path)]
        if video["camera"] == "static":
            continue
        for t, homography in enumerate(video["homographies"]):
            outside = np.zeros((48, 64), bool)
            outside[6:-6, 6:-6] = True
            for x0, y0, x1, y1 in (video["boxes_px"][t], video["boxes_px"][t + 1]):
                outside[y0:y1, x0:x1] = False
            for found, matrix in ((ours, homography), (still, np.eye(3)), (backwards, np.linalg.inv(homography))):
                expected = cv2.warpPerspective(frames[t], np.array(matrix), (64, 48))
                found.append(np.median(np.abs(expected - frames[t + 1])[outside]))
    assert len(ours) > 400
    assert np.mean(ours) < 0.6 * np.mean(still)
    assert np.mean(backwards) > 1.5 * np.mean(still)


def test_equal_parameters_give_equal_bytes_and_another_seed_other_videos(tiny: Path, tmp_path: Path) -> None:
    assert digests(make_demo(tmp_path / "again", preset="tiny", seed=0)) == digests(tiny)
    other = digests(make_demo(tmp_path / "other", preset="tiny", seed=1, videos_per_class=3))
    assert other.keys() == digests(tiny).keys()
    assert not {path for path, digest in digests(tiny).items() if path.endswith(".mp4") and other[path] == digest}


def test_the_same_again_touches_nothing_even_if_a_video_was_edited(copied: Path) -> None:
    video = copied / min(truth(copied)["videos"])
    video.write_bytes(b"edited")
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    assert make_demo(copied, preset="tiny") == copied
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before
    assert video.read_bytes() == b"edited"
    assert alone_in_its_folder(copied)


def test_a_lost_truth_is_made_again(copied: Path, tiny: Path) -> None:
    (copied / "truth.json").unlink()
    make_demo(copied, preset="tiny")
    assert digests(copied) == digests(tiny)


def test_other_parameters_replace_the_whole_demo(copied: Path) -> None:
    before = digests(copied)
    make_demo(copied, preset="tiny", seed=5, videos_per_class=6)
    after = digests(copied)
    videos = {path for path in after if path.endswith(".mp4")}
    assert videos == set(truth(copied)["videos"])
    assert len(videos) == 8 * 6 + 4
    assert not {before[path] for path in before if path.endswith(".mp4")} & set(after.values())
    assert alone_in_its_folder(copied)


def test_a_demo_of_the_first_version_is_replaced(copied: Path, tiny: Path) -> None:
    for name in ("untrimmed", "annotations"):
        shutil.rmtree(copied / name)
    (copied / "videos.csv").write_text("path,label,split1\n")
    stamp = json.loads((copied / "demo.json").read_text())
    (copied / "demo.json").write_text(json.dumps(stamp | {"version": 1}))
    make_demo(copied, preset="tiny")
    assert digests(copied) == digests(tiny)


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    out = make_demo(tmp_path / "link", preset="tiny", videos_per_class=3)
    assert out == tmp_path / "real"
    assert (tmp_path / "link").is_symlink()
    assert len(truth(tmp_path / "link")["videos"]) == 28


@pytest.mark.parametrize("content", ["notes.txt", "videos/mine.mp4", "demo.json"])
def test_a_folder_of_somebody_else_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    mine = tmp_path / "data" / content
    mine.parent.mkdir(parents=True)
    mine.write_text('{"generator": "mine"}')
    with pytest.raises(ValueError, match=r"data is not empty and not a demo folder, so it is left alone"):
        make_demo(tmp_path / "data", preset="tiny")
    assert mine.read_text() == '{"generator": "mine"}'
    assert alone_in_its_folder(tmp_path / "data")


def test_a_demo_folder_with_a_stranger_in_it_is_not_replaced(copied: Path) -> None:
    (copied / "notes.txt").write_text("mine")
    before = digests(copied)
    with pytest.raises(ValueError, match=r"also holds 'notes\.txt', which replacing the demo would delete"):
        make_demo(copied, preset="tiny", seed=1)
    assert digests(copied) == before
    make_demo(copied, preset="tiny", seed=0)  # nothing to replace


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    with pytest.raises(ValueError, match="data is a file"):
        make_demo(tmp_path / "data", preset="tiny")
    assert (tmp_path / "data").read_text() == "mine"


def test_two_processes_at_once_both_end_well(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    running = [start(out) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert digests(out) == digests(tiny)
    assert alone_in_its_folder(out)


def test_two_processes_of_different_seeds_leave_one_whole_demo(copied: Path) -> None:
    running = [start(copied, "--seed", seed) for seed in ("1", "2", "1")]
    assert [process.wait() for process in running] == [0, 0, 0]
    seed = json.loads((copied / "demo.json").read_text())["seed"]
    expected = list_clips(PRESETS["tiny"], seed=seed)
    videos = truth(copied)["videos"]
    assert set(videos) == {clip.path for clip in expected}
    for clip in expected:
        assert [a["frames"] for a in videos[clip.path]["actions"]] == [[s.start, s.end] for s in clip.scene.slots]
    assert alone_in_its_folder(copied)


def test_a_killed_run_leaves_no_demo_and_the_next_one_cleans_up(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    process = start(out)
    while not list(tmp_path.glob(".tmp-demo.demo-*/videos/*/*.mp4")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert list(tmp_path.iterdir())
    make_demo(out, preset="tiny")
    assert digests(out) == digests(tiny)
    assert alone_in_its_folder(out)


def test_what_ffmpeg_cannot_encode_is_one_sentence_and_leaves_no_folder(tmp_path: Path) -> None:
    odd = np.zeros((2, 63, 63, 3), np.uint8)  # 4:2:0 needs even sides
    with pytest.raises(
        RuntimeError, match=r"cannot encode odd\.mp4: .*not divisible by 2.*needs an ffmpeg with libx264"
    ):
        encode(odd, tmp_path / "odd.mp4", fps=25)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--videos-per-class", "4"), "videos_per_class is 4; with the preset tiny it must be a multiple of 3"),
        (("--seed", "-1"), "the seed is -1; it must be 0 or more"),
    ],
)
def test_a_bad_value_ends_with_one_sentence(tmp_path: Path, options: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command(tmp_path / "demo", *options)[3:])
    assert sentence in str(ended.value.code)
    assert str(ended.value.code).startswith("make_demo: ")
    assert list(tmp_path.iterdir()) == []
