"""The index of a store: what receipts of several shards say, in one table."""

from __future__ import annotations

from pipeline.dataset.receipts import Outcome, Receipt
from stages.index import index


def test_shards_are_gathered_and_outcomes_counted() -> None:
    lost = Outcome(status="quarantined", reason="it is empty", stage="probe")
    shards = [
        {"b": Outcome(status="fetched", facts={"frames": 3}), "d": lost},
        {"a": Outcome(status="done", facts={"frames": 5}), "c": Outcome(status="fetched", facts={"frames": 7})},
    ]
    receipts = [Receipt(stage="flow", shard=str(i), seconds=1.0, videos=shard) for i, shard in enumerate(shards)]
    table = index(receipts, stage="flow", store="stores/flow", parameters={"bound": 20})
    assert list(table["videos"].items()) == [("a", {"frames": 5}), ("b", {"frames": 3}), ("c", {"frames": 7})]
    assert table["outcomes"] == {"done": 1, "fetched": 2, "quarantined": 1}
    assert list(table["quarantined"]) == ["d"]
