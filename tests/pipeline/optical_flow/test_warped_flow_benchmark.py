"""The benchmark of warped flow runs, and what it says of rendered clips is right."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import pytest

from benchmarks import warped_flow


def test_the_last_line_is_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(warped_flow, "DEFAULT_CLIPS", (tmp_path / "absent.avi",))
    warped_flow.main(["--places", "1", "--pairs", "2", "--picture", str(tmp_path / "picture.png")])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["warped_cost_ratio"] > 1
    assert result["clips"]["rendered"]["pairs"] == 2
    for kind, row in result["rendered"]["correct"].items():
        assert row["corner_error_px"] < 0.3
        assert row["warped"] < 0.1
        assert (row["camera_px"] == 0) == (kind == "static")
    picture = cv2.imread(str(tmp_path / "picture.png"))
    assert picture is not None
    assert picture.shape == (warped_flow.HEIGHT, 3 * warped_flow.HEIGHT, 3)


def test_a_missing_clip_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no clip .*absent.avi"):
        warped_flow.main(["--clip", str(tmp_path / "absent.avi")])
