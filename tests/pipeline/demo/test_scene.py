"""The scene: classes form a ring, the class acts inside the action only, cameras do what their names say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pipeline.demo.scene import CAMERA_KINDS, CLASSES, Scene, actor_poses, draw_scene

X, Y, ANGLE, SCALE = range(4)


def scenes(number: int) -> list[Scene]:
    return [draw_scene(np.random.default_rng([7, i]), size_px=96, num_frames=40) for i in range(number)]


def test_every_look_and_every_motion_leave_two_candidates() -> None:
    assert len(set(CLASSES)) == len(CLASSES) == 8
    assert set(Counter(motion for motion, _ in CLASSES).values()) == {2}
    assert set(Counter(look for _, look in CLASSES).values()) == {2}


def test_a_scene_is_decided_by_its_generator() -> None:
    first, again, other = (draw_scene(np.random.default_rng(s), size_px=64, num_frames=24) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_action_fills_a_third_to_a_half_of_the_clip_anywhere_in_it() -> None:
    actions = np.array([scene.action for scene in scenes(300)])
    starts, ends = actions.T
    assert starts.min() == 0
    assert ends.max() == 40
    lengths = ends - starts
    assert lengths.min() == 12  # 30% of 40
    assert lengths.max() == 18  # 45% of 40
    assert abs((starts + ends).mean() / 2 - 20) < 1  # not sooner nor later than the middle, on average


def test_motions_agree_outside_the_action_and_move_their_own_coordinates_inside() -> None:
    moved = {"sway": {X}, "bob": {Y}, "circle": {X, Y}, "spin": {ANGLE}}
    for scene in scenes(20):
        idle = actor_poses(replace(scene, action=(0, 0)), "sway")
        inside = np.zeros(40, bool)
        inside[slice(*scene.action)] = True
        for motion, coordinates in moved.items():
            added = actor_poses(scene, motion) - idle
            assert not added[~inside].any()
            assert {c for c in range(4) if added[:, c].any()} == coordinates
            assert np.ptp(added[inside][:, sorted(coordinates)], axis=0).min() > (0.4 if motion == "spin" else 4)


def test_idle_actors_move_less_than_acting_ones() -> None:
    def speed(poses: np.ndarray) -> float:
        return float(np.hypot(*np.diff(poses[:, :2], axis=0).T).mean())

    many = scenes(50)
    idle = np.mean([speed(actor_poses(replace(s, action=(0, 0)), "circle")) for s in many])
    acting = np.mean([speed(actor_poses(s, "circle")[slice(*s.action)]) for s in many])
    assert acting > 1.8 * idle


def test_circles_go_round_both_ways() -> None:
    turns = set()
    for scene in scenes(20):
        added = (actor_poses(scene, "circle") - actor_poses(replace(scene, action=(0, 0)), "circle"))[:, :2]
        a, b = added[slice(*scene.action)][3:5]
        turns.add(np.sign(a[0] * b[1] - a[1] * b[0]))
    assert turns == {-1.0, 1.0}


def test_cameras_do_what_their_names_say() -> None:
    scene = scenes(1)[0]
    corners = np.array([[0, 95, 0, 95], [0, 0, 95, 95], [1, 1, 1, 1]], float)
    middle = np.array([47.5, 47.5, 1])
    paths = {}
    for kind in CAMERA_KINDS:
        matrices = replace(scene.camera, kind=kind).matrices(40, size_px=96)
        paths[kind] = (matrices @ corners, matrices @ middle)
    seen, _ = paths["static"]
    np.testing.assert_array_equal(seen, np.broadcast_to(corners[:2], (40, 2, 4)))
    seen, centre = paths["pan"]
    steps = np.diff(seen, axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[:1, :, :1], steps.shape))  # one constant velocity
    assert np.linalg.norm(centre[-1] - centre[0]) == pytest.approx(scene.camera.pan_px)
    seen, centre = paths["zoom"]
    np.testing.assert_allclose(centre, np.broadcast_to([47.5, 47.5], (40, 2)))
    side = seen[:, 0, 1] - seen[:, 0, 0]
    assert side[-1] / 95 - side[0] / 95 == pytest.approx(scene.camera.zoom)
    _, centre = paths["shake"]
    assert np.abs(centre - 47.5).max() <= scene.camera.shake_px
    assert (np.sign(np.diff(centre, axis=0)).T[:, 1:] != np.sign(np.diff(centre, axis=0)).T[:, :-1]).sum() >= 8


@pytest.mark.parametrize(("size_px", "num_frames"), [(32, 40), (96, 10)])
def test_too_small_a_clip_is_refused(size_px: int, num_frames: int) -> None:
    with pytest.raises(ValueError, match=f"got {size_px} px and {num_frames} frames"):
        draw_scene(np.random.default_rng(0), size_px=size_px, num_frames=num_frames)
