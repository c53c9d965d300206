"""Receipts, the ledger and the limit on what may be lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.dataset.ledger import check_share, ledger
from pipeline.dataset.receipts import Outcome, Receipt, work_through
from pipeline.media.errors import UnusableVideo


def attempt(name: str) -> Outcome:
    if name.startswith("bad"):
        raise UnusableVideo("the file is empty")
    return Outcome(status="reused" if name.startswith("old") else "done", facts={"frames": len(name)})


def receipt(*names: str, shard: str = "00000") -> Receipt:
    return work_through(names, attempt, stage="frames", shard=shard)


def test_every_video_has_its_outcome_in_order() -> None:
    made = receipt("z", "bad1", "old")
    assert made.count() == {"done": 1, "reused": 1, "quarantined": 1}
    assert list(made.usable().items()) == [("old", {"frames": 3}), ("z", {"frames": 1})]
    assert made.quarantined()["bad1"] == Outcome(status="quarantined", reason="the file is empty", stage="frames")


def test_what_an_earlier_stage_quarantined_stays_so() -> None:
    earlier = {"bad0": Outcome(status="quarantined", reason="no video stream", stage="probe")}
    made = work_through(["a"], attempt, stage="flow", shard="00000", earlier=earlier)
    assert ledger([made]) == {"bad0": {"stage": "probe", "reason": "no video stream"}}


def test_fail_stops_at_the_first() -> None:
    with pytest.raises(UnusableVideo, match="the file is empty"):
        work_through(["bad", "z"], attempt, stage="frames", shard="0", on_error="fail")


def test_a_defect_is_not_a_quarantine() -> None:
    def broken(name: str) -> Outcome:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work_through(["a"], broken, stage="frames", shard="0")


def test_round_trip_and_foreign_files(tmp_path: Path) -> None:
    made = receipt("a", "bad")
    made.write(tmp_path / "r.json")
    assert Receipt.read(tmp_path / "r.json") == made
    for text in ("", "{}", '{"videos": []}', '{"videos": {"a": {"state": 1}}}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=r"x\.json is not a receipt"):
            Receipt.read(tmp_path / "x.json")


def test_too_many_lost_fails_with_the_list() -> None:
    receipts = [receipt("bad1", "a"), receipt("b", "c", "bad2", shard="00001")]
    check_share(receipts, limit=0.4)
    with pytest.raises(ValueError) as error:
        check_share(receipts, limit=0.39)
    assert "2 of 5 videos cannot be used" in str(error.value)
    assert "bad1 (frames): the file is empty; bad2 (frames)" in str(error.value)


def test_a_long_list_is_cut_and_says_so() -> None:
    with pytest.raises(ValueError, match="and 5 more$"):
        check_share([receipt(*(f"bad{i:02d}" for i in range(25)))], limit=0.0)
