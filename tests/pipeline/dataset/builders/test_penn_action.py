"""Penn Action: the official files in every 32nd place, and files that lack or contradict something."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from pipeline.dataset.builders.penn_action import penn_action

GOOD = {
    "action": "squat",
    "pose": "front",
    "train": 1,
    "nframes": 3,
    "dimensions": np.array([[270, 480, 3]], np.uint16),
    "bbox": np.array([[10.5, 20, 110.5, 220]] * 3),
    "x": np.zeros((3, 13)),
    "y": np.zeros((3, 13)),
    "visibility": np.ones((3, 13), np.uint8),
}


@pytest.fixture
def sequence(tmp_path):
    """Write `labels/0001.mat` with some fields changed (None leaves one out) and its folder of frames; build."""

    def build(**changes):
        for folder in ("labels", "frames/0001"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "frames/0001/000001.jpg").touch()
        fields = {name: value for name, value in (GOOD | changes).items() if value is not None}
        savemat(tmp_path / "labels/0001.mat", fields)
        return penn_action(tmp_path / "frames", tmp_path)

    return build


@pytest.fixture(scope="module")
def official(shared_data, tmp_path_factory):
    """The listing of the official files at hand, with a folder of frames for each but one, and one without a file."""
    annotations = shared_data / "annotations/penn_action"
    frames = tmp_path_factory.mktemp("frames")
    for path in (annotations / "labels").glob("*.mat"):
        if path.stem != "0036":
            (frames / path.stem).mkdir()
            (frames / path.stem / "000001.jpg").touch()
    (frames / "9999").mkdir()
    (frames / "9999/000001.jpg").touch()
    return penn_action(frames, annotations)


def test_counts_of_the_official_files(official):
    assert len(official.videos) == 72
    assert official.missing == ("0036",)
    assert official.extra == ("9999",)
    assert len({video.labels for video in official.videos}) == 15
    parts = [video.splits["split1"] for video in official.videos]
    assert (parts.count("train"), parts.count("test")) == (43, 29), "43 and 30 with the missing one"
    assert all(video.path.is_dir() for video in official.videos)


def test_boxes_of_the_official_files(official, shared_data):
    """They hold the visible joints, which are annotated apart from them, and only if the columns are corners."""
    inside = joints = boxes = leaving = 0
    for video in official.videos:
        fields = loadmat(shared_data / "annotations/penn_action/labels" / f"{video.id}.mat")
        (tube,) = video.tubes
        corners = np.array(tube.boxes)
        x, y, visible = (np.asarray(fields[name], float) for name in ("x", "y", "visibility"))
        assert len(corners) == len(x) == fields["nframes"].item()
        held = (corners[:, :1] <= x) & (x <= corners[:, 2:3]) & (corners[:, 1:2] <= y) & (y <= corners[:, 3:])
        inside += int((held & (visible > 0)).sum())
        joints += int((visible > 0).sum())
        boxes += len(corners)
        height, width = fields["dimensions"].ravel()[:2].astype(float)
        assert (corners >= 0).all()
        assert (corners[:, 2:] <= [width, height]).all()
        assert (corners == fields["bbox"]).all(), "no official box had to be cut"
        leaving += int(((corners[:, :2] + corners[:, 2:]) > [width, height]).any(axis=1).sum())
    assert boxes + loadmat(shared_data / "annotations/penn_action/labels/0036.mat")["nframes"].item() == 5207
    assert inside > 0.999 * joints
    assert leaving > 0.5 * boxes, "read as sizes, most boxes would leave the frame"


@pytest.mark.parametrize("flag", [0, -1])
def test_both_flags_of_the_test_part(sequence, flag):
    assert sequence(train=flag).videos[0].splits == {"split1": "test"}


def test_the_labels_folder_itself(sequence, tmp_path):
    listing = sequence()
    assert penn_action(tmp_path / "frames", tmp_path / "labels") == listing


def test_fewer_boxes_than_frames_are_of_the_first(sequence):
    (video,) = sequence(nframes=9).videos
    assert (video.tubes[0].first_frame, len(video.tubes[0].boxes)) == (0, 3)


def test_a_box_is_cut_at_the_edge(sequence):
    boxes = np.array([[-5, 20, 110, 300], [400, -1, 500, 200], [1, 2, 3, 4]])
    (video,) = sequence(bbox=boxes).videos
    assert video.tubes[0].boxes == ((0, 20, 110, 270), (400, 0, 480, 200), (1, 2, 3, 4))


def test_small_integers_do_not_overflow(sequence):
    (video,) = sequence(bbox=np.array([[200, 100, 255, 250]] * 3, np.uint8)).videos
    assert video.tubes[0].boxes[0] == (200.0, 100.0, 255.0, 250.0)


@pytest.mark.parametrize("field", ["action", "train", "nframes", "dimensions", "bbox"])
def test_a_missing_field(sequence, field):
    with pytest.raises(ValueError, match=f"0001.mat has no field '{field}'; get the file anew"):
        sequence(**{field: None})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"action": ""}, "'action'; it must be a text"),
        ({"action": 7}, "has 7 for 'action'; it must be a text"),
        ({"train": 2}, "has 2 for 'train'; it must be 1"),
        ({"train": "yes"}, "has 'yes' for 'train'; it must be one whole number"),
        ({"nframes": 2.5}, "has 2.5 for 'nframes'; it must be one whole number"),
        ({"nframes": float("nan")}, "has nan for 'nframes'; it must be one whole number"),
        ({"nframes": np.array([3, 3])}, "has an array of shape (1, 2) for 'nframes'"),
        ({"nframes": 2}, "has 3 rows in 'bbox' for 2 frames"),
        ({"bbox": np.zeros((0, 4))}, "has 0 rows in 'bbox' for 3 frames"),
        ({"bbox": np.zeros((3, 5))}, "of shape (3, 5) and type float64 for 'bbox'; it must be numbers in 4 columns"),
        ({"bbox": np.full((3, 4), 1j)}, "complex128 for 'bbox'"),
        ({"bbox": np.array([[1, 1, 2, 2], [5, 1, 3, 2]])}, "row 2 of 'bbox' in"),
        ({"bbox": np.array([[1, 1, 2, 2], [490, 1, 500, 2]])}, "is [490.0, 1.0, 500.0, 2.0], which is no x1, y1, x2"),
        ({"bbox": np.array([[1, np.nan, 2, 2]])}, "row 1 of 'bbox'"),
        ({"dimensions": np.array([[270]])}, "for 'dimensions'; it must start with the height and the width"),
        ({"dimensions": np.array([[0, 480, 3]])}, "[0, 480] for 'dimensions'"),
    ],
)
def test_fields_without_sense(sequence, changes, sentence):
    with pytest.raises(ValueError) as caught:
        sequence(**changes)
    assert sentence in str(caught.value)
    assert "0001.mat" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "0001.mat is not a MATLAB file, or is damaged"),
        (b"action = squat\n" * 40, "0001.mat is not a MATLAB file, or is damaged"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400), "0001.mat is of MATLAB 7.3; save it with"),
    ],
)
def test_other_files(sequence, tmp_path, content, sentence):
    sequence()
    (tmp_path / "labels/0001.mat").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        penn_action(tmp_path / "frames", tmp_path)


def test_a_file_cut_short(sequence, tmp_path):
    """Wherever it ends: what is read is whole, or the file is refused."""
    whole = sequence()
    path = tmp_path / "labels/0001.mat"
    content = path.read_bytes()
    outcomes = [_cut(path, content[:length], tmp_path) for length in range(0, len(content), 40)]
    assert all(outcome == whole or "0001.mat" in str(outcome) for outcome in outcomes)
    assert sum(outcome != whole for outcome in outcomes) > 10


def _cut(path, content, folder):
    path.write_bytes(content)
    try:
        return penn_action(folder / "frames", folder)
    except ValueError as error:
        return error


def test_no_files(tmp_path):
    with pytest.raises(ValueError, match="has no .mat files, nor in a folder labels; check the key 'annotations'"):
        penn_action(tmp_path, tmp_path)
