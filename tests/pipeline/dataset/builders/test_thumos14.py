"""THUMOS14: the official validation files with placeholder videos, a small test part, and lines without sense."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from pipeline.dataset.builders.thumos14 import thumos14
from pipeline.dataset.manifest import Segment


@pytest.fixture(scope="module")
def official(shared_data, tmp_path_factory):
    """Folders of the annotations (the official validation part, a test part of one class), videos and trimmed clips."""
    root = tmp_path_factory.mktemp("thumos14")
    source = shared_data / "annotations"
    shutil.copytree(source / "thumos14", root / "annotations")
    _writable(root / "annotations")
    test = root / "annotations/annotation_test"
    test.mkdir()
    for path in (root / "annotations/annotation_val").glob("*_val.txt"):
        (test / path.name.replace("_val", "_test")).write_text("")
    (test / "BaseballPitch_test.txt").write_text("video_test_0000324  49.2 53.5\n")
    (test / "Ambiguous_test.txt").write_text("video_test_0000324  3.1 4.1\nvideo_test_0001292  1.0 2.0\n")
    for name in {line.split()[0] for line in _lines(root / "annotations/annotation_val")}:
        _touch(root / "videos/TH14_validation_set_mp4" / f"{name}.mp4")
    for name in ("video_test_0000324.mp4", "video_test_0001292.mp4"):
        _touch(root / "videos/TH14_Test_set_mp4" / name)
    classes = {path.name.removesuffix("_val.txt") for path in (root / "annotations/annotation_val").glob("*_val.txt")}
    classes.add("Archery")  # one that is not asked for
    for name in ("trainlist01.txt", "testlist01.txt"):
        shutil.copyfile(source / "ucf101_splits" / name, root / "annotations" / name)
        for line in (source / "ucf101_splits" / name).read_text().split("\n"):
            if line.partition("/")[0] in classes:
                _touch(root / "ucf101" / line.split()[0])
    return root


def _writable(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _lines(folder: Path) -> list[str]:
    return [line for path in sorted(folder.glob("*_val.txt")) for line in path.read_text().splitlines()]


def _build(root, *, trimmed=None, single_label=False):
    return thumos14(root / "videos", root / "annotations", trimmed=trimmed, single_label=single_label)


def test_counts_of_the_official_validation(official):
    """3,007 intervals in 200 videos, 27 of them with several classes; 89 disputed intervals."""
    listing = _build(official)
    validation = [video for video in listing.videos if video.splits == {"split1": "train"}]
    assert len(validation) == 200
    segments = [segment for video in validation for segment in video.segments]
    assert sum(segment.label is not None for segment in segments) == 3007
    assert sum(segment.label is None for segment in segments) == 89
    assert len({label for video in validation for label in video.labels}) == 20
    assert sum(len(video.labels) > 1 for video in validation) == 27
    assert all(set(video.labels) == {segment.label for segment in video.segments} - {None} for video in validation)


def test_a_video_by_hand(official):
    """Against the lines of the official files, in their order."""
    video = next(video for video in _build(official).videos if video.id == "video_validation_0000161")
    assert video.labels == ("CliffDiving", "Diving")
    times = [(11.3, 14.1), (21.0, 23.9), (26.4, 29.4), (50.9, 55.4)]
    assert video.segments == tuple(Segment(label, *time) for label in video.labels for time in times)


def test_the_order_of_the_files_is_kept(official):
    """The official evaluation goes through the intervals of a class in the order of its file."""
    for video in _build(official).videos[:200]:
        for label in video.labels:
            path = official / "annotations/annotation_val" / f"{label}_val.txt"
            lines = [line.split() for line in path.read_text().splitlines() if line.startswith(video.id)]
            assert [(str(s.start), str(s.end)) for s in video.segments if s.label == label] == [
                (str(float(start)), str(float(end))) for _, start, end in lines
            ]


def test_cliff_diving_is_diving(official):
    for video in _build(official).videos:
        cliffs, dives = (
            {(segment.start, segment.end) for segment in video.segments if segment.label == label}
            for label in ("CliffDiving", "Diving")
        )
        assert cliffs <= dives


def test_the_filter_of_single_labels(official):
    """It leaves 2,354 of the 3,007 intervals, in 173 videos; those left out count neither as missing nor as extra."""
    listing = _build(official, single_label=True)
    assert Counter(video.splits["split1"] for video in listing.videos) == {"train": 173, "test": 1}
    validation = [video for video in listing.videos if video.splits["split1"] == "train"]
    assert sum(segment.label is not None for video in validation for segment in video.segments) == 2354
    assert listing.extra == _build(official).extra


def test_an_ambiguous_video_is_extra(official):
    listing = _build(official)
    assert listing.extra == ("TH14_Test_set_mp4/video_test_0001292.mp4",)
    (test,) = (video for video in listing.videos if video.splits["split1"] == "test")
    assert test.segments == (Segment("BaseballPitch", 49.2, 53.5), Segment(None, 3.1, 4.1))


def test_trimmed_clips_train(official):
    """All 2,765 clips of the 20 classes in UCF-101; of the others none is asked for, and none is extra."""
    listing = _build(official, trimmed=official / "ucf101")
    parts = Counter(video.splits["split1"] for video in listing.videos)
    assert parts == {"train": 2765, "val": 200, "test": 1}
    clips = [video for video in listing.videos if video.splits["split1"] == "train"]
    assert len({video.labels for video in clips}) == 20
    assert all(video.path.parent.name == video.labels[0] and not video.segments for video in clips)
    assert listing.missing == ()
    assert listing.extra == _build(official).extra


@pytest.fixture
def small(tmp_path):
    """Two classes, a validation and a test video each, and one of both classes."""
    lines = {
        "annotation_val/Diving_val.txt": ["video_validation_0000001  1.0 2.0", "video_validation_0000003  5.0 6.0"],
        "annotation_val/GolfSwing_val.txt": ["video_validation_0000002  1.0 2.0", "video_validation_0000003  7.0 8.0"],
        "annotation_test/Diving_test.txt": ["video_test_0000001  1.0 2.0"],
        "annotation_test/GolfSwing_test.txt": ["video_test_0000002  1.0 2.0"],
        "annotation_val/Ambiguous_val.txt": [],
        "annotation_test/Ambiguous_test.txt": [],
        "detclasslist.txt": ["8 Diving", "10 GolfSwing"],
    }
    for name, content in lines.items():
        _touch(tmp_path / "annotations" / name)
        (tmp_path / "annotations" / name).write_text("".join(f"{line}\n" for line in content))
    for name in ("validation_0000001", "validation_0000002", "validation_0000003", "test_0000001", "test_0000002"):
        _touch(tmp_path / "videos" / f"video_{name}.mp4")
    return tmp_path


def test_other_containers_and_frame_folders(small):
    (small / "videos/video_test_0000001.mp4").rename(small / "videos/video_test_0000001.webm")
    (small / "videos/video_test_0000002.mp4").unlink()
    _touch(small / "videos/frames/video_test_0000002/img_00001.jpg")
    _touch(small / "videos/video_test_0000001.json")
    listing = _build(small)
    assert listing.missing == ()
    assert listing.extra == ("video_test_0000001.json",)
    paths = {video.id: video.path for video in listing.videos}
    assert paths["video_test_0000001"] == small / "videos/video_test_0000001.webm"
    assert paths["video_test_0000002"] == small / "videos/frames/video_test_0000002"


@pytest.mark.parametrize("single_label", [False, True])
def test_missing_videos(small, single_label):
    (small / "videos/video_test_0000002.mp4").unlink()
    (small / "videos/video_validation_0000003.mp4").unlink()
    missing = (
        ("video_test_0000002.mp4",) if single_label else ("video_validation_0000003.mp4", "video_test_0000002.mp4")
    )
    assert _build(small, single_label=single_label).missing == missing


def test_a_video_twice(small):
    _touch(small / "videos/copy/video_test_0000002.mp4")
    with pytest.raises(ValueError, match="could both be video_test_0000002; keep one of them"):
        _build(small)


@pytest.mark.parametrize(
    "line",
    [
        "video_test_0000001  2.0 1.0",
        "video_test_0000001  2.0 2.0",
        "video_test_0000001  -1.0 2.0",
        "video_test_0000001  1,0 2,0",
        "video_test_0000001  1.0 nan",
        "video_test_0000001  1.0 inf",
        "video_test_0000001  1.0",
        "video_test_0000001  1.0 2.0 3.0",
        "video_validation_0000001  1.0 2.0",
        "video_test_1  1.0 2.0",
        "../video_test_0000001  1.0 2.0",
    ],
)
def test_lines_without_sense(small, line):
    path = small / "annotations/annotation_test/Diving_test.txt"
    path.write_text(f"video_test_0000001  1.0 2.0\n\n{line}\n")
    with pytest.raises(ValueError) as caught:
        _build(small)
    assert str(caught.value).startswith(f"line 3 of {path} is {line!r}: expected ")


def test_bytes_that_are_not_utf8(small):
    (small / "annotations/annotation_test/Diving_test.txt").write_bytes(b"video_test_0000001  1.0 2.0\n\xff\xfe\n")
    with pytest.raises(ValueError, match="line 2 of .*Diving_test.txt is .* not UTF-8"):
        _build(small)


def test_crlf_and_mark_are_read(small):
    expected = _build(small)
    for path in (small / "annotations").rglob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"  \r\n"))
    assert _build(small) == expected


def test_an_unknown_class(small):
    (small / "annotations/annotation_val/Juggling_val.txt").write_text("video_validation_0000001  1.0 2.0\n")
    with pytest.raises(ValueError, match="Juggling_val.txt is of a class that detclasslist.txt does not have"):
        _build(small)


@pytest.mark.parametrize("name", ["annotation_test/Diving_test.txt", "annotation_val/Ambiguous_val.txt"])
def test_an_absent_file(small, name):
    (small / "annotations" / name).unlink()
    with pytest.raises(ValueError, match=f"cannot read .*{name}: .*; check the key 'annotations'"):
        _build(small)


@pytest.mark.parametrize("line", ["Diving", "8 Diving 3", "eight Diving", "11 GolfSwing\n12 GolfSwing"])
def test_a_class_list_without_sense(small, line):
    (small / "annotations/detclasslist.txt").write_text(f"10 Billiards\n{line}\n")
    with pytest.raises(ValueError, match="line [23] of .*detclasslist.txt is "):
        _build(small)


def test_no_class_list(small):
    (small / "annotations/detclasslist.txt").unlink()
    with pytest.raises(ValueError, match="has no detclasslist.txt, nor in annotation_val"):
        _build(small)


def test_lists_of_the_trimmed_clips(small):
    lists = small / "annotations/trainlist01.txt", small / "annotations/testlist01.txt"
    lists[0].write_text("Diving/v_Diving_g08_c01.avi 26\r\nArchery/v_Archery_g08_c01.avi 3\r\n")
    lists[1].write_text("Diving/v_Diving_g01_c01.avi\r\n")
    _touch(small / "ucf/Diving/v_Diving_g08_c01.avi")
    _touch(small / "ucf/Diving/v_Diving_g09_c01.avi")
    _touch(small / "ucf/Archery/v_Archery_g08_c01.avi")
    with pytest.raises(ValueError, match="have no clip of GolfSwing; use UCF-101's"):
        _build(small, trimmed=small / "ucf")
    lists[1].write_text("GolfSwing/v_GolfSwing_g01_c01.avi\r\n")
    listing = _build(small, trimmed=small / "ucf")
    assert listing.missing == ("GolfSwing/v_GolfSwing_g01_c01.avi",)
    assert listing.extra == ("Diving/v_Diving_g09_c01.avi",)
    lists[1].write_text("v_GolfSwing_g01_c01.avi\n")
    with pytest.raises(ValueError, match="line 1 of .*testlist01.txt is 'v_GolfSwing_g01_c01.avi': expected Class/"):
        _build(small, trimmed=small / "ucf")
    lists[1].unlink()
    with pytest.raises(ValueError, match="cannot read .*testlist01.txt"):
        _build(small, trimmed=small / "ucf")
