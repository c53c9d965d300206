"""What a video file or a folder of images holds, by decoding it once: headers claim more frames than there are."""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

from pipeline.media import ffmpeg
from pipeline.media.errors import UnusableVideo
from pipeline.media.images import Images, check_images, source_of

TICKS_PER_SECOND = 1_000_000_000
"""Time base of what ffmpeg tells us; the default, one tick a frame, would hide a variable rate."""

PLAYLISTS = (b"#EXTM3U", b"ffconcat version", b"[playlist]")
"""How files begin that ffmpeg would follow to other files."""


Decoded = tuple[dict[str, str], list[int], int]
"""Header values, presentation times of the frames, and the last one's duration, both in ticks."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A video's first stream."""

    frames: int
    """Number of frames that decode."""
    fps: float
    """Average frames per second, from the first to the last presentation time, to four decimals; of images, as told."""
    width: int
    """Pixels, after rotation metadata is applied."""
    height: int
    """Pixels, after rotation metadata is applied."""
    sar: str
    """Sample (pixel) aspect ratio as ``n:d``; told, not applied. ``1:1`` if the file says nothing."""


def probe(path: Path, *, image_fps: float | None = None) -> Probe:
    """Decode a video once and say what it holds.

    A video is refused as soon as ffmpeg meets an error in its container or in a frame, and if it ends before its
    container says so: it is never taken for a shorter one. Error lines known to be harmless do not count (see
    ``pipeline.media.ffmpeg``). What cannot be noticed: a file cut exactly between two packets in a container that
    does not state its length (FLV, MPEG-TS).

    Args:
        path: a video file, or a folder of images.
        image_fps: frames per second of a folder of images, which needs it; not read for a file.

    Raises:
        UnusableVideo: the file is missing, empty, not a video, without a video stream, without a frame, damaged, cut
            short, a playlist, or its frames carry no times; or a folder holds anything but whole images of one size,
            named alike and numbered without a gap.
    """
    source = source_of(path, fps=image_fps)
    if isinstance(source, Images):
        check_images(source)
        tags, times, last_duration = _decoded_images(source)
    else:
        _check_file(source)
        tags, times, last_duration = _decoded(source)
    if not times:
        raise UnusableVideo("no frame of it can be decoded")
    width, height = map(int, tags["dimensions"].split("x"))
    return Probe(
        frames=len(times),
        fps=source.fps if isinstance(source, Images) else _average_fps(times, last_duration),
        width=width,
        height=height,
        sar=_lowest_terms(tags.get("sar", "0/1")),
    )


def _check_file(path: Path) -> None:
    """Refuse what is not worth starting ffmpeg for, and an AVI that is shorter than it says.

    The AVI demuxer alone takes a file that ends between two frames for a whole one.
    """
    try:
        if not path.is_file():
            raise UnusableVideo("it is not a regular file" if path.exists() else "the file is missing")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UnusableVideo(f"it cannot be read: {error.strerror}") from None
    if size == 0:
        raise UnusableVideo("the file is empty")
    if head.startswith(PLAYLISTS):
        raise UnusableVideo("it is a playlist, whose digest says nothing of the videos that it names")
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        (claimed,) = struct.unpack("<I", head[4:8])
        if size < claimed + 8 and claimed != 0xFFFFFFFF:  # all ones: written as a stream, length unknown
            raise UnusableVideo(f"it is cut short: {size} bytes where its AVI header says {claimed + 8}")


def _decoded(source: Path | Images) -> Decoded:
    # wrapped_avframe passes a frame on without copying it, framecrc writes one line for each
    with ffmpeg.decoding(
        source, enc_time_base=f"1/{TICKS_PER_SECOND}", vcodec="wrapped_avframe", format="framecrc"
    ) as stream:
        return _read_framecrc(stream.read().decode())


def _decoded_images(images: Images) -> Decoded:
    """As ``_decoded``; an unusable image is named, the last one if there are several."""
    try:
        decoded = _decoded(images)
    except UnusableVideo:
        # ffmpeg tells no name, and some damage only when all is decoded
        last = bisect_left(range(1, images.count), True, key=lambda index: _complaint(images.since(index)) is None)
        raise UnusableVideo(f"its image {images.name(last)!r}: {_complaint(images.since(last))}") from None
    if len(decoded[1]) != images.count:
        raise UnusableVideo(f"{len(decoded[1])} of its {images.count} images decode")
    return decoded


def _complaint(images: Images) -> str | None:
    try:
        _decoded(images)
    except UnusableVideo as error:
        return str(error)
    return None


def _read_framecrc(text: str) -> Decoded:
    """From the output of ffmpeg's framecrc muxer."""
    tags: dict[str, str] = {}
    times: list[int] = []
    duration = 0
    for line in text.splitlines():
        if line.startswith("#"):
            name, _, value = line[1:].partition(":")
            tags[name.removesuffix(" 0")] = value.strip()
        else:  # stream, decoding time, presentation time, duration, size, checksum
            fields = line.split(",")
            times.append(int(fields[2]))
            duration = int(fields[3])
    return tags, times, duration


def _lowest_terms(ratio: str) -> str:
    """``n:d`` of ffmpeg's ``n/d``, which is 0/1 where a file says nothing."""
    numerator, denominator = map(int, ratio.split("/"))
    divisor = math.gcd(numerator, denominator)
    return f"{numerator // divisor}:{denominator // divisor}" if numerator else "1:1"


def _average_fps(times: list[int], duration: int) -> float:
    """Frames per second; of a single frame, by its duration. Times need not be in order."""
    ticks, intervals = max(times) - min(times), len(times) - 1
    if intervals == 0:
        ticks, intervals = duration, 1
    if ticks <= 0:
        raise UnusableVideo("its frames carry no presentation times, so it has no frame rate")
    return round(intervals * TICKS_PER_SECOND / ticks, 4)
