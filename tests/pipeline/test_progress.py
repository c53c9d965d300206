"""What a log says of work that goes on."""

from __future__ import annotations

import pytest

from pipeline import progress


def test_a_line_now_and_then_with_what_else_there_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    done = []
    for item in progress.track(range(5), total=5, label="epoch 1", unit="step", note=lambda: f"{len(done)} so far"):
        done.append(item)
        now[0] += 6.0
    assert done == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err.splitlines() == [
        "epoch 1: 2/5 steps in 12 s, 2 so far",
        "epoch 1: 4/5 steps in 24 s, 4 so far",
        "epoch 1: 5/5 steps in 30 s, 5 so far",
    ]


def test_nothing_is_added_where_there_is_nothing_to_tell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    for _ in progress.track(["a"], total=1, label="pull"):
        now[0] += 2.0
    assert capsys.readouterr().err == "pull: 1/1 videos in 2 s\n"
