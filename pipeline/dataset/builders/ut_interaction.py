"""UT-Interaction (Ryoo and Aggarwal, 2010): the segmented clips of one set, six interactions in ten sequences."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.dataset.builders.found import Found, Listing, list_folder

CLASSES = ("handshake", "hug", "kick", "point", "punch", "push", "none")
NAME = re.compile(r"(?P<number>\d+)_(?P<sequence>\d+)_(?P<label>[0-6])\.avi")


def ut_interaction(root: Path) -> Listing:
    """Clips named ``<number>_<sequence>_<class>.avi``.

    Ten sequences make five splits: split k tests on sequences 2k-1 and 2k, so no scene is on both sides.

    Raises:
        ValueError: no such folder, or a file of another name in it.
    """
    return Listing(tuple(_clips(root)))


def _clips(root: Path) -> Iterator[Found]:
    for name in sorted(os.path.basename(path) for path in list_folder(str(root)).files):
        parts = NAME.fullmatch(name)
        if parts is None:
            raise ValueError(f"{root / name} is not named <number>_<sequence>_<class>.avi; take it out of the folder")
        sequence = int(parts["sequence"])
        splits = {f"split{k}": "test" if sequence in (2 * k - 1, 2 * k) else "train" for k in range(1, 6)}
        label = CLASSES[int(parts["label"])]
        yield Found(id=Path(name).stem, path=root / name, labels=(label,), splits=splits)
