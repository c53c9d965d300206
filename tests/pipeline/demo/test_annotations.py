"""The annotation files, read by the builders of the datasets whose form they have, against the clips themselves."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from pipeline.dataset.builders.demo import demo
from pipeline.dataset.builders.thumos14 import thumos14
from pipeline.dataset.builders.ucf101 import ucf101
from pipeline.dataset.builders.ucf101_24 import ucf101_24
from pipeline.demo.annotations import annotation_files, truth
from pipeline.demo.clips import FPS, Clip, choose_size, list_clips
from pipeline.demo.render import actor_boxes

SIZE = choose_size("small", videos_per_class=12)
CLIPS = list_clips(SIZE, seed=0)
TRIMMED = {clip.name: clip for clip in CLIPS if clip.group is not None}
UNTRIMMED = {clip.name: clip for clip in CLIPS if clip.group is None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset with empty files for videos: builders read no video."""
    root = tmp_path_factory.mktemp("annotations")
    files = {clip.path: b"" for clip in CLIPS} | annotation_files(CLIPS) | {"truth.json": truth(CLIPS).encode()}
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def seconds(clip: Clip) -> Counter[tuple[str | None, float, float]]:
    slots = zip(clip.scene.slots, clip.acts, strict=True)
    return Counter((act.label, slot.start / FPS, slot.end / FPS) for slot, act in slots)


def test_ucf101s_builder_reads_three_splits_of_all_clips(folder: Path) -> None:
    listing = ucf101(folder / "videos", folder / "annotations/ucf101")
    assert (listing.missing, listing.extra) == ((), ())
    assert {video.id for video in listing.videos} == set(TRIMMED)
    for video in listing.videos:
        clip = TRIMMED[video.id]
        assert video.path == folder / clip.path
        assert video.labels == (clip.acts[0].label,)
        assert video.splits == clip.splits
    for split in ("split1", "split2", "split3"):
        assert Counter(video.splits[split] for video in listing.videos) == {"train": 64, "test": 32}


def test_ucf101_lists_have_the_official_form(folder: Path) -> None:
    lists = folder / "annotations/ucf101"
    assert (lists / "classInd.txt").read_bytes().startswith(b"1 BobGreen\r\n2 BobRed\r\n")
    assert (lists / "trainlist01.txt").read_bytes().startswith(b"BobGreen/v_BobGreen_g02_c01.mp4 1\r\n")
    assert (lists / "testlist01.txt").read_bytes().startswith(b"BobGreen/v_BobGreen_g01_c01.mp4\r\n")


def test_thumos14s_builder_reads_every_interval(folder: Path) -> None:
    listing = thumos14(folder / "untrimmed", folder / "annotations/thumos14", trimmed=None, single_label=False)
    assert (listing.missing, listing.extra) == ((), ())
    assert {video.id for video in listing.videos} == set(UNTRIMMED)
    for video in listing.videos:
        clip = UNTRIMMED[video.id]
        assert Counter((s.label, s.start, s.end) for s in video.segments) == seconds(clip)
        assert set(video.labels) == {act.label for act in clip.acts} - {None}
        assert video.splits == {"split1": "test" if "test" in video.id else "train"}
    single = thumos14(folder / "untrimmed", folder / "annotations/thumos14", trimmed=None, single_label=True)
    several = [clip for clip in UNTRIMMED.values() if len({act.label for act in clip.acts} - {None}) > 1]
    assert len(several) > 0
    assert len(single.videos) == len(UNTRIMMED) - len(several)


def test_thumos14s_builder_trains_on_the_trimmed_clips(folder: Path) -> None:
    annotations = folder / "annotations/thumos14"
    listing = thumos14(folder / "untrimmed", annotations, trimmed=folder / "videos", single_label=False)
    assert (listing.missing, listing.extra) == ((), ())
    parts = {video.id: video.splits["split1"] for video in listing.videos}
    assert Counter(parts.values()) == {"train": len(TRIMMED), "val": 8, "test": 8}
    assert {name for name, part in parts.items() if part == "train"} == set(TRIMMED)


def test_ucf101_24s_builder_reads_a_tube_for_each_action(folder: Path) -> None:
    listing = ucf101_24(folder / "videos", folder / "annotations/ucf101_24")
    assert (listing.missing, listing.extra) == ((), ())
    assert {video.id for video in listing.videos} == set(TRIMMED)
    for video in listing.videos:
        clip = TRIMMED[video.id]
        (slot,), (tube,) = clip.scene.slots, video.tubes
        assert (tube.label, tube.first_frame) == (clip.acts[0].label, slot.start)
        assert tube.boxes == tuple(map(tuple, actor_boxes(clip.scene, clip.acts)[slot.start : slot.end].tolist()))
        assert video.splits["split1"] == clip.splits["split1"]


def test_the_mat_file_has_the_official_structure(folder: Path, shared_data: Path) -> None:
    def structure(path: Path) -> dict[str, object]:
        annot = scipy.io.loadmat(path)["annot"]
        tubes = annot[0, 0]["tubes"]
        return {
            "fields": annot.dtype.names,
            "tube fields": tubes.dtype.names,
            "rows": annot.shape[0],
            "name": annot[0, 0]["name"].shape,
            "num_imgs": annot[0, 0]["num_imgs"].shape,
            "shapes": [tubes[0, 0][name].shape for name in ("sf", "ef", "class")],
            "columns": tubes[0, 0]["boxes"].shape[1],
            "kinds": {tubes[0, 0][name].dtype.kind for name in ("sf", "ef", "class", "boxes")},
        }

    official = shared_data / "annotations/ucf101_24/finalAnnots.mat"
    assert structure(folder / "annotations/ucf101_24/finalAnnots.mat") == structure(official)


def test_large_numbers_are_not_cut_to_eight_bits() -> None:
    clips = [clip for clip in list_clips(choose_size("full", videos_per_class=15), seed=0) if clip.group is not None]
    wide = [clip for clip in clips if actor_boxes(clip.scene, clip.acts).max() >= 100][:4]
    stretched = [_doubled(clip) for clip in wide]
    content = annotation_files(stretched)["annotations/ucf101_24/finalAnnots.mat"]
    for entry, clip in zip(scipy.io.loadmat(io.BytesIO(content))["annot"][0], stretched, strict=True):
        boxes, (slot,) = entry["tubes"][0, 0]["boxes"].astype(int), clip.scene.slots
        boxes[:, 2:] += boxes[:, :2]
        np.testing.assert_array_equal(boxes, actor_boxes(clip.scene, clip.acts)[slot.start : slot.end])
        assert boxes.max() > 255


def _doubled(clip: Clip) -> Clip:
    """The clip in a frame of four times the size, with the actor at its far corner."""
    scene = replace(clip.scene, size_px=(640, 480), actor=replace(clip.scene.actor, centre_px=(600.0, 440.0)))
    return replace(clip, scene=scene)


def test_equal_clips_give_equal_bytes_without_a_date() -> None:
    first, second = annotation_files(CLIPS), annotation_files(list_clips(SIZE, seed=0))
    assert first == second
    header = first["annotations/ucf101_24/finalAnnots.mat"][:128]
    assert header[:116].rstrip() == b"MATLAB 5.0 MAT-file, wherewhen demo"
    assert header[124:128] == b"\x00\x01IM"  # version and byte order, as scipy writes them


def test_the_demos_builder_joins_labels_splits_intervals_and_tubes(folder: Path) -> None:
    listing = demo(folder)
    assert (listing.missing, listing.extra) == ((), ())
    assert len(listing.videos) == len(TRIMMED)
    for video in listing.videos:
        clip = TRIMMED[video.id]
        assert Counter((s.label, s.start, s.end) for s in video.segments) == seconds(clip)
        assert len(video.tubes) == 1
        assert video.splits == clip.splits


def test_a_clip_that_was_taken_away_is_missing_and_the_rest_is_read(folder: Path) -> None:
    gone = folder / TRIMMED["v_SwayRed_g03_c01"].path
    gone.rename(folder / "aside.mp4")
    try:
        listing = demo(folder)
    finally:
        (folder / "aside.mp4").rename(gone)
    assert listing.missing == ("SwayRed/v_SwayRed_g03_c01.mp4",)
    assert len(listing.videos) == len(TRIMMED) - 1


@pytest.mark.parametrize("content", ["", "[]", '{"videos": {"videos/a.mp4": {}}}'])
def test_a_damaged_truth_is_one_sentence(folder: Path, tmp_path: Path, content: str) -> None:
    for name in ("videos", "annotations"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "truth.json").write_text(content)
    with pytest.raises(ValueError, match=r"truth\.json is not the demo's truth .*; delete the demo's folder"):
        demo(tmp_path)


def test_the_truth_has_every_video_frame_by_frame() -> None:
    facts = json.loads(truth(CLIPS))
    assert facts["fps"] == 25
    assert set(facts["videos"]) == {clip.path for clip in CLIPS}
    for clip in CLIPS:
        video = facts["videos"][clip.path]
        frames = clip.scene.num_frames
        assert (video["num_frames"], video["size_px"], video["group"]) == (frames, [96, 96], clip.group)
        assert np.array(video["boxes_px"]).shape == (frames, 4)
        exact = clip.scene.camera.homographies(frames, size_px=(96, 96))
        np.testing.assert_allclose(video["homographies"], exact, atol=1e-8)
        found = Counter((a["label"], *a["seconds"]) for a in video["actions"])
        assert found == seconds(clip)
        assert all(a["seconds"] == [f / 25 for f in a["frames"]] for a in video["actions"])
