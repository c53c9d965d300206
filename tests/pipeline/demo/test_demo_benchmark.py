"""The demo's benchmark runs, and judges scores by the truth: motion, look, and where in time the attention lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from benchmarks import demo
from pipeline.config import load
from pipeline.learning.scores import Scores, write_scores

CLASSES = np.array(["BobGreen", "BobRed", "SwayRed", "SwayViolet"])


def fact(label: str, frames: tuple[int, int], camera: str) -> dict[str, Any]:
    motion, look = {"BobGreen": ("bob", "green"), "SwayRed": ("sway", "red")}[label]
    return {"camera": camera, "actions": [{"label": label, "motion": motion, "look": look, "frames": list(frames)}]}


TRUTH = {"a": fact("BobGreen", (10, 20), "pan"), "b": fact("SwayRed", (0, 8), "static")}


def scores(logits: list[list[float]]) -> Scores:
    return Scores(
        ids=np.array(["a", "b"]),
        logits=np.array(logits, np.float32),
        weights=np.array([[0.5, 0.5, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]], np.float32),
        positions=np.array([[6, 7, 17, 18], [5, 6, 0, 30]]),  # middles of snippets of 5: 2.5 later
        classes=CLASSES,
    )


def test_scores_are_judged_by_the_truth() -> None:
    judged = demo.judge(scores([[0, 1, 0, 0], [0, 0, 3, 2]]), TRUTH, snippet=5)
    assert judged.top1.tolist() == [False, True]
    assert judged.motion.tolist() == [True, True]  # BobRed bobs as BobGreen does
    assert judged.look.tolist() == [False, True]
    assert judged.moving.tolist() == [True, False]
    assert judged.attention is not None
    assert judged.uniform is not None
    # a: [10, 20) holds the middle 19.5 alone, which has no weight; b: [0, 8) holds 7.5 and 2.5
    assert judged.uniform.tolist() == [0.25, 0.5]
    assert judged.attention.tolist() == pytest.approx([0.0, 0.4])


def test_a_fusion_is_made_where_all_of_its_streams_ran(tmp_path: Path) -> None:
    """rgb ran on both splits, flow on the second alone."""
    (tmp_path / "dataset").mkdir()
    (tmp_path / "plan").mkdir()
    truth = {"videos": {f"x/{name}.mp4": facts for name, facts in TRUTH.items()}}
    (tmp_path / "dataset/truth.json").write_text(json.dumps(truth))
    write_scores(tmp_path / "s.npz", scores([[1, 0, 0, 0], [0, 0, 1, 0]]))
    ran = [("rgb", "split1"), ("rgb", "split2"), ("flow", "split2")]
    runs = [
        {"experiment": name, "split": split, "seed": 0, "weight": 1.0, "scores": str(tmp_path / "s.npz")}
        for name, split in ran
    ]
    (tmp_path / "plan/runs.json").write_text(json.dumps(runs))
    config = load(
        {
            "name": "x",
            "dataset": "demo",
            "splits": ["split1", "split2"],
            "experiments": {"rgb": {"modality": "frames"}, "flow": {"modality": "flow", "splits": ["split2"]}},
            "fusions": {"both": {"experiments": {"rgb": 1, "flow": 1}}, "own": {"experiments": {"rgb": 1}}},
        }
    )
    judged = demo.judge_run(config, tmp_path)
    assert {name: len(found) for name, found in judged.items()} == {"rgb": 2, "flow": 1, "both": 1, "own": 2}


def test_the_table_averages_over_runs() -> None:
    runs = [demo.judge(scores([first, [0, 0, 1, 0]]), TRUTH, snippet=5) for first in ([1, 0, 0, 0], [0, 1, 0, 0])]
    row = demo.table({"rgb": runs})["rgb"]
    assert (row["runs"], row["top1"], row["top1_std"]) == (2, 0.75, pytest.approx(np.sqrt(0.125)))
    assert (row["look"], row["motion_moving_camera"], row["motion_static_camera"]) == (0.75, 1.0, 1.0)
    assert row["attention"] == pytest.approx(0.2)


def test_the_last_line_is_json_and_the_contact_sheet_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.main(["--clips", "2", "--pictures", str(tmp_path)])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["width"], result["height"], result["frames"]) == (160, 120, 2 * 64)
    assert result["render_frames_per_second"] > result["render_and_encode_frames_per_second"] > 0
    (name,) = result["pictures"]
    sheet = cv2.imread(name)
    assert sheet is not None
    assert sheet.shape == (10 * 192, 8 * 192, 3)
