"""UCF-101 (Soomro et al., 2012): 13,320 clips of 101 classes, three splits.

Train and test hold 9,537 and 3,783 videos, 9,586 and 3,734, 9,624 and 3,696. The lists' folder ``HandstandPushups``
holds files called ``v_HandStandPushups_*``, and on some disks the folder is spelt like the files; ``match`` allows it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.dataset.builders.found import Found, Listing, malformed, match, read_lines, scan_names

CLASS_LIST = "classInd.txt"


def ucf101(videos: Path, annotations: Path) -> Listing:
    """The videos of ``trainlist0k.txt`` and ``testlist0k.txt``, k from 1 to 3.

    Args:
        videos: folder of the class folders.
        annotations: folder of the lists and of ``classInd.txt``.

    Raises:
        ValueError: a file is missing, or a line of one cannot be used.
    """
    numbers = class_numbers(annotations / CLASS_LIST)
    splits: dict[str, dict[str, str]] = {}
    for k in (1, 2, 3):
        for part in ("train", "test"):
            path = annotations / f"{part}list0{k}.txt"
            for number, line, name in _listed(path, numbers, labelled=part == "train"):
                parts = splits.setdefault(name, {"split1": "", "split2": "", "split3": ""})
                if parts[f"split{k}"]:
                    raise malformed(path, number, line, f"split {k} has this video already; keep one of the two lines")
                parts[f"split{k}"] = part
    expected = (
        Found(id=PurePosixPath(name).stem, path=videos / name, labels=(name.split("/")[0],), splits=parts)
        for name, parts in splits.items()
    )
    return match(expected, scan_names(videos), root=videos)


def class_numbers(path: Path) -> dict[str, int]:
    """Number by class of a list with lines such as ``1 ApplyEyeMakeup``.

    Raises:
        ValueError: the list cannot be read, or a line of it cannot be used.
    """
    numbers: dict[str, int] = {}
    for number, line in read_lines(path):
        digits, _, name = line.partition(" ")
        if not digits.isdecimal() or not name or " " in name:
            raise malformed(path, number, line, "expected a number and a class; restore the official file")
        if name in numbers or int(digits) in numbers.values():
            raise malformed(path, number, line, "the number or the class stands there twice; restore the official file")
        numbers[name] = int(digits)
    if not numbers:
        raise ValueError(f"{path} names no class; restore the official file")
    return numbers


def _listed(path: Path, numbers: dict[str, int], *, labelled: bool) -> Iterator[tuple[int, str, str]]:
    """Line number, line and video of each line ``Class/video.avi``, followed by the class's number if labelled."""
    for number, line in read_lines(path):
        name, *rest = line.split()
        label, slash, file = name.partition("/")
        if not slash or not file or "/" in file or file in (".", "..") or len(rest) != labelled:
            form = "Class/video.avi and the class's number" if labelled else "Class/video.avi"
            raise malformed(path, number, line, f"expected {form}; restore the official file")
        if label not in numbers:
            raise malformed(path, number, line, f"{CLASS_LIST} has no class {label!r}; correct the name in one of them")
        if labelled and rest[0] != str(numbers[label]):
            raise malformed(path, number, line, f"{CLASS_LIST} has {label} as {numbers[label]}; correct one of them")
        yield number, line, name
