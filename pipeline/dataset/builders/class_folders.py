"""An own dataset as folders: one a class, its videos inside."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.dataset.builders.found import VIDEO_SUFFIXES, Folder, Found, Listing, list_folder, list_folders

PARTS = ("train", "val", "test")


def class_folders(root: Path, *, test_fraction: float) -> Listing:
    """Videos in ``root/<class>/``, or in ``root/{train,val,test}/<class>/``. The id is ``<class>--<file name stem>``.

    Every file that is not hidden counts as a video: one that is not will be quarantined, not overlooked. A folder of
    images inside the folder of a class is a video too. A video outside of the folder of a class is extra.

    Args:
        root: folder.
        test_fraction: held out by a stable hash where no folder names a part.

    Raises:
        ValueError: no such folder, no folder of a class in it, or a folder whose videos would be overlooked.
    """
    names = _folder_names(root)
    parts = [name for name in names if name in PARTS]
    if parts and len(parts) != len(names):
        raise ValueError(f"{root} has folders {', '.join(parts)} beside class folders; use one layout or the other")
    found = [
        video
        for part in parts or [""]
        for folder in list_folders(str(root / part / label) for label in _folder_names(root / part))
        for video in _of_class(folder, part=part, test_fraction=test_fraction)
    ]
    above = list_folders(str(root / part) for part in ("", *parts))
    loose = (path for folder in above for path in folder.files if path.lower().endswith(VIDEO_SUFFIXES))
    extra = sorted(os.path.relpath(path, root) for path in loose)
    remark = hashed_remark(f"no folder of {root}", test_fraction=test_fraction)
    return Listing(tuple(found), extra=tuple(extra), remarks=() if parts else (remark,))


def hashed_remark(place: str, *, test_fraction: float) -> str:
    """The sentence that says that a dataset was split by ``hashed_part``.

    Args:
        place: what could have named a part and does not, as the start of a sentence.
        test_fraction: held out.
    """
    return f"{place} names a part, so about {100 * test_fraction:g}% of the videos are held out by a hash of the id"


def hashed_part(video_id: str, *, test_fraction: float) -> str:
    """``train`` or ``test`` by a stable hash of the id: adding a video moves no other one."""
    draw = int.from_bytes(hashlib.blake2b(video_id.encode(), digest_size=8, person=b"split").digest(), "big") / 2**64
    return "test" if draw < test_fraction else "train"


def _of_class(folder: Folder, *, part: str, test_fraction: float) -> Iterator[Found]:
    if folder.of_images:
        raise ValueError(
            f"the class folder {folder.path} holds images; put the frames of each video in a folder inside"
        )
    for inner in list_folders(folder.folders):
        if inner.folders or (inner.files and not inner.of_images):
            name = os.path.basename(inner.path)
            raise ValueError(f"{folder.path} holds the folder {name}; videos lie directly in the folder of their class")
    if not folder.files and not folder.folders:
        raise ValueError(f"the class folder {folder.path} holds no video; add one or remove the folder")
    label = os.path.basename(folder.path)
    stems = [(path, os.path.splitext(os.path.basename(path))[0]) for path in folder.files]
    for path, stem in sorted(stems + [(path, os.path.basename(path)) for path in folder.folders]):
        name = f"{label}--{stem}"
        yield Found(
            id=name,
            path=Path(path),
            labels=(label,),
            splits={"split1": part or hashed_part(name, test_fraction=test_fraction)},
        )


def _folder_names(root: Path) -> list[str]:
    names = sorted(os.path.basename(path) for path in list_folder(str(root)).folders)
    if not names:
        raise ValueError(f"{root} holds no folder; a folder for each class is expected in it")
    return names
