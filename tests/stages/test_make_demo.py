"""make_demo as its users meet it: files, table and truth agree, and no run harms another or a stranger's folder."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.demo.render import render_clip
from stages.make_demo import PRESETS, choose_size, encode, list_clips, main, make_demo


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


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "videos.csv").open(newline="") as file:
        return list(csv.DictReader(file))


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


def test_the_table_lists_the_files_and_balances_the_classes(tiny: Path) -> None:
    rows = table(tiny)
    assert [*rows[0]] == ["path", "label", "split1"]
    files = {str(path.relative_to(tiny)) for path in (tiny / "videos").rglob("*") if path.is_file()}
    assert sorted(row["path"] for row in rows) == sorted(files)
    assert len({Path(row["path"]).stem for row in rows}) == len(rows)  # stems serve as ids
    assert all(Path(row["path"]).parent == Path("videos", row["label"]) for row in rows)
    counts = Counter((row["label"], row["split1"]) for row in rows)
    assert len(counts) == 8 * 2
    assert {split: {n for (_, s), n in counts.items() if s == split} for split in ("train", "test")} == {
        "train": {2},
        "test": {1},
    }


def test_every_file_decodes_to_the_clip_that_was_drawn(tiny: Path) -> None:
    for clip in list_clips(PRESETS["tiny"], seed=0):
        drawn = render_clip(clip.scene, motion=clip.motion, look=clip.look)
        decoded = decode(tiny / clip.path)
        assert decoded.shape == drawn.shape == (24, 64, 64, 3)
        noise = np.mean((decoded.astype(float) - drawn) ** 2)
        assert 10 * np.log10(255**2 / noise) > 28
        grey = [np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in x]).astype(float) for x in (decoded, drawn)]
        assert 10 * np.log10(255**2 / np.mean((grey[0] - grey[1]) ** 2)) > 38


def test_the_truth_matches_the_table_and_the_clips(tiny: Path) -> None:
    facts = truth(tiny)
    assert (facts["fps"], facts["width_px"], facts["height_px"], facts["num_frames"]) == (25, 64, 64, 24)
    assert cv2.VideoCapture(str(tiny / table(tiny)[0]["path"])).get(cv2.CAP_PROP_FPS) == 25
    assert {path: (v["label"], v["split1"]) for path, v in facts["videos"].items()} == {
        row["path"]: (row["label"], row["split1"]) for row in table(tiny)
    }
    for video in facts["videos"].values():
        start, end = video["action_frames"]
        assert 0 <= start < end <= 24
        assert video["action_seconds"] == [start / 25, end / 25]
        assert f"{video['motion']}_{video['look']}" == video["label"]
        boxes = np.array(video["boxes_px"])
        assert boxes.shape == (24, 4)
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes.min() >= 0
        assert boxes.max() <= 64


def test_in_the_files_the_actor_has_its_hue_inside_its_box(tiny: Path) -> None:
    """The colour of the class is found where the truth says, by decoding alone."""
    strongest = {"red": lambda c: c[0] - c[2], "blue": lambda c: c[2] - c[0], "green": lambda c: c[1] - c[0]}
    for path, video in truth(tiny)["videos"].items():
        if video["look"] not in strongest:
            continue
        frames = decode(tiny / path).astype(float)
        for frame, (x0, y0, x1, y1) in zip(frames, video["boxes_px"], strict=True):
            column, row = (x0 + x1) // 2, (y0 + y1) // 2
            centre = frame[row - 2 : row + 3, column - 2 : column + 3].mean(axis=(0, 1))
            assert strongest[video["look"]](centre) > 15


def test_equal_parameters_give_equal_bytes_and_another_seed_other_videos(tiny: Path, tmp_path: Path) -> None:
    assert digests(make_demo(tmp_path / "again", preset="tiny", seed=0)) == digests(tiny)
    other = digests(make_demo(tmp_path / "other", preset="tiny", seed=1, videos_per_class=2))
    same = {path for path, digest in other.items() if digests(tiny)[path] == digest}
    assert same == set()


def test_more_videos_leave_the_earlier_ones_as_they_were() -> None:
    few = list_clips(choose_size("small", videos_per_class=4), seed=3)
    many = {clip.path: clip.scene for clip in list_clips(choose_size("small", videos_per_class=9), seed=3)}
    assert len(few) == 8 * 4
    assert len(many) == 8 * 9
    assert all(many[clip.path] == clip.scene for clip in few)


@pytest.mark.parametrize(("videos", "train", "test"), [(2, 1, 1), (3, 2, 1), (8, 6, 2), (40, 30, 10)])
def test_a_quarter_is_for_testing(videos: int, train: int, test: int) -> None:
    size = choose_size("small", videos_per_class=videos)
    assert (size.train_per_class, size.test_per_class) == (train, test)


def test_small_has_the_size_that_the_default_run_counts_on() -> None:
    size = choose_size("small")
    assert (size.train_per_class, size.test_per_class, size.num_frames, size.size_px) == (30, 10, 40, 96)


def test_the_same_again_touches_nothing_even_if_a_video_was_edited(copied: Path) -> None:
    video = copied / table(copied)[0]["path"]
    video.write_bytes(b"edited")
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    assert make_demo(copied, preset="tiny") == copied
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before
    assert video.read_bytes() == b"edited"
    assert alone_in_its_folder(copied)


def test_a_lost_table_is_made_again(copied: Path, tiny: Path) -> None:
    (copied / "videos.csv").unlink()
    make_demo(copied, preset="tiny")
    assert digests(copied) == digests(tiny)


def test_other_parameters_replace_the_whole_demo(copied: Path) -> None:
    before = digests(copied)
    make_demo(copied, preset="tiny", seed=5, videos_per_class=2)
    after = digests(copied)
    assert len(table(copied)) == 16
    assert len([path for path in after if path.endswith(".mp4")]) == 16
    assert not set(before.values()) & set(after.values())
    assert alone_in_its_folder(copied)


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    out = make_demo(tmp_path / "link", preset="tiny", videos_per_class=2)
    assert out == tmp_path / "real"
    assert (tmp_path / "link").is_symlink()
    assert len(table(tmp_path / "link")) == 16


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
    running = [start(copied, "--seed", seed, "--videos-per-class", "2") for seed in ("1", "2", "1")]
    assert [process.wait() for process in running] == [0, 0, 0]
    seed = json.loads((copied / "demo.json").read_text())["seed"]
    expected = list_clips(choose_size("tiny", videos_per_class=2), seed=seed)
    assert [row["path"] for row in table(copied)] == [clip.path for clip in expected]
    assert all(truth(copied)["videos"][c.path]["action_frames"] == list(c.scene.action) for c in expected)
    assert alone_in_its_folder(copied)


def test_a_killed_run_leaves_no_demo_and_the_next_one_cleans_up(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    process = start(out)
    while not list(tmp_path.glob(".tmp-demo.demo/videos/*/*.mp4")):
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
        (("--videos-per-class", "1"), "videos_per_class is 1; it takes 2"),
        (("--seed", "-1"), "the seed is -1; it must be 0 or more"),
    ],
)
def test_a_bad_value_ends_with_one_sentence(tmp_path: Path, options: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command(tmp_path / "demo", *options)[3:])
    assert sentence in str(ended.value.code)
    assert str(ended.value.code).startswith("make_demo: ")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no preset 'huge'; choose from tiny, small"):
        make_demo(tmp_path / "demo", preset="huge")  # type: ignore[arg-type]
