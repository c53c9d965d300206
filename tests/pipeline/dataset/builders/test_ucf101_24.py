"""UCF101-24: the official file with placeholder videos, and files that lack or contradict something."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from pipeline.dataset.builders.ucf101_24 import ucf101_24
from pipeline.dataset.manifest import Tube, tube_problem


@pytest.fixture(scope="module")
def official(shared_data, tmp_path_factory):
    """The listing of the official file: three videos in other spellings, one missing, one of another class."""
    annotations = shared_data / "annotations/ucf101_24"
    videos = tmp_path_factory.mktemp("videos")
    for entry in loadmat(annotations / "finalAnnots.mat")["annot"].flat:
        path = videos / f"{entry['name'].item()}.avi"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (videos / "Basketball/v_Basketball_g01_c01.avi").rename(videos / "Basketball/v_Basketball_g01_c01.mp4")
    (videos / "Skijet").rename(videos / "SkiJet")
    (videos / "Biking/v_Biking_g01_c01.avi").unlink()
    (videos / "Archery").mkdir()
    (videos / "Archery/v_Archery_g01_c01.avi").touch()
    return ucf101_24(videos, annotations)


@pytest.fixture
def dataset(tmp_path):
    """Write a file with two videos of two classes, its parts changed, and the test list; build."""

    def build(*, tested="Diving/v_Diving_g01_c01\n", tube=None, video=None, more=()):
        good = {"sf": 3, "ef": 4, "class": 6, "boxes": np.array([[200, 100, 100, 120], [201, 100, 100, 120]], np.uint8)}
        changed = {name: value for name, value in (good | (tube or {})).items() if value is not None}
        second = {"name": "Diving/v_Diving_g01_c01", "num_imgs": 9, "tubes": _struct([changed, *more])}
        second = {name: value for name, value in (second | (video or {})).items() if value is not None}
        first = {"name": "Biking/v_Biking_g01_c01", "num_imgs": 9, "tubes": _struct([good | {"class": 3}])}
        savemat(tmp_path / "finalAnnots.mat", {"annot": _struct([{name: first[name] for name in second}, second])})
        (tmp_path / "testlist01.txt").write_text(tested)
        return ucf101_24(_videos(tmp_path), tmp_path)

    return build


def _struct(rows):
    """A MATLAB structure array, 1 x N."""
    array = np.empty((1, len(rows)), [(name, object) for name in rows[0]])
    for number, row in enumerate(rows):
        array[0, number] = tuple(row.values())
    return array


def _videos(folder: Path) -> Path:
    for name in ("Biking/v_Biking_g01_c01.avi", "Diving/v_Diving_g01_c01.avi"):
        path = folder / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder / "videos"


def test_counts_of_the_official_file(official):
    """Saha et al. and Singh et al. print them."""
    assert len(official.videos) == 3193
    assert official.missing == ("Biking/v_Biking_g01_c01.avi",)
    assert official.extra == ("Archery/v_Archery_g01_c01.avi",)
    parts = Counter(video.splits["split1"] for video in official.videos)
    assert parts == {"train": 2284, "test": 909}, "v_Biking_g01_c01 is to test"
    assert len({video.labels for video in official.videos}) == 24
    # v_Biking_g01_c01 has one tube
    assert sum(len(video.tubes) for video in official.videos) == 4458 - 1
    assert sum(len(video.tubes) > 1 for video in official.videos) == 715


def test_spellings_of_the_official_names(official):
    paths = {video.id: video.path for video in official.videos}
    assert paths["v_Basketball_g01_c01"].name == "v_Basketball_g01_c01.mp4"
    assert paths["v_Skijet_g01_c01"].parent.name == "SkiJet"
    assert {video.labels for video in official.videos if video.path.parent.name == "SkiJet"} == {("Skijet",)}


def test_boxes_of_the_official_file(official, shared_data):
    """Against a direct reading of the file: cast, sizes to corners, frames from 0; no box leaves 320 x 240 pixels."""
    annot = loadmat(shared_data / "annotations/ucf101_24/finalAnnots.mat")["annot"]
    raw = {entry["name"].item().split("/")[1]: entry for entry in annot.flat}
    boxes = overflowing = 0
    for video in official.videos:
        entry = raw[video.id]
        for tube, given in zip(video.tubes, entry["tubes"].flat, strict=True):
            packed = given["boxes"]
            corners, sizes = np.array(tube.boxes), packed.astype(np.int64)
            assert tube.first_frame == int(given["sf"].item()) - 1
            assert tube.first_frame + len(tube.boxes) == given["ef"].item() <= entry["num_imgs"].item()
            assert (corners[:, :2] == sizes[:, :2]).all()
            assert (corners[:, 2:] - corners[:, :2] == sizes[:, 2:]).all()
            assert (corners >= 1).all()
            assert (corners[:, 2:] <= [320, 240]).all()
            boxes += len(corners)
            overflowing += int(((packed[:, :2] + packed[:, 2:]) < packed[:, :2]).any(axis=1).sum())
    missing = sum(len(tube["boxes"]) for tube in raw["v_Biking_g01_c01"]["tubes"].flat)
    assert boxes + missing == 573862
    assert overflowing > 10000, "summed as they are packed, that many boxes would be reversed"


def test_one_by_hand(official):
    """v_Basketball_g01_c01: frames 9 to 52 of 141, first box 189 102 47 78."""
    video = next(video for video in official.videos if video.id == "v_Basketball_g01_c01")
    (tube,) = video.tubes
    assert (tube.label, tube.first_frame, len(tube.boxes)) == ("Basketball", 8, 44)
    assert tube.boxes[0] == (189.0, 102.0, 236.0, 180.0)


def test_tubes_counted_on_extracted_images_fit(official, shared_data):
    """Images extracted from a video of UCF-101 are one more than its frames; tubes that end with the last must fit."""
    clip = shared_data / "clips/ucf101/v_ApplyEyeMakeup_g01_c01.avi"
    images = len(list(clip.with_name(f"{clip.stem}_jpg").glob("*.jpg")))
    frames = sum(1 for _ in _decoded(clip))
    assert images == frames + 1
    box = official.videos[0].tubes[0].boxes[0]
    assert tube_problem(Tube("Diving", 9, (box,) * (images - 9)), frames=frames) is None
    assert "reaches frame 173, but the video has 164" in str(
        tube_problem(Tube("Diving", 9, (box,) * 165), frames=frames)
    )


def _decoded(clip):
    capture = cv2.VideoCapture(str(clip))
    while capture.grab():
        yield


def test_a_small_file(dataset):
    biking, diving = dataset().videos
    assert (biking.labels, biking.splits) == (("Biking",), {"split1": "train"})
    assert (diving.labels, diving.splits) == (("Diving",), {"split1": "test"})
    assert diving.tubes[0].boxes == ((200, 100, 300, 220), (201, 100, 301, 220)), "200 + 100 is 44 in a byte"


def test_a_list_with_extensions_and_crlf(dataset):
    assert dataset(tested="Diving/v_Diving_g01_c01.avi \r\n").videos[1].splits == {"split1": "test"}


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (
            "Diving/v_Diving_g01_c01\nArchery/v_Archery_g01_c01.avi\n",
            "line 2 of .*testlist01.txt is 'Archery/v_Archery",
        ),
        (
            "Diving/v_Diving_g01_c01\n\nDiving/v_Diving_g01_c01.avi\n",
            "line 3 of .* is .*: the video stands there a second time",
        ),
    ],
)
def test_a_list_that_does_not_fit(dataset, lines, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataset(tested=lines)


TUBE = {"sf": 1, "ef": 1, "class": 6, "boxes": np.array([[1, 2, 3, 4]])}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tube": {"boxes": np.array([[1, 2, 3, 4]])}}, "has 1 boxes for frames 3 to 4; give one for each frame"),
        ({"tube": {"boxes": np.array([[1, 2, 3], [1, 2, 3]])}}, "of shape (2, 3) and type"),
        (
            {"tube": {"boxes": np.array([[1, 2, 3, 4], [1, 2, 0, 4]])}},
            "the box [1.0, 2.0, 0.0, 4.0] in frame 4, counted",
        ),
        ({"tube": {"boxes": np.array([[-1, 2, 3, 4], [1, 2, 3, 4]])}}, "the box [-1.0, 2.0, 3.0, 4.0] in frame 3"),
        ({"tube": {"boxes": np.array([[1, 2, np.nan, 4], [1, 2, 3, 4]])}}, "nan, 4.0] in frame 3"),
        ({"tube": {"sf": 0}}, "a tube from frame 0 to 4 of 9, counted from 1"),
        ({"tube": {"sf": 5}}, "a tube from frame 5 to 4 of 9"),
        ({"tube": {"ef": 10}}, "a tube from frame 3 to 10 of 9"),
        ({"tube": {"ef": "last"}}, "has 'last' for 'ef'; it must be one whole number"),
        ({"tube": {"class": 3}}, "gives the class 3 to Biking and to Diving"),
        ({"more": [TUBE | {"class": 7}]}, "has a tube of the class 7, but Diving is 6"),
        ({"tube": {"class": None}}, "has no field 'class'"),
        ({"tube": {"boxes": None}}, "has no field 'boxes'"),
        ({"video": {"tubes": np.zeros((0, 0))}}, "'tubes' of"),
        ({"video": {"tubes": None}}, "'annot' of"),
        ({"video": {"num_imgs": None}}, "has no field 'num_imgs'"),
        ({"video": {"name": "v_Diving_g01_c01"}}, "has no name like Class/v_Class_g01_c01"),
        ({"video": {"name": "../Diving/v_Diving_g01_c01"}}, "has no name like Class/v_Class_g01_c01"),
    ],
)
def test_entries_without_sense(dataset, changes, sentence):
    with pytest.raises(ValueError) as caught:
        dataset(**changes)
    assert sentence in str(caught.value)
    assert "finalAnnots.mat" in str(caught.value)


def test_a_file_without_annot(dataset, tmp_path):
    dataset()
    savemat(tmp_path / "finalAnnots.mat", {"other": 1})
    with pytest.raises(ValueError, match="finalAnnots.mat has no field 'annot'; get the file anew"):
        ucf101_24(tmp_path / "videos", tmp_path)
    savemat(tmp_path / "finalAnnots.mat", {"annot": np.eye(3)})
    with pytest.raises(ValueError, match="'annot' of .*finalAnnots.mat is not a structure"):
        ucf101_24(tmp_path / "videos", tmp_path)


class _Trap:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


def test_the_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyannot.pkl").write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(ValueError, match="is a pickle, which can run any code and is not read; put finalAnnots.mat"):
        ucf101_24(_videos(tmp_path), tmp_path)
    assert not Path("ran").exists()


def test_nothing_at_all(tmp_path):
    with pytest.raises(ValueError, match="cannot read .*finalAnnots.mat: .*; check the key 'annotations'"):
        ucf101_24(_videos(tmp_path), tmp_path)
