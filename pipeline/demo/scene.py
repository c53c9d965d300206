"""What happens in a demo clip, as numbers: where every sprite and the camera are in every frame.

A scene is drawn without knowing the class. The class then adds two things only: the `Motion` decides what the actor
does during the action, the `Look` decides its hue (pipeline.demo.render). So the clips of two classes that share a look
differ inside the action alone, and the clips of two classes that share a motion differ in colour alone.

Shapes: T frames. A pose is (x_px, y_px, angle_radians, scale); world coordinates equal frame
coordinates where the camera rests. Frame intervals are half-open.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Motion = Literal["sway", "bob", "circle", "spin"]
Look = Literal["red", "green", "blue", "violet"]
CameraKind = Literal["static", "pan", "zoom", "shake"]
Poses = NDArray[np.float64]

CAMERA_KINDS: tuple[CameraKind, ...] = get_args(CameraKind)

TRAVEL = 0.04  # amplitude of sway, bob and circle, relative to the frame: 1-3 px a frame at 96 px
TURN = 0.4  # amplitude of spin, radians
# Largest amplitude of idle fidgeting, relative to TRAVEL and TURN. A fidget is a weak action of no class: it spoils an
# average over the clip, and a network that weighs the moments can tell it from the action by its strength alone.
FIDGET = 0.5

# A ring: every class shares its look with one neighbour and its motion with the other. Colour alone or movement alone
# therefore leaves two candidates for every clip (accuracy 1/2 at best), and the two together leave one.
CLASSES: tuple[tuple[Motion, Look], ...] = (
    ("sway", "red"),
    ("bob", "red"),
    ("bob", "green"),
    ("circle", "green"),
    ("circle", "blue"),
    ("spin", "blue"),
    ("spin", "violet"),
    ("sway", "violet"),
)


@dataclass(frozen=True, kw_only=True)
class Wander:
    """A slow path around a centre and a quick small fidget: how every sprite moves when nothing happens."""

    centre_px: tuple[float, float]
    reach_px: float
    """Farthest distance from the centre along x and along y."""
    periods: tuple[float, float]
    """Frames of one cycle along x and along y."""
    phases: tuple[float, float]
    angle: float
    """Mean orientation in radians."""
    fidget: tuple[float, ...]
    """Amplitudes along x and y in pixels and of the orientation in radians."""
    fidget_periods: tuple[float, ...]
    fidget_phases: tuple[float, ...]

    def poses(self, num_frames: int) -> Poses:
        """Poses (T, 4) of frames 0 .. num_frames - 1, with scale 1."""
        t = np.arange(num_frames)[:, None]
        poses = np.ones((num_frames, 4))
        poses[:, :2] = np.array(self.centre_px) + self.reach_px * _swing(t, self.periods, self.phases)
        poses[:, 2] = self.angle
        poses[:, :3] += np.array(self.fidget) * _swing(t, self.fidget_periods, self.fidget_phases)
        return poses


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A mild camera movement; `kind` says which of the fields move the picture."""

    kind: CameraKind
    direction: float
    """Radians: direction of a pan, first phase of a shake."""
    pan_px: float
    """Path length of a pan over the whole clip."""
    zoom: float
    """Relative growth over the whole clip, negative for a zoom out."""
    shake_px: float
    shake_periods: tuple[float, float]

    def matrices(self, num_frames: int, *, size_px: int) -> NDArray[np.float64]:
        """Affine maps (T, 2, 3) from world to frame coordinates, both in pixels."""
        t = np.arange(num_frames)
        progress = t / max(num_frames - 1, 1) - 0.5  # -1/2 .. 1/2: the resting view is in the middle of the clip
        zoom, shift = np.ones(num_frames), np.zeros((num_frames, 2))
        match self.kind:
            case "static":
                pass
            case "pan":
                shift = self.pan_px * progress[:, None] * [np.cos(self.direction), np.sin(self.direction)]
            case "zoom":
                zoom = 1 + self.zoom * progress
            case "shake":
                shift = self.shake_px * _swing(t[:, None], self.shake_periods, (self.direction, 2 * self.direction))
        middle = (size_px - 1) / 2
        matrices = np.zeros((num_frames, 2, 3))
        matrices[:, 0, 0] = matrices[:, 1, 1] = zoom
        matrices[:, :, 2] = shift + middle * (1 - zoom[:, None])
        return matrices


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip without its class."""

    size_px: int
    num_frames: int
    action: tuple[int, int]
    """Frames [start, end) in which the actor performs its motion."""
    period: float
    """Frames of one cycle of the motion."""
    phase: float
    sense: int
    """+1 or -1: the way round of a circle, the first half turn of an oscillation."""
    actor: Wander
    actor_radius_px: float
    distractors: tuple[Wander, ...]
    distractor_radii_px: tuple[float, ...]
    camera: Camera
    texture_seed: int
    """Seed of the background's and the sprites' textures."""


def _swing(t: NDArray[np.integer], periods: tuple[float, ...], phases: tuple[float, ...]) -> NDArray[np.float64]:
    """Sines of the frames t (T, 1), one column for each period: (T, number of periods)."""
    return np.sin(2 * np.pi * t / np.array(periods) + np.array(phases))


def draw_scene(rng: np.random.Generator, *, size_px: int, num_frames: int) -> Scene:
    """Draw one scene of `num_frames` frames of size_px x size_px pixels.

    Raises:
        ValueError: if the frames are too small or too few to show an action.
    """
    if size_px < 48 or num_frames < 16:
        raise ValueError(f"a demo clip needs >= 48 px and >= 16 frames, got {size_px} px and {num_frames} frames")
    length = round(num_frames * rng.uniform(0.30, 0.45))
    start = int(rng.integers(0, num_frames - length + 1))
    num_distractors = int(rng.integers(2, 4))
    return Scene(
        size_px=size_px,
        num_frames=num_frames,
        action=(start, start + length),
        period=rng.uniform(9, 12),
        phase=rng.uniform(0, 2 * np.pi),
        sense=int(rng.choice([-1, 1])),
        actor=_draw_wander(rng, size_px=size_px, low=0.34, high=0.66, reach=0.06, periods=(50, 90)),
        actor_radius_px=size_px * rng.uniform(0.15, 0.18),
        distractors=tuple(
            _draw_wander(rng, size_px=size_px, low=0.12, high=0.88, reach=0.12, periods=(35, 70))
            for _ in range(num_distractors)
        ),
        distractor_radii_px=tuple(size_px * r for r in rng.uniform(0.06, 0.10, num_distractors)),
        camera=_draw_camera(rng, size_px=size_px),
        texture_seed=int(rng.integers(2**31)),
    )


def _draw_wander(
    rng: np.random.Generator, *, size_px: int, low: float, high: float, reach: float, periods: tuple[float, float]
) -> Wander:
    """Draw a path whose centre lies in [low, high) and whose reach is at most `reach`, all relative to the frame."""
    x, y = rng.uniform(low, high, 2) * size_px
    period_x, period_y = rng.uniform(*periods, 2)
    phase_x, phase_y, angle = rng.uniform(0, 2 * np.pi, 3)
    return Wander(
        centre_px=(x, y),
        reach_px=size_px * reach * rng.uniform(0.5, 1),
        periods=(period_x, period_y),
        phases=(phase_x, phase_y),
        angle=angle,
        fidget=tuple(rng.uniform(0, FIDGET, 3) * [TRAVEL * size_px, TRAVEL * size_px, TURN]),
        fidget_periods=tuple(rng.uniform(9, 14, 3)),
        fidget_phases=tuple(rng.uniform(0, 2 * np.pi, 3)),
    )


def _draw_camera(rng: np.random.Generator, *, size_px: int) -> Camera:
    period_x, period_y = rng.uniform(6, 14, 2)
    return Camera(
        kind=CAMERA_KINDS[rng.integers(len(CAMERA_KINDS))],
        direction=rng.uniform(0, 2 * np.pi),
        pan_px=size_px * rng.uniform(0.08, 0.16),
        zoom=float(rng.choice([-1, 1])) * rng.uniform(0.08, 0.16),
        shake_px=size_px * rng.uniform(0.008, 0.016),
        shake_periods=(period_x, period_y),
    )


def actor_poses(scene: Scene, motion: Motion) -> Poses:
    """Poses (T, 4) of the actor in world coordinates: its wandering, plus the motion inside the action."""
    poses = scene.actor.poses(scene.num_frames)
    start, end = scene.action
    poses[start:end] += _displacement(scene, motion)
    return poses


def distractor_poses(scene: Scene) -> list[Poses]:
    """Poses (T, 4) of each distractor in world coordinates; they know nothing of the action."""
    return [wander.poses(scene.num_frames) for wander in scene.distractors]


def _displacement(scene: Scene, motion: Motion) -> Poses:
    """What the motion adds to the actor's pose in the frames of the action, (end - start, 4)."""
    length = scene.action[1] - scene.action[0]
    tau = np.arange(length)
    fade = np.minimum(1.0, np.minimum(tau + 1, length - tau) / 2)  # no jump at the ends of the action
    angle = scene.sense * 2 * np.pi * tau / scene.period + scene.phase
    travel_px = TRAVEL * scene.size_px
    added = np.zeros((length, 4))
    match motion:
        case "sway":
            added[:, 0] = travel_px * np.sin(angle)
        case "bob":
            added[:, 1] = travel_px * np.sin(angle)
        case "circle":
            added[:, 0], added[:, 1] = travel_px * np.cos(angle), travel_px * np.sin(angle)
        case "spin":
            added[:, 2] = TURN * np.sin(angle)
    return added * fade[:, None]
