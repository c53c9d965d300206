"""HMDB-51: the official lists with placeholder videos, and lists with mistakes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.dataset.builders.found import Listing
from pipeline.dataset.builders.hmdb51 import hmdb51
from pipeline.dataset.manifest import Video, check


@pytest.fixture(scope="module")
def official(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Listing:
    """The listing of the official lists, every video there and one more."""
    annotations, videos = shared_data / "annotations/hmdb51_splits", tmp_path_factory.mktemp("hmdb51")
    for path in annotations.glob("*_test_split2.txt"):
        folder = videos / path.name.removesuffix("_test_split2.txt")
        folder.mkdir()
        for line in path.read_text().splitlines():
            (folder / line.split()[0]).touch()
    (videos / "wave/stray.avi").touch()
    return hmdb51(videos, annotations)


def test_published_counts(official: Listing) -> None:
    assert len(official.videos) == 6_766
    assert len({video.labels for video in official.videos}) == 51
    assert (official.missing, official.extra) == ((), ("wave/stray.avi",))
    for split in ("split1", "split2", "split3"):
        parts = Counter(video.splits[split] for video in official.videos)
        assert parts == {"train": 3_570, "test": 1_530, "": 1_666}
        classes = Counter((video.labels, video.splits[split]) for video in official.videos)
        assert {n for (_, part), n in classes.items() if part == "train"} == {70}
        assert {n for (_, part), n in classes.items() if part == "test"} == {30}


def test_names_with_odd_characters_are_kept_and_can_be_used(official: Listing) -> None:
    names = {video.id for video in official.videos}
    assert "#20_Rhythm_clap_u_nm_np1_fr_goo_0" in names
    videos = [
        Video(id=v.id, path=str(v.path), digest="", bytes=0, labels=v.labels, splits=v.splits) for v in official.videos
    ]
    assert len(check(videos, splits=["split1", "split2", "split3"]).videos) == 6_766


LINES = "a(1)&;_x.avi 1 \nb.avi 2 \nc.avi 0 \n"


def build(folder: Path, text: str, *, split: int = 3) -> Listing:
    """A dataset of one class whose list of one split is changed."""
    for k in (1, 2, 3):
        (folder / f"run_test_split{k}.txt").write_bytes((text if k == split else LINES).encode("latin-1"))
    for name in ("a(1)&;_x.avi", "b.avi", "c.avi"):
        (folder / "videos/run").mkdir(parents=True, exist_ok=True)
        (folder / "videos/run" / name).touch()
    return hmdb51(folder / "videos", folder)


def test_crlf_and_no_blank_at_the_end(tmp_path: Path) -> None:
    listing = build(tmp_path, "b.avi 2\r\na(1)&;_x.avi\t0\r\n\r\nc.avi 1\r\n")
    assert {video.id: video.splits["split3"] for video in listing.videos} == {"a(1)&;_x": "", "b": "test", "c": "train"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            LINES + "d.avi\n",
            "line 4 of {}/run_test_split3.txt is 'd.avi': expected a file name and 0 (unused), 1 (train)",
        ),
        (LINES + "d.avi 3\n", "line 4 of {}/run_test_split3.txt is 'd.avi 3': expected"),
        (LINES + "../d.avi 1\n", "is '../d.avi 1': expected a file name"),
        (LINES + "b.avi 1\n", "line 4 of {}/run_test_split3.txt is 'b.avi 1': the file has this video already"),
        (
            LINES + "d.avi 1\n",
            "only one of {}/run_test_split1.txt and run_test_split3.txt lists d.avi; restore the off",
        ),
        ("b.avi 2\nc.avi 0\n", "and run_test_split3.txt lists a(1)&;_x.avi"),
        ("b.avi 2\ncaf\xe9.avi 0\n", "line 2 of {}/run_test_split3.txt is b'caf\\xe9.avi 0', not UTF-8"),
    ],
)
def test_lists_with_mistakes(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="^[^\n]*$") as error:
        build(tmp_path, text)
    assert sentence.format(tmp_path) in str(error.value)


def test_lists_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no file \*_test_split1\.txt; check the key 'annotations'"):
        hmdb51(tmp_path, tmp_path)
    build(tmp_path, LINES)
    for k in (2, 1):  # a class is not overlooked for want of its first list
        (tmp_path / f"run_test_split{k}.txt").rename(tmp_path / "kept")
        with pytest.raises(ValueError, match=rf"cannot read .*run_test_split{k}\.txt: No such file"):
            hmdb51(tmp_path / "videos", tmp_path)
        (tmp_path / "kept").rename(tmp_path / f"run_test_split{k}.txt")
