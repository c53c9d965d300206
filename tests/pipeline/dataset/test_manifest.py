"""The manifest file and the list that cannot be trained on."""

from __future__ import annotations

import csv
import gc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.manifest import (
    Manifest,
    Segment,
    Tube,
    Video,
    check,
    collector_paused,
    misfit,
    past_the_end,
    read_manifest,
    write_manifest,
)


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
        ([*GOOD, video("e", "a;b", "train")], "the video 'e': the label 'a;b' is empty, or has ';'"),
        ([*GOOD, replace(GOOD[0], id="e", labels=("sit", "sit"))], "the labels sit;sit name a class twice"),
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


FINITE = st.floats(allow_nan=False, allow_infinity=False)
SEGMENTS = st.lists(st.builds(Segment, NAMES | st.none(), FINITE, FINITE), max_size=3).map(tuple)
BOXES = st.lists(st.tuples(FINITE, FINITE, FINITE, FINITE), max_size=3).map(tuple)
TUBES = st.lists(st.builds(Tube, NAMES, st.integers(0, 10**6), BOXES), max_size=3).map(tuple)


@given(segments=SEGMENTS, tubes=TUBES)
def test_ground_truth_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, segments: tuple[Segment, ...], tubes: tuple[Tube, ...]
) -> None:
    file = tmp_path_factory.mktemp("manifest") / "m.tsv"
    manifest = Manifest((video("a", "run", "train", segments=segments, tubes=tubes), video("b", "run", "test")))
    write_manifest(file, manifest)
    assert read_manifest(file) == manifest


def test_the_boxes_of_a_long_video_fit_in_a_cell(tmp_path: Path) -> None:
    """Ten minutes of boxes are more than the csv module takes by itself."""
    tube = Tube("run", 0, tuple((i / 7, i / 3, i / 7 + 40.25, i / 3 + 80.5) for i in range(15_000)))
    manifest = Manifest((video("a", "run", "train", tubes=(tube,)),))
    write_manifest(tmp_path / "m.tsv", manifest)
    assert (tmp_path / "m.tsv").stat().st_size > csv.field_size_limit()
    assert read_manifest(tmp_path / "m.tsv") == manifest


def test_ground_truth_is_json_in_its_cell(tmp_path: Path) -> None:
    truth = {"segments": (Segment(None, 0.0, 1.5),), "tubes": (Tube("run", 3, ((1.0, 2.0, 3.0, 4.0),)),)}
    write_manifest(tmp_path / "m.tsv", Manifest((video("a", "run", "train", **truth), video("b", "run", "test"))))
    with (tmp_path / "m.tsv").open() as file:
        one, two = csv.DictReader(file, dialect="excel-tab")
    assert (one["segments"], one["tubes"]) == ("[[null,0.0,1.5]]", '[["run",3,[[1.0,2.0,3.0,4.0]]]]')
    assert (two["segments"], two["tubes"]) == ("", "")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("truth", "sentence"),
    [
        (Segment("run", 2.0, 1.0), "the interval 2 to 1 s of run is empty or reversed; correct it"),
        (Segment("run", 2.0, 2.0), "is empty or reversed"),
        (Segment(None, 3.0, 2.0), "the interval 3 to 2 s of disputed action is empty or reversed"),
        (Segment("run", -0.1, 2.0), "does not lie in the video's time"),
        (Segment("run", NAN, 2.0), "does not lie in the video's time"),
        (Segment("run", 0.0, INF), "does not lie in the video's time"),
        (Segment("sit", 0.0, 1.0), "has ground truth of sit, but the labels run; add it to them"),
        (Tube("sit", 0, ((0, 0, 1, 1),)), "has ground truth of sit, but the labels run"),
        (Tube("run", 0, ()), "a tube of run starts at frame 0 and has 0 boxes"),
        (Tube("run", -1, ((0, 0, 1, 1),)), "a tube of run starts at frame -1 and has 1 boxes"),
        (Tube("run", 5, ((0, 0, 1, 1), (4, 0, 3, 1))), "the box 4, 0, 3, 1 of run in frame 6 is empty or reversed"),
        (Tube("run", 5, ((0, 1, 4, 1),)), "the box 0, 1, 4, 1 of run in frame 5 is empty or reversed"),
        (Tube("run", 5, ((NAN, 1, 4, 2),)), "is empty or reversed"),
        (Tube("run", 5, ((0, 1, INF, 2),)), "is empty or reversed"),
        (Tube("run", 5, ((-1.5, 0, 3, 1),)), "the box -1.5, 0, 3, 1 of run in frame 5 lies outside the frame"),
    ],
)
def test_ground_truth_that_makes_no_sense(truth: Segment | Tube, sentence: str) -> None:
    kind = "segments" if isinstance(truth, Segment) else "tubes"
    with pytest.raises(ValueError, match="^[^\n]*'a'[^\n]*$") as error:
        check([video("a", "run", "train", **{kind: (truth,)}), *GOOD[1:]], splits=["split1"])
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("segment", "past"),
    [
        (Segment("run", 9.0, 10.0), False),
        (Segment("run", 9.0, 10.5), False),
        (Segment("run", 9.0, 10.51), True),
        (Segment(None, 11.0, 12.0), True),
    ],
)
def test_intervals_past_the_end_are_found(segment: Segment, past: bool) -> None:
    probed = replace(video("a", "run", "train", segments=(segment,)), frames=250, fps=25.0)
    assert past_the_end(probed) == ((segment,) if past else ())
    assert past_the_end(replace(probed, frames=None, fps=None)) == ()


@pytest.mark.parametrize(
    ("tube", "problem"),
    [
        (Tube("run", 248, ((0, 0, 320, 240),) * 2), None),
        (Tube("run", 250, ((0, 0, 320, 240),) * 2), None),
        (Tube("run", 250, ((0, 0, 320, 240),) * 3), "a tube of run reaches frame 252, but the video has 250 frames"),
        (Tube("run", 0, ((-1, -1, 321, 241),)), None),
        (
            Tube("run", 7, ((0, 0, 321.5, 240),)),
            "the box 0, 0, 321.5, 240 of run in frame 7 lies outside the frame of 320 x",
        ),
        (Tube("run", 7, ((0, 0, 320, 241.5),)), "the box 0, 0, 320, 241.5 of run in frame 7 lies outside the frame"),
    ],
)
def test_tubes_stay_inside_the_video(tube: Tube, problem: str | None) -> None:
    found = misfit([tube], frames=250, width=320, height=240)
    assert (found is None) == (problem is None)
    assert (found or "").startswith(problem or "")


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
    with pytest.raises(ValueError, match=r"absent\.tsv is not a manifest: .*No such file"):
        read_manifest(tmp_path / "absent.tsv")


def test_a_manifest_that_was_cut_or_edited(tmp_path: Path) -> None:
    file = tmp_path / "m.tsv"
    write_manifest(file, Manifest((video("a", "run", "train", segments=(Segment("run", 0.0, 1.0),)),)))
    text = file.read_text()
    for damaged in (text[:-30], text.replace("7\td", "seven\td"), text.replace("[[", "[{")):
        file.write_text(damaged)
        with pytest.raises(ValueError, match="is not a manifest: .*; delete it and run again"):
            read_manifest(file)


def test_the_collector_runs_again_after_an_error_and_stays_off_if_it_was_off() -> None:
    with pytest.raises(KeyError), collector_paused():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
