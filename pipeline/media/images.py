"""A folder of images as a video: its frames, named alike and numbered without a gap, at a rate told from outside."""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.media.errors import UnusableVideo

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm")
LARGEST_NUMBER = 2**31 - 1
"""The largest number in an image's name that ffmpeg can count to."""

_NUMBERED = re.compile(r"(.*?)([0-9]+)(\.[^.]*)", re.DOTALL)
# How other tools name images of flow; they put them beside the frames. docs/import_export.md
_FLOW = re.compile(r"(?:flow_)?[xy]_(?:[pm][0-9]+_)?[0-9]{5,}\.(?:jpg|png)")
_PPM_SIZE = re.compile(rb"P[1-6]\s+(?:#[^\n]*\n\s*)*([0-9]+)\s+(?:#[^\n]*\n\s*)*([0-9]+)\s")
# The EXIF tag 0x0112, a single short, in either byte order; 1 is upright.
_TURNED = re.compile(
    rb"(?:Exif\0\0|eXIf).*?"
    rb"(?:\x12\x01\x03\x00\x01\x00\x00\x00[\x02-\x08]\x00|\x01\x12\x00\x03\x00\x00\x00\x01\x00[\x02-\x08])",
    re.DOTALL,
)
_HEAD_BYTES = 1 << 16
_JPEG_NOT_A_FRAME = (0xC4, 0xC8, 0xCC)  # among the markers C0 to CF that begin a frame


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images that make a video: ``<prefix><number><suffix>`` with ``count`` numbers from ``first`` on."""

    folder: Path
    prefix: str
    digits: int
    """Fewest digits of a number, zeros in front; 1 where nothing is padded."""
    suffix: str
    first: int
    count: int
    fps: float
    """Frames per second."""

    def __str__(self) -> str:
        return str(self.folder)

    def name(self, index: int) -> str:
        """File name of the image at ``index``, counted from 0."""
        return f"{self.prefix}{self.first + index:0{self.digits}d}{self.suffix}"

    @property
    def pattern(self) -> str:
        """Path of all images, with ``%0Nd`` for the number and any other ``%`` doubled."""
        before, after = (text.replace("%", "%%") for text in (os.path.join(self.folder, self.prefix), self.suffix))
        return f"{before}%0{self.digits}d{after}"

    def since(self, index: int) -> Images:
        """Those from ``index`` on."""
        return replace(self, first=self.first + index, count=self.count - index)


def source_of(path: Path, *, fps: float | None) -> Path | Images:
    """What is decoded for a video: the file itself, or the images of a folder.

    Args:
        path: a video file, or a folder of images.
        fps: frames per second of a folder of images; a file has its own. None: no folder is taken for a video.

    Raises:
        UnusableVideo: as ``images_in``.
    """
    return path if fps is None or not path.is_dir() else images_in(path, fps=fps)


def images_in(folder: Path, *, fps: float) -> Images:
    """The images of a folder. Hidden files do not count, nor images of flow beside frames; no image is opened.

    Args:
        folder: holds images named ``<prefix><number><suffix>``, all with the same prefix and suffix, and nothing else.
            Numbers start anywhere and have no gap; they may be padded with zeros.
        fps: frames per second at which they are shown.

    Raises:
        UnusableVideo: no image, anything else in the folder, other names, or a gap; the file is named.
    """
    names = _names(folder)
    names = [name for name in names if not _FLOW.fullmatch(name)] or names
    by_name = {name: found for name in names if _is_image(name) and (found := _NUMBERED.fullmatch(name))}
    for name in names:
        if name not in by_name:
            raise UnusableVideo(f"{name!r} among its images is no image with a number; take it out of the folder")
    if not by_name:
        raise UnusableVideo("the folder holds no image")
    (prefix, suffix), _ = Counter(found.group(1, 3) for found in by_name.values()).most_common(1)[0]
    for name, found in by_name.items():
        if found.group(1, 3) != (prefix, suffix):
            raise UnusableVideo(f"its images are not named alike: {name!r} is not {prefix!r}, a number and {suffix!r}")
    first = min(by_name.values(), key=lambda found: int(found[2]))[2]
    images = Images(
        folder=folder,
        prefix=prefix,
        digits=len(first) if first.startswith("0") else 1,
        suffix=suffix,
        first=int(first),
        count=len(names),
        fps=fps,
    )
    for index in range(images.count):
        if images.name(index) not in by_name:
            raise UnusableVideo(f"its images are not numbered without a gap: {images.name(index)!r} is not there")
    if images.first + images.count > LARGEST_NUMBER:
        raise UnusableVideo(f"the numbers of its images, from {first} on, exceed {LARGEST_NUMBER}; rename the images")
    return images


def check_images(images: Images) -> None:
    """Read every image once and refuse what decoding would pass over or blame on no image.

    Raises:
        UnusableVideo: an image is empty, no image, a JPEG cut short, to be turned for display (EXIF), or of another
            size than the first; it is named.
    """
    first = None
    for index in range(images.count):
        name = images.name(index)
        try:
            data = (images.folder / name).read_bytes()
        except OSError as error:
            raise UnusableVideo(f"its image {name!r} cannot be read: {error.strerror}") from None
        if not data:
            raise UnusableVideo(f"its image {name!r} is empty")
        size = image_size(data)
        if size is None:
            raise UnusableVideo(f"its image {name!r} is no JPEG, PNG, PPM or BMP image, or its beginning is damaged")
        if data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
            raise UnusableVideo(f"its image {name!r} is cut short: no end mark follows the picture")
        if _TURNED.search(data, 0, _HEAD_BYTES):
            raise UnusableVideo(f"its image {name!r} is to be turned for display (EXIF); turn its pixels instead")
        if size != (first := first or size):
            sizes = f"{size[0]}x{size[1]} where the first is {first[0]}x{first[1]}"
            raise UnusableVideo(f"its images differ in size: {name!r} is {sizes}")


def image_size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels that an image's header states; None if it is no JPEG, PNG, PPM or BMP.

    Args:
        data: the file's content, or its beginning.
    """
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return struct.unpack_from(">II", data, 16)
        if data.startswith(b"BM"):
            width, height = struct.unpack_from("<ii", data, 18)
            return width, abs(height)  # negative where rows run downwards
        if data.startswith(b"\xff\xd8"):
            return _jpeg_size(data)
    except struct.error:
        return None
    found = _PPM_SIZE.match(data)
    return (int(found[1]), int(found[2])) if found else None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """From the first frame header; thumbnails lie inside other segments, which are passed over whole."""
    position = 2
    while True:
        mark, marker, length = struct.unpack_from(">BBH", data, position)
        if mark != 0xFF:
            return None
        if marker == 0xFF:  # a fill byte
            position += 1
        elif 0xC0 <= marker <= 0xCF and marker not in _JPEG_NOT_A_FRAME:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        else:
            position += 2 + length


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            found = {entry.name: entry.is_file() for entry in entries if not entry.name.startswith(".")}
    except OSError as error:
        raise UnusableVideo(f"the folder cannot be read: {error.strerror}") from None
    names = sorted(found)
    for name in names:
        if not found[name]:  # opening a pipe would wait for ever
            raise UnusableVideo(f"{name!r} among its images is not a regular file; take it out of the folder")
    return names


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)
