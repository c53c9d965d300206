"""The benchmark of a large manifest measures every step, on a small one."""

from __future__ import annotations

import json

import pytest

from benchmarks.manifest import main


def test_every_step_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--videos", "700", "--shards", "3"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["videos"] == 700
    steps = ["scan", "find", "select", "digest_cold", "digest_warm", "plan", "plan_unchanged", "write", "read"]
    assert list(result["steps"]) == steps
    assert all(step.keys() == {"seconds", "cpu_seconds", "peak_rss_mb"} for step in result["steps"].values())
