"""Which folder of another tool belongs to which video, and the flow images in it.

Shapes: H W height and width of the images.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.stores.layouts import Component, FolderLayout

_END_MARKS = {"jpg": (b"\xff\xd9", 64), "png": (b"IEND\xaeB\x60\x82", 64)}
"""What an image that is whole ends with, and the most bytes that may follow."""


@dataclass(frozen=True)
class Matched:
    """What was found under a root for the videos of a plan."""

    folders: dict[str, Path]
    """By video id."""
    missing: tuple[str, ...]
    """Ids of videos without a folder."""
    extra: tuple[str, ...]
    """Folders without a video, relative to the root."""
    files: tuple[str, ...]
    """Files where a folder is looked for, relative to the root: HDF5 or ZIP of a tool, lists. They are not read."""


def folder_name(path: Path) -> str:
    """Name of the folder that tools make for a video: its file name without the ending, or the name of its folder."""
    return path.name if path.is_dir() else path.stem


def match_folders(videos: Sequence[tuple[str, Path]], *, root: Path) -> Matched:
    """Find ``root/<name>/`` or ``root/<class>/<name>/`` for every video.

    Of several folders of one name that is taken whose class is the name of the folder that the video lies in.

    Args:
        videos: id and path of each.
        root: what the tool was told to write to.

    Raises:
        ValueError: the root cannot be listed, or a folder could be of several videos, or a video's of several folders.
    """
    candidates, files = _scan(root)
    matched: dict[str, Path] = {}
    owners: dict[Path, str] = {}
    for name, path in videos:
        folder = _of_video(candidates.get(folder_name(path), []), path, name)
        if folder is None:
            continue
        if folder in owners:
            raise ValueError(
                f"the folder {folder} fits the videos {owners[folder]!r} and {name!r}, whose files have one name; "
                "put folders of classes between it and the root"
            )
        owners[folder] = name
        matched[name] = folder
    missing = tuple(sorted(name for name, _ in videos if name not in matched))
    others = sorted(
        str(folder.relative_to(root)) for found in candidates.values() for folder in found if folder not in owners
    )
    return Matched(matched, missing, tuple(others), tuple(files))


def _of_video(folders: list[Path], path: Path, name: str) -> Path | None:
    """The folder of a video among those with its name."""
    if len(folders) < 2:
        return folders[0] if folders else None
    of_class = [folder for folder in folders if folder.parent.name == path.absolute().parent.name]
    if len(of_class) != 1:
        told = ", ".join(map(str, folders[:3]))
        raise ValueError(f"the video {name!r} could have any of the folders {told}; name classes as its folder's name")
    return of_class[0]


def _scan(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """Folders that hold no folder, to two levels below the root, by name; and the files beside them."""
    found: dict[str, list[Path]] = defaultdict(list)
    files = []
    folders, loose = _entries(root)
    files += [name.name for name in loose]
    for folder in folders:
        inner, own = _entries(folder)
        for video in inner or [folder]:
            found[video.name].append(video)
        if inner:
            files += [str(file.relative_to(root)) for file in own]
    return dict(found), sorted(files)


def _entries(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders and files in a folder that are not hidden, in order."""
    try:
        with os.scandir(folder) as entries:
            seen = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be listed: {error.strerror}; correct the path") from None
    return [folder / name for name, is_dir in seen if is_dir], [folder / name for name, is_dir in seen if not is_dir]


def count_fields(folder: Path, layout: FolderLayout) -> int:
    """Number of fields in a video's folder. No image is opened; other files in it do not matter.

    Raises:
        ValueError: no image of flow, other numbers of x and y, a first number that is not the layout's, or a gap.
    """
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise ValueError(f"it cannot be listed: {error.strerror}") from None
    numbers = {component: _numbers(names, layout, component) for component in ("x", "y")}
    x, y = numbers["x"], numbers["y"]
    if not x and not y:
        there = f"it holds {min(names)!r} and {len(names) - 1} more" if names else "it is empty"
        raise ValueError(f"it holds no {layout.flow_name('x', 0)!r}; {there}: state tool, step and images as they were")
    if len(x) != len(y):
        raise ValueError(f"it holds {len(x)} images of x and {len(y)} of y; compute its flow again")
    first = min(x | y)
    if first != layout.first_number:
        raise ValueError(f"its numbers begin with {first} where first_number is {layout.first_number}; correct either")
    for component, known in numbers.items():
        for index in range(len(known)):
            if layout.first_number + index not in known:
                name = layout.flow_name(component, index)  # type: ignore[arg-type]
                raise ValueError(f"its numbers have a gap: {name!r} is not there; compute its flow again")
    return len(x)


def _numbers(names: list[str], layout: FolderLayout, component: str) -> set[int]:
    prefix = re.escape(layout.prefix(component))  # type: ignore[arg-type]
    pattern = re.compile(rf"{prefix}(\d{{5,}})\.{layout.suffix}")
    return {int(found[1]) for name in names if (found := pattern.fullmatch(name))}


def read_fields(folder: Path, layout: FolderLayout, *, start: int, stop: int) -> Iterator[NDArray[np.uint8]]:
    """The fields of a video's folder from ``start`` to ``stop``, (2, H, W) uint8 each.

    Raises:
        ValueError: an image cannot be read, is cut short, is not grey with 8 bits, or has another size than the first.
    """
    size = None
    for index in range(start, stop):
        field = [_read_image(folder, layout, component, index) for component in ("x", "y")]
        for component, image in zip(("x", "y"), field, strict=True):
            size = size or image.shape
            if image.shape != size:
                sizes = f"{image.shape[1]}x{image.shape[0]} where the first is {size[1]}x{size[0]}"
                raise ValueError(f"its images differ in size: {layout.flow_name(component, index)!r} is {sizes}")  # type: ignore[arg-type]
        yield np.stack(field)


def _read_image(folder: Path, layout: FolderLayout, component: Component, index: int) -> NDArray[np.uint8]:
    name = layout.flow_name(component, index)
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise ValueError(f"{name!r} cannot be read: {error.strerror}") from None
    mark, behind = _END_MARKS[layout.suffix]
    if mark not in data[-len(mark) - behind :]:
        raise ValueError(f"{name!r} is cut short, or no {layout.suffix.upper()} image; compute its flow again")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ValueError(f"{name!r} is no image that can be read; compute its flow again")
    if image.ndim != 2:
        raise ValueError(f"{name!r} has {image.shape[2]} channels where an image of one component of flow has one")
    if image.dtype != np.uint8:
        raise ValueError(f"{name!r} has {8 * image.dtype.itemsize} bits a pixel where flow has 8")
    return image  # type: ignore[return-value]
