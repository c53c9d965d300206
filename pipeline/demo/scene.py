"""What happens in a demo clip, as numbers: where every sprite and the camera are in every frame.

A scene is drawn without knowing the class. It has slots, the intervals in which the actor acts; an `Act` for each slot
then adds two things only: the `Motion` decides what the actor does during the slot, the `Look` which hue it wears
(pipeline.demo.render). So clips that differ in class alone are the same frame by frame outside the slots, clips that
share a look differ in the actor's movement alone, and clips that share a motion differ in the actor's colour alone.

Shapes: T frames. A pose is (x_px, y_px, angle_radians, scale); world coordinates equal frame
coordinates where the camera rests. A size is (width, height). Frame intervals are half-open.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

Motion = Literal["sway", "bob", "circle", "spin"]
Look = Literal["red", "green", "blue", "violet"]
CameraKind = Literal["pan", "zoom", "shake", "static"]
Size = tuple[int, int]
Poses = NDArray[np.float64]

MOTIONS: tuple[Motion, ...] = get_args(Motion)
LOOKS: tuple[Look, ...] = get_args(Look)
CAMERA_KINDS: tuple[CameraKind, ...] = get_args(CameraKind)

TRAVEL = 0.04  # amplitude of sway, bob and circle, relative to the short side: 1-3 px a frame at 96 px
TURN = 0.4  # amplitude of spin, radians
# Largest amplitude of idle fidgeting, relative to TRAVEL and TURN. A fidget is a weak action of no class: it spoils an
# average over the clip, and a network that weighs the moments can tell it from the action by its strength alone.
FIDGET = 0.7
# Strongest tint of an idle actor, relative to a look: a weak look of no class, for the same reason.
TINT = 0.5
ACTION_SHARE = (0.25, 0.40)  # length of a slot, relative to its part of the clip


class Act(NamedTuple):
    """What an actor does in a slot and what it looks like meanwhile."""

    motion: Motion
    look: Look | None
    """None: it keeps its idle tint, and so belongs to no class."""

    @property
    def label(self) -> str | None:
        """Name of the class, as `SwayRed`; None if it is of no class."""
        return None if self.look is None else self.motion.capitalize() + self.look.capitalize()


# A ring: every class shares its look with one neighbour and its motion with the other. Colour alone or movement alone
# therefore leaves two candidates for every clip (accuracy 1/2 at best), and the two together leave one.
CLASSES: tuple[Act, ...] = (
    Act("sway", "red"),
    Act("bob", "red"),
    Act("bob", "green"),
    Act("circle", "green"),
    Act("circle", "blue"),
    Act("spin", "blue"),
    Act("spin", "violet"),
    Act("sway", "violet"),
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
class Slot:
    """An interval in which a sprite performs a motion, and its rhythm."""

    start: int
    end: int
    period: float
    """Frames of one cycle of the motion."""
    phase: float
    sense: int
    """+1 or -1: the way round of a circle, the first half turn of an oscillation."""

    def fade(self) -> NDArray[np.float64]:
        """Strength of the act in each frame of the slot: 1 but for its ends, so that nothing jumps."""
        tau = np.arange(self.end - self.start)
        return np.minimum(1.0, np.minimum(tau + 1, len(tau) - tau) / 2)


@dataclass(frozen=True, kw_only=True)
class Distractor:
    """A small sprite that performs some class's motion at full strength, at a time of its own, whatever the class."""

    wander: Wander
    radius_px: float
    slot: Slot
    motion: Motion


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera movement, a swing about the resting view; `kind` says which of the fields move the picture."""

    kind: CameraKind
    direction: float
    """Radians: direction of a pan, and the phase of every swing."""
    slow_period: float
    """Frames of one cycle of a pan or a zoom."""
    pan_px: float
    """Amplitude."""
    zoom: float
    """Amplitude of the relative growth."""
    shake_px: float
    roll: float
    """Amplitude of the turn that comes with a shake, radians."""
    shake_periods: tuple[float, ...]
    """Frames of one cycle of a shake along x and y and of its roll."""

    def matrices(self, num_frames: int, *, size_px: Size) -> NDArray[np.float64]:
        """Maps (T, 3, 3) from homogeneous world to frame coordinates, both in pixels; the last row is (0, 0, 1)."""
        t = np.arange(num_frames)
        slow = _swing(t[:, None], (self.slow_period,), (3 * self.direction,))[:, 0]
        zoom, roll, shift = np.ones(num_frames), np.zeros(num_frames), np.zeros((num_frames, 2))
        match self.kind:
            case "static":
                pass
            case "pan":
                shift = self.pan_px * slow[:, None] * [np.cos(self.direction), np.sin(self.direction)]
            case "zoom":
                zoom = 1 + self.zoom * slow
            case "shake":
                quick = _swing(t[:, None], self.shake_periods, tuple(k * self.direction for k in (1, 2, 3)))
                shift, roll = self.shake_px * quick[:, :2], self.roll * quick[:, 2]
        turn = zoom[:, None, None] * _rotations(roll)
        middle = (np.array(size_px) - 1) / 2
        matrices = np.zeros((num_frames, 3, 3))
        matrices[:, :2, :2] = turn
        matrices[:, :2, 2] = shift + middle - turn @ middle
        matrices[:, 2, 2] = 1
        return matrices

    def homographies(self, num_frames: int, *, size_px: Size) -> NDArray[np.float64]:
        """Where the background goes (T-1, 3, 3): pixels of frame t to pixels of frame t + 1."""
        matrices = self.matrices(num_frames, size_px=size_px)
        return np.asarray(matrices[1:] @ np.linalg.inv(matrices[:-1]))


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the clips of a group share: the background and the kind of camera."""

    camera: CameraKind
    background_seed: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip without its acts."""

    size_px: Size
    num_frames: int
    slots: tuple[Slot, ...]
    """When the actor acts, in order, without overlap."""
    actor: Wander
    actor_radius_px: float
    idle_look: Look
    """The hue of the actor outside the slots ..."""
    idle_tint: float
    """... and its strength, relative to a look."""
    distractors: tuple[Distractor, ...]
    camera: Camera
    background_seed: int
    sprite_seed: int
    """Seed of the sprites' textures and the distractors' hues."""


def draw_scene(
    rng: np.random.Generator, *, size_px: Size, num_frames: int, setting: Setting, actions: int = 1
) -> Scene:
    """Draw one scene.

    Args:
        rng: decides everything that the setting does not.
        size_px: width and height of the frames.
        num_frames: T.
        setting: background and kind of camera.
        actions: number of slots, each in its part of the clip; all parts are equally long.

    Raises:
        ValueError: if the frames are too small or too few to show the actions.
    """
    if min(size_px) < 48 or num_frames < 16 * actions:
        raise ValueError(
            f"a demo clip needs >= 48 px and >= 16 frames an action, got {size_px[0]}x{size_px[1]} px and"
            f" {num_frames} frames for {actions}"
        )
    side, middle = min(size_px), np.array(size_px) / 2
    part = num_frames // actions
    return Scene(
        size_px=size_px,
        num_frames=num_frames,
        slots=tuple(_draw_slot(rng, first=k * part, length=part) for k in range(actions)),
        # About the middle square, so that a square crop of a wide frame holds the actor.
        actor=_draw_wander(rng, middle_px=middle, spread_px=(0.16 * side,) * 2, reach_px=0.06 * side, side_px=side),
        actor_radius_px=side * rng.uniform(0.15, 0.18),
        idle_look=LOOKS[rng.integers(len(LOOKS))],
        idle_tint=rng.uniform(0, TINT),
        distractors=tuple(_draw_distractor(rng, size_px, num_frames) for _ in range(rng.integers(2, 4))),
        camera=_draw_camera(rng, kind=setting.camera, side_px=side),
        background_seed=setting.background_seed,
        sprite_seed=int(rng.integers(2**31)),
    )


def draw_setting(rng: np.random.Generator, *, camera: CameraKind) -> Setting:
    """Draw the background of a group whose camera is known."""
    return Setting(camera=camera, background_seed=int(rng.integers(2**31)))


def _draw_slot(rng: np.random.Generator, *, first: int, length: int) -> Slot:
    """Draw a slot anywhere in the `length` frames from `first`."""
    frames = round(length * rng.uniform(*ACTION_SHARE))
    start = first + int(rng.integers(0, length - frames + 1))
    return Slot(
        start=start,
        end=start + frames,
        period=rng.uniform(9, 12),
        phase=rng.uniform(0, 2 * np.pi),
        sense=int(rng.choice([-1, 1])),
    )


def _draw_distractor(rng: np.random.Generator, size_px: Size, num_frames: int) -> Distractor:
    side, size = min(size_px), np.array(size_px)
    spread = tuple(0.38 * size)
    return Distractor(
        wander=_draw_wander(rng, middle_px=size / 2, spread_px=spread, reach_px=0.12 * side, side_px=side),
        radius_px=side * rng.uniform(0.06, 0.10),
        slot=_draw_slot(rng, first=0, length=num_frames),
        motion=MOTIONS[rng.integers(len(MOTIONS))],
    )


def _draw_wander(
    rng: np.random.Generator,
    *,
    middle_px: NDArray[np.float64],
    spread_px: tuple[float, ...],
    reach_px: float,
    side_px: int,
) -> Wander:
    """Draw a path whose centre lies within `spread_px` of the middle and whose reach is at most `reach_px`."""
    x, y = middle_px + np.array(spread_px) * rng.uniform(-1, 1, 2)
    period_x, period_y = rng.uniform(40, 80, 2)
    phase_x, phase_y, angle = rng.uniform(0, 2 * np.pi, 3)
    return Wander(
        centre_px=(float(x), float(y)),
        reach_px=reach_px * rng.uniform(0.5, 1),
        periods=(period_x, period_y),
        phases=(phase_x, phase_y),
        angle=angle,
        fidget=tuple(rng.uniform(0, FIDGET, 3) * [TRAVEL * side_px, TRAVEL * side_px, TURN]),
        fidget_periods=tuple(rng.uniform(9, 14, 3)),
        fidget_phases=tuple(rng.uniform(0, 2 * np.pi, 3)),
    )


def _draw_camera(rng: np.random.Generator, *, kind: CameraKind, side_px: int) -> Camera:
    """Draw a camera that moves the background about as fast as an action moves the actor."""
    return Camera(
        kind=kind,
        direction=rng.uniform(0, 2 * np.pi),
        slow_period=rng.uniform(20, 36),
        pan_px=side_px * rng.uniform(0.05, 0.08),
        zoom=rng.uniform(0.05, 0.08),
        shake_px=side_px * rng.uniform(0.012, 0.02),
        roll=rng.uniform(0.01, 0.02),
        shake_periods=tuple(rng.uniform(7, 14, 3)),
    )


def actor_poses(scene: Scene, acts: tuple[Act, ...]) -> Poses:
    """Poses (T, 4) of the actor in world coordinates: its wandering, plus the motion of each slot's act.

    Raises:
        ValueError: not one act for each slot.
    """
    if len(acts) != len(scene.slots):
        raise ValueError(f"the scene has {len(scene.slots)} slots and {len(acts)} acts; give one act for each slot")
    poses = scene.actor.poses(scene.num_frames)
    for slot, act in zip(scene.slots, acts, strict=True):
        poses[slot.start : slot.end] += _displacement(slot, act.motion, side_px=min(scene.size_px))
    return poses


def distractor_poses(scene: Scene) -> list[Poses]:
    """Poses (T, 4) of each distractor in world coordinates; they know nothing of the acts."""
    paths = []
    for distractor in scene.distractors:
        poses, slot = distractor.wander.poses(scene.num_frames), distractor.slot
        poses[slot.start : slot.end] += _displacement(slot, distractor.motion, side_px=min(scene.size_px))
        paths.append(poses)
    return paths


def _displacement(slot: Slot, motion: Motion, *, side_px: int) -> Poses:
    """What a motion adds to a sprite's pose in the frames of its slot, (end - start, 4)."""
    angle = slot.sense * 2 * np.pi * np.arange(slot.end - slot.start) / slot.period + slot.phase
    travel_px = TRAVEL * side_px
    added = np.zeros((len(angle), 4))
    match motion:
        case "sway":
            added[:, 0] = travel_px * np.sin(angle)
        case "bob":
            added[:, 1] = travel_px * np.sin(angle)
        case "circle":
            added[:, 0], added[:, 1] = travel_px * np.cos(angle), travel_px * np.sin(angle)
        case "spin":
            added[:, 2] = TURN * np.sin(angle)
    return added * slot.fade()[:, None]


def _swing(t: NDArray[np.integer], periods: tuple[float, ...], phases: tuple[float, ...]) -> NDArray[np.float64]:
    """Sines of the frames t (T, 1), one column for each period: (T, number of periods)."""
    return np.sin(2 * np.pi * t / np.array(periods) + np.array(phases))


def _rotations(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrices (T, 2, 2)."""
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)], axis=-2)
