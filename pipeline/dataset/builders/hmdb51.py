"""HMDB-51 (Kuehne et al., 2011): 6,766 clips of 51 classes, three splits of 70 training and 30 test clips a class.

A split leaves the rest, 1,666 videos, unused. The file names hold nearly every printable character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pipeline.dataset.builders.found import Found, Listing, malformed, match, read_lines, scan_names

PARTS = {"0": "", "1": "train", "2": "test"}
LIST_NAME = re.compile(r"(?P<label>.+)_test_split[123]\.txt")
SPLITS = (1, 2, 3)


def hmdb51(videos: Path, annotations: Path) -> Listing:
    """The videos of ``<class>_test_split<k>.txt``, k from 1 to 3, in ``<class>/``.

    Args:
        videos: folder of the class folders.
        annotations: folder of the lists.

    Raises:
        ValueError: there is no list, a class lacks one of its three, or a line of one cannot be used.
    """
    names = [path.name for path in annotations.glob("*_test_split?.txt")]
    labels = sorted({found["label"] for name in names if (found := LIST_NAME.fullmatch(name))})
    if not labels:
        raise ValueError(f"{annotations} has no file *_test_split1.txt; check the key 'annotations'")
    expected = (found for label in labels for found in _of_class(label, videos=videos, annotations=annotations))
    return match(expected, scan_names(videos), root=videos)


def _of_class(label: str, *, videos: Path, annotations: Path) -> Iterator[Found]:
    paths = {k: annotations / f"{label}_test_split{k}.txt" for k in SPLITS}
    flags = {k: _flags(path) for k, path in paths.items()}
    for k in SPLITS[1:]:
        if differing := flags[1].keys() ^ flags[k].keys():
            raise ValueError(
                f"only one of {paths[1]} and {paths[k].name} lists {min(differing)}; restore the official files"
            )
    for name in flags[1]:
        splits = {f"split{k}": flags[k][name] for k in SPLITS}
        yield Found(id=Path(name).stem, path=videos / label / name, labels=(label,), splits=splits)


def _flags(path: Path) -> dict[str, str]:
    """Part of the split by file name, of lines such as ``video.avi 1``."""
    parts: dict[str, str] = {}
    for number, line in read_lines(path):
        name, *rest = line.rsplit(maxsplit=1)
        if "/" in name or not rest or rest[0] not in PARTS:
            problem = "expected a file name and 0 (unused), 1 (train) or 2 (test); restore the official file"
            raise malformed(path, number, line, problem)
        if name in parts:
            raise malformed(path, number, line, "the file has this video already; keep one of the two lines")
        parts[name] = PARTS[rest[0]]
    return parts
