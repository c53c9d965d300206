"""Receipts: what a job on one shard did with each video. They are the only outputs that Snakemake is told of.

The artifacts lie in stores that Snakemake does not see, because it deletes declared outputs before a job runs.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.media.errors import UnusableVideo
from pipeline.progress import track
from pipeline.stores.publish import write_text

Status = Literal["done", "reused", "fetched", "quarantined"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one video in one stage."""

    status: Status
    """done: computed now; reused: found in the store; fetched: found in the shared one; quarantined: cannot be used."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What later stages need to know, JSON values only. Empty if quarantined."""
    reason: str | None = None
    """One sentence, if quarantined."""
    stage: str | None = None
    """The stage that quarantined the video, which may be an earlier one."""


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What one job on one shard did."""

    stage: str
    shard: str
    seconds: float
    """Wall time of the job's work."""
    videos: dict[str, Outcome]
    """By video id."""

    def count(self) -> dict[str, int]:
        """Number of videos by status."""
        return dict(Counter(outcome.status for outcome in self.videos.values()))

    def usable(self) -> dict[str, dict[str, Any]]:
        """Facts by video id, quarantined videos left out, in the order of the ids."""
        return {name: o.facts for name, o in sorted(self.videos.items()) if o.status != "quarantined"}

    def quarantined(self) -> dict[str, Outcome]:
        """The videos that cannot be used, in the order of the ids."""
        return {name: o for name, o in sorted(self.videos.items()) if o.status == "quarantined"}

    def write(self, path: Path) -> None:
        """Write as JSON, atomically."""
        write_text(path, json.dumps(asdict(self), sort_keys=True, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Receipt:
        """Read what ``write`` wrote.

        Raises:
            ValueError: the file is not a receipt.
        """
        try:
            values = json.loads(path.read_text())
            videos = {name: Outcome(**outcome) for name, outcome in values.pop("videos").items()}
            return cls(**values, videos=videos)
        except (AttributeError, KeyError, TypeError, json.JSONDecodeError):
            raise ValueError(f"{path} is not a receipt; delete it and run again") from None


def work_through(
    videos: Iterable[str],
    attempt: Callable[[str], Outcome],
    *,
    stage: str,
    shard: str,
    on_error: Literal["quarantine", "fail"] = "quarantine",
    earlier: dict[str, Outcome] | None = None,
) -> Receipt:
    """Attempt every video of a shard and say what became of each.

    Args:
        videos: ids, without those in ``earlier``.
        attempt: does the work for one id, or raises ``UnusableVideo``. Another exception is a defect and ends the job.
        stage: name of the stage.
        shard: name of the shard.
        on_error: ``fail`` lets the first unusable video end the job.
        earlier: videos that an earlier stage has quarantined; they are carried over as they are.
    """
    start = time.monotonic()
    outcomes = dict(earlier or {})
    names = sorted(videos)
    for name in track(names, total=len(names), label=f"{stage} {shard}"):
        try:
            outcomes[name] = attempt(name)
        except UnusableVideo as error:
            if on_error == "fail":
                raise UnusableVideo(f"video {name!r}: {error}") from None
            outcomes[name] = Outcome(status="quarantined", reason=str(error), stage=stage)
    return Receipt(stage=stage, shard=shard, seconds=round(time.monotonic() - start, 3), videos=outcomes)
