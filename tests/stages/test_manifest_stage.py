"""Builders and the manifest stage, on files made here and on UT-Interaction's real clips."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load
from pipeline.dataset.manifest import Manifest, read_manifest
from pipeline.dataset.plan import write_plan
from pipeline.dataset.receipts import Outcome, Receipt
from stages.manifest import digest, find, main


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def found(tmp_path: Path, **settings: Any) -> Manifest:
    config = load({"name": "x", "work": str(tmp_path / "work"), **settings})
    return digest(find(config), cache=tmp_path / "cache.sqlite")


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


def test_names_and_tables_that_are_not_utf8(tmp_path: Path) -> None:
    make(tmp_path / "videos", "train/run/a.avi", "test/run/c.avi")
    path = os.fsencode(tmp_path / "videos/train/run") + b"/caf\xe9.avi"
    with open(path, "wb"):
        pass
    with pytest.raises(ValueError, match="is not UTF-8; rename the file"):
        folders(tmp_path)
    (tmp_path / "list.csv").write_bytes("path,label,caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"list\.csv is not a CSV in UTF-8"):
        found(tmp_path, dataset="csv", csv=str(tmp_path / "list.csv"))


def table(tmp_path: Path, text: str, **settings: Any) -> Manifest:
    make(tmp_path / "videos", "a.avi", "b.avi", "c.avi", "d.avi")
    (tmp_path / "list.csv").write_text(text)
    return found(tmp_path, dataset="csv", csv=str(tmp_path / "list.csv"), videos=str(tmp_path / "videos"), **settings)


def test_csv(tmp_path: Path) -> None:
    text = "path,label,Split1,split2,note\na.avi,run,train,test,\nb.avi,run,test,train,x\nc.avi, sit ,train,train,\n"
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
        ("path,label\na.avi,\n", "line 2 of"),
        ("path,label,id\na.avi,run,x\nb.avi,run,x\n", "two videos have the id 'x'"),
        ("path,label,id\na.avi,run,x/y\n", "has a path"),
        ("path,label,split1\nnone.avi,run,train\na.avi,run,test\n", "cannot read the video"),
        ("path,label,split1\na.avi,run,train\nb.avi,sit,test\n", "the class 'sit' has no usable training video"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ValueError) as error:
        table(tmp_path, text)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


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


def test_stage_joins_labels_with_what_probing_found(tmp_path: Path) -> None:
    text = "path,label,split1\na.avi,run,train\nb.avi,run,test\nc.avi,run,test\nd.avi,run,train\n"
    shards = write_plan(table(tmp_path, text), shards=3, folder=tmp_path / "plan")
    facts = {"frames": 9, "fps": 25.0, "width": 32, "height": 24, "path": "", "digest": ""}
    for shard in shards:
        rows = json.loads((tmp_path / f"plan/media/{shard}.json").read_text())
        outcomes = {row["id"]: Outcome(status="done", facts=facts) for row in rows if row["id"] != "c"}
        if any(row["id"] == "c" for row in rows):
            outcomes["c"] = Outcome(status="quarantined", stage="probe", reason="the file is empty")
        Receipt(stage="probe", shard=shard, seconds=1.0, videos=outcomes).write(tmp_path / f"receipts/{shard}.json")
    arguments = ["--plan", str(tmp_path / "plan"), "--receipts", str(tmp_path / "receipts"), "--splits", "split1"]
    main([*arguments, "--max-quarantined", "0.25", "--out", str(tmp_path / "m.tsv")])
    manifest = read_manifest(tmp_path / "m.tsv")
    assert [(v.id, v.frames, v.reason) for v in manifest.videos] == [
        ("a", 9, None),
        ("b", 9, None),
        ("c", None, "the file is empty"),
        ("d", 9, None),
    ]
    (tmp_path / "m.tsv").unlink()
    with pytest.raises(SystemExit, match="manifest: 1 of 4 videos cannot be used"):
        main([*arguments, "--max-quarantined", "0.2", "--out", str(tmp_path / "m.tsv")])
    assert not (tmp_path / "m.tsv").exists()
