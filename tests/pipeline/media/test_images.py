"""Folders of images: the same frames as the video whose frames they are, any name, and every way of being refused."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.media import ffmpeg
from pipeline.media.decode import gray_frames, jpeg_frames
from pipeline.media.errors import UnusableVideo
from pipeline.media.images import image_size, images_in
from pipeline.media.probe import Probe, probe

Clip = Callable[..., Path]
SOURCE = "testsrc2=size=66x48:rate=25"
RGB_VIDEO = ("-c:v", "ffv1", "-pix_fmt", "bgr0")


def dump(video: Path, folder: Path, name: str = "%06d.png", *options: str) -> Path:
    """The frames of a video as images, by the ffmpeg command line."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [ffmpeg.binary(), "-nostdin", "-v", "error", "-i", str(video), *options, f"file:{folder / name}"]
    subprocess.run(command, check=True)
    return folder


def write(folder: Path, *names: str, shape: tuple[int, ...] = (48, 64, 3), level: int | None = None) -> Path:
    """Images of noise, or of one grey level that grows by 10 from one to the next."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        noise = rng.integers(0, 256, shape, dtype=np.uint8)
        image = noise if level is None else np.full(shape, level + 10 * i, np.uint8)
        (folder / name).write_bytes(cv2.imencode(Path(name).suffix, image)[1].tobytes())
    return folder


def levels(path: Path, **options: float) -> list[int]:
    """Which image each decoded frame is, of those that ``write`` gave grey levels from 0 on."""
    frames = gray_frames(path, width=32, height=24, **options)
    return [round(float(frame.mean()) / 10) for frame in frames]


@pytest.mark.parametrize("suffix", ["png", "ppm", "bmp"])
def test_lossless_images_are_the_frames_of_their_video(suffix: str, tmp_path: Path, make_clip: Clip) -> None:
    video = make_clip(tmp_path / "a.mkv", SOURCE, "-frames:v", "12", *RGB_VIDEO)
    folder = dump(video, tmp_path / "a", f"%06d.{suffix}")
    assert probe(folder, image_fps=25.0) == probe(video) == Probe(frames=12, fps=25.0, width=66, height=48, sar="1:1")
    for size in ({"width": 66, "height": 48}, {"width": 40, "height": 30}):
        of_folder, of_video = (list(gray_frames(path, **size, image_fps=25.0)) for path in (folder, video))
        assert np.array_equal(of_folder, of_video)
        of_folder, of_video = (  # decoded: the headers differ in whether they state a pixel shape
            [cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR) for image in images]
            for images in (jpeg_frames(folder, **size, image_fps=25.0), jpeg_frames(video, **size))
        )
        assert np.array_equal(of_folder, of_video)


def test_jpegs_are_the_frames_of_their_video(tmp_path: Path, make_clip: Clip) -> None:
    video = make_clip(tmp_path / "a.avi", SOURCE, "-frames:v", "12", "-c:v", "mjpeg", "-q:v", "3")
    folder = dump(video, tmp_path / "a", "img_%05d.jpg", "-c", "copy")
    size = {"width": 40, "height": 30}
    of_folder, of_video = (list(gray_frames(path, **size, image_fps=25.0)) for path in (folder, video))
    assert len(of_folder) == 12
    assert np.array_equal(of_folder, of_video)
    assert list(jpeg_frames(folder, **size, image_fps=25.0)) == list(jpeg_frames(video, **size))


def test_grey_of_a_real_folder_is_that_of_opencv(shared_data: Path) -> None:
    folder = shared_data / "clips" / "ucf101" / "v_ApplyEyeMakeup_g01_c01_jpg"
    paths = sorted(folder.iterdir())
    assert probe(folder, image_fps=25.0) == Probe(frames=len(paths), fps=25.0, width=320, height=240, sar="1:1")
    for path, frame in zip(paths, gray_frames(folder, width=320, height=240, image_fps=25.0), strict=True):
        reference = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert reference is not None
        assert np.abs(frame.astype(int) - reference).max() <= 2  # decoders may round the inverse DCT differently


@pytest.mark.parametrize(
    "options",
    [
        {"fps": 5.0},
        {"fps": 12.5},
        {"fps": 50.0},
        {"max_seconds": 0.4},
        {"max_seconds": 0.43},
        {"fps": 10.0, "max_seconds": 0.6},
    ],
)
def test_rate_and_duration_choose_the_frames_that_they_choose_of_the_video(
    options: dict[str, float], tmp_path: Path
) -> None:
    folder = write(tmp_path / "a", *(f"{i}.png" for i in range(25)), level=0)
    pattern = str(folder / "%d.png")
    video = tmp_path / "a.avi"  # its clock ticks once a frame, as that of images does
    command = [ffmpeg.binary(), "-v", "error", "-framerate", "25", "-i", pattern, "-c:v", "ffv1", "-pix_fmt", "bgr0"]
    subprocess.run([*command, str(video)], check=True)
    chosen = levels(folder, **options, image_fps=25.0)
    assert chosen == levels(video, **options)
    assert chosen != list(range(25))


def test_the_rate_of_the_images_is_the_one_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", *(f"{i}.png" for i in range(20)), level=0)
    assert probe(folder, image_fps=29.97).fps == 29.97
    assert levels(folder, image_fps=5.0) == levels(folder, image_fps=100.0) == list(range(20))
    assert levels(folder, image_fps=10.0, max_seconds=0.5) == list(range(5))
    assert levels(folder, image_fps=20.0, max_seconds=0.5) == list(range(10))


@pytest.mark.parametrize("options", [{}, {"fps": 5.0}, {"fps": 50.0}, {"max_seconds": 0.4}])
def test_grey_images_among_coloured_ones_change_nothing(options: dict[str, float], tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(20)]
    coloured = write(tmp_path / "coloured", *names, level=0)
    mixed = write(tmp_path / "mixed", *names, level=0)
    for i in range(1, 20, 3):
        cv2.imwrite(str(mixed / names[i]), np.full((48, 64), 10 * i, np.uint8))
    assert levels(mixed, **options, image_fps=25.0) == levels(coloured, **options, image_fps=25.0)


@pytest.mark.parametrize(
    ("prefix", "numbers"),
    [
        ("", ["0", "1", "2"]),
        ("", ["8", "9", "10", "11"]),
        ("img_", ["00001", "00002", "00003"]),
        ("v2_", ["098", "099", "100", "101"]),
        ("", ["099", "100"]),
        ("", ["100", "101"]),
        ("frame-", ["-1", "-2"]),
        ("x.", ["07", "08", "09"]),
        ("", ["2147483646"]),
    ],
)
def test_numbers_start_anywhere_padded_or_not(prefix: str, numbers: list[str], tmp_path: Path) -> None:
    names = [f"{prefix}{number}.png" for number in numbers]
    write(tmp_path / "a", *names, level=0)
    images = images_in(tmp_path / "a", fps=25.0)
    assert [images.name(i) for i in range(images.count)] == names
    assert levels(tmp_path / "a", image_fps=25.0) == list(range(len(names)))
    assert probe(tmp_path / "a", image_fps=25.0).frames == len(names)


@pytest.mark.parametrize(
    "name", ["100%03d", "%d", "%%", "te[s]t_ video ' _ ", "-i", "concat:a|b", "http:x", "a\\b\nc", "视频 ünïcode", "*?"]
)
def test_any_name_is_taken_literally(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / name, *(f"{name}{i:02d}.png" for i in range(3)), level=0)
    monkeypatch.chdir(tmp_path)
    for path in (Path(name), tmp_path / name):
        assert probe(path, image_fps=25.0).frames == 3
        assert levels(path, image_fps=25.0) == [0, 1, 2]


def test_hidden_files_do_not_count(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "1.png", "2.png")
    (folder / ".DS_Store").write_bytes(b"x")
    assert probe(folder, image_fps=25.0).frames == 2


def test_a_folder_without_a_rate_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(UnusableVideo, match="not a regular file"):
        probe(write(tmp_path / "a", "1.png", "2.png"))


NAMES = [f"{i:03d}.jpg" for i in range(1, 7)]


def _remove(folder: Path) -> None:
    (folder / "004.jpg").unlink()


def _unpad(folder: Path) -> None:
    (folder / "004.jpg").rename(folder / "4.jpg")


def _rename(folder: Path) -> None:
    (folder / "004.jpg").rename(folder / "img_004.jpg")


def _other_suffix(folder: Path) -> None:
    (folder / "004.jpg").rename(folder / "004.jpeg")


def _capitals(folder: Path) -> None:
    (folder / "004.jpg").rename(folder / "004.JPG")


def _thumbnails(folder: Path) -> None:
    (folder / "Thumbs.db").write_bytes(b"x")


def _cover(folder: Path) -> None:
    write(folder, "cover.jpg")


def _subfolder(folder: Path) -> None:
    (folder / "004").mkdir()


def _pipe(folder: Path) -> None:
    os.mkfifo(folder / "007.jpg")  # opening it would wait for ever


def _dead_link(folder: Path) -> None:
    (folder / "007.jpg").symlink_to("nowhere")


def _size(folder: Path) -> None:
    write(folder, "004.jpg", shape=(64, 48, 3))


def _size_of_half(folder: Path) -> None:
    write(folder, "004.jpg", "005.jpg", "006.jpg", shape=(48, 66, 3))


def _empty(folder: Path) -> None:
    (folder / "004.jpg").write_bytes(b"")


def _text(folder: Path) -> None:
    (folder / "004.jpg").write_bytes(b"no image " * 50)


def _other_format(folder: Path) -> None:
    (folder / "004.jpg").write_bytes(write(folder.parent / "other", "1.png").joinpath("1.png").read_bytes())


def _cut(folder: Path) -> None:
    path = folder / "004.jpg"
    path.write_bytes(path.read_bytes()[:-12])


def _turned(folder: Path) -> None:
    path = folder / "004.jpg"
    path.write_bytes(with_exif(path.read_bytes(), orientation=6))


def _all_gone(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def with_exif(jpeg: bytes, *, orientation: int, thumbnail: bytes = b"", order: str = "<") -> bytes:
    """A JPEG with an EXIF segment: TIFF header, one tag, and what else is given."""
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    directory = struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + mark + directory + thumbnail
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_remove, "'004.jpg' is not there"),
        (_unpad, "'004.jpg' is not there"),
        (_rename, "not named alike: 'img_004.jpg' is not '', a number and '.jpg'"),
        (_other_suffix, "not named alike: '004.jpeg' is not"),
        (_capitals, "not named alike: '004.JPG' is not"),
        (_thumbnails, "'Thumbs.db' among its images is no image with a number"),
        (_cover, "'cover.jpg' among its images is no image with a number"),
        (_subfolder, "'004' among its images is not a regular file"),
        (_pipe, "'007.jpg' among its images is not a regular file"),
        (_dead_link, "'007.jpg' among its images is not a regular file"),
        (_size, "differ in size: '004.jpg' is 48x64 where the first is 64x48"),
        (_size_of_half, "differ in size: '004.jpg' is 66x48 where the first is 64x48"),
        (_empty, "'004.jpg' is empty"),
        (_text, "'004.jpg' is no JPEG"),
        (_other_format, "'004.jpg': it is damaged"),
        (_cut, "'004.jpg' is cut short"),
        (_turned, "'004.jpg' is to be turned for display"),
        (_all_gone, "holds no image"),
    ],
)
def test_a_folder_that_is_no_video_is_refused_and_the_file_named(
    spoil: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "a", *NAMES)
    assert probe(folder, image_fps=25.0).frames == 6
    spoil(folder)
    with pytest.raises(UnusableVideo, match=re.escape(reason)):
        probe(folder, image_fps=25.0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "ppm", "bmp"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9, 0.98])
@pytest.mark.parametrize("number", [1, 3, 5])
def test_an_image_cut_short_is_refused_and_named(suffix: str, kept: float, number: int, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", *(f"{i}.{suffix}" for i in range(1, 6)))
    path = folder / f"{number}.{suffix}"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(UnusableVideo, match=re.escape(repr(path.name))):
        probe(folder, image_fps=25.0)


@pytest.mark.parametrize("damaged", [[1], [4], [9], [2, 7]])
def test_damage_that_ends_no_decoding_is_told_of_the_last_image_that_has_it(damaged: list[int], tmp_path: Path) -> None:
    folder = write(tmp_path / "a", *(f"{i}.jpg" for i in range(1, 10)))
    for number in damaged:
        path = folder / f"{number}.jpg"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 6 // 10] + b"\xff\xd9")
    with pytest.raises(UnusableVideo, match=rf"its image '{damaged[-1]}\.jpg': it is damaged"):
        probe(folder, image_fps=25.0)


def test_a_larger_number_than_ffmpeg_counts_to_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", *(f"20240101{i:06d}.png" for i in range(3)))
    with pytest.raises(UnusableVideo, match="from 20240101000000 on, exceed 2147483647; rename"):
        probe(tmp_path / "a", image_fps=25.0)


@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([".jpg", ".png", ".ppm", ".bmp"]),
    st.booleans(),
    st.booleans(),
)
def test_sizes_are_those_of_the_header(width: int, height: int, suffix: str, gray: bool, progressive: bool) -> None:
    image = np.zeros((height, width) if gray and suffix != ".ppm" else (height, width, 3), np.uint8)
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)] if suffix == ".jpg" else []
    data = cv2.imencode(suffix, image, options)[1].tobytes()
    assert image_size(data) == (width, height)
    for end in (0, 1, 3, 9, 17):
        assert image_size(data[:end]) is None or suffix == ".ppm"


def test_the_size_is_not_that_of_a_thumbnail() -> None:
    large, small = (cv2.imencode(".jpg", np.zeros((side, side, 3), np.uint8))[1].tobytes() for side in (64, 16))
    for order in "<>":
        assert image_size(with_exif(large, orientation=1, thumbnail=small, order=order)) == (64, 64)
    assert image_size(b"P6\n# a comment\n12 # another\n7\n255\n" + bytes(12 * 7 * 3)) == (12, 7)


@pytest.mark.parametrize(("orientation", "refused"), [(1, False), (3, True), (6, True), (8, True)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_only_an_upright_image_is_taken(orientation: int, refused: bool, order: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "1.jpg", "2.jpg", shape=(48, 64, 3))
    for path in folder.iterdir():
        path.write_bytes(with_exif(path.read_bytes(), orientation=orientation, order=order))
    turned = cv2.imread(str(folder / "1.jpg"))  # OpenCV turns pictures
    assert turned is not None
    assert turned.shape[:2] == ((64, 48) if orientation in (6, 8) else (48, 64))
    if refused:
        with pytest.raises(UnusableVideo, match=r"'1\.jpg' is to be turned"):
            probe(folder, image_fps=25.0)
    else:
        assert probe(folder, image_fps=25.0).width == 64
