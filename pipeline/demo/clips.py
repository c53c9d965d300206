"""Which clips a demo dataset has: presets, groups and splits as in UCF-101, long videos as in THUMOS14.

A trimmed clip holds one action. Trimmed clips come in groups, a group being filmed in one place: clips of one group, of
whatever class, share their background and their kind of camera, and a split tests on whole groups. An untrimmed video
holds several actions, sometimes of two classes, and sometimes one that nobody could decide on.
"""

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from pipeline.demo.scene import (
    CAMERA_KINDS,
    CLASSES,
    MOTIONS,
    Act,
    CameraKind,
    Scene,
    Size,
    draw_scene,
    draw_setting,
)

FPS = 25
SPLITS = 3
FOLDER = "videos"
UNTRIMMED_FOLDER = "untrimmed"

PresetName = Literal["tiny", "small", "full"]
UntrimmedPart = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Size of a dataset."""

    size_px: Size
    """Width and height."""
    groups: int
    """Of each class; a multiple of `SPLITS`."""
    clips_per_group: int
    num_frames: int
    """Of a trimmed clip."""
    untrimmed: int
    """Untrimmed videos in each of validation and test."""
    untrimmed_frames: int


PRESETS: dict[PresetName, Preset] = {
    "tiny": Preset(size_px=(64, 48), groups=3, clips_per_group=1, num_frames=24, untrimmed=2, untrimmed_frames=72),
    "small": Preset(size_px=(96, 96), groups=24, clips_per_group=2, num_frames=40, untrimmed=8, untrimmed_frames=160),
    "full": Preset(
        size_px=(160, 120), groups=60, clips_per_group=5, num_frames=64, untrimmed=100, untrimmed_frames=400
    ),
}


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video of the dataset before it is drawn."""

    path: str
    """Relative to the dataset's folder."""
    scene: Scene
    acts: tuple[Act, ...]
    """One for each slot of the scene."""
    group: int | None = None
    """From 1; None for an untrimmed video."""

    @property
    def name(self) -> str:
        """File name without extension, unique in the dataset."""
        return self.path.rpartition("/")[2].removesuffix(".mp4")

    @property
    def splits(self) -> dict[str, Literal["train", "test"]]:
        """The part of each split; an untrimmed video is in none."""
        if self.group is None:
            return {}
        tested = (self.group - 1) % SPLITS + 1
        return {f"split{k}": "test" if k == tested else "train" for k in range(1, SPLITS + 1)}


def choose_size(preset: PresetName, *, videos_per_class: int | None = None) -> Preset:
    """The preset, with another number of trimmed clips if one is given.

    Raises:
        ValueError: no such preset, or a number of clips that does not fill a group for each split.
    """
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}; choose from {', '.join(get_args(PresetName))}")
    size = PRESETS[preset]
    if videos_per_class is None:
        return size
    step = SPLITS * size.clips_per_group
    if videos_per_class < 1 or videos_per_class % step:
        raise ValueError(
            f"videos_per_class is {videos_per_class}; with the preset {preset} it must be a multiple of {step}:"
            f" groups of {size.clips_per_group} for each of {SPLITS} splits"
        )
    return replace(size, groups=videos_per_class // size.clips_per_group)


def list_clips(size: Preset, *, seed: int) -> list[Clip]:
    """Every trimmed clip, in the order of the classes, groups and numbers, and then every untrimmed video.

    A clip is drawn from (seed, class, group, number) alone, so more groups leave the earlier clips as they were.

    Raises:
        ValueError: a negative seed.
    """
    if seed < 0:
        raise ValueError(f"the seed is {seed}; it must be 0 or more")
    trimmed = [
        _trimmed(size, seed=seed, class_=class_, group=group, number=number)
        for class_ in range(len(CLASSES))
        for group in range(1, size.groups + 1)
        for number in range(1, size.clips_per_group + 1)
    ]
    untrimmed = [
        _untrimmed(size, seed=seed, part=part, number=number)
        for part in get_args(UntrimmedPart)
        for number in range(1, size.untrimmed + 1)
    ]
    return trimmed + untrimmed


def _trimmed(size: Preset, *, seed: int, class_: int, group: int, number: int) -> Clip:
    act = CLASSES[class_]
    setting = draw_setting(np.random.default_rng([seed, 0, group]), camera=_camera_of(group))
    rng = np.random.default_rng([seed, 1, class_, group, number])
    return Clip(
        path=f"{FOLDER}/{act.label}/v_{act.label}_g{group:02d}_c{number:02d}.mp4",
        scene=draw_scene(rng, size_px=size.size_px, num_frames=size.num_frames, setting=setting),
        acts=(act,),
        group=group,
    )


def _camera_of(group: int) -> CameraKind:
    """Every kind in turn, in the groups that a split tests on as well as in all of them."""
    turn, split = divmod(group - 1, SPLITS)
    return CAMERA_KINDS[(turn + split) % len(CAMERA_KINDS)]


def _untrimmed(size: Preset, *, seed: int, part: UntrimmedPart, number: int) -> Clip:
    """Two to four actions of a class, which goes round; every other video has a second class and a doubtful action."""
    rng = np.random.default_rng([seed, 2, part == "test", number])
    mixed = number % 2 == 0
    first, second = CLASSES[(number - 1) % len(CLASSES)], CLASSES[rng.integers(len(CLASSES))]
    acts = [first] * int(rng.integers(2, 4))
    if mixed:
        acts[-1:] = [second, Act(MOTIONS[rng.integers(len(MOTIONS))], None)]
    setting = draw_setting(rng, camera=CAMERA_KINDS[number % len(CAMERA_KINDS)])
    return Clip(
        path=f"{UNTRIMMED_FOLDER}/{part}/video_{part}_{number:07d}.mp4",
        scene=draw_scene(
            rng, size_px=size.size_px, num_frames=size.untrimmed_frames, setting=setting, actions=len(acts)
        ),
        acts=tuple(acts[k] for k in rng.permutation(len(acts))),
    )
