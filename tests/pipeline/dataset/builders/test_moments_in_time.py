"""Moments in Time: both forms of the class list, tables made here, and tables with mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.dataset.builders.found import Listing
from pipeline.dataset.builders.moments_in_time import moments_in_time, read_classes

TRAINING = """running/yt-a_1.mp4,running,3,0
adult+female+singing/b.c_2.mp4,adult+female+singing,4,1
running/gone.mp4,running,2,0
"""
VALIDATION = "running/yt-d_4.mp4,running,3,0\r\nadult+female+singing/e.mp4,adult+female+singing,9,0\r\n"


def build(folder: Path, *, training: str = TRAINING, validation: str = VALIDATION) -> Listing:
    """A dataset of four videos."""
    (folder / "moments_categories.txt").write_text("running,0\nadult+female+singing,1\n")
    (folder / "trainingSet.csv").write_bytes(training.encode("latin-1"))
    (folder / "validationSet.csv").write_bytes(validation.encode("latin-1"))
    videos = folder / "videos"
    for name in (
        "training/running/yt-a_1.mp4",
        "training/adult+female+singing/b.c_2.mp4",
        "validation/running/yt-d_4.mp4",
    ):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).touch()
    (videos / "validation/adult+female+singing/e").mkdir(parents=True, exist_ok=True)
    (videos / "validation/adult+female+singing/e/0001.jpg").touch()
    return moments_in_time(videos, folder)


def test_tables(tmp_path: Path) -> None:
    listing = build(tmp_path)
    assert [(v.id, v.labels, v.splits, v.path.name) for v in listing.videos] == [
        ("running--yt-a_1", ("running",), {"split1": "train"}, "yt-a_1.mp4"),
        ("adult+female+singing--b.c_2", ("adult+female+singing",), {"split1": "train"}, "b.c_2.mp4"),
        ("running--yt-d_4", ("running",), {"split1": "test"}, "yt-d_4.mp4"),
        ("adult+female+singing--e", ("adult+female+singing",), {"split1": "test"}, "e"),
    ]
    assert listing.missing == ("training/running/gone.mp4",)


def test_cells_in_quotes(tmp_path: Path) -> None:
    quoted = '"running/yt-a_1.mp4","running",3,0\nadult+female+singing/b.c_2.mp4,"adult+female+singing",4,1\n'
    listing = build(tmp_path, training=quoted)
    assert len(listing.videos) == 4
    assert listing.missing == ()


def test_class_list_of_the_first_release(tmp_path: Path) -> None:
    """339 classes, ``label,number``; made here, as the official file is not among the shared ones."""
    (tmp_path / "moments_categories.txt").write_text("".join(f"label {i},{i}\r\n" for i in range(339)))
    assert read_classes(tmp_path) == {f"label {i}" for i in range(339)}


def test_class_list_of_the_second_release(shared_data: Path) -> None:
    classes = read_classes(shared_data / "annotations/moments")
    assert len(classes) == 305
    assert {"clapping", "adult+female+singing", "piloting"} <= classes


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            "running/f.mp4,running,3",
            "line 1 of {}/trainingSet.csv is 'running/f.mp4,running,3': expected class/name.mp4",
        ),
        ("running/f.mp4,running,3,0,1", "expected class/name.mp4, the class, votes for and votes against"),
        ("running/f.mp4,running,three,0", "expected class/name.mp4"),
        ("running/f.mp4,running,-3,0", "expected class/name.mp4"),
        ("f.mp4,running,3,0", "expected class/name.mp4"),
        ('"running/f.mp4,running,3,0', "expected class/name.mp4"),
        ('"running/f.mp4"x,running,3,0', "expected class/name.mp4"),
        ("/etc/f.mp4,running,3,0", "expected class/name.mp4"),
        ("running/f.mp4,runing,3,0", "the list of classes has no 'runing'; correct one of them"),
        (
            "running/f\xe9.mp4,running,3,0",
            "line 1 of {}/trainingSet.csv is b'running/f\\xe9.mp4,running,3,0', not UTF-8",
        ),
    ],
)
def test_rows_with_mistakes(tmp_path: Path, row: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="^[^\n]*$") as error:
        build(tmp_path, training=row + "\n" + TRAINING)
    assert sentence.format(tmp_path) in str(error.value)


def test_class_lists_with_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no moments_categories\.txt or category_momentsv2\.txt; check the key"):
        read_classes(tmp_path)
    (tmp_path / "category_momentsv2.txt").write_text("running\nsitting\nrunning\n")
    with pytest.raises(ValueError, match=r"line 3 of .*momentsv2\.txt is 'running': the class stands there twice"):
        read_classes(tmp_path)


def test_a_video_listed_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 4 of .*trainingSet\.csv is .*: this video is listed before; keep one"):
        build(tmp_path, training=TRAINING + TRAINING.splitlines()[0] + "\n")
