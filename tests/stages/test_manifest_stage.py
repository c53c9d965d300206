"""Builders and the manifest stage, on files made here and on UT-Interaction's real clips."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load
from pipeline.dataset.builders.found import Listing
from pipeline.dataset.manifest import Manifest, Segment, Tube, read_manifest
from pipeline.dataset.plan import write_plan
from pipeline.dataset.receipts import Outcome, Receipt
from stages.make_demo import main as make_demo
from stages.manifest import digest, find, main, remarks, select, unofficial_annotations


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def found(tmp_path: Path, **settings: Any) -> Manifest:
    config = load({"name": "x", "work": str(tmp_path / "work"), **settings})
    return digest(select(find(config), config), cache=tmp_path / "cache.sqlite", image_fps=config.image_fps)


def folders(tmp_path: Path, **settings: Any) -> Manifest:
    return found(tmp_path, dataset="class_folders", videos=str(tmp_path / "videos"), **settings)


def test_class_folders_with_named_parts(tmp_path: Path) -> None:
    make(tmp_path / "videos", "train/run/a.avi", "train/sit/b.mp4", "test/run/c.avi", "test/sit/.hidden", "test/sit/d")
    manifest = folders(tmp_path)
    rows = {v.id: (v.labels, v.splits) for v in manifest.videos}
    assert rows == {
        "run--a": (("run",), {"split1": "train"}),
        "run--c": (("run",), {"split1": "test"}),
        "sit--b": (("sit",), {"split1": "train"}),
        "sit--d": (("sit",), {"split1": "test"}),
    }


def test_class_folders_split_by_hash_stays_when_videos_come(tmp_path: Path) -> None:
    make(tmp_path / "videos", *(f"{label}/{i:03d}.avi" for label in ("run", "sit") for i in range(200)))
    before = {v.id: v.splits["split1"] for v in folders(tmp_path).videos}
    share = Counter(before.values())["test"] / len(before)
    assert 0.19 < share < 0.31
    make(tmp_path / "videos", *(f"run/new{i}.avi" for i in range(100)))
    after = {v.id: v.splits["split1"] for v in folders(tmp_path).videos}
    assert before.items() <= after.items()


def test_two_files_with_one_stem(tmp_path: Path) -> None:
    make(tmp_path / "videos", "run/a.avi", "run/a.mp4")
    with pytest.raises(ValueError, match="two videos have the id 'run--a'"):
        folders(tmp_path)


def test_mixed_layout_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read the folder .*videos: No such file"):
        folders(tmp_path)
    make(tmp_path / "videos", "a.avi")
    with pytest.raises(ValueError, match="holds no folder"):
        folders(tmp_path)
    make(tmp_path / "videos", "train/run/a.avi", "sit/b.avi")
    with pytest.raises(ValueError, match="folders train beside class folders"):
        folders(tmp_path)


def test_what_would_be_overlooked_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "videos", "train/run/a.avi", "train/run/deeper/b.avi", "test/run/c.avi")
    with pytest.raises(ValueError, match="run holds the folder deeper"):
        folders(tmp_path)
    (tmp_path / "videos/train/run/deeper/b.avi").unlink()
    (tmp_path / "videos/train/run/deeper").rmdir()
    assert len(folders(tmp_path).videos) == 2
    (tmp_path / "videos/train/sit").mkdir()
    with pytest.raises(ValueError, match="the class folder .*sit holds no video"):
        folders(tmp_path)
    (tmp_path / "videos/train/sit").rmdir()
    with pytest.raises(ValueError, match="exclude_labels names 'walk', which no video has"):
        folders(tmp_path, exclude_labels=["walk"])
    os.mkfifo(tmp_path / "videos/train/run/pipe.avi")
    with pytest.raises(ValueError, match=r"pipe\.avi is not a regular file"):
        folders(tmp_path)


def test_loose_videos_are_extra_and_hashing_is_told(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    config = load({"name": "x", "dataset": "class_folders", "videos": str(root)})
    make(root, "train/run/a.avi", "test/run/b.avi", "loose.mp4", "train/loose.AVI", "read.me", ".hidden.mp4")
    assert find(config).extra == ("loose.mp4", "train/loose.AVI")
    assert remarks(find(config)) == ["2 videos are there but not listed, and left out: loose.mp4, train/loose.AVI"]
    make(tmp_path / "flat", "run/a.avi", "loose.mp4")
    told, loose = remarks(find(load({"name": "x", "dataset": "class_folders", "videos": str(tmp_path / "flat")})))
    assert told.startswith(f"no folder of {tmp_path}/flat names a part, so about 25% of the videos are held out")
    assert loose.endswith("left out: loose.mp4")


def test_class_folders_hold_folders_of_images(tmp_path: Path) -> None:
    make(tmp_path / "videos", *(f"train/run/v.{k}/{i:03d}.jpg" for k in (1, 2) for i in range(3)), "test/run/c.avi")
    make(tmp_path / "videos", "train/run/v.1/.DS_Store", "train/run/v.1/notes.txt")
    (tmp_path / "videos/train/run/empty").mkdir()  # probing will say so
    videos = {v.id: v for v in folders(tmp_path, image_fps=12.5).videos}
    assert sorted(videos) == ["run--c", "run--empty", "run--v.1", "run--v.2"]
    assert videos["run--v.1"].path == str(tmp_path / "videos/train/run/v.1")
    assert (videos["run--v.1"].fps, videos["run--c"].fps) == (12.5, None)
    make(tmp_path / "videos", "train/sit/0001.png", "train/sit/0002.png")
    with pytest.raises(
        ValueError, match="the class folder .*sit holds images; put the frames of each video in a folder"
    ):
        folders(tmp_path)


def test_names_and_tables_that_are_not_utf8(tmp_path: Path) -> None:
    make(tmp_path / "videos", "train/run/a.avi", "test/run/c.avi")
    path = os.fsencode(tmp_path / "videos/train/run") + b"/caf\xe9.avi"
    with open(path, "wb"):
        pass
    with pytest.raises(ValueError, match="is not UTF-8; rename the file"):
        folders(tmp_path)
    (tmp_path / "list.csv").write_bytes("path,label,caf\xe9\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"line 1 of .*list\.csv is b'path,label,caf\\xe9', not UTF-8; save the file as UTF-8"
    ):
        found(tmp_path, dataset="csv", csv=str(tmp_path / "list.csv"))


def table(tmp_path: Path, text: str, **settings: Any) -> Manifest:
    make(tmp_path / "videos", "a.avi", "b.avi", "c.avi", "d.avi")
    (tmp_path / "list.csv").write_text(text)
    return found(tmp_path, dataset="csv", csv=str(tmp_path / "list.csv"), videos=str(tmp_path / "videos"), **settings)


def test_csv(tmp_path: Path) -> None:
    text = "path,label,Split1,split2,note\na.avi,run,train,test,\nb.avi,run,test,train,x\n c.avi , sit ,train,train,\n"
    manifest = table(tmp_path, "\ufeff" + text, splits=["split1", "split2"])
    assert [(v.id, v.labels[0], v.splits) for v in manifest.videos] == [
        ("a", "run", {"split1": "train", "split2": "test"}),
        ("b", "run", {"split1": "test", "split2": "train"}),
        ("c", "sit", {"split1": "train", "split2": "train"}),
    ]


def test_csv_in_another_order_is_the_same_dataset(tmp_path: Path) -> None:
    head, *rows = "path,label,split1\na.avi,run,train\nb.avi,run,test\nc.avi,sit,train\n".splitlines(keepends=True)
    assert table(tmp_path, head + "".join(rows)) == table(tmp_path, head + "".join(rows[::-1]))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,class\na.avi,run\n", "has no column 'label'; its columns are path, class"),
        ("", "has no column 'path'; its columns are none"),
        ("path,label\na.avi,\n", "line 2 of {}/list.csv: it lacks a path or a label"),
        (
            "path,label,id\na.avi,run,x\nb.avi,run,x\n",
            "line 3 of {}/list.csv: the id 'x' is that of line 2 too; tell them apart in a column 'id'",
        ),
        ("path,label,id\na.avi,run,x/y\n", "line 2 of {}/list.csv: the video id 'x/y' has a path"),
        (
            "path,label,split1\na.avi,run,Train\n",
            "line 2 of {}/list.csv: split1 is 'Train'; it must be train, val, test",
        ),
        ("path,label\na.avi,run\tfast\n", "line 2 of {}/list.csv: the label 'run\\tfast' is empty, or has"),
        ("path,label\na.avi,run;run\n", "line 2 of {}/list.csv: the labels run;run name a class twice; name it once"),
        ("path,label,label\na.avi,run,sit\n", "list.csv has the column 'label' twice; remove one of them"),
        ("path,label,split1,Split1\na.avi,run,train,test\n", "has the column 'split1' twice; remove one of them"),
        ("path,label,Split 1\na.avi,run,train\n", "list.csv has the column 'Split 1'; call it as split1, without"),
        ("path,label,split-1\na.avi,run,train\n", "list.csv has the column 'split-1'; call it as split1"),
        ('path,"label\na.avi,run\n', "list.csv is not CSV (unexpected end of data); correct it"),
        ("path,label,split1\nnone.avi,run,train\na.avi,run,test\n", "1 of 2 listed videos are not in"),
        ("path,label\na.avi,run\nb.avi\n", "line 3 of {}/list.csv: it has 1 cells and the header 2; correct it"),
        ("path,label\na.avi,run,twice\n", "line 2 of {}/list.csv: it has 3 cells and the header 2"),
        ('path,label\na.avi,run\nb.avi,"run\nc.avi,run\n', "list.csv is not CSV (unexpected end of data); correct it"),
        ("path,label\na.avi,run;;sit\n", "line 2 of {}/list.csv: the label '' is empty"),
        ("path,label,split1\na.avi,run,train\nb.avi,sit,test\n", "the class 'sit' has no usable training video"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        table(tmp_path, text)
    assert sentence.format(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_several_labels_of_one_video(tmp_path: Path) -> None:
    text = "path,label,split1\na.avi,run; sit,train\nb.avi,run,test\nc.avi,sit,train\n"
    assert [v.labels for v in table(tmp_path, text).videos] == [("run", "sit"), ("run",), ("sit",)]
    assert [(v.id, v.labels) for v in table(tmp_path, text, exclude_labels=["sit"]).videos] == [
        ("a", ("run",)),
        ("b", ("run",)),
    ]


def test_experiments_refuse_several_labels_before_anything_is_computed(tmp_path: Path) -> None:
    text = (
        "path,label,split1,split2\na.avi,run;sit,train,\nb.avi,run,test,test\nc.avi,sit,train,train\nd.avi,run,,train\n"
    )
    one: dict[str, Any] = {"experiments": {"rgb": {"modality": "frames"}}}
    assert len(table(tmp_path, text).videos) == 4  # to preprocess only
    with pytest.raises(
        ValueError, match=r"^1 video has several labels: a; experiments need one label .* exclude_labels"
    ):
        table(tmp_path, text, **one)
    assert len(table(tmp_path, text, splits=["split2"], **one).videos) == 4  # which does not use it
    assert len(table(tmp_path, text, exclude_labels=["sit"], **one).videos) == 3


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    make_demo(["--out", str(folder), "--preset", "tiny"])
    return folder


@pytest.mark.parametrize(
    ("dataset", "folder", "videos"),
    [("ucf101", "videos", 24), ("ucf101_24", "videos", 24), ("thumos14", "untrimmed", 4)],
)
def test_another_dataset_in_an_official_format_is_planned(
    rendered: Path, tmp_path: Path, dataset: str, folder: str, videos: int
) -> None:
    annotations = tmp_path / dataset
    shutil.copytree(rendered / "annotations" / dataset, annotations)
    values = {"name": "x", "dataset": dataset, "videos": str(rendered / folder), "annotations": str(annotations)}
    config = load(values)
    assert len(find(config).videos) == videos
    (*_, note) = unofficial_annotations(config)
    assert "not the official content" in note or " official annotation files of " in note
    for path in annotations.rglob("*.*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"; the annotation files of .* come from http[^\n]*$"):
        find(config)


def test_several_labels_of_thumos14_have_a_remedy(rendered: Path) -> None:
    values = {"name": "x", "dataset": "thumos14", "videos": str(rendered / "untrimmed")}
    values |= {"annotations": str(rendered / "annotations/thumos14"), "trimmed": str(rendered / "videos")}
    config = load(values | {"experiments": {"rgb": {"modality": "frames"}}})
    with pytest.raises(ValueError, match="have several labels: video_.*: set single_label: true to leave them out"):
        select(find(config), config)
    config = load(values | {"experiments": {"rgb": {"modality": "frames"}}, "single_label": True})
    assert select(find(config), config).videos


def test_annotation_files_among_the_videos_are_not_extra(tmp_path: Path) -> None:
    names = ("trainingSet.csv", "moments_categories.txt", "validationSet.csv", "license.txt")
    make(tmp_path, "training/run/a.mp4", "validation/run/b.mp4", "training/run/notes.doc", "training/run/c.mp4", *names)
    for name, text in zip(names, ("run/a.mp4,run,3,0", "run,0", "run/b.mp4,run,3,0"), strict=False):
        (tmp_path / name).write_text(text + "\n")
    values = {"name": "x", "dataset": "moments_in_time", "videos": str(tmp_path), "annotations": str(tmp_path)}
    assert find(load(values)).extra == ("training/run/c.mp4", "training/run/notes.doc")


def listing(tmp_path: Path, text: str, **settings: Any) -> Listing:
    make(tmp_path / "videos", "a.avi", "b.avi", "c.avi", "d.avi", "more/e.avi", "notes.txt")
    (tmp_path / "list.csv").write_text(text)
    values = {"name": "x", "dataset": "csv", "csv": str(tmp_path / "list.csv"), "videos": str(tmp_path / "videos")}
    return find(load(values | settings))


def test_missing_and_extra_videos_are_named_and_counted(tmp_path: Path) -> None:
    gone = [f"gone{i}.avi" for i in range(8)]
    text = "path,label\na.avi,run\nb.avi,run\nc.avi,run\n" + "".join(f"{name},run\n" for name in gone)
    with pytest.raises(ValueError) as error:
        listing(tmp_path, text)
    assert str(error.value) == (
        f"8 of 11 listed videos are not in {tmp_path}/videos: gone0.avi, gone1.avi, gone2.avi, gone3.avi, gone4.avi"
        " and 3 more; restore them or set allow_missing: true"
    )
    found = listing(tmp_path, text, allow_missing=True)
    assert [video.id for video in found.videos] == ["a", "b", "c"]
    assert found.missing == tuple(gone)
    assert found.extra == ("d.avi",)
    hashed = (
        f"no column of {tmp_path}/list.csv names a part, so about 25% of the videos are held out by a hash of the id"
    )
    assert remarks(found) == [
        hashed,
        "8 listed videos are not there and left out: gone0.avi, gone1.avi, gone2.avi, gone3.avi, gone4.avi and 3 more",
        "1 videos are there but not listed, and left out: d.avi",
    ]
    assert remarks(listing(tmp_path, "path,label\n" + "".join(f"{name}.avi,run\n" for name in "abcd"))) == [hashed]
    named = "path,label,split1\n" + "".join(f"{name}.avi,run,train\n" for name in "abcd")
    assert remarks(listing(tmp_path, named)) == []


def test_a_table_names_hidden_files_frame_folders_and_places_elsewhere(tmp_path: Path) -> None:
    make(tmp_path, "videos/.hidden.avi", "videos/frames.1/0001.png", "elsewhere/x.avi", "other/y.avi")
    text = f"path,label\n.hidden.avi,run\nframes.1,run\n../elsewhere/x.avi,run\n{tmp_path}/other/y.avi,run\n"
    assert [video.id for video in listing(tmp_path, text).videos] == [".hidden", "frames", "x", "y"]


def test_ut_interaction(shared_data: Path, tmp_path: Path) -> None:
    folder = str(shared_data / "actions/ut_interaction_set1")
    splits = [f"split{k}" for k in range(1, 6)]
    manifest = found(tmp_path, dataset="ut_interaction", videos=folder, exclude_labels=["none"], splits=splits)
    assert Counter(v.labels[0] for v in manifest.videos) == dict.fromkeys(
        ("handshake", "hug", "kick", "point", "punch", "push"), 10
    )
    held_out = [v.id for split in splits for v in manifest.part(split, "test")]
    assert sorted(held_out) == [v.id for v in manifest.videos]
    assert all(v.id.split("_")[1] in ("3", "4") for v in manifest.part("split2", "test"))


def test_ut_interaction_refuses_other_names(tmp_path: Path) -> None:
    make(tmp_path / "videos", "0_1_4.avi", "holiday.avi")
    with pytest.raises(ValueError, match=r"holiday\.avi is not named <number>_<sequence>_<class>\.avi"):
        found(tmp_path, dataset="ut_interaction", videos=str(tmp_path / "videos"))


def probed(tmp_path: Path, manifest: Manifest, *, broken: str = "", **facts: Any) -> list[str]:
    """The plan and the receipts of a manifest, one video of which could not be probed; arguments of the stage."""
    for shard in write_plan(manifest, shards=3, folder=tmp_path / "plan"):
        rows = json.loads((tmp_path / f"plan/media/{shard}.json").read_text())
        known = {"frames": 9, "fps": 25.0, "width": 32, "height": 24, "path": "", "digest": ""} | facts
        outcomes = {row["id"]: Outcome(status="done", facts=known) for row in rows if row["id"] != broken}
        if any(row["id"] == broken for row in rows):
            outcomes[broken] = Outcome(status="quarantined", stage="probe", reason="the file is empty")
        Receipt(stage="probe", shard=shard, seconds=1.0, videos=outcomes).write(tmp_path / f"receipts/{shard}.json")
    arguments = ["--plan", str(tmp_path / "plan"), "--receipts", str(tmp_path / "receipts"), "--splits", "split1"]
    return [*arguments, "--out", str(tmp_path / "m.tsv"), "--max-quarantined"]


FOUR = "path,label,split1\na.avi,run,train\nb.avi,run,test\nc.avi,run,test\nd.avi,run,train\n"


def test_stage_joins_labels_with_what_probing_found(tmp_path: Path) -> None:
    arguments = probed(tmp_path, table(tmp_path, FOUR), broken="c")
    main([*arguments, "0.25"])
    manifest = read_manifest(tmp_path / "m.tsv")
    assert [(v.id, v.frames, v.reason) for v in manifest.videos] == [
        ("a", 9, None),
        ("b", 9, None),
        ("c", None, "the file is empty"),
        ("d", 9, None),
    ]
    (tmp_path / "m.tsv").unlink()
    with pytest.raises(SystemExit, match="manifest: 1 of 4 videos cannot be used"):
        main([*arguments, "0.2"])
    assert not (tmp_path / "m.tsv").exists()


def with_ground_truth(tmp_path: Path, **truth: Any) -> Manifest:
    manifest = table(tmp_path, FOUR)
    return Manifest(tuple(replace(v, **truth) if v.id == "b" else v for v in manifest.videos))


def test_ground_truth_goes_through_plan_and_stage(tmp_path: Path) -> None:
    intervals = (Segment(None, 0.0, 0.36), Segment("run", 0.1, 9.0))  # one past the end stays as annotated
    truth = {"segments": intervals, "tubes": (Tube("run", 2, ((0.5, 0.0, 32.0, 24.0),)),)}
    main([*probed(tmp_path, with_ground_truth(tmp_path, **truth)), "0"])
    video = read_manifest(tmp_path / "m.tsv").videos[1]
    assert {"segments": video.segments, "tubes": video.tubes} == truth


@pytest.mark.parametrize(
    ("truth", "reason"),
    [
        (
            {"tubes": (Tube("run", 9, ((0, 0, 1, 1),) * 3),)},
            "a tube of run reaches frame 11, but the video has 9 frames",
        ),
        (
            {"tubes": (Tube("run", 0, ((0, 0, 34, 1),)),)},
            "the box 0, 0, 34, 1 of run in frame 0 lies outside the frame",
        ),
    ],
)
def test_ground_truth_that_does_not_fit_is_quarantined(tmp_path: Path, truth: dict[str, Any], reason: str) -> None:
    """Never clipped in silence: the video is named in the ledger, counted against the limit, and in no part."""
    arguments = probed(tmp_path, with_ground_truth(tmp_path, **truth))
    main([*arguments, "0.25"])
    manifest = read_manifest(tmp_path / "m.tsv")
    (video,) = manifest.quarantined
    assert (video.id, video.stage) == ("b", "manifest")
    assert (video.reason or "").startswith(reason)
    assert [v.id for v in manifest.part("split1", "test")] == ["c"]
    (tmp_path / "m.tsv").unlink()
    for limit in (["0.2"], ["1", "--on-error", "fail"]):
        with pytest.raises(SystemExit) as error:
            main([*arguments, *limit])
        assert reason in str(error.value)
        assert not (tmp_path / "m.tsv").exists()
