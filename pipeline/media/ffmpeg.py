"""ffmpeg as a child process: which binary, how it is run, and when its result is to be believed.

A decode is believed only if ffmpeg leaves with status 0 under ``-xerror`` (so that a damaged packet or a concealed
frame ends it) and prints nothing at its error level (so that a file cut short, which several containers only remark
on, is not silently a shorter video). Messages known to leave the pictures whole are passed over: ``HARMLESS``.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import ffmpeg
import imageio_ffmpeg

from pipeline.media.errors import UnusableVideo
from pipeline.media.images import Images

OLDEST = (7, 0)
"""The oldest release that tells of every file cut short that the tests know; 5.1 is silent about GIF."""

CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}
"""Signals by which ffmpeg ends itself over a file; by any other one it is ended from outside."""

_INTERRUPTED = 255  # exit status after a signal that ffmpeg catches

HARMLESS = re.compile(
    r"Last message repeated"
    r"|mmco: unref short failure|number of reference frames .* exceeds max|co located POCs unavailable"
    # sound is never decoded by us, but opening a file looks at it
    r"|^\[(aac|ac3|adpcm|amr|dca|eac3|flac|mp2|mp3|opus|pcm|vorbis|wma)\w* @"
)
"""Error lines that do not make a video unusable: H.264 bookkeeping that costs no picture, and sound."""

SILENT_SECONDS = 600.0
"""Longest wait for ffmpeg's next output, a frame or less of it: even a video that takes minutes a frame is decoded."""

_CONTEXT = re.compile(r"^(\[[^\]]*\] ?)+")  # "[h264 @ 0x55d0] " in front of a message
_PIPE_BYTES = 1 << 18


def is_recent(banner: str) -> bool:
    """True if the first line of ``ffmpeg -version`` names a release from ``OLDEST`` on, or a nightly build."""
    release = re.match(r"ffmpeg version n?(\d+)\.(\d+)", banner)
    if release is None:
        return re.match(r"ffmpeg version N-\d+-g", banner) is not None
    return (int(release[1]), int(release[2])) >= OLDEST


@functools.cache
def binary() -> str:
    """Path of the ffmpeg that is used: the one on PATH if recent enough, else that of the imageio-ffmpeg wheel."""
    found = shutil.which("ffmpeg")
    if found and is_recent(_banner(found)):
        return found
    return cast(str, imageio_ffmpeg.get_ffmpeg_exe())


@functools.cache
def version() -> str:
    """Version of ``binary()``, such as ``7.1.1``."""
    return _banner(binary()).split()[2]


def _banner(path: str) -> str:
    told = subprocess.run([path, "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return told.stdout.partition("\n")[0]


@contextlib.contextmanager
def decoding(source: Path | Images, **output: Any) -> Iterator[BinaryIO]:
    """Decode a file's first video stream, or the images of a folder, on one thread; yield ffmpeg's standard output.

    Every frame of the file reaches the output once, unless a filter in ``output`` says otherwise. Rotation metadata is
    applied, but not that of images. Cover art is not a video stream. No network address is opened, whatever the file
    refers to.

    Args:
        source: any regular file, or images; names with any characters are taken literally.
        output: ffmpeg's output options, such as ``format="rawvideo"``.

    Raises:
        UnusableVideo: on leaving the block, if ffmpeg failed or the file is damaged; then what was read is worthless.
            In the block, if ffmpeg gives nothing for ``SILENT_SECONDS`` while it is waited for.
        ChildProcessError: ffmpeg was ended from outside, as by a lack of memory, which says nothing about the video.
    """
    # each packet at once, or a slow video's would wait unseen in ffmpeg's buffer
    graph = _opened(source)["V:0"].output("pipe:", fps_mode="passthrough", flush_packets=1, **output)
    command = graph.global_args("-nostdin", "-v", "error", "-xerror", "-filter_threads", "1").compile(cmd=binary())
    with (
        tempfile.TemporaryFile() as stderr,  # a file, not a pipe: nobody has to read it for ffmpeg to go on
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, bufsize=0
        ) as process,
    ):
        stream = io.BufferedReader(_Output(cast(io.FileIO, process.stdout)), _PIPE_BYTES)
        try:
            yield cast(BinaryIO, stream)
            stream.read()
            status = process.wait(SILENT_SECONDS)
        except subprocess.TimeoutExpired:
            raise _stuck() from None
        finally:
            process.kill()  # does nothing to a process that has ended
        if status == _INTERRUPTED or (status < 0 and -status not in CRASHES):
            raise ChildProcessError(
                f"ffmpeg was ended from outside (status {status}) while decoding {source}; run again"
            )
        stderr.seek(0)
        reason = complaint(status, stderr.read().decode(errors="replace"))
    if reason:
        raise UnusableVideo(reason)


class _Output(io.RawIOBase):
    """What ffmpeg writes, with an end to waiting for it. How long the reader takes does not count."""

    def __init__(self, pipe: io.FileIO) -> None:
        self._pipe, self._poll = pipe, select.poll()
        self._poll.register(pipe, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if not self._poll.poll(1e3 * SILENT_SECONDS):
            raise _stuck()
        return self._pipe.readinto(buffer)


def _stuck() -> UnusableVideo:
    return UnusableVideo(f"decoding hangs: ffmpeg gave nothing for {SILENT_SECONDS:g} seconds")


def _opened(source: Path | Images) -> Any:
    """ffmpeg-python's input."""
    common = {"threads": 1, "protocol_whitelist": "file"}
    if isinstance(source, Path):
        return ffmpeg.input(f"file:{source}", **common)
    return ffmpeg.input(
        f"file:{source.pattern}",
        **common,
        format="image2",
        pattern_type="sequence",
        start_number=source.first,
        start_number_range=1,
        framerate=repr(source.fps),
        # Built anew for a grey image among coloured ones, filters that count frames or time would start again. Ours
        # adapt to the new format without that; those that turn pictures would not.
        reinit_filter=0,
        noautorotate=None,
    )


def complaint(status: int, stderr: str) -> str | None:
    """What is wrong with a file, from ffmpeg's exit status and error lines; None if nothing is.

    Returns:
        One sentence, without the file's name.
    """
    lines = [line for line in stderr.splitlines() if line.strip() and not HARMLESS.search(line)]
    if status == 0 and not lines:
        return None
    first = _CONTEXT.sub("", lines[0]).strip().rstrip(".") if lines else f"exit status {status}"
    if status < 0:
        return f"ffmpeg crashes on it ({signal.Signals(-status).name})"
    if "matches no streams" in stderr:
        return "it has no video stream"
    if "Error opening input" in stderr:
        return f"ffmpeg cannot open it as a video: {first}"
    return f"it is damaged or cut short: ffmpeg reports {first!r}"
