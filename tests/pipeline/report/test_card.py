"""The dataset card, on datasets small enough to count by hand."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from pipeline.dataset.manifest import Manifest, Segment, Tube, Video
from pipeline.report.card import FORMATS, NAMES, dataset_card, formats, length_chart


def _video(name: str, label: str = "run", **more: object) -> Video:
    values = {"frames": 50, "fps": 25.0, "width": 320, "height": 240, "splits": {"split1": "train"}} | more
    return Video(id=name, path=name, digest="0", bytes=1, labels=(label,), **values)  # type: ignore[arg-type]


def _card(*videos: Video, **notes: list[str]) -> dict[str, object]:
    return dataset_card(Manifest(videos), indexes={}, splits=["split1", "split2"], notes=notes)


def test_what_a_split_leaves_unused_is_counted() -> None:
    card = _card(
        _video("a", splits={"split1": "train", "split2": ""}),
        _video("b", splits={"split1": "test", "split2": "train"}),
        _video("c", splits={"split1": "test"}),  # says nothing of split2
    )
    assert card["parts"] == [("split1", "train"), ("split1", "test"), ("split2", "train"), ("split2", "")]
    assert card["part_names"] == ["train", "test", ""]
    counts = [{part: count.usable for part, count in row["parts"].items()} for row in card["splits"]]  # type: ignore[attr-defined]
    assert counts == [{"train": 1, "test": 2}, {"train": 1, "": 2}]


def test_intervals_and_tubes_are_counted_by_class_and_without_what_is_lost() -> None:
    segments = (Segment("run", 1.0, 3.0), Segment("jump", 2.0, 3.0), Segment(None, 0.0, 9.0))
    tube = Tube("run", 3, ((0.0, 0.0, 2.0, 2.0),) * 4)
    card = _card(
        _video("a", segments=segments, tubes=(tube, tube)),
        _video("b", "jump", segments=(Segment("jump", 0.0, 0.5),), tubes=(Tube("jump", 0, tube.boxes[:2]),)),
        _video("c", segments=segments, tubes=(tube,), stage="probe", reason="it is empty"),
        _video("d"),
    )
    assert [row[3:] for row in card["table"]] == [(2, 1), (1, 2), (3, 3)]  # type: ignore[attr-defined]
    assert card["segments"] == {
        "number": 3,
        "disputed": 1,
        "videos": 2,
        "seconds": (0.5, 1.0, 2.0, 3.5),
        "past": (1, ("a",)),  # its videos last two seconds
    }
    assert card["tubes"] == {"number": 3, "videos": 2, "several": 1, "boxes": (2, 4, 4, 10)}
    plain = _card(_video("a"))
    assert plain["segments"] is plain["tubes"] is None


def test_the_smallest_and_the_largest_class() -> None:
    card = _card(_video("a", "jump"), _video("b", "run"), _video("c", "run"), _video("d", "sit"))
    assert [row.name for row in card["extremes"]] == ["jump", "run"]  # type: ignore[attr-defined]


def test_formats_are_counted_together_and_rare_ones_as_others() -> None:
    videos = [_video(f"{i}{k}", width=100 + i, fps=29.97002997) for i in range(FORMATS + 2) for k in range(20 - i)]
    rows = formats([*videos, _video("x", frames=None, fps=None)])
    assert rows[0] == ((100, 240), 29.97, 20, 20 / len(videos))
    assert len(rows) == FORMATS + 1
    assert rows[-1][:3] == (None, None, 12 + 11)
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert formats([]) == []


def test_a_few_very_long_videos_do_not_squeeze_the_histogram() -> None:
    seconds = [2 + i / 100 for i in range(300)]
    whole, long = length_chart(seconds), length_chart([*seconds, 7200.0])
    assert whole is not None
    assert long is not None
    assert (whole.beyond, whole.end_seconds) == (0, 4.99)
    assert long.beyond + _drawn(long.chart) == 301
    assert 4.9 < long.end_seconds < 5
    assert _drawn(whole.chart) == 300
    assert length_chart([]) is None
    assert length_chart([3.0, 3.0]) is None  # the list of facts says it


def _drawn(svg: str) -> int:
    names = [title.text or "" for title in ElementTree.fromstring(svg).iter("title")]
    return sum(int(re.sub(r".*: |,", "", name)) for name in names)


def test_many_names_are_counted_and_the_first_listed() -> None:
    card = _card(_video("a"), missing=[f"{i}.avi" for i in range(NAMES + 30)], extra=[])
    assert card["missing"] == (NAMES + 30, tuple(f"{i}.avi" for i in range(NAMES)))
    assert card["extra"] == (0, ())
