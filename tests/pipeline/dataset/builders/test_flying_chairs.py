"""FlyingChairs: both ways of naming the files, the official list, and folders that contradict it."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pytest

from pipeline.dataset.builders.flying_chairs import flying_chairs
from pipeline.optical_flow.flo import read_flo


@pytest.fixture
def chairs(tmp_path):
    """Pairs 1 to 3 in the archive's naming; pair 2 validates."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in (1, 2, 3):
        for suffix in ("_img1.ppm", "_img2.ppm", "_flow.flo"):
            (folder / f"{number:05d}{suffix}").touch()
    (tmp_path / "split.txt").write_text("1\n2\n1\n")
    return folder


def test_the_archive(chairs, tmp_path):
    pairs = flying_chairs(chairs, split_file=tmp_path / "split.txt")
    assert [(pair.id, pair.part) for pair in pairs] == [("00001", "train"), ("00002", "val"), ("00003", "train")]
    first = pairs[0]
    assert [path.name for path in (first.prev, first.next, first.flow)] == [
        "00001_img1.ppm",
        "00001_img2.ppm",
        "00001_flow.flo",
    ]


def test_the_examples_of_flownet2(shared_data):
    pairs = flying_chairs(shared_data / "flow/flyingchairs", split_file=None)
    assert [(pair.id, pair.part) for pair in pairs] == [("0000001", "train"), ("0000003", "train")]
    for pair in pairs:
        flow = read_flo(pair.flow)
        prev, next = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(np.float32) for path in (pair.prev, pair.next))
        assert flow.shape == (2, *prev.shape) == (2, 384, 512)
        y, x = np.mgrid[0:384, 0:512].astype(np.float32)
        warped = cv2.remap(next, x + flow[0], y + flow[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        assert np.median(np.abs(warped - prev)) < 0.25 * np.median(np.abs(next - prev)), "from prev to next"


def test_numbers_count_not_places(shared_data, tmp_path):
    """The pairs 1 and 3 read lines 1 and 3 of the list, not lines 1 and 2."""
    for path in (shared_data / "flow/flyingchairs").iterdir():
        shutil.copy(path, tmp_path / path.name)
    (tmp_path / "split.txt").write_text("1\n\n2\n")
    assert [pair.part for pair in flying_chairs(tmp_path, split_file=tmp_path / "split.txt")] == ["train", "val"]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("1\n2\n", "1 pairs in .* have no line in .*split.txt: 3;"),
        ("1\n" * 9, "6 pairs listed in .*split.txt are not in .*: 4, 5, 6, 7, 8 and 1 more;"),
        ("1\n3\n1\n", "line 2 of .*split.txt is '3': expected 1"),
        ("1\ntrain\n1\n", "line 2 of .* is 'train'"),
    ],
)
def test_a_list_that_does_not_fit(chairs, tmp_path, lines, sentence):
    (tmp_path / "split.txt").write_text(lines)
    with pytest.raises(ValueError, match=sentence):
        flying_chairs(chairs, split_file=tmp_path / "split.txt")


def test_crlf_and_mark_are_read(chairs, tmp_path):
    (tmp_path / "split.txt").write_bytes(b"\xef\xbb\xbf1\r\n2 \r\n1\r\n")
    assert [pair.part for pair in flying_chairs(chairs, split_file=tmp_path / "split.txt")] == ["train", "val", "train"]


def test_half_a_pair(chairs):
    (chairs / "00002_flow.flo").unlink()
    with pytest.raises(ValueError, match="has 00002_img1.ppm but not 00002_flow.flo; restore or remove the pair"):
        flying_chairs(chairs, split_file=None)


def test_one_number_twice(chairs):
    for suffix in ("-img0.ppm", "-img1.ppm", "-gt.flo"):
        (chairs / f"0000002{suffix}").touch()
    with pytest.raises(ValueError, match="both are of the pair 2; keep one"):
        flying_chairs(chairs, split_file=None)


def test_a_foreign_picture(chairs):
    (chairs / "chair.ppm").touch()
    with pytest.raises(ValueError, match="chair.ppm is not named like 00001_img1.ppm"):
        flying_chairs(chairs, split_file=None)


def test_no_pair(tmp_path):
    (tmp_path / "README").touch()
    with pytest.raises(ValueError, match="has no file like 00001_img1.ppm"):
        flying_chairs(tmp_path, split_file=None)
    with pytest.raises(ValueError, match="cannot read the folder"):
        flying_chairs(tmp_path / "absent", split_file=None)
