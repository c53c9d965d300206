"""The rendered demo, read by the builders of the formats that it is written in: a first run takes the real way."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.dataset.builders.found import Listing, with_truth
from pipeline.dataset.builders.ucf101 import ucf101
from pipeline.dataset.builders.ucf101_24 import ucf101_24
from pipeline.dataset.manifest import Segment

TRUTH = "truth.json"


def demo(root: Path) -> Listing:
    """The trimmed clips: labels and splits by UCF-101's lists, tubes by UCF101-24's file, segments by the truth.

    Args:
        root: folder of `stages.make_demo`.

    Raises:
        ValueError: a file is missing or cannot be used.
    """
    listing = ucf101(root / "videos", root / "annotations/ucf101")
    boxed = ucf101_24(root / "videos", root / "annotations/ucf101_24")
    there = {video.id for video in listing.videos}
    segments = {name: found for name, found in _segments(root / TRUTH).items() if name in there}
    return with_truth(listing, segments=segments, tubes={video.id: video.tubes for video in boxed.videos})


def _segments(path: Path) -> dict[str, tuple[Segment, ...]]:
    try:
        videos = json.loads(path.read_text())["videos"]
        return {
            Path(name).stem: tuple(Segment(action["label"], *action["seconds"]) for action in video["actions"])
            for name, video in videos.items()
        }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not the demo's truth ({error}); delete the demo's folder and run again") from None
