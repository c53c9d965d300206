"""Damage: how a reader says that a stored artifact is not what was written, and how the next run hears of it.

A stage that meets damage leaves a note in ``<work>/damaged``. The next run acts on it before it plans (``heal.py``):
what is damaged is deleted, and with it the receipts that vouch for it, so that it is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.stores.publish import write_text


class DamagedArtifact(ValueError):  # noqa: N818
    """A stored artifact is missing, cut short, altered, or not what its address says.

    Made of one text, of which the last line counts: a data loader hands errors of its processes on as a new one made
    of their traceback.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.strip().splitlines()[-1].removeprefix(f"{__name__}.{type(self).__name__}: "))


def damaged(what: str, *, key: str, file: object, reason: object) -> DamagedArtifact:
    """The error about one artifact.

    Args:
        what: "flow", "frames" or "features".
        key: artifact key.
        file: where the damage is.
        reason: what is wrong with it.
    """
    return DamagedArtifact(f"{what} {key} in {file} is damaged ({reason}); run again and it is made anew")


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a stage found damaged."""

    stage: str
    """That met it: features, train, predict, baseline or report."""
    made_by: str
    """The stage whose artifact it is: frames, flow, warped_flow or features."""
    video: str
    key: str
    reason: str


@dataclass(frozen=True)
class Notes:
    """A folder of notes."""

    folder: Path

    def leave(self, note: Note) -> None:
        """Write a note, atomically; one file for a stage and a video."""
        video = hashlib.blake2b(note.video.encode(errors="surrogatepass"), digest_size=8).hexdigest()
        text = json.dumps(asdict(note), sort_keys=True, indent=1)
        write_text(self.folder / f"{note.stage}-{video}.json", text + "\n")

    def __iter__(self) -> Iterator[tuple[Path, Note]]:
        """Every note with its file. What is no note is left out."""
        for path in sorted(self.folder.glob("[!.]*.json")):
            try:
                yield path, Note(**json.loads(path.read_text()))
            except (OSError, TypeError, ValueError):
                continue

    def keys(self) -> set[str]:
        """Of the artifacts that notes are about."""
        return {note.key for _, note in self}
