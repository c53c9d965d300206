"""The drawing, judged by its pixels: where the actor is, when it acts, and what look and motion leave unchanged."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from pipeline.demo.render import actor_boxes, render_clip
from pipeline.demo.scene import CAMERA_KINDS, Motion, Scene, draw_scene

MOTIONS: tuple[Motion, ...] = ("sway", "bob", "circle", "spin")


def scene(seed: int = 0, *, size_px: int = 96) -> Scene:
    return draw_scene(np.random.default_rng([5, seed]), size_px=size_px, num_frames=24)


def calm(seed: int) -> Scene:
    """A scene in which nothing moves but the action."""
    drawn = scene(seed)
    still = replace(drawn.actor, reach_px=0.0, fidget=(0.0, 0.0, 0.0))
    camera = replace(drawn.camera, kind="static")
    return replace(drawn, actor=still, distractors=(), distractor_radii_px=(), camera=camera, action=(6, 18))


def actor_pixels(drawn: Scene, motion: Motion) -> np.ndarray:
    """(T, H, W): where the picture changes if the actor is left out."""
    with_actor = render_clip(drawn, motion=motion, look="green")
    without = render_clip(drawn, motion=motion, look="green", with_actor=False)
    return (with_actor != without).any(axis=-1)


def centroids(pixels: np.ndarray) -> np.ndarray:
    """(T, 2): x and y of the middle of the true pixels."""
    rows, columns = np.arange(pixels.shape[1])[:, None], np.arange(pixels.shape[2])
    area = pixels.sum(axis=(1, 2))
    return np.stack([(pixels * columns).sum(axis=(1, 2)) / area, (pixels * rows).sum(axis=(1, 2)) / area], axis=1)


@pytest.mark.parametrize("size_px", [64, 96])
@pytest.mark.parametrize("kind", CAMERA_KINDS)
def test_boxes_hold_the_actor_and_fit_it(kind: str, size_px: int) -> None:
    for seed, motion in enumerate(MOTIONS):
        drawn = scene(seed, size_px=size_px)
        drawn = replace(drawn, camera=replace(drawn.camera, kind=kind))
        for pixels, (x0, y0, x1, y1) in zip(actor_pixels(drawn, motion), actor_boxes(drawn, motion), strict=True):
            rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
            seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert x0 <= seen[0] and y0 <= seen[1] and seen[2] <= x1 and seen[3] <= y1  # noqa: PT018
            assert np.abs(seen - [x0, y0, x1, y1]).max() <= 3
            assert min(x1 - x0, y1 - y0) >= 0.2 * size_px


def test_boxes_stay_inside_the_frame_when_the_actor_leaves_it() -> None:
    drawn = scene()
    drawn = replace(drawn, actor=replace(drawn.actor, centre_px=(95.0, 2.0)))
    boxes = actor_boxes(drawn, "circle")
    assert boxes.min() == 0
    assert boxes.max() == 96


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_actor_acts_in_the_action_and_only_there(motion: Motion) -> None:
    drawn = calm(1)
    pixels = actor_pixels(drawn, motion)
    clip = render_clip(drawn, motion=motion, look="green")
    changed = (clip[1:] != clip[:-1]).any(axis=(1, 2, 3))
    assert not changed[:5].any()  # between frames 0..5
    assert not changed[18:].any()  # between frames 18..23
    assert changed[6:17].all()
    sweep_x, sweep_y = np.ptp(centroids(pixels), axis=0)
    travel_px = 2 * 0.04 * 96  # from end to end
    wide = {"sway": (True, False), "bob": (False, True), "circle": (True, True), "spin": (False, False)}[motion]
    for sweep, expected in zip((sweep_x, sweep_y), wide, strict=True):
        assert sweep == pytest.approx(travel_px, rel=0.25) if expected else sweep < 1


def test_a_class_shows_in_no_frame_outside_the_action() -> None:
    drawn = scene(2)
    outside = np.ones(24, bool)
    outside[slice(*drawn.action)] = False
    clips = [render_clip(drawn, motion=motion, look="red") for motion in MOTIONS]
    for clip in clips[1:]:
        np.testing.assert_array_equal(clip[outside], clips[0][outside])
        assert (clip[~outside] != clips[0][~outside]).any()


def test_looks_differ_in_colour_and_not_in_grey() -> None:
    drawn = scene(3)
    clips = [render_clip(drawn, motion="bob", look=look) for look in ("red", "green", "blue", "violet")]
    pixels = actor_pixels(drawn, "bob")
    grey = [[cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(int) for frame in clip] for clip in clips]
    for i in range(4):
        for j in range(i):
            assert np.abs(np.subtract(grey[i], grey[j])).max() <= 2  # rounding of three channels
            apart = np.abs(clips[i].astype(int) - clips[j]).max(axis=-1)
            assert apart[pixels].mean() > 30
            assert not apart[~pixels].any()


def test_drawing_is_deterministic_and_textures_follow_their_seed() -> None:
    drawn = scene(4)
    first = render_clip(drawn, motion="spin", look="blue")
    assert first.shape == (24, 96, 96, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, render_clip(drawn, motion="spin", look="blue"))
    other = render_clip(replace(drawn, texture_seed=drawn.texture_seed + 1), motion="spin", look="blue")
    assert (first != other).any(axis=-1).mean() > 0.9


def test_backgrounds_have_texture_for_flow_and_follow_the_camera() -> None:
    drawn = scene(5)
    pan = replace(drawn.camera, kind="pan", direction=0.0, pan_px=23.0)  # one pixel a frame to the right
    empty = replace(drawn, camera=pan, distractors=(), distractor_radii_px=())
    clip = render_clip(empty, motion="sway", look="red", with_actor=False)
    grey = clip.astype(float).mean(axis=-1)
    assert grey.std(axis=(1, 2)).min() > 10
    shifted = np.abs(grey[1:, :, 1:] - grey[:-1, :, :-1]).mean()
    assert shifted < 0.3 * np.abs(grey[1:] - grey[:-1]).mean()
