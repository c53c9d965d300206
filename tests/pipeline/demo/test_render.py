"""The drawing, judged by its pixels: where the actor is, when it acts, what classes share, where the camera goes."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

from pipeline.demo.render import MARGIN, actor_boxes, render_clip
from pipeline.demo.scene import (
    CAMERA_KINDS,
    CLASSES,
    LOOKS,
    MOTIONS,
    Act,
    CameraKind,
    Look,
    Motion,
    Scene,
    Size,
    draw_scene,
    draw_setting,
)

WIDE = (128, 96)


def scene(seed: int = 0, *, size_px: Size = WIDE, camera: CameraKind = "shake", actions: int = 1) -> Scene:
    rng = np.random.default_rng([5, seed])
    setting = draw_setting(rng, camera=camera)
    return draw_scene(rng, size_px=size_px, num_frames=24 * actions, setting=setting, actions=actions)


def calm(seed: int) -> Scene:
    """A scene in which nothing moves but the action."""
    drawn = scene(seed, camera="static")
    still = replace(drawn.actor, reach_px=0.0, fidget=(0.0, 0.0, 0.0))
    slot = replace(drawn.slots[0], start=6, end=18)
    return replace(drawn, actor=still, distractors=(), slots=(slot,))


def act(motion: Motion = "bob", look: Look | None = "green") -> tuple[Act, ...]:
    return (Act(motion, look),)


def actor_pixels(drawn: Scene, acts: tuple[Act, ...]) -> np.ndarray:
    """(T, H, W): where the picture changes if the actor is left out."""
    with_actor = render_clip(drawn, acts)
    without = render_clip(drawn, acts, with_actor=False)
    return (with_actor != without).any(axis=-1)


def acting(drawn: Scene) -> np.ndarray:
    mask = np.zeros(drawn.num_frames, bool)
    for slot in drawn.slots:
        mask[slot.start : slot.end] = True
    return mask


def centroids(pixels: np.ndarray) -> np.ndarray:
    """(T, 2): x and y of the middle of the true pixels."""
    rows, columns = np.arange(pixels.shape[1])[:, None], np.arange(pixels.shape[2])
    area = pixels.sum(axis=(1, 2))
    return np.stack([(pixels * columns).sum(axis=(1, 2)) / area, (pixels * rows).sum(axis=(1, 2)) / area], axis=1)


@pytest.mark.parametrize("size_px", [(64, 48), (96, 96), (160, 120)])
@pytest.mark.parametrize("kind", CAMERA_KINDS)
def test_boxes_hold_the_actor_and_fit_it(kind: CameraKind, size_px: Size) -> None:
    width, height = size_px
    for seed, motion in enumerate(MOTIONS):
        drawn, acts = scene(seed, size_px=size_px, camera=kind), act(motion)
        for pixels, (x0, y0, x1, y1) in zip(actor_pixels(drawn, acts), actor_boxes(drawn, acts), strict=True):
            assert pixels.shape == (height, width)
            rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
            seen = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            assert x0 <= seen[0] and y0 <= seen[1] and seen[2] <= x1 and seen[3] <= y1  # noqa: PT018
            assert np.abs(seen - [x0, y0, x1, y1]).max() <= 3
            assert min(x1 - x0, y1 - y0) >= 0.2 * height


def test_boxes_stay_inside_the_frame_when_the_actor_leaves_it() -> None:
    drawn = scene()
    drawn = replace(drawn, actor=replace(drawn.actor, centre_px=(127.0, 2.0)))
    boxes = actor_boxes(drawn, act("circle"))
    assert boxes.min() == 0
    assert boxes[:, ::2].max() == 128
    assert boxes[:, 1::2].max() <= 96


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_actor_acts_in_the_action_and_only_there(motion: Motion) -> None:
    drawn = calm(1)
    acts = act(motion)
    clip = render_clip(drawn, acts)
    changed = (clip[1:] != clip[:-1]).any(axis=(1, 2, 3))
    assert not changed[:5].any()  # between frames 0..5
    assert not changed[18:].any()  # between frames 18..23
    assert changed[6:17].all()
    sweep_x, sweep_y = np.ptp(centroids(actor_pixels(drawn, acts)), axis=0)
    travel_px = 2 * 0.04 * 96  # from end to end
    wide = {"sway": (True, False), "bob": (False, True), "circle": (True, True), "spin": (False, False)}[motion]
    for sweep, expected in zip((sweep_x, sweep_y), wide, strict=True):
        assert sweep == pytest.approx(travel_px, rel=0.25) if expected else sweep < 1


def test_a_class_shows_in_no_frame_outside_the_action() -> None:
    drawn = scene(2)
    inside = acting(drawn)
    clips = [render_clip(drawn, (one,)) for one in CLASSES]
    for clip in clips[1:]:
        np.testing.assert_array_equal(clip[~inside], clips[0][~inside])
        assert (clip[inside] != clips[0][inside]).any()


def test_looks_differ_in_colour_and_not_in_grey() -> None:
    drawn = scene(3)
    inside = acting(drawn)
    clips = [render_clip(drawn, act("bob", look))[inside] for look in LOOKS]
    pixels = actor_pixels(drawn, act("bob"))[inside]
    grey = [[cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(int) for frame in clip] for clip in clips]
    for i in range(4):
        for j in range(i):
            assert np.abs(np.subtract(grey[i], grey[j])).max() <= 2  # rounding of three channels
            apart = np.abs(clips[i].astype(int) - clips[j]).max(axis=-1)
            assert apart[pixels].mean() > 30
            assert not apart[~pixels].any()


def test_a_doubtful_action_moves_without_its_colour() -> None:
    """An act without a look moves like one with it, and its colours are the idle ones."""
    drawn = scene(3)
    doubtful, plain = render_clip(drawn, act("bob", None)), render_clip(drawn, act("bob", "green"))
    inside = acting(drawn)
    grey = [np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in clip]).astype(int) for clip in (doubtful, plain)]
    assert np.abs(grey[0] - grey[1]).max() <= 2
    pixels = actor_pixels(drawn, act("bob"))

    def chroma(frames: np.ndarray, mask: np.ndarray) -> np.ndarray:
        colours = frames[mask].astype(float)
        return np.asarray((colours - colours.mean(axis=1, keepdims=True)).mean(axis=0))

    idle = chroma(doubtful[~inside], pixels[~inside])
    assert np.abs(chroma(doubtful[inside], pixels[inside]) - idle).max() < 4
    assert np.abs(chroma(plain[inside], pixels[inside]) - idle).max() > 12


def test_drawing_is_deterministic_and_textures_follow_their_seeds() -> None:
    drawn = scene(4)
    acts = act("spin", "blue")
    first = render_clip(drawn, acts)
    assert first.shape == (24, 96, 128, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, render_clip(drawn, acts))
    elsewhere = render_clip(replace(drawn, background_seed=drawn.background_seed + 1), acts)
    actor = actor_pixels(drawn, acts)
    assert (first != elsewhere).any(axis=-1)[~actor].mean() > 0.85
    others = render_clip(replace(drawn, sprite_seed=drawn.sprite_seed + 1), acts)
    assert (first != others).any(axis=-1)[actor].mean() > 0.7


@pytest.mark.parametrize("kind", CAMERA_KINDS)
def test_the_homography_leads_the_background_from_frame_to_frame(kind: CameraKind) -> None:
    drawn = replace(scene(5, camera=kind), distractors=())
    clip = render_clip(drawn, act(), with_actor=False)
    homographies = drawn.camera.homographies(drawn.num_frames, size_px=drawn.size_px)
    assert clip.astype(float).mean(axis=-1).std(axis=(1, 2)).min() > 10  # texture for flow to hold on to
    moved, still = [], []
    for t, homography in enumerate(homographies):
        expected = cv2.warpPerspective(clip[t], homography, WIDE, flags=cv2.INTER_LINEAR).astype(float)
        inner = (slice(8, -8), slice(8, -8))  # what comes in at the border was in no frame before
        moved.append(np.abs(expected - clip[t + 1])[inner].mean())
        still.append(np.abs(clip[t].astype(float) - clip[t + 1])[inner].mean())
    assert np.mean(moved) < 1.0
    assert kind == "static" or np.mean(moved) < 0.35 * np.mean(still)


@pytest.mark.parametrize("size_px", [(64, 48), (96, 96), (160, 120)])
def test_no_camera_sees_past_the_edge_of_the_background(size_px: Size) -> None:
    width, height = size_px
    margin = round(MARGIN * max(size_px))
    corners = np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1], [1, 1, 1, 1]], float)
    for kind in CAMERA_KINDS:
        for seed in range(30):
            matrices = scene(seed, size_px=size_px, camera=kind).camera.matrices(200, size_px=size_px)
            seen = (np.linalg.inv(matrices) @ corners)[:, :2]
            assert seen.min() > -margin
            assert seen[:, 0].max() < width + margin - 1
            assert seen[:, 1].max() < height + margin - 1
