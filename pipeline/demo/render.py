"""What a demo clip looks like: textures, hues, and the drawing of a scene into frames.

The look is a hue and nothing else. Colours are composed in BT.601 luma and chroma, luma from the scene's textures and
chroma from the look, inside the range where no channel saturates. The grey frames of two looks are therefore the same
(up to rounding), so no optical flow computed on them can tell the looks apart.

Shapes: T frames, H W pixels, N outline points. A size is (width, height).
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.demo.scene import LOOKS, Act, Look, Poses, Scene, Size, actor_poses, distractor_poses

Floats = NDArray[np.float32]

# (Cb, Cr) around 0; with luma in [80, 176] every channel stays in [0, 255], so no clipping can leak into the luma.
CHROMA: dict[Look, tuple[float, float]] = {
    "red": (-28.0, 54.0),
    "green": (-36.0, -50.0),
    "blue": (42.0, -14.0),
    "violet": (38.0, 34.0),
}
PATCH_PX = 64  # a sprite is painted once on a square patch of this side ...
PATCH_RADII = 1.4  # ... that reaches this many sprite radii from its centre
LOBE_DEPTH = 0.14
MARGIN = 0.3  # of canvas on each side of the resting view, relative to the long side: more than any camera shows
TO_RGB = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], np.float32)  # of (Y, Cb, Cr)


def render_clip(scene: Scene, acts: tuple[Act, ...], *, with_actor: bool = True) -> NDArray[np.uint8]:
    """Draw a clip whose actor performs the given acts, one a slot: (T, H, W, 3) uint8 RGB.

    `with_actor=False` leaves the actor out and changes nothing else.

    Raises:
        ValueError: not one act for each slot.
    """
    canvas, margin_px = _paint_background(np.random.default_rng(scene.background_seed), size_px=scene.size_px)
    sprites = _sprites(scene, acts)[: None if with_actor else -1]
    width, height = scene.size_px
    frames = np.empty((scene.num_frames, height, width, 3), np.uint8)
    for t, camera in enumerate(scene.camera.matrices(scene.num_frames, size_px=scene.size_px)):
        frame = _warp(canvas, camera @ _shift(-margin_px), scene.size_px)
        for sprite in sprites:
            drawn = _warp(sprite.patch, camera @ _patch_to_world(sprite.poses[t], sprite.radius_px), scene.size_px)
            frame *= 1 - drawn[..., 3:]
            frame += drawn[..., :3] * sprite.tints[t]
        frames[t] = np.clip(np.rint(_to_rgb(frame)), 0, 255)
    return frames


class _Sprite(NamedTuple):
    patch: Floats
    """Premultiplied (Y, 1, 1, alpha): the chroma comes from the tint."""
    poses: Poses
    radius_px: float
    tints: Floats
    """(T, 3): 1, Cb, Cr of every frame."""


def _sprites(scene: Scene, acts: tuple[Act, ...]) -> list[_Sprite]:
    """Everything that is drawn over the background, from back to front: the actor is last, so that nothing hides it."""
    rng = np.random.default_rng(scene.sprite_seed)
    actor = _Sprite(_paint_sprite(rng, lobes=3), actor_poses(scene, acts), scene.actor_radius_px, _tints(scene, acts))
    sprites = []
    for distractor, poses in zip(scene.distractors, distractor_poses(scene), strict=True):
        # Distractors wear the looks' hues too: a colour means nothing unless it is the actor's.
        hue = CHROMA[LOOKS[rng.integers(len(LOOKS))]]
        tints = np.tile(np.array([1, *hue], np.float32), (scene.num_frames, 1))
        sprites.append(_Sprite(_paint_sprite(rng, lobes=4), poses, distractor.radius_px, tints))
    return [*sprites, actor]


def _tints(scene: Scene, acts: tuple[Act, ...]) -> Floats:
    """The actor's (1, Cb, Cr) in every frame (T, 3): its idle tint, and the look of each act in its slot."""
    idle = scene.idle_tint * np.array(CHROMA[scene.idle_look])
    tints = np.ones((scene.num_frames, 3), np.float32)
    tints[:, 1:] = idle
    for slot, act in zip(scene.slots, acts, strict=True):
        if act.look is not None:
            tints[slot.start : slot.end, 1:] += slot.fade()[:, None] * (np.array(CHROMA[act.look]) - idle)
    return tints


def actor_boxes(scene: Scene, acts: tuple[Act, ...]) -> NDArray[np.int64]:
    """The actor's boxes (T, 4) as [x0, y0, x1, y1) in pixels of the frame, clipped to it."""
    cameras = scene.camera.matrices(scene.num_frames, size_px=scene.size_px)
    theta = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radius = _outline(theta, lobes=3)
    outline = np.stack([radius * np.cos(theta), radius * np.sin(theta), np.ones_like(theta)])  # (3, N), in radii
    boxes = np.empty((scene.num_frames, 4), np.int64)
    for t, (camera, pose) in enumerate(zip(cameras, actor_poses(scene, acts), strict=True)):
        points = (camera @ _unit_to_world(pose, scene.actor_radius_px) @ outline)[:2]
        boxes[t, :2] = np.floor(points.min(axis=1))
        boxes[t, 2:] = np.ceil(points.max(axis=1)) + 1
    return boxes.clip(0, scene.size_px * 2)


def _outline(theta: NDArray[np.floating], *, lobes: int) -> NDArray[np.floating]:
    """Radius of a sprite's outline, at most 1, in the direction theta: a disc with lobes, so that a turn shows."""
    return 1 - LOBE_DEPTH * (1 - np.cos(lobes * theta)) / 2


def _paint_background(rng: np.random.Generator, *, size_px: Size) -> tuple[Floats, int]:
    """A textured (Y, Cb, Cr) canvas larger than the frame, and the width of the margin around the frame."""
    margin_px = round(MARGIN * max(size_px))
    shape = (size_px[1] + 2 * margin_px, size_px[0] + 2 * margin_px)
    luma = _noise(rng, shape, octaves=((5, 22.0), (14, 14.0), (40, 8.0)))
    chroma = [_noise(rng, shape, octaves=((4, 14.0),)) for _ in range(2)]
    return np.stack([(rng.uniform(100, 150) + luma).clip(40, 215), *chroma], axis=-1), margin_px


def _paint_sprite(rng: np.random.Generator, *, lobes: int) -> Floats:
    """A sprite patch of premultiplied (Y, 1, 1, alpha): blobs inside, a dark colourless rim, soft edges."""
    x, y = np.meshgrid(*[_patch_coordinates()] * 2)
    inside = _outline(np.arctan2(y, x), lobes=lobes) - np.hypot(x, y)  # distance from the outline, in radii
    pixel = 2 * PATCH_RADII / PATCH_PX
    alpha = np.clip(inside / pixel, 0, 1)
    core = np.clip((inside - 0.12) / pixel, 0, 1)
    luma = (128 + _noise(rng, (PATCH_PX, PATCH_PX), octaves=((6, 40.0),))).clip(80, 176)
    planes = [40 * (1 - core) + luma * core, core, core]
    return np.stack([*(plane * alpha for plane in planes), alpha], axis=-1).astype(np.float32)


def _noise(rng: np.random.Generator, shape: tuple[int, int], *, octaves: tuple[tuple[int, float], ...]) -> Floats:
    """Smooth noise of a shape (rows, columns): for each (cells, sigma), cells x cells normal draws, enlarged."""
    total = np.zeros(shape, np.float32)
    for cells, sigma in octaves:
        grid = rng.standard_normal((cells, cells)).astype(np.float32) * sigma
        total += cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return total


def _to_rgb(frame: Floats) -> Floats:
    """BT.601 full-range (Y, Cb, Cr) with chroma around 0 -> (R, G, B)."""
    return np.asarray(cv2.transform(frame, TO_RGB), dtype=np.float32)


def _patch_coordinates() -> NDArray[np.float64]:
    """Coordinate of every patch column (or row), in sprite radii from the centre."""
    return (np.arange(PATCH_PX, dtype=np.float64) - (PATCH_PX - 1) / 2) * (2 * PATCH_RADII / PATCH_PX)


def _patch_to_world(pose: Poses, radius_px: float) -> NDArray[np.float64]:
    step, first = 2 * PATCH_RADII / PATCH_PX, _patch_coordinates()[0]
    return _unit_to_world(pose, radius_px) @ np.array([[step, 0, first], [0, step, first], [0, 0, 1]])


def _unit_to_world(pose: Poses, radius_px: float) -> NDArray[np.float64]:
    """Homogeneous map (3, 3) from a sprite's own coordinates, in radii, to the world."""
    x, y, angle, scale = pose
    a, b = radius_px * scale * np.cos(angle), radius_px * scale * np.sin(angle)
    return np.array([[a, -b, x], [b, a, y], [0, 0, 1]])


def _shift(by_px: float) -> NDArray[np.float64]:
    return np.array([[1, 0, by_px], [0, 1, by_px], [0, 0, 1]])


def _warp(image: Floats, matrix: NDArray[np.float64], size_px: Size) -> Floats:
    """The image (rows, columns, channels) seen through a homogeneous map (3, 3) whose last row is (0, 0, 1)."""
    warped = cv2.warpAffine(image, matrix[:2], size_px, flags=cv2.INTER_LINEAR)
    return np.asarray(warped, dtype=np.float32)
