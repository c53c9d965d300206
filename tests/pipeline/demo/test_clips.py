"""The list of clips: groups and splits as in UCF-101, and what stays when the numbers change."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import pytest

from pipeline.demo.clips import PRESETS, Preset, choose_size, list_clips
from pipeline.demo.scene import CAMERA_KINDS

SMALL = PRESETS["small"]


def test_names_are_those_of_ucf101_and_thumos14() -> None:
    clips = list_clips(PRESETS["tiny"], seed=0)
    assert len({clip.name for clip in clips}) == len(clips) == 8 * 3 + 2 * 2
    for clip in clips:
        if clip.group is None:
            assert re.fullmatch(r"untrimmed/(validation|test)/video_\1_\d{7}\.mp4", clip.path)
        else:
            assert re.fullmatch(r"videos/([A-Za-z]+)/v_\1_g\d\d_c\d\d\.mp4", clip.path)
            assert f"_g{clip.group:02d}_" in clip.path


def test_a_group_shares_its_background_and_its_kind_of_camera_whatever_the_class() -> None:
    shared = defaultdict(set)
    for clip in list_clips(SMALL, seed=0):
        shared[clip.group].add((clip.scene.background_seed, clip.scene.camera.kind))
    del shared[None]
    assert len(shared) == 24
    assert {len(found) for found in shared.values()} == {1}
    assert len(set.union(*shared.values())) == 24
    cameras = Counter(kind for found in shared.values() for _, kind in found)
    assert cameras == dict.fromkeys(CAMERA_KINDS, 6)


def test_each_split_tests_on_other_groups_with_every_camera_and_every_class() -> None:
    clips = [clip for clip in list_clips(SMALL, seed=0) if clip.group is not None]
    tested = {k: [clip for clip in clips if clip.splits[f"split{k}"] == "test"] for k in (1, 2, 3)}
    groups = {k: {clip.group for clip in chosen} for k, chosen in tested.items()}
    assert set.union(*groups.values()) == set(range(1, 25))
    assert sum(map(len, groups.values())) == 24
    for chosen in tested.values():
        counts = Counter((clip.acts[0].label, clip.scene.camera.kind) for clip in chosen)
        assert len(counts) == 8 * 4
        assert set(counts.values()) == {4}


def test_untrimmed_videos_have_several_actions_some_of_two_classes_and_some_doubtful() -> None:
    videos = [clip for clip in list_clips(SMALL, seed=0) if clip.group is None]
    assert all(2 <= len(clip.acts) == len(clip.scene.slots) <= 4 for clip in videos)
    assert all(clip.splits == {} for clip in videos)
    classes = [{act.label for act in clip.acts if act.label} for clip in videos]
    assert any(len(found) == 2 for found in classes)
    assert any(len(found) == 1 for found in classes)
    for part in ("validation", "test"):
        assert len(set.union(*(c for c, clip in zip(classes, videos, strict=True) if part in clip.path))) == 8
    assert any(act.label is None for clip in videos for act in clip.acts)


def test_more_videos_leave_the_earlier_ones_as_they_were() -> None:
    few = list_clips(choose_size("small", videos_per_class=6), seed=3)
    many = {clip.path: clip for clip in list_clips(choose_size("small", videos_per_class=12), seed=3)}
    assert len(few) == 8 * 6 + 16
    assert len(many) == 8 * 12 + 16
    assert all(many[clip.path] == clip for clip in few)


def test_another_seed_is_another_dataset() -> None:
    first, second = (list_clips(PRESETS["tiny"], seed=seed) for seed in (0, 1))
    assert [clip.path for clip in first] == [clip.path for clip in second]
    assert all(a.scene != b.scene for a, b in zip(first, second, strict=True))
    assert {c.scene.background_seed for c in first}.isdisjoint({c.scene.background_seed for c in second})


@pytest.mark.parametrize(("videos", "groups"), [(6, 3), (48, 24)])
def test_a_number_of_clips_is_a_number_of_groups(videos: int, groups: int) -> None:
    size = choose_size("small", videos_per_class=videos)
    assert (size.groups, size.clips_per_group, size.num_frames) == (groups, 2, SMALL.num_frames)


@pytest.mark.parametrize("videos", [0, 1, 4, 7])
def test_a_number_of_clips_that_fills_no_groups_is_refused(videos: int) -> None:
    with pytest.raises(
        ValueError, match=f"videos_per_class is {videos}; with the preset small it must be a multiple of 6"
    ):
        choose_size("small", videos_per_class=videos)


def test_small_has_the_size_that_the_default_run_counts_on() -> None:
    assert choose_size("small") == Preset(
        size_px=(96, 96), groups=24, clips_per_group=2, num_frames=40, untrimmed=8, untrimmed_frames=160
    )


def test_full_has_hundreds_of_clips_a_class() -> None:
    size = choose_size("full")
    assert size.size_px >= (160, 120)
    assert size.groups * size.clips_per_group >= 200


def test_an_unknown_preset_and_a_negative_seed_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no preset 'huge'; choose from tiny, small, full"):
        choose_size("huge")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the seed is -1; it must be 0 or more"):
        list_clips(SMALL, seed=-1)
