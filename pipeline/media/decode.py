"""A video to frames of a given size and rate, streamed: memory does not grow with the length of the video.

Shapes: H W height and width of the frames asked for.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.media import ffmpeg
from pipeline.media.errors import UnusableVideo
from pipeline.media.images import source_of

Frame = TypeVar("Frame")

# Exact arithmetic, so that the same video gives the same bytes on every CPU. Colours become those of JPEG, whatever the
# file's (BT.709, limited range, RGB).
_SCALE = (
    "scale={width}:{height}:flags=bilinear+accurate_rnd+full_chroma_int+bitexact:out_range=full:out_color_matrix=bt601,"
    "format=yuv420p"
)


def target_size(
    width: int, height: int, *, size: tuple[int, int] | None = None, short_side: int | None = None
) -> tuple[int, int]:
    """Width and height that a video is resized to.

    Args:
        width: of the video as stored, after rotation; the sample aspect ratio is not applied.
        height: of the video, likewise.
        size: width and height, taken as they are; the aspect ratio is not kept.
        short_side: exact length of the shorter side; the other is rounded to the nearest pixel, halves up. Odd sizes
            are kept. A video is enlarged where it is smaller.

    Raises:
        ValueError: neither or both of ``size`` and ``short_side`` are given, or a size is not positive.
    """
    if (size is None) == (short_side is None):
        raise ValueError(f"give either size or short_side, not both or none: {size=}, {short_side=}")
    if short_side is not None:
        short = min(width, height)
        size = (
            (2 * width * short_side + short) // (2 * short),
            (2 * height * short_side + short) // (2 * short),
        )
    assert size is not None
    if min(size) < 1:
        raise ValueError(f"a video cannot be resized to {size[0]}x{size[1]}; both sides must be positive")
    return size


def gray_frames(
    path: Path,
    *,
    width: int,
    height: int,
    fps: float | None = None,
    max_seconds: float | None = None,
    image_fps: float | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Decode a video to grey frames: BT.601 luma at full range (black 0, white 255), resized bilinearly.

    That is 0.299 R + 0.587 G + 0.114 B of the picture, as OpenCV has it, however the file is coded. Most files are
    coded so, and their luma is taken as it is. Transparency is ignored.

    Args:
        path: the video, a file or a folder of images.
        width: W, pixels.
        height: H, pixels.
        fps: frames per second, by repeating or dropping the nearest frames; None keeps every frame once.
        max_seconds: keep the frames whose time after the first frame is below this; None keeps all.
        image_fps: frames per second of a folder of images, which needs it; not read for a file.

    Yields:
        (H, W) uint8, writable, in presentation order.

    Raises:
        UnusableVideo: the file is missing or damaged, or the folder's names are not those of a video (see
            ``images_in``); possibly only after all frames that could be had.
    """
    # not format=gray: releases of ffmpeg differ in whether that converts BT.709
    filters = _filters(width, height, fps, max_seconds) + ",extractplanes=y"
    source = source_of(path, fps=image_fps)
    with ffmpeg.decoding(source, vf=filters, vcodec="rawvideo", format="rawvideo") as stream:
        while True:
            frame = np.empty((height, width), np.uint8)
            count = stream.readinto(frame)  # type: ignore[attr-defined]
            if count < frame.size:
                break
            yield frame
    if count:
        raise UnusableVideo("decoding ended inside a frame")


def jpeg_frames(
    path: Path,
    *,
    width: int,
    height: int,
    fps: float | None = None,
    max_seconds: float | None = None,
    qscale: int = 2,
    image_fps: float | None = None,
) -> Iterator[bytes]:
    """Decode a video to baseline 4:2:0 JPEG images, resized bilinearly; ffmpeg does all the work.

    Colours are converted to what a JPEG reader expects: BT.601 coefficients, full range.

    Args:
        path: the video, a file or a folder of images.
        width: pixels.
        height: pixels.
        fps: as in ``gray_frames``.
        max_seconds: as in ``gray_frames``.
        qscale: ffmpeg's MJPEG quantiser, 2 (best) to 31.
        image_fps: as in ``gray_frames``.

    Yields:
        One JPEG file a frame, in presentation order.

    Raises:
        UnusableVideo: as in ``gray_frames``.
    """
    filters = _filters(width, height, fps, max_seconds)
    encoder = {"vcodec": "mjpeg", "qscale:v": qscale, "threads": 1, "flags": "+bitexact"}
    source = source_of(path, fps=image_fps)
    with ffmpeg.decoding(source, vf=filters, **encoder, format="mpjpeg") as stream:
        whole = yield from _parts(stream)
    if not whole:
        raise UnusableVideo("decoding ended inside a frame")


def _filters(width: int, height: int, fps: float | None, max_seconds: float | None) -> str:
    """ffmpeg's filters for duration, rate and size, in this order."""
    steps = []
    if max_seconds is not None:  # in microseconds: a container's clock may tick once a frame, and trim rounds to it
        steps.append(f"settb=AVTB,trim=duration={max_seconds!r}")
    if fps is not None:
        steps.append(f"fps={fps!r}")
    return ",".join([*steps, _SCALE.format(width=width, height=height)])


def _parts(stream: BinaryIO) -> Generator[bytes, None, bool]:
    """The images of ffmpeg's mpjpeg muxer, which writes boundary, type, length and a blank line before each.

    Returns whether the last one is whole; why it is not is for ``decoding`` to say.
    """
    for line in stream:
        if line.startswith(b"Content-length:"):
            length = int(line.split(b":")[1])
            stream.readline()
            image = stream.read(length)
            if len(image) < length:
                return False
            yield image
    return True


def counted(frames: Iterable[Frame], *, at_least: int = 1, expected: int | None = None) -> Iterator[Frame]:
    """Pass frames on and refuse the video at its end if their number is wrong.

    Args:
        frames: decoded frames.
        at_least: fewer are not enough to work with.
        expected: number that an earlier decoding counted; None if it cannot be known.

    Raises:
        UnusableVideo: after the last frame.
    """
    count = 0
    for frame in frames:
        count += 1
        yield frame
    if expected not in (None, count):
        raise UnusableVideo(f"{count} frames decode where probing counted {expected}; was the file changed meanwhile?")
    if count < at_least:
        raise UnusableVideo(f"too few frames at this rate and duration: {count} decode, {at_least} needed")
