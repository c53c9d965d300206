"""Flow files: what we write OpenCV reads and the other way round; damaged ones are refused."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pipeline.optical_flow.flo import read_flo, write_flo


@pytest.fixture
def flow(rng):
    return rng.normal(0, 9, (2, 5, 7)).astype(np.float32)


def test_opencv_reads_what_is_written(tmp_path, flow):
    write_flo(tmp_path / "a.flo", flow)
    assert (cv2.readOpticalFlow(str(tmp_path / "a.flo")) == np.moveaxis(flow, 0, 2)).all()
    assert [path.name for path in tmp_path.iterdir()] == ["a.flo"]


def test_what_opencv_writes_is_read(tmp_path, flow):
    assert cv2.writeOpticalFlow(str(tmp_path / "a.flo"), np.ascontiguousarray(np.moveaxis(flow, 0, 2)))
    found = read_flo(tmp_path / "a.flo")
    assert found.dtype == np.float32
    assert (found == flow).all()


@pytest.mark.parametrize("scene", ["Grove2", "RubberWhale", "Venus"])
def test_middlebury(shared_data, scene):
    path = shared_data / "flow/middlebury" / scene / "flow10.flo"
    reference = np.moveaxis(cv2.readOpticalFlow(str(path)), 2, 0)
    unknown = (np.abs(reference) > 1e9).any(axis=0)
    assert unknown.any() == (scene == "RubberWhale"), "of these scenes it alone has occlusions that nobody measured"
    found = read_flo(path)
    assert (np.isnan(found) == unknown).all()
    assert (found[:, ~unknown] == reference[:, ~unknown]).all()
    assert np.nanmax(np.abs(found)) < 20


def test_the_unknown_stays_unknown(tmp_path, flow):
    flow[0, 1, 2] = np.nan
    write_flo(tmp_path / "a.flo", flow)
    found = read_flo(tmp_path / "a.flo")
    assert np.isnan(found[:, 1, 2]).all(), "a vector with an unknown part is unknown"
    assert np.isnan(found).sum() == 2
    raw = cv2.readOpticalFlow(str(tmp_path / "a.flo"))
    assert (raw[1, 2] > 1e9).all(), "other readers see it too"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not a .flo file"),
        (b"PIEH\x07\x00\x00\x00", "is not a .flo file"),
        (b"HEIP" + bytes(100), "starts with b'HEIP'"),
        (b"PIEH" + np.array([7, 5], "<i4").tobytes() + bytes(279), "has 291 bytes, but its header says 7 x 5"),
        (b"PIEH" + np.array([7, 5], "<i4").tobytes() + bytes(281), "has 293 bytes, but its header says 7 x 5"),
        (b"PIEH" + np.array([0, 5], "<i4").tobytes(), "0 x 5"),
        (b"PIEH" + np.array([-1, -1], "<i4").tobytes() + bytes(8), "-1 x -1"),
        (b"PIEH" + np.array([2**31 - 1, 2**31 - 1], "<i4").tobytes(), "2147483647 x 2147483647"),
    ],
)
def test_damaged_files(tmp_path, content, sentence):
    (tmp_path / "bad.flo").write_bytes(content)
    with pytest.raises(ValueError, match="bad.flo") as caught:
        read_flo(tmp_path / "bad.flo")
    assert sentence in str(caught.value)


def test_an_absent_file(tmp_path):
    with pytest.raises(ValueError, match="cannot read the flow .*No such file"):
        read_flo(tmp_path / "absent.flo")


@pytest.mark.parametrize(
    ("flow", "sentence"),
    [
        (np.zeros((5, 7, 2)), r"shape \(5, 7, 2\); it must be \(2, height, width\)"),
        (np.zeros((2, 0, 7)), "shape"),
        (np.full((2, 3, 3), np.inf), "vector of inf px; use NaN"),
        (np.full((2, 3, 3), 2e9), "vector of 2e[+]09 px"),
    ],
)
def test_what_cannot_be_written(tmp_path, flow, sentence):
    with pytest.raises(ValueError, match=sentence):
        write_flo(tmp_path / "a.flo", flow)
    assert list(tmp_path.iterdir()) == []
