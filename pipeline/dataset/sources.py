"""Which keys of the configuration each dataset reads to find its videos. Light: the configuration imports it."""

from __future__ import annotations

from collections.abc import Set
from typing import Literal, NamedTuple

Dataset = Literal[
    "demo",
    "class_folders",
    "csv",
    "ut_interaction",
    "ucf101",
    "hmdb51",
    "penn_action",
    "moments_in_time",
    "thumos14",
    "ucf101_24",
]


class Keys(NamedTuple):
    """Keys that a dataset cannot do without, and those that it reads too."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


OFFICIAL = Keys(("videos", "annotations"), ("allow_missing", "image_fps"))
"""Of a dataset whose authors publish lists of its videos."""

KEYS: dict[Dataset, Keys] = {
    "demo": Keys(()),
    "class_folders": Keys(("videos",), ("test_fraction", "image_fps")),
    "csv": Keys(("csv",), ("videos", "test_fraction", "allow_missing", "image_fps")),
    "ut_interaction": Keys(("videos",)),
    "ucf101": OFFICIAL,
    "hmdb51": OFFICIAL,
    "penn_action": OFFICIAL,
    "moments_in_time": OFFICIAL,
    "thumos14": Keys(OFFICIAL.needed, (*OFFICIAL.optional, "trimmed", "single_label")),
    "ucf101_24": OFFICIAL,
}

ALL_KEYS = tuple(sorted({key for keys in KEYS.values() for key in (*keys.needed, *keys.optional)}))


def check_keys(dataset: Dataset, *, given: Set[str]) -> None:
    """Refuse a configuration that lacks a key, or sets one that would not be heard.

    Args:
        dataset: how videos are found.
        given: those of ``ALL_KEYS`` that are set to something else than their default.

    Raises:
        ValueError: one sentence about the first such key.
    """
    keys = KEYS[dataset]
    for key in keys.needed:
        if key not in given:
            raise ValueError(f"dataset: {dataset} needs the key {key!r}; set it in the file or by --config {key}=PATH")
    for key in sorted(given - {*keys.needed, *keys.optional}):
        readers = [name for name, others in KEYS.items() if key in (*others.needed, *others.optional)]
        raise ValueError(
            f"dataset: {dataset} does not read the key {key!r}, which is for {', '.join(readers)}; remove it"
        )
