"""Stage index: gather the receipts of one stage into the table by which readers find each video in the store.

Thousands of receipts go in by folder, not by name: one command-line argument holds at most 128 KiB.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pipeline.dataset.ledger import check_share, ledger
from pipeline.dataset.receipts import Receipt
from pipeline.stores.publish import write_text


def index(receipts: list[Receipt], *, stage: str, store: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The table of one store.

    Args:
        receipts: of all shards.
        stage: that wrote them.
        store: folder of the store.
        parameters: the stage's settings, which a reader compares with what it needs.
    """
    videos = {name: facts for receipt in receipts for name, facts in receipt.usable().items()}
    return {
        "stage": stage,
        "store": store,
        "parameters": parameters,
        "videos": dict(sorted(videos.items())),
        "quarantined": ledger(receipts),
    }


def main(argv: list[str] | None = None) -> None:
    """Write the index of a store."""
    parser = argparse.ArgumentParser(prog="python -m stages.index", description=main.__doc__)
    parser.add_argument("--stage", required=True, help="frames, flow or warped_flow")
    parser.add_argument("--shards", type=Path, required=True, help="the plan's shards.json")
    parser.add_argument("--receipts", type=Path, required=True, help="folder of the stage's receipts")
    parser.add_argument("--store", required=True, help="folder of the store")
    parser.add_argument("--params", type=json.loads, required=True, help="the stage's settings as JSON")
    parser.add_argument("--max-quarantined", type=float, required=True, help="largest unusable part, 0 to 1")
    parser.add_argument("--out", type=Path, required=True, help="index to write")
    arguments = parser.parse_args(argv)
    try:
        receipts = [
            Receipt.read(arguments.receipts / f"{name}.json") for name in json.loads(arguments.shards.read_text())
        ]
        check_share(receipts, limit=arguments.max_quarantined)
    except ValueError as error:
        sys.exit(f"index: {error}")
    table = index(receipts, stage=arguments.stage, store=arguments.store, parameters=arguments.params)
    write_text(arguments.out, json.dumps(table, sort_keys=True, indent=0) + "\n")


if __name__ == "__main__":
    main()
