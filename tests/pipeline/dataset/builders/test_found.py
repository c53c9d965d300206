"""Listing folders, reading lines, matching lists with folders: by hand-made folders of every kind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.dataset.builders.found import Found, Listing, malformed, match, named, read_lines, scan, with_truth
from pipeline.dataset.manifest import Segment, Tube


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def listed(root: Path, *names: str) -> list[Found]:
    return [Found(id=name, path=root / name, labels=("x",), splits={}) for name in names]


def relative(root: Path, paths: list[Path]) -> list[str]:
    return [str(path.relative_to(root)) for path in paths]


def test_scan_finds_every_file_and_every_folder_of_images(tmp_path: Path) -> None:
    make(tmp_path, "b/2.avi", "b/1.avi", "a/deep/er/x.mp4", "readme", ".hidden", ".git/config", "b/.part")
    make(tmp_path, *(f"a/frames/{i:04d}.JPG" for i in range(3)), "a/frames/stray.txt", "b/poster.jpg")
    (tmp_path / "empty").mkdir()
    assert relative(tmp_path, scan(tmp_path)) == [
        "a/deep/er/x.mp4",
        "a/frames",
        "b/1.avi",
        "b/2.avi",
        "b/poster.jpg",
        "readme",
    ]


def test_scan_of_a_thousand_folders_is_what_walking_finds(tmp_path: Path) -> None:
    make(tmp_path, *(f"{i % 7}/{i % 31}/{i}/{i}.avi" for i in range(1000)))
    walked = sorted(os.path.join(folder, name) for folder, _, names in os.walk(tmp_path) for name in names)
    assert [str(path) for path in scan(tmp_path)] == walked


def test_scan_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "1.avi")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/run").symlink_to(tmp_path / "elsewhere")
    assert relative(tmp_path / "videos", scan(tmp_path / "videos")) == ["run/1.avi"]
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "videos")
    with pytest.raises(ValueError, match="was listed already by another way; remove the link to it"):
        scan(tmp_path / "videos")


def test_scan_of_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read the folder .*absent: No such file or directory; check the key"):
        scan(tmp_path / "absent")
    make(tmp_path, "file")
    with pytest.raises(ValueError, match="cannot read the folder .*file: Not a directory"):
        scan(tmp_path / "file")


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ("a/v.avi", "a/v.avi"),
        ("a/v.mp4", "a/v.mp4"),
        ("A/V.MKV", "A/V.MKV"),
        ("a/v/001.jpg", "a/v"),
        ("a/v.txt", None),
        ("b/v.avi", None),
        ("a/v.avi.part", None),
    ],
)
def test_match_by_name_container_capitals_and_folder(tmp_path: Path, there: str, expected: str | None) -> None:
    make(tmp_path, there)
    found = match(listed(tmp_path, "a/v.avi"), scan(tmp_path), root=tmp_path)
    assert relative(tmp_path, [video.path for video in found.videos]) == ([expected] if expected else [])
    assert found.missing == (() if expected else ("a/v.avi",))
    assert found.extra == (() if expected else (there,))


def test_match_prefers_the_listed_name_and_tells_the_rest(tmp_path: Path) -> None:
    make(tmp_path, "v.avi", "v.mp4", "w.mp4", "W.avi")
    found = match(listed(tmp_path, "v.avi", "w.mp4", "W.avi"), scan(tmp_path), root=tmp_path)
    assert {video.id: video.path.name for video in found.videos} == {
        "v.avi": "v.avi",
        "w.mp4": "w.mp4",
        "W.avi": "W.avi",
    }
    assert (found.missing, found.extra) == ((), ("v.mp4",))


def test_match_refuses_a_guess(tmp_path: Path) -> None:
    make(tmp_path, "v.mkv", "v.mp4")
    with pytest.raises(ValueError, match=r"v\.mkv and .*v\.mp4 could both be the listed v\.avi; keep one of them"):
        match(listed(tmp_path, "v.avi"), scan(tmp_path), root=tmp_path)


def test_match_refuses_a_video_that_is_listed_twice(tmp_path: Path) -> None:
    make(tmp_path, "a/v.avi")
    with pytest.raises(ValueError, match=r"a/v\.avi is listed twice; remove one of its lines"):
        match(listed(tmp_path, "a/v.avi", "a/v.avi"), scan(tmp_path), root=tmp_path)


def test_match_below_a_relative_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/v.mp4", "a/w.avi")
    monkeypatch.chdir(tmp_path)
    found = match(listed(Path(), "a/v.avi"), scan(Path()), root=Path())
    assert [str(video.path) for video in found.videos] == ["a/v.mp4"]
    assert found.extra == ("a/w.avi",)


def test_lines_with_crlf_a_byte_order_mark_and_blanks(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbfone \r\n\r\n  two\t\r\nthr\xc3\xa9e\rfour")
    assert list(read_lines(path)) == [(1, "one"), (3, "two"), (4, "thrée"), (5, "four")]


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_line_that_is_not_utf8_is_shown(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(start + b"one\r\ntwo caf\xe9\nthree\n")
    with pytest.raises(
        ValueError, match=r"line 2 of .*list\.txt is b'two caf\\xe9', not UTF-8; save the file as UTF-8"
    ):
        list(read_lines(path))


def test_no_such_annotations(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*list\.txt: No such file or directory; check the key 'annota"):
        list(read_lines(tmp_path / "list.txt"))


def test_sentences() -> None:
    assert str(malformed(Path("l.txt"), 3, "x y", "one word; fix it")) == "line 3 of l.txt is 'x y': one word; fix it"
    assert named("abcde") == "a, b, c, d, e"
    assert named("abcdefg") == "a, b, c, d, e and 2 more"


def test_truth_is_joined_by_id(tmp_path: Path) -> None:
    segment, tube = Segment("x", 0.5, 1.0), Tube("x", 3, ((0, 0, 2, 2),))
    listing = Listing(tuple(listed(tmp_path, "v", "w")), ("gone",))
    joined = with_truth(listing, segments={"v": (segment,)}, tubes={"w": (tube,)})
    assert [(v.id, v.segments, v.tubes) for v in joined.videos] == [("v", (segment,), ()), ("w", (), (tube,))]
    assert joined.missing == ("gone",)
    with pytest.raises(ValueError, match="ground truth is given for 'z', which no video is"):
        with_truth(listing, tubes={"z": (tube,)})
