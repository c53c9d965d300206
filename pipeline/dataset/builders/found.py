"""What every builder returns, and what builders share: listing a folder, reading annotation lines, matching the two."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipeline.dataset.manifest import Segment, Tube
from pipeline.media.images import IMAGE_SUFFIXES

VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg")
NAMED = 5
"""Names in a message about many."""
LISTERS = 16
"""Folders listed at a time: on a network disk a listing is mostly waiting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A video of a dataset, before anything is known of its content."""

    id: str
    path: Path
    """A file, or a folder of images."""
    labels: tuple[str, ...]
    splits: dict[str, str]
    """Part by split: train, val, test, or empty where the split does not use the video."""
    segments: tuple[Segment, ...] = ()
    tubes: tuple[Tube, ...] = ()


class Listing(NamedTuple):
    """What a builder found."""

    videos: tuple[Found, ...]
    """Listed and there."""
    missing: tuple[str, ...] = ()
    """Listed by the annotations and not there: names as the annotations have them."""
    extra: tuple[str, ...] = ()
    """There and not listed: paths relative to the videos' folder."""
    remarks: tuple[str, ...] = ()
    """What else a user should be told, one sentence each."""


def scan(root: Path) -> list[Path]:
    """Every video below a folder, sorted: each file that is not hidden, and each folder that holds mostly images.

    Raises:
        ValueError: as ``scan_names``.
    """
    return [Path(name) for name in scan_names(root)]


def scan_names(root: Path) -> list[str]:
    """``scan`` as text, because a million paths take seconds to make.

    Raises:
        ValueError: a folder cannot be read, or a link leads back to a folder that was listed already.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    with ThreadPoolExecutor(LISTERS) as pool:
        waiting: set[Future[Folder]] = {pool.submit(list_folder, str(root))}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                folder = future.result()
                if folder.inode in seen:
                    raise ValueError(f"{folder.path} was listed already by another way; remove the link to it")
                seen.add(folder.inode)
                if folder.of_images and folder.path != str(root):
                    found.append(folder.path)
                else:
                    found += folder.files
                    waiting |= {pool.submit(list_folder, path) for path in folder.folders}
    return sorted(name.removeprefix("./") for name in found)  # as Path has it


class Folder(NamedTuple):
    """What lies directly in a folder, hidden entries left out."""

    path: str
    inode: tuple[int, int]
    """Device and inode: the folder itself, whatever the way to it."""
    files: list[str]
    """Paths, in no order."""
    folders: list[str]

    @property
    def of_images(self) -> bool:
        """Whether the folder is one video, its frames as images.

        A stray file does not hide a folder of frames (probing will name it), nor a stray picture a folder of videos.
        """
        images = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in self.files)
        return not self.folders and 2 * images > len(self.files)


def list_folder(path: str) -> Folder:
    """List one folder.

    Raises:
        ValueError: it cannot be read.
    """
    files: list[str] = []
    folders: list[str] = []
    try:
        status = os.stat(path)
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if entry.is_dir() else files).append(entry.path)
    except OSError as error:
        raise ValueError(f"cannot read the folder {path}: {error.strerror}; check the key 'videos'") from None
    return Folder(path, (status.st_dev, status.st_ino), files, folders)


def list_folders(paths: Iterable[str]) -> list[Folder]:
    """List folders in parallel, in the order given; see ``list_folder``."""
    with ThreadPoolExecutor(LISTERS) as pool:
        return list(pool.map(list_folder, paths))


def read_text(path: Path, *, key: str = "annotations") -> str:
    """The text of an annotation file, without a byte order mark; a line ends with one newline, CRLF or not.

    Args:
        path: the file.
        key: of the configuration, to name in a message.

    Raises:
        ValueError: the file cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}; check the key {key!r}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start)
        line = error.object.split(b"\n")[number]
        raise ValueError(f"line {number + 1} of {path} is {line!r}, not UTF-8; save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines of an annotation file, without blanks at their ends; empty lines left out.

    Raises:
        ValueError: as ``read_text``.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if stripped := line.strip():
            yield number, stripped


def malformed(path: Path, number: int, line: str, problem: str) -> ValueError:
    """The error of a line that cannot be used.

    Args:
        path: the annotation file.
        number: of the line, from 1.
        line: its text.
        problem: what is wrong with it and what to do.
    """
    return ValueError(f"line {number} of {path} is {line!r}: {problem}")


def match(expected: Iterable[Found], present: Iterable[Path | str], *, root: Path) -> Listing:
    """Find each listed video among those that are there.

    A video may stand in another container than the list says, in a folder whose name is spelt with other capitals, or
    be a folder of images under the name without its extension.

    Args:
        expected: listed videos; ``path`` is below ``root``, as the annotations have it.
        present: of ``scan`` or ``scan_names``.
        root: folder of the videos.

    Raises:
        ValueError: a video is listed twice, or two files could be one listed video.
    """
    prefix = len(str(root / "x")) - 1
    free = dict.fromkeys(map(str, present), True)
    videos: list[Found] = []
    elsewhere: list[Found] = []
    for video in expected:
        name = str(video.path)
        if name not in free:
            elsewhere.append(video)
        elif free[name]:
            free[name] = False
            videos.append(video)
        else:
            raise ValueError(f"{name[prefix:]} is listed twice; remove one of its lines")
    extra = [name for name, is_free in free.items() if is_free]
    found, missing = _elsewhere(elsewhere, extra, prefix=prefix)
    taken = {str(video.path) for video in found}
    extra = [name[prefix:] for name in extra if name not in taken]
    return Listing((*videos, *found), tuple(missing), tuple(extra))


def _elsewhere(listed: list[Found], free: list[str], *, prefix: int) -> tuple[list[Found], list[str]]:
    """Listed videos that are there under a similar name, and the names of those that are not."""
    by_key: dict[str, list[str]] = defaultdict(list)
    for name in free if listed else ():
        by_key[_key(name[prefix:])].append(name)
    found, missing = [], []
    for video in listed:
        name = str(video.path)[prefix:]
        candidates = by_key.pop(_key(name), [])
        if len(candidates) > 1:
            raise ValueError(f"{' and '.join(candidates[:2])} could both be the listed {name}; keep one of them")
        if candidates:
            found.append(replace(video, path=Path(candidates[0])))
        else:
            missing.append(name)
    return found, missing


def _key(name: str) -> str:
    """A path without the extension of a video and without capitals."""
    stem, suffix = os.path.splitext(name.lower())
    return stem if suffix in VIDEO_SUFFIXES else name.lower()


def named(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def with_truth(
    listing: Listing,
    *,
    segments: Mapping[str, tuple[Segment, ...]] | None = None,
    tubes: Mapping[str, tuple[Tube, ...]] | None = None,
) -> Listing:
    """The listing with segments and tubes, given by video id, in place of those that it has.

    Raises:
        ValueError: an id is not in the listing.
    """
    segments, tubes = segments or {}, tubes or {}
    ids = {video.id for video in listing.videos}
    for name in (*segments, *tubes):
        if name not in ids:
            raise ValueError(f"ground truth is given for {name!r}, which no video is; correct the id")
    joined = (
        replace(
            video,
            segments=segments.get(video.id, video.segments),
            tubes=tubes.get(video.id, video.tubes),
        )
        for video in listing.videos
    )
    return listing._replace(videos=tuple(joined))
