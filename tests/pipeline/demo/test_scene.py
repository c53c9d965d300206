"""The scene: classes form a ring, an act shows in its slot only, cameras do what their names say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pipeline.demo.scene import (
    CAMERA_KINDS,
    CLASSES,
    MOTIONS,
    Act,
    CameraKind,
    Motion,
    Scene,
    actor_poses,
    distractor_poses,
    draw_scene,
    draw_setting,
)

X, Y, ANGLE, SCALE = range(4)
SIZE = (128, 96)


def scenes(number: int, *, camera: CameraKind = "static", actions: int = 1, num_frames: int = 40) -> list[Scene]:
    rngs = [np.random.default_rng([7, i]) for i in range(number)]
    return [
        draw_scene(rng, size_px=SIZE, num_frames=num_frames, setting=draw_setting(rng, camera=camera), actions=actions)
        for rng in rngs
    ]


def poses(scene: Scene, motion: Motion) -> np.ndarray:
    return actor_poses(scene, (Act(motion, None),) * len(scene.slots))


def idle(scene: Scene) -> np.ndarray:
    return actor_poses(replace(scene, slots=()), ())


def inside(scene: Scene) -> np.ndarray:
    mask = np.zeros(scene.num_frames, bool)
    for slot in scene.slots:
        mask[slot.start : slot.end] = True
    return mask


def test_every_look_and_every_motion_leave_two_candidates() -> None:
    assert len(set(CLASSES)) == len({act.label for act in CLASSES}) == 8
    assert set(Counter(act.motion for act in CLASSES).values()) == {2}
    assert set(Counter(act.look for act in CLASSES).values()) == {2}
    assert Act("sway", "red").label == "SwayRed"
    assert Act("sway", None).label is None


def test_a_scene_is_decided_by_its_generator() -> None:
    def drawn(seed: int) -> Scene:
        rng = np.random.default_rng(seed)
        return draw_scene(rng, size_px=SIZE, num_frames=24, setting=draw_setting(rng, camera="pan"))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_the_action_fills_a_quarter_to_two_fifths_of_the_clip_anywhere_in_it() -> None:
    slots = [scene.slots for scene in scenes(300)]
    assert {len(found) for found in slots} == {1}
    starts, ends = np.array([(found[0].start, found[0].end) for found in slots]).T
    assert starts.min() == 0
    assert ends.max() == 40
    lengths = ends - starts
    assert lengths.min() == 10  # 25% of 40
    assert lengths.max() == 16  # 40% of 40
    assert abs((starts + ends).mean() / 2 - 20) < 1  # not sooner nor later than the middle, on average


def test_several_actions_follow_each_other_without_overlap() -> None:
    for scene in scenes(50, actions=3, num_frames=90):
        ends = [0, *(slot.end for slot in scene.slots)]
        assert all(slot.start >= end for slot, end in zip(scene.slots, ends, strict=False))
        assert ends[-1] <= 90
        assert all(7 <= slot.end - slot.start <= 12 for slot in scene.slots)  # of a part of 30


def test_motions_agree_outside_the_action_and_move_their_own_coordinates_inside() -> None:
    moved: dict[Motion, set[int]] = {"sway": {X}, "bob": {Y}, "circle": {X, Y}, "spin": {ANGLE}}
    for scene in scenes(20) + scenes(5, actions=2):
        acting = inside(scene)
        for motion, coordinates in moved.items():
            added = poses(scene, motion) - idle(scene)
            assert not added[~acting].any()
            assert {c for c in range(4) if added[:, c].any()} == coordinates
            assert np.ptp(added[acting][:, sorted(coordinates)], axis=0).min() > (0.4 if motion == "spin" else 4)


def test_each_slot_has_its_own_act() -> None:
    for scene in scenes(5, actions=2):
        added = actor_poses(scene, (Act("sway", "red"), Act("spin", "blue"))) - idle(scene)
        first, second = (added[slot.start : slot.end] for slot in scene.slots)
        assert first[:, X].any() and not first[:, ANGLE].any()  # noqa: PT018
        assert second[:, ANGLE].any() and not second[:, X].any()  # noqa: PT018


def test_acts_without_a_slot_are_refused() -> None:
    scene = scenes(1)[0]
    with pytest.raises(ValueError, match="the scene has 1 slots and 2 acts; give one act for each slot"):
        actor_poses(scene, (Act("sway", "red"),) * 2)


def test_idle_actors_move_less_than_acting_ones() -> None:
    def speed(path: np.ndarray) -> float:
        return float(np.hypot(*np.diff(path[:, :2], axis=0).T).mean())

    many = scenes(50)
    resting = np.mean([speed(idle(s)) for s in many])
    acting = np.mean([speed(poses(s, "circle")[inside(s)]) for s in many])
    assert acting > 1.8 * resting


def test_distractors_perform_every_motion_at_times_of_their_own() -> None:
    """They would be of use to nobody who wants to know the class: nothing in them depends on it."""
    distractors = [d for scene in scenes(100) for d in scene.distractors]
    assert {d.motion for d in distractors} == set(MOTIONS)
    scene = scenes(1)[0]
    for path, distractor in zip(distractor_poses(scene), scene.distractors, strict=True):
        added = path - distractor.wander.poses(40)
        changed = np.flatnonzero(added.any(axis=1))
        assert distractor.slot.start <= changed[0] <= changed[-1] < distractor.slot.end
        assert np.abs(added).max() > 0.3
    apart = [d.slot.start != s.slots[0].start for s in scenes(100) for d in s.distractors]
    assert np.mean(apart) > 0.9


def test_circles_go_round_both_ways() -> None:
    turns = set()
    for scene in scenes(20):
        a, b = (poses(scene, "circle") - idle(scene))[inside(scene), :2][3:5]
        turns.add(np.sign(a[0] * b[1] - a[1] * b[0]))
    assert turns == {-1.0, 1.0}


def test_cameras_do_what_their_names_say() -> None:
    camera = scenes(1)[0].camera
    corners = np.array([[0, 127, 0, 127], [0, 0, 95, 95], [1, 1, 1, 1]], float)
    middle = np.array([63.5, 47.5])
    seen, centre = {}, {}
    for kind in CAMERA_KINDS:
        matrices = replace(camera, kind=kind).matrices(200, size_px=SIZE)
        assert (matrices[:, 2] == [0, 0, 1]).all()
        seen[kind] = (matrices @ corners)[:, :2]
        centre[kind] = (matrices @ [*middle, 1])[:, :2] - middle
    np.testing.assert_allclose(seen["static"], np.broadcast_to(corners[:2], (200, 2, 4)), atol=1e-9)
    shift = seen["pan"] - corners[:2]
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :, :1], shift.shape), atol=1e-9)  # no turn, no growth
    assert np.linalg.norm(centre["pan"], axis=1).max() == pytest.approx(camera.pan_px, rel=0.02)
    assert np.abs(centre["pan"] @ [-np.sin(camera.direction), np.cos(camera.direction)]).max() < 1e-9  # a line
    np.testing.assert_allclose(centre["zoom"], 0, atol=1e-9)
    growth = (seen["zoom"][:, 0, 1] - seen["zoom"][:, 0, 0]) / 127 - 1
    assert np.abs(growth).max() == pytest.approx(camera.zoom, rel=0.02)
    assert 0 < np.abs(centre["shake"]).max() <= camera.shake_px
    top = seen["shake"][:, :, 1] - seen["shake"][:, :, 0]
    np.testing.assert_allclose(np.linalg.norm(top, axis=1), 127)  # no growth
    assert np.abs(np.arctan2(top[:, 1], top[:, 0])).max() == pytest.approx(camera.roll, rel=0.05)


@pytest.mark.parametrize("kind", CAMERA_KINDS)
def test_homographies_lead_from_frame_to_frame(kind: CameraKind) -> None:
    camera = scenes(1, camera=kind)[0].camera
    matrices = camera.matrices(12, size_px=SIZE)
    steps = camera.homographies(12, size_px=SIZE)
    assert steps.shape == (11, 3, 3)
    place = np.array([20.0, 30.0, 1.0])
    for t in range(11):
        np.testing.assert_allclose(steps[t] @ matrices[t] @ place, matrices[t + 1] @ place)
    fastest = max(np.linalg.norm((step @ [100, 80, 1])[:2] - [100, 80]) for step in steps)
    assert fastest == pytest.approx(0, abs=1e-9) if kind == "static" else fastest > 0.5  # as fast as an action


@pytest.mark.parametrize(
    ("size_px", "num_frames", "actions"), [((64, 32), 40, 1), ((96, 96), 10, 1), ((96, 96), 40, 3)]
)
def test_too_small_a_clip_is_refused(size_px: tuple[int, int], num_frames: int, actions: int) -> None:
    rng = np.random.default_rng(0)
    setting = draw_setting(rng, camera="pan")
    sentence = f"got {size_px[0]}x{size_px[1]} px and {num_frames} frames for {actions}"
    with pytest.raises(ValueError, match=sentence):
        draw_scene(rng, size_px=size_px, num_frames=num_frames, setting=setting, actions=actions)
