"""What a demo clip looks like: textures, hues, and the drawing of a scene into frames.

The look is a hue and nothing else. Colours are composed in BT.601 luma and chroma, luma from the scene's textures and
chroma from the look, inside the range where no channel saturates. The grey frames of two looks are therefore the same
(up to rounding), so no optical flow computed on them can tell the looks apart.

Shapes: T frames, H = W = size_px, N outline points.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.demo.scene import Look, Motion, Poses, Scene, actor_poses, distractor_poses

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


def render_clip(scene: Scene, *, motion: Motion, look: Look, with_actor: bool = True) -> NDArray[np.uint8]:
    """Draw the clip of one class: (T, H, W, 3) uint8 RGB.

    `with_actor=False` leaves the actor out and changes nothing else.
    """
    rng = np.random.default_rng(scene.texture_seed)
    canvas, margin = _paint_background(rng, size_px=scene.size_px)
    actor_patch = _paint_sprite(rng, lobes=3, chroma=CHROMA[look])
    # Distractors wear the looks' hues too: a colour means nothing unless it is the actor's.
    hues = [list(CHROMA.values())[i] for i in rng.integers(len(CHROMA), size=len(scene.distractors))]
    patches = [_paint_sprite(rng, lobes=4, chroma=hue) for hue in hues]
    cameras = scene.camera.matrices(scene.num_frames, size_px=scene.size_px)
    sprites = list(zip(patches, distractor_poses(scene), scene.distractor_radii_px, strict=True))
    if with_actor:  # last, so that nothing hides it
        sprites.append((actor_patch, actor_poses(scene, motion), scene.actor_radius_px))

    frames = np.empty((scene.num_frames, scene.size_px, scene.size_px, 3), np.uint8)
    for t, camera in enumerate(cameras):
        frame = _warp(canvas, _compose(camera, _shift(-margin)), scene.size_px)
        for patch, poses, radius_px in sprites:
            to_frame = _compose(camera, _patch_to_world(poses[t], radius_px))
            sprite = _warp(patch, to_frame, scene.size_px)
            frame = frame * (1 - sprite[..., 3:]) + sprite[..., :3]
        frames[t] = np.clip(np.rint(_to_rgb(frame)), 0, 255)
    return frames


def actor_boxes(scene: Scene, motion: Motion) -> NDArray[np.int64]:
    """The actor's boxes (T, 4) as [x0, y0, x1, y1) in pixels of the frame, clipped to it."""
    cameras = scene.camera.matrices(scene.num_frames, size_px=scene.size_px)
    theta = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    radius = _outline(theta, lobes=3)
    outline = np.stack([radius * np.cos(theta), radius * np.sin(theta), np.ones_like(theta)])  # (3, N), in radii
    boxes = np.empty((scene.num_frames, 4), np.int64)
    for t, (camera, pose) in enumerate(zip(cameras, actor_poses(scene, motion), strict=True)):
        points = _compose(camera, _unit_to_world(pose, scene.actor_radius_px)) @ outline  # (2, N)
        boxes[t, :2] = np.floor(points.min(axis=1))
        boxes[t, 2:] = np.ceil(points.max(axis=1)) + 1
    return boxes.clip(0, scene.size_px)


def _outline(theta: NDArray[np.floating], *, lobes: int) -> NDArray[np.floating]:
    """Radius of a sprite's outline, at most 1, in the direction theta: a disc with lobes, so that a turn shows."""
    return 1 - LOBE_DEPTH * (1 - np.cos(lobes * theta)) / 2


def _paint_background(rng: np.random.Generator, *, size_px: int) -> tuple[Floats, int]:
    """A textured (Y, Cb, Cr) canvas larger than the frame, and the width of the margin around the frame."""
    margin = size_px // 4
    side = size_px + 2 * margin
    luma = _noise(rng, side, octaves=((5, 22.0), (14, 14.0), (40, 8.0)))
    chroma = [_noise(rng, side, octaves=((4, 14.0),)) for _ in range(2)]
    return np.stack([(rng.uniform(100, 150) + luma).clip(40, 215), *chroma], axis=-1), margin


def _paint_sprite(rng: np.random.Generator, *, lobes: int, chroma: tuple[float, float]) -> Floats:
    """A sprite patch of premultiplied (Y, Cb, Cr, alpha): blobs inside, a dark colourless rim, soft edges."""
    x, y = np.meshgrid(*[_patch_coordinates()] * 2)
    inside = _outline(np.arctan2(y, x), lobes=lobes) - np.hypot(x, y)  # distance from the outline, in radii
    pixel = 2 * PATCH_RADII / PATCH_PX
    alpha = np.clip(inside / pixel, 0, 1)
    core = np.clip((inside - 0.12) / pixel, 0, 1)
    luma = (128 + _noise(rng, PATCH_PX, octaves=((6, 40.0),))).clip(80, 176)
    planes = [40 * (1 - core) + luma * core, chroma[0] * core, chroma[1] * core]
    return np.stack([*(plane * alpha for plane in planes), alpha], axis=-1).astype(np.float32)


def _noise(rng: np.random.Generator, side: int, *, octaves: tuple[tuple[int, float], ...]) -> Floats:
    """Smooth noise (side, side): for each (cells, sigma), a cells x cells grid of normal draws, enlarged."""
    total = np.zeros((side, side), np.float32)
    for cells, sigma in octaves:
        grid = rng.standard_normal((cells, cells)).astype(np.float32) * sigma
        total += cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
    return total


def _to_rgb(frame: Floats) -> Floats:
    """BT.601 full-range (Y, Cb, Cr) with chroma around 0 -> (R, G, B)."""
    luma, cb, cr = frame[..., 0], frame[..., 1], frame[..., 2]
    return np.stack([luma + 1.402 * cr, luma - 0.344136 * cb - 0.714136 * cr, luma + 1.772 * cb], axis=-1)


def _patch_coordinates() -> NDArray[np.float64]:
    """Coordinate of every patch column (or row), in sprite radii from the centre."""
    return (np.arange(PATCH_PX, dtype=np.float64) - (PATCH_PX - 1) / 2) * (2 * PATCH_RADII / PATCH_PX)


def _patch_to_world(pose: Poses, radius_px: float) -> NDArray[np.float64]:
    step, first = 2 * PATCH_RADII / PATCH_PX, _patch_coordinates()[0]
    return _compose(_unit_to_world(pose, radius_px), np.array([[step, 0, first], [0, step, first]]))


def _unit_to_world(pose: Poses, radius_px: float) -> NDArray[np.float64]:
    """Affine map from a sprite's own coordinates, in radii, to the world."""
    x, y, angle, scale = pose
    a, b = radius_px * scale * np.cos(angle), radius_px * scale * np.sin(angle)
    return np.array([[a, -b, x], [b, a, y]])


def _shift(by_px: float) -> NDArray[np.float64]:
    return np.array([[1, 0, by_px], [0, 1, by_px]])


def _compose(outer: NDArray[np.float64], inner: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine map (2, 3) that applies `inner` first."""
    return outer @ np.vstack([inner, [0, 0, 1]])


def _warp(image: Floats, matrix: NDArray[np.float64], size_px: int) -> Floats:
    warped = cv2.warpAffine(image, matrix, (size_px, size_px), flags=cv2.INTER_LINEAR)
    return np.asarray(warped, dtype=np.float32)
