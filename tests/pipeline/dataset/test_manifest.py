"""The manifest file and the list that cannot be trained on."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.manifest import Manifest, Video, check, read_manifest, write_manifest


def video(name: str, label: str, part: str, **changes: object) -> Video:
    base = Video(id=name, path=f"v/{name}.avi", digest="d" * 32, bytes=7, labels=(label,), splits={"split1": part})
    return replace(base, **changes)  # type: ignore[arg-type]


GOOD = [video("a", "run", "train"), video("b", "run", "test"), video("c", "sit", "train"), video("d", "sit", "test")]


def test_order_does_not_matter() -> None:
    assert check(GOOD[::-1], splits=["split1"]) == check(GOOD, splits=["split1"])


def test_parts_leave_quarantined_videos_out_and_classes_keep_them() -> None:
    manifest = Manifest((*GOOD, video("e", "yawn", "train", stage="probe", reason="empty file")))
    assert [v.id for v in manifest.part("split1", "train")] == ["a", "c"]
    assert manifest.classes == ("run", "sit", "yawn")
    assert [v.id for v in manifest.quarantined] == ["e"]
    with pytest.raises(ValueError, match="no split 'split2'; it has split1"):
        manifest.part("split2", "train")


@pytest.mark.parametrize(
    ("videos", "sentence"),
    [
        ([], "no video"),
        ([*GOOD, video("a", "sit", "train", path="w/a.avi")], "two videos have the id 'a': v/a.avi and w/a.avi"),
        ([*GOOD, video("x/y", "sit", "train")], "the video id 'x/y' has a path"),
        ([*GOOD, video("..", "sit", "train")], "has a path"),
        ([*GOOD, video("a\\b", "sit", "train")], "has a path"),
        ([*GOOD, video("", "sit", "train")], "has a path"),
        ([*GOOD, video("e", "yawn", "test")], "the class 'yawn' has no usable training video in split1"),
        ([v for v in GOOD if v.splits["split1"] == "train"], "split1 has no usable test video"),
        ([*GOOD, video("e", "sit", "training")], "is 'training'; it must be train, val, test or empty"),
        ([*GOOD, video("e", "a;b", "train")], "the label 'a;b' of 'e'"),
        ([*GOOD, replace(GOOD[0], id="e", labels=())], "has no label"),
    ],
)
def test_a_list_that_cannot_be_trained_on(videos: list[Video], sentence: str) -> None:
    with pytest.raises(ValueError, match="^[^\n]*$") as error:
        check(videos, splits=["split1"])
    assert sentence in str(error.value)


def test_a_split_that_nobody_defined() -> None:
    with pytest.raises(ValueError, match="the manifest has no split 'split9'; it has split1"):
        check(GOOD, splits=["split9"])


NAMES = st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/\\;"), min_size=1, max_size=30)


@given(name=NAMES, label=NAMES, path=st.text(st.characters(blacklist_categories=("Cs",)), min_size=1), reason=NAMES)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, name: str, label: str, path: str, reason: str
) -> None:
    file = tmp_path_factory.mktemp("manifest") / "m.tsv"
    path = path.replace("\r", "").replace("\n", "") or "p"
    probed = video(name, label, "train", path=path, frames=12, fps=29.97002997, width=340, height=256)
    broken = video(name + "2", label, "", splits={"split1": "", "split2": "val"}, stage="probe", reason=reason)
    probed = replace(probed, splits={"split1": "train", "split2": ""})
    write_manifest(file, Manifest((probed, broken)))
    assert read_manifest(file) == Manifest((probed, broken))


def test_a_person_can_read_it(tmp_path: Path) -> None:
    file = tmp_path / "m.tsv"
    write_manifest(file, Manifest(tuple(GOOD)))
    lines = file.read_text().splitlines()
    assert lines[0].split("\t")[:3] == ["id", "labels", "split1"]
    assert lines[1].split("\t")[:3] == ["a", "run", "train"]
    with file.open() as handle:
        assert len(list(csv.DictReader(handle, dialect="excel-tab"))) == 4


def test_another_file_is_no_manifest(tmp_path: Path) -> None:
    file = tmp_path / "x.tsv"
    file.write_text("id\tlabels\n")
    with pytest.raises(ValueError, match="is not a manifest: it lacks the column 'bytes'"):
        read_manifest(file)
