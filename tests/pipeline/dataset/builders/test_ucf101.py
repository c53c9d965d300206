"""UCF-101: the official lists with placeholder videos, and lists with mistakes."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipeline.dataset.builders.found import Listing
from pipeline.dataset.builders.ucf101 import ucf101
from pipeline.dataset.manifest import Video, check


@pytest.fixture(scope="module")
def official(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Listing:
    """The official lists: one folder in another spelling, one container changed, one missing, two extra."""
    annotations, videos = shared_data / "annotations/ucf101_splits", tmp_path_factory.mktemp("ucf101")
    for line in (annotations / "classInd.txt").read_text().split()[1::2]:
        (videos / line).mkdir()
    for name in ("trainlist01.txt", "testlist01.txt"):
        for line in (annotations / name).read_text().splitlines():
            (videos / line.split()[0]).touch()
    (videos / "HandstandPushups").rename(videos / "HandStandPushups")
    (videos / "Archery/v_Archery_g01_c01.avi").rename(videos / "Archery/v_Archery_g01_c01.mp4")
    (videos / "Biking/v_Biking_g01_c01.avi").unlink()
    (videos / "Biking/v_Biking_g26_c01.avi").touch()
    (videos / "UCF101.rar").touch()
    return ucf101(videos, annotations)


def test_published_counts(official: Listing) -> None:
    assert len(official.videos) + len(official.missing) == 13_320
    assert len({video.labels for video in official.videos}) == 101
    counts = {
        split: Counter(video.splits[split] for video in official.videos) for split in ("split1", "split2", "split3")
    }
    counts["split1"]["test"] += 1  # Biking_g01, missing here, is tested on in split 1 only
    counts["split2"]["train"] += 1
    counts["split3"]["train"] += 1
    assert counts == {
        "split1": {"train": 9_537, "test": 3_783},
        "split2": {"train": 9_586, "test": 3_734},
        "split3": {"train": 9_624, "test": 3_696},
    }


def test_the_splits_test_on_groups_of_their_own(official: Listing) -> None:
    """As the authors made them: groups 1 to 7, 8 to 14 and 15 to 21."""
    for split, groups in (("split1", range(1, 8)), ("split2", range(8, 15)), ("split3", range(15, 22))):
        tested = {int(video.id.split("_")[2][1:]) for video in official.videos if video.splits[split] == "test"}
        assert tested == set(groups)


def test_missing_extra_and_other_names(official: Listing) -> None:
    assert official.missing == ("Biking/v_Biking_g01_c01.avi",)
    assert official.extra == ("Biking/v_Biking_g26_c01.avi", "UCF101.rar")
    places = {video.id: video for video in official.videos}
    upside_down = places["v_HandStandPushups_g01_c01"]
    assert upside_down.path.parts[-2:] == ("HandStandPushups", "v_HandStandPushups_g01_c01.avi")
    assert upside_down.labels == ("HandstandPushups",)
    assert places["v_Archery_g01_c01"].path.name == "v_Archery_g01_c01.mp4"


def test_every_id_can_be_used(official: Listing) -> None:
    videos = [
        Video(id=v.id, path=str(v.path), digest="", bytes=0, labels=v.labels, splits=v.splits) for v in official.videos
    ]
    assert len(check(videos, splits=["split1", "split2", "split3"]).videos) == 13_319


LISTS = {
    "classInd.txt": "1 Run\n2 Sit\n",
    **{f"trainlist0{k}.txt": "Run/v_a.avi 1\nSit/v_b.avi 2\n" for k in (1, 2, 3)},
    **{f"testlist0{k}.txt": "Run/v_c.avi\n" for k in (1, 2, 3)},
}


def build(folder: Path, **changed: str | None) -> Listing:
    """A dataset of three videos whose lists are changed: file name without extension, text or None."""
    for name, text in (LISTS | {f"{name}.txt": text for name, text in changed.items()}).items():
        if text is not None:
            (folder / name).write_bytes(text.encode("latin-1"))
    for name in ("Run/v_a.avi", "Run/v_c.avi", "Sit/v_b.avi"):
        (folder / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "videos" / name).touch()
    return ucf101(folder / "videos", folder)


def test_a_video_that_a_split_does_not_list_is_unused_in_it(tmp_path: Path) -> None:
    listing = build(tmp_path, testlist02="\r\nSit/v_b.avi  \r\n", trainlist02="Run/v_a.avi 1\r\n")
    assert {video.id: list(video.splits.values()) for video in listing.videos} == {
        "v_a": ["train", "train", "train"],
        "v_b": ["train", "test", "train"],
        "v_c": ["test", "", "test"],
    }


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"trainlist01": "Run/v_a.avi 1\nRun/v_a.avi\n"},
            "line 2 of {}/trainlist01.txt is 'Run/v_a.avi': expected Class/",
        ),
        (
            {"trainlist02": "Run/v_a.avi one\n"},
            "line 1 of {}/trainlist02.txt is 'Run/v_a.avi one': classInd.txt has Run as 1",
        ),
        ({"trainlist02": "Run/v_a.avi 2\n"}, "classInd.txt has Run as 1; correct one of them"),
        (
            {"testlist01": "Run/v_c.avi 1\n"},
            "line 1 of {}/testlist01.txt is 'Run/v_c.avi 1': expected Class/video.avi;",
        ),
        ({"testlist01": "v_c.avi\n"}, "expected Class/video.avi; restore the official file"),
        ({"testlist01": "Run/more/v_c.avi\n"}, "expected Class/video.avi"),
        ({"testlist01": "Run/..\n"}, "expected Class/video.avi"),
        ({"testlist01": "Walk/v_c.avi\n"}, "classInd.txt has no class 'Walk'; correct the name in one of them"),
        (
            {"testlist03": "Run/v_a.avi\n"},
            "line 1 of {}/testlist03.txt is 'Run/v_a.avi': split 3 has this video already",
        ),
        ({"testlist03": "Run/caf\xe9.avi\n"}, "line 1 of {}/testlist03.txt is b'Run/caf\\xe9.avi', not UTF-8"),
        ({"testlist03": None}, "cannot read {}/testlist03.txt: No such file or directory; check the key 'annotations'"),
        ({"classInd": "1 Run\nSit\n"}, "line 2 of {}/classInd.txt is 'Sit': expected a number and a class"),
        (
            {"classInd": "1 Run\n1 Sit\n"},
            "line 2 of {}/classInd.txt is '1 Sit': the number or the class stands there twice",
        ),
        ({"classInd": "1 Run\n2 Run\n"}, "the number or the class stands there twice"),
        ({"classInd": ""}, "classInd.txt names no class; restore the official file"),
    ],
)
def test_lists_with_mistakes(tmp_path: Path, changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="^[^\n]*$") as error:
        build(tmp_path, **changed)
    assert re.search(re.escape(sentence.format(tmp_path)), str(error.value))
