"""Which ffmpeg is used, what its messages mean, and that no child outlives its consumer."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio_ffmpeg
import psutil
import pytest

from pipeline.media import ffmpeg
from pipeline.media.decode import gray_frames, jpeg_frames
from pipeline.media.errors import UnusableVideo
from pipeline.media.probe import probe


@pytest.mark.parametrize(
    ("banner", "recent"),
    [
        ("ffmpeg version 7.1.1 Copyright (c) 2000-2025 the FFmpeg developers", True),
        ("ffmpeg version 7.0 Copyright", True),
        ("ffmpeg version n7.0.2-17-g2a571b6068 Copyright", True),
        ("ffmpeg version N-109542-g1bf1f0f9ad Copyright", True),
        ("ffmpeg version 10.0 Copyright", True),
        ("ffmpeg version 6.1.1-3ubuntu5 Copyright (c) 2000-2023", False),
        ("ffmpeg version 5.1.6-0+deb12u1 Copyright (c) 2000-2024", False),
        ("ffmpeg version 4.4.2-0ubuntu0.22.04.1 Copyright", False),
        ("", False),
    ],
)
def test_a_release_is_recent_from_7_0_on(banner: str, recent: bool) -> None:
    assert ffmpeg.is_recent(banner) is recent


@pytest.fixture
def forget_binary() -> Iterator[None]:
    ffmpeg.binary.cache_clear()
    ffmpeg.version.cache_clear()
    yield
    ffmpeg.binary.cache_clear()
    ffmpeg.version.cache_clear()


@pytest.mark.parametrize(("release", "taken"), [("8.0", True), ("4.4.2", False)])
@pytest.mark.usefixtures("forget_binary")
def test_the_binary_on_path_is_taken_only_if_recent(
    release: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!/bin/sh\necho ffmpeg version {release} Copyright\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert ffmpeg.binary() == (str(program) if taken else imageio_ffmpeg.get_ffmpeg_exe())
    assert (ffmpeg.version() == release) is taken


@pytest.mark.parametrize(
    ("status", "stderr", "reason"),
    [
        (0, "", None),
        (0, "[h264 @ 0x5] mmco: unref short failure\n    Last message repeated 3 times\n", None),
        (0, "[mp3float @ 0x5] Header missing\n[aac @ 0x7] Input buffer exhausted\n", None),
        (0, "[in#0/matroska,webm @ 0x5] File ended prematurely\n", "File ended prematurely"),
        (0, "[h264 @ 0x5] mmco: unref short failure\n[gif @ 0x7] LZW decode failed\n", "LZW decode failed"),
        (183, "", "exit status 183"),
        (183, "[in#0 @ 0x5] moov atom not found\n[in#0 @ 0x5] Error opening input: Invalid data\n", "moov atom"),
        (234, "Stream map '' matches no streams.\n", "no video stream"),
        (-11, "", "crashes on it (SIGSEGV)"),
    ],
)
def test_status_and_messages_become_one_reason(status: int, stderr: str, reason: str | None) -> None:
    told = ffmpeg.complaint(status, stderr)
    if reason is None:
        assert told is None
    else:
        assert told is not None
        assert reason in told
        assert "0x" not in told


def test_no_process_outlives_a_consumer_that_stops(tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    clip = make_clip(tmp_path / "a.avi", "testsrc2=size=320x240:rate=25", "-frames:v", "500")
    frames = gray_frames(clip, width=320, height=240)
    next(frames)
    children = psutil.Process().children()
    assert any("ffmpeg" in child.name() for child in children)
    frames.close()  # type: ignore[attr-defined]
    assert not [child for child in psutil.Process().children() if "ffmpeg" in child.name()]


@pytest.mark.parametrize("decode", [gray_frames, jpeg_frames])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_video_is_not_blamed_for_a_killed_ffmpeg(
    number: int, decode: Callable[..., Iterator[object]], tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    clip = make_clip(tmp_path / "a.avi", "testsrc2=size=320x240:rate=25", "-frames:v", "500")
    frames = decode(clip, width=320, height=240)
    next(frames)
    (child,) = (child for child in psutil.Process().children() if "ffmpeg" in child.name())
    child.send_signal(number)
    with pytest.raises(ChildProcessError, match="ended from outside"):
        list(frames)


@pytest.mark.parametrize("decode", [gray_frames, jpeg_frames])
def test_decoding_that_hangs_ends(
    decode: Callable[..., Iterator[object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_clip: Callable[..., Path],
) -> None:
    clip = make_clip(tmp_path / "a.avi", "testsrc2=size=320x240:rate=25", "-frames:v", "500")
    frames = decode(clip, width=320, height=240)
    next(frames)
    (child,) = (child for child in psutil.Process().children() if "ffmpeg" in child.name())
    child.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(ffmpeg, "SILENT_SECONDS", 0.5)
    with pytest.raises(UnusableVideo, match=r"decoding hangs: ffmpeg gave nothing for 0.5 seconds"):
        list(frames)
    assert not child.is_running()


@pytest.mark.parametrize("hangs", ["before its output", "after its output"])
@pytest.mark.usefixtures("forget_binary")
def test_a_program_that_never_ends_is_not_waited_for(
    hangs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_clip: Callable[..., Path]
) -> None:
    clip = make_clip(tmp_path / "a.avi", "testsrc2=size=32x32", "-frames:v", "3")
    wait = "exec sleep 1000" if hangs == "before its output" else "exec sleep 1000 >&-"
    (tmp_path / "ffmpeg").write_text(f'#!/bin/sh\n[ "$1" = -version ] && echo ffmpeg version 8.0 && exit\n{wait}\n')
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    ffmpeg.binary.cache_clear()
    monkeypatch.setattr(ffmpeg, "SILENT_SECONDS", 0.5)
    with pytest.raises(UnusableVideo, match="decoding hangs"):
        probe(clip)
    assert not psutil.Process().children()


def test_a_slow_consumer_is_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_clip: Callable[..., Path]
) -> None:
    clip = make_clip(tmp_path / "a.avi", "testsrc2=size=32x32", "-frames:v", "9")  # all of it fits in the pipe
    frames = gray_frames(clip, width=32, height=32)
    next(frames)
    (child,) = (child for child in psutil.Process().children() if "ffmpeg" in child.name())
    while child.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    monkeypatch.setattr(ffmpeg, "SILENT_SECONDS", 0.1)
    time.sleep(0.3)
    assert len(list(frames)) == 8


@pytest.mark.parametrize(
    "name",
    [
        "te[s]t_ video ' _ .mp4",
        "-i.mp4",
        "concat:a.mp4|b.mp4",
        "http:x.mp4",
        "100%03d.mp4",
        "a\\b\nc.mp4",
        "视频 ünïcode.mp4",
        "*?.mp4",
    ],
)
def test_any_file_name_is_taken_literally(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_clip: Callable[..., Path]
) -> None:
    clip = make_clip(tmp_path / "plain.mp4", "testsrc2=size=32x32", "-frames:v", "3")
    clip.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert probe(Path(name)).frames == 3
    assert probe(tmp_path / name).frames == 3
