"""The benchmark of the flow solver runs and says how far the two solvers are apart."""

from __future__ import annotations

import json

from benchmarks import flow


def test_the_last_line_is_json(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(flow, "DEFAULT_CLIP", tmp_path / "absent.avi")
    flow.main(["--pairs", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["clip"] == "synthetic panning texture"
    assert result["pairs"] == 1
    assert 0 < result["mean_difference_px"] <= 0.06
    assert result["ratio"] > 0
    assert result["profile"]["pixel_iterations_per_pair"] > flow.WIDTH * flow.HEIGHT
