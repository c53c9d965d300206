"""The quarantine ledger: which videos cannot be used, since which stage, and why; and when there are too many."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.dataset.receipts import Receipt

LISTED = 20
"""Videos named in the message of a run that fails for too many."""


def ledger(receipts: Sequence[Receipt]) -> dict[str, dict[str, str | None]]:
    """Stage and reason by video id, in the order of the ids."""
    entries = {name: outcome for receipt in receipts for name, outcome in receipt.quarantined().items()}
    return {name: {"stage": entry.stage, "reason": entry.reason} for name, entry in sorted(entries.items())}


def check_share(receipts: Sequence[Receipt], *, limit: float) -> None:
    """Refuse to go on with a dataset that has lost too much.

    Args:
        receipts: of all shards.
        limit: largest part of the videos that may be quarantined, 0 to 1.

    Raises:
        ValueError: more are; the message names them.
    """
    total = sum(len(receipt.videos) for receipt in receipts)
    entries = ledger(receipts)
    if len(entries) <= limit * total:
        return
    named = "; ".join(f"{name} ({entry['stage']}): {entry['reason']}" for name, entry in list(entries.items())[:LISTED])
    more = f"; and {len(entries) - LISTED} more" if len(entries) > LISTED else ""
    raise ValueError(
        f"{len(entries)} of {total} videos cannot be used, and max_quarantined allows {limit:.0%}: {named}{more}"
    )
