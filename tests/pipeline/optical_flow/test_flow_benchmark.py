"""The benchmark of the flow solvers runs, and says how far they are apart and from the truth."""

from __future__ import annotations

import json
from typing import get_args

import cv2
import numpy as np
import pytest

from benchmarks import flow
from benchmarks.flow_truth import LABEL_HEIGHT
from pipeline.optical_flow.params import Variant
from tests.pipeline.optical_flow.motions import texture


def test_the_last_line_is_json(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(flow, "DEFAULT_CLIP", tmp_path / "absent.avi")
    monkeypatch.setattr(flow.warped_flow, "DEFAULT_CLIPS", ())
    monkeypatch.setattr(flow, "WARPED_PLACES", 1)
    monkeypatch.setattr(flow, "WARPED_PAIRS", 1)
    flow.main(["--pairs", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["clip"] == "synthetic panning texture"
    assert result["pairs"] == 1
    assert 0 < result["mean_difference_px"] <= 0.06
    assert 0 < result["smallest_pair_ratio"] <= result["ratio"] <= result["largest_pair_ratio"]
    assert result["warped_cost_ratio"] > 1
    assert result["profile"]["pixel_iterations_per_pair"] > flow.WIDTH * flow.HEIGHT
    rows = {(row["backend"], row["variant"], row["device"]): row for row in result["rows"]}
    assert len(rows) == len(result["rows"])
    for variant in get_args(Variant):
        assert rows["numba", variant, "one core"]["pairs_per_second"] > 0
        for backend in ("torch", "triton"):
            gpu = [row for key, row in rows.items() if key[:2] == (backend, variant) and key[2] != "one core"]
            assert len(gpu) == 1
            assert (gpu[0]["pairs_per_second"] is None) == gpu[0].get("note", "").startswith("not measured")
    assert all(row.get("mean_difference_px", 0) <= 0.06 for row in rows.values())


def test_from_the_file_to_the_store(tmp_path):
    clip = tmp_path / "clip.avi"
    video = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 25, (flow.WIDTH, flow.HEIGHT))
    for frame in flow.synthetic_frames(4):
        video.write(cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))
    video.release()
    found = flow.from_file(clip)
    assert found.keys() == {
        "decode_frames_per_second",
        "file_to_flow_pairs_per_second",
        "file_to_store_pairs_per_second",
        "quantise_ms_per_pair",
        "store_ms_per_pair",
        "stored_bytes_per_pair",
    }
    assert all(value > 0 for value in found.values())
    assert found["stored_bytes_per_pair"] < 2 * flow.WIDTH * flow.HEIGHT


@pytest.fixture
def truth(tmp_path):
    """A folder with one Middlebury and one FlyingChairs pair, both a shift by (2, 1), one pixel of it unknown."""
    height, width = 60, 80
    wide = texture(height + 10, width + 10)
    prev, next = wide[5 : 5 + height, 5 : 5 + width], wide[4 : 4 + height, 3 : 3 + width]
    vectors = np.broadcast_to(np.array([2, 1], "<f4"), (height, width, 2)).copy()
    vectors[5, 5] = 1e10
    content = b"PIEH" + np.array([width, height], "<i4").tobytes() + vectors.tobytes()
    scene, chairs = tmp_path / "middlebury/Shift", tmp_path / "flyingchairs"
    scene.mkdir(parents=True)
    chairs.mkdir()
    for folder, first, second, flo in (
        (scene, "frame10.png", "frame11.png", "flow10.flo"),
        (chairs, "7-img0.ppm", "7-img1.ppm", "7-gt.flo"),
    ):
        for name, frame in ((first, prev), (second, next)):
            assert cv2.imwrite(str(folder / name), cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))
        (folder / flo).write_bytes(content)
    return tmp_path


def test_accuracy_and_pictures(capsys, truth):
    flow.main(["--accuracy", "--pictures", str(truth / "pictures"), "--truth", str(truth)])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["pair"] for row in result["accuracy"]] == ["Middlebury Shift"] * 3 + ["FlyingChairs 7"] * 3
    for row in result["accuracy"]:
        assert 0 < row["ours_px"] < 1
        if row["variant"] == "opencv-cpu":
            assert row["ratio"] == pytest.approx(1, abs=0.05)
    assert len(result["pictures"]) == 2
    for path in result["pictures"]:
        picture = cv2.imread(path)
        assert picture.shape == (60 + LABEL_HEIGHT, 5 * 80, 3)
        assert (picture[LABEL_HEIGHT + 5, 80 + 5] == 0).all(), "unknown flow is black"


def test_without_the_truth_it_says_so(tmp_path):
    with pytest.raises(SystemExit, match="there is no folder"):
        flow.main(["--accuracy", "--truth", str(tmp_path / "absent")])
