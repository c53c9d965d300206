"""Decoding: sizes, which frames, which grey and which colours, against ffmpeg run independently and known pictures."""

from __future__ import annotations

import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.media import ffmpeg
from pipeline.media.decode import counted, gray_frames, jpeg_frames, target_size
from pipeline.media.errors import UnusableVideo

Clip = Callable[..., Path]
# A clip whose n-th frame has luma 16 + 8 n: limited range, so that it decodes to (255 / 219) 8 n.
STAIRS = "nullsrc=size=32x32:rate=25,format=yuv420p,geq=lum='16+8*N':cb=128:cr=128"
LOSSLESS = ("-c:v", "libx264", "-qp", "0", "-pix_fmt", "yuv420p")


def raw_by_cli(path: Path, pixel_format: str, shape: tuple[int, ...], *options: str) -> np.ndarray:
    command = [ffmpeg.binary(), "-v", "error", *options, "-i", f"file:{path}", "-fps_mode", "passthrough"]
    command += ["-pix_fmt", pixel_format, "-f", "rawvideo", "-"]
    data = subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout
    return np.frombuffer(data, np.uint8).reshape(-1, *shape)


def rgb(image: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def stair_numbers(path: Path, **options: float) -> list[int]:
    """Source frame number of each decoded frame of ``STAIRS``."""
    frames = gray_frames(path, width=32, height=32, **options)
    return [round(float(frame.mean()) * 219 / 255 / 8) for frame in frames]


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 600))
def test_short_side_is_exact_and_the_long_side_the_nearest(width: int, height: int, short: int) -> None:
    result = target_size(width, height, short_side=short)
    assert min(result) == short
    assert abs(max(result) - max(width, height) * short / min(width, height)) <= 0.5
    assert target_size(height, width, short_side=short) == result[::-1]
    if width != height:
        assert (width > height) == (result[0] > result[1]) or result[0] == result[1]


def test_size_is_taken_as_it_is_and_nonsense_is_refused() -> None:
    assert target_size(1920, 1080, size=(340, 256)) == (340, 256)
    assert target_size(4, 3, short_side=2) == (3, 2)  # 2.67
    assert target_size(5, 2, short_side=1) == (3, 1)  # 2.5: halves up
    with pytest.raises(ValueError, match="either size or short_side"):
        target_size(4, 3)
    with pytest.raises(ValueError, match="either size or short_side"):
        target_size(4, 3, size=(4, 3), short_side=3)
    with pytest.raises(ValueError, match="positive"):
        target_size(4, 3, size=(0, 3))


@pytest.mark.parametrize(("colour", "level"), [("black", 0), ("white", 255), ("0x808080", 128), ("0xFF0000", 76)])
def test_grey_is_luma_at_full_range(colour: str, level: int, tmp_path: Path, make_clip: Clip) -> None:
    clip = make_clip(tmp_path / "a.mp4", f"color={colour}:size=32x32", "-frames:v", "2", *LOSSLESS)
    frames = list(gray_frames(clip, width=20, height=10))
    assert [frame.shape for frame in frames] == [(10, 20)] * 2
    assert all(abs(int(frame.max()) - level) <= 1 and abs(int(frame.min()) - level) <= 1 for frame in frames)
    frames[0][:] = 7  # writable: solvers take it as it is


def test_grey_of_a_real_clip_is_the_stretched_luma(shared_data: Path) -> None:
    path = shared_data / "clips" / "ucf101" / "v_ApplyEyeMakeup_g01_c01.avi"
    luma = raw_by_cli(path, "yuv420p", (360, 320))[:, :240].astype(float)
    stretched = np.clip((luma - 16) * 255 / 219, 0, 255)
    frames, capture = list(gray_frames(path, width=320, height=240)), cv2.VideoCapture(str(path))
    assert len(frames) == len(luma) == 164
    assert max(np.abs(frame - exact).max() for frame, exact in zip(frames, stretched, strict=True)) <= 0.5
    reference = cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2GRAY)
    assert np.abs(frames[0].astype(int) - reference).mean() < 1.5  # OpenCV's conversion by way of RGB is one too low


def test_scaling_agrees_with_an_independent_bilinear_one(shared_data: Path) -> None:
    path = shared_data / "clips" / "ucf101" / "v_ApplyEyeMakeup_g01_c01.avi"
    reference = cv2.resize(raw_by_cli(path, "gray", (240, 320))[0], (640, 480), interpolation=cv2.INTER_LINEAR)
    ours = next(gray_frames(path, width=640, height=480))
    assert np.abs(ours.astype(int) - reference).mean() < 0.5


def test_every_frame_comes_once_in_order(tmp_path: Path, make_clip: Clip) -> None:
    clip = make_clip(tmp_path / "a.mp4", STAIRS, "-frames:v", "20", "-bf", "3", *LOSSLESS)
    assert stair_numbers(clip) == list(range(20))
    drops = "select='not(eq(mod(n,5),3))'"  # irregular times must not repeat or drop anything
    uneven = make_clip(tmp_path / "b.mp4", STAIRS, "-frames:v", "16", "-vf", drops, "-fps_mode", "vfr", *LOSSLESS)
    assert stair_numbers(uneven) == [n for n in range(20) if n % 5 != 3]


def test_a_lower_rate_takes_the_nearest_frames(tmp_path: Path, make_clip: Clip) -> None:
    clip = make_clip(tmp_path / "a.mp4", STAIRS, "-frames:v", "25", *LOSSLESS)
    numbers = stair_numbers(clip, fps=5.0)
    assert len(numbers) == 5
    assert all(abs(number - 5 * k) <= 3 for k, number in enumerate(numbers))  # within half an output frame
    assert len(stair_numbers(clip, fps=12.5)) in (12, 13)
    assert len(stair_numbers(clip, fps=50.0)) == 50


@pytest.mark.parametrize(("seconds", "kept"), [(0.4, 10), (0.41, 11), (0.04, 1), (5.0, 25)])
def test_frames_before_the_longest_duration_are_kept(
    seconds: float, kept: int, tmp_path: Path, make_clip: Clip
) -> None:
    clip = make_clip(tmp_path / "a.mp4", STAIRS, "-frames:v", "25", *LOSSLESS)
    assert stair_numbers(clip, max_seconds=seconds) == list(range(kept))
    late = make_clip(tmp_path / "b.mkv", STAIRS, "-frames:v", "25", "-output_ts_offset", "3", *LOSSLESS)
    assert stair_numbers(late, max_seconds=seconds) == list(range(kept))  # counted from the first frame
    ticks = make_clip(tmp_path / "c.avi", STAIRS, "-frames:v", "25", "-c:v", "ffv1")  # whose clock ticks once a frame
    assert stair_numbers(ticks, max_seconds=seconds) == list(range(kept))


def test_duration_and_rate_together(tmp_path: Path, make_clip: Clip) -> None:
    clip = make_clip(tmp_path / "a.mp4", STAIRS, "-frames:v", "25", *LOSSLESS)
    assert len(stair_numbers(clip, max_seconds=0.6, fps=5.0)) == 3


@pytest.mark.parametrize("colour", ["0x30A060", "0xC02040"])
@pytest.mark.parametrize(
    ("matrix", "tag", "red_of_v", "green_of_u", "green_of_v", "blue_of_u"),
    [("bt601", "smpte170m", 1.402, -0.3441, -0.7141, 1.772), ("bt709", "bt709", 1.5748, -0.1873, -0.4681, 1.8556)],
)
def test_colours_are_those_of_the_standard_that_the_file_names(
    matrix: str,
    tag: str,
    red_of_v: float,
    green_of_u: float,
    green_of_v: float,
    blue_of_u: float,
    colour: str,
    tmp_path: Path,
    make_clip: Clip,
) -> None:
    tags = ("-vf", f"scale=out_color_matrix={matrix}", "-colorspace", tag)
    clip = make_clip(tmp_path / "a.mp4", f"color={colour}:size=32x32", "-frames:v", "1", *tags, *LOSSLESS)
    stored = raw_by_cli(clip, "yuv420p", (48 * 32,))[0].astype(float)
    y, u, v = (stored[0] - 16) / 219 * 255, (stored[32 * 32] - 128) / 224 * 255, (stored[40 * 32] - 128) / 224 * 255
    wanted = np.array([y + red_of_v * v, y + green_of_u * u + green_of_v * v, y + blue_of_u * u])
    (image,), (gray,) = jpeg_frames(clip, width=32, height=32), gray_frames(clip, width=32, height=32)
    assert np.abs(rgb(image) - wanted).max() <= 3
    assert np.abs(gray - wanted @ [0.299, 0.587, 0.114]).max() <= 1.5


def test_jpegs_are_the_frames_of_the_grey_reader(shared_data: Path) -> None:
    path = shared_data / "clips" / "kinetics" / "part_0.mp4"
    size = {"width": 171, "height": 128}
    pairs = zip(jpeg_frames(path, **size), gray_frames(path, **size), strict=True)
    for image, gray in pairs:
        pixels = rgb(image)
        assert pixels.shape == (128, 171, 3)
        assert np.abs(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(int) - gray).mean() < 2.5


def test_quality_and_determinism(shared_data: Path) -> None:
    path = shared_data / "awkward" / "decord" / "video_0.mov"
    size = {"width": 100, "height": 56}
    good = list(jpeg_frames(path, **size))
    assert good == list(jpeg_frames(path, **size, qscale=2))
    assert sum(map(len, jpeg_frames(path, **size, qscale=20))) < sum(map(len, good)) / 2


def test_rotation_metadata_turns_the_picture(shared_data: Path) -> None:
    path = shared_data / "awkward" / "decord" / "video_90.mov"
    lying = raw_by_cli(path, "rgb24", (320, 568, 3), "-noautorotate")
    turned = list(gray_frames(path, width=320, height=568))
    assert len(turned) == len(lying) == 3
    for stored, frame in zip(lying, turned, strict=True):
        upright = cv2.cvtColor(np.ascontiguousarray(np.rot90(stored, -1)), cv2.COLOR_RGB2GRAY)
        assert np.abs(frame.astype(int) - upright).mean() < 2.0  # turned the other way: over 40


def test_damage_is_told_after_the_frames_before_it(tmp_path: Path, make_clip: Clip) -> None:
    clip = make_clip(tmp_path / "a.avi", "testsrc2=size=160x120:rate=25", "-frames:v", "40", "-c:v", "mpeg4")
    whole = clip.read_bytes()
    clip.write_bytes(whole[: len(whole) * 6 // 10])
    for frames in (gray_frames(clip, width=80, height=60), jpeg_frames(clip, width=80, height=60)):
        seen = 0
        with pytest.raises(UnusableVideo, match="damaged or cut short"):
            for _ in frames:
                seen += 1
        assert 0 < seen < 40


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnusableVideo, match="No such file"):
        list(gray_frames(tmp_path / "none.mp4", width=8, height=8))


def test_memory_does_not_grow_with_the_video(tmp_path: Path, make_clip: Clip) -> None:
    clip = make_clip(tmp_path / "a.avi", "testsrc2=size=320x240:rate=25", "-frames:v", "400", "-c:v", "mpeg4")
    tracemalloc.start()
    try:
        for _ in gray_frames(clip, width=320, height=240):
            pass
        for _ in jpeg_frames(clip, width=320, height=240):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 15 * 320 * 240  # of 400 frames


def test_a_wrong_number_of_frames_is_an_error_with_both_numbers() -> None:
    assert list(counted(iter("abc"), expected=3, at_least=2)) == ["a", "b", "c"]
    with pytest.raises(UnusableVideo, match=r"3 frames decode where probing counted 4"):
        list(counted(iter("abc"), expected=4))
    with pytest.raises(UnusableVideo, match=r"1 decode, 2 needed"):
        list(counted(iter("a"), at_least=2))
