"""Warped flow at 340x256 on one core: its cost against plain flow, and how much of the camera's motion it takes out.

    python -m benchmarks.warped_flow [--clip PATH ...] [--places N] [--pairs N] [--picture PNG]

A few places of each clip, consecutive pairs in each, plain and warped turn about in one process. Time is processor
time, so that other programs disturb it less; compilation is not part of it. Plain flow is what the flow stage runs,
with the work on a frame shared by its two pairs. What remains of the camera's motion is judged by the median length of
the flow of a pair, plain and warped: most of a frame is background. Clips rendered as for the demo, at 96x96, have
known camera motion, so there the homography is compared with it. The cost is also that of smaller frames and of other
variants, of a clip whose camera moves. The last line is one JSON object, whose ``warped_cost_ratio`` is over all real
clips at 340x256.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_args

import cv2
import numpy as np

from pipeline.demo.render import render_clip
from pipeline.demo.scene import CAMERA_KINDS, Act, CameraKind, Scene, draw_scene, draw_setting
from pipeline.media.decode import gray_frames
from pipeline.optical_flow.camera import DEFECTS, CameraParams, camera_motion, find_keypoints, mean_displacement_px
from pipeline.optical_flow.colour import flow_to_rgb
from pipeline.optical_flow.params import DEFAULT_PARAMS, TVL1Params, Variant
from pipeline.optical_flow.solve import choose_solver, solve, solve_video
from pipeline.optical_flow.warped import warped_flow

Array = np.ndarray[Any, np.dtype[Any]]
Result = TypeVar("Result")

WIDTH, HEIGHT = 340, 256
CLIPS = Path(__file__).resolve().parents[2] / "shared/data/clips"
DEFAULT_CLIPS = tuple(
    CLIPS / name
    for name in ("kinetics/demo.mp4", "activitynet/v_GGSY1Qvo990.mp4", "ucf101/v_ApplyEyeMakeup_g01_c01.avi")
)
"""A camera in a hand, one that follows, one that stands before a face. Without them a rendered clip is used."""
MOVING_CLIP = CLIPS / "activitynet/v_GGSY1Qvo990.mp4"
SIZES = ((WIDTH, HEIGHT), (128, 96), (96, 96))
SHOWN_BY_SIZE = ("moved_pairs", "plain_ms_per_pair", "warped_ms_per_pair", "cost_ratio")
LONGEST_FRAMES = 400
RENDERED = 12
"""Clips with known camera motion."""
MODES = {
    "correct": CameraParams(),
    "dense_flow, defects mended": CameraParams(mode="dense_flow"),
    **{f"dense_flow, {name}": CameraParams(mode="dense_flow", defects=frozenset([name])) for name in DEFECTS},
    "dense_flow": CameraParams(mode="dense_flow", defects=frozenset(DEFECTS)),
}


def clip_frames(path: Path, *, width: int = WIDTH, height: int = HEIGHT) -> list[Array]:
    """The first frames of a clip, (H, W) uint8."""
    frames: list[Array] = []
    for frame in gray_frames(path, width=width, height=height):
        frames.append(frame)
        if len(frames) == LONGEST_FRAMES:
            break
    return frames


def windows(frames: Sequence[Array], *, places: int, pairs: int) -> list[Sequence[Array]]:
    """Runs of `pairs` + 1 frames, spread evenly."""
    starts = np.unique(np.linspace(0, max(0, len(frames) - pairs - 1), places).round().astype(int))
    return [frames[start : start + pairs + 1] for start in starts]


def timed(function: Callable[[], Result]) -> tuple[Result, float]:
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def length_px(flow: Array) -> float:
    return float(np.median(np.hypot(*flow)))


def rendered_scene(seed: int, *, camera: CameraKind, size_px: int) -> Scene:
    """A scene as the demo has them."""
    rng = np.random.default_rng(seed)
    setting = draw_setting(rng, camera=camera)
    return draw_scene(rng, size_px=(size_px, size_px), num_frames=40, setting=setting)


def gray_clip(scene: Scene) -> list[Array]:
    frames = render_clip(scene, (Act("circle", "green"),))
    return [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]


def rendered_frames(size_px: int = HEIGHT) -> list[Array]:
    """A clip like the demo's with a camera that shakes."""
    return gray_clip(rendered_scene(0, camera="shake", size_px=size_px))


def draw(runs: list[Sequence[Array]]) -> Array:
    """A row a run: the first frame, plain flow, warped flow in the same colours; (H, W, 3) RGB."""
    rows = []
    for frames in runs:
        plain = solve(frames[0], frames[1])
        warped = next(warped_flow(frames[:2], choose_solver())).flow
        scale_px = max(2.0, float(np.percentile(np.hypot(*plain), 99)))
        pictures = [flow_to_rgb(flow, max_px=scale_px) for flow in (plain, warped)]
        rows.append(np.hstack([cv2.cvtColor(frames[0], cv2.COLOR_GRAY2RGB), *pictures]))
    return np.vstack(rows)


def measure(runs: list[Sequence[Array]], tvl1: TVL1Params = DEFAULT_PARAMS) -> dict[str, float]:
    """Cost and residuals over the runs of one clip; seconds are of all pairs."""
    seconds = dict.fromkeys(("plain", "warped", "keypoints", "motion"), 0.0)
    plain_px, warped_px, motion_px, inliers = [], [], [], []
    params, solver = CameraParams(), choose_solver(params=tvl1)
    for frames in runs:
        plain, spent = timed(lambda: list(solve_video(frames, params=tvl1)))  # noqa: B023 - called at once
        seconds["plain"] += spent
        warped, spent = timed(lambda: list(warped_flow(frames, solver)))  # noqa: B023
        seconds["warped"] += spent
        keypoints, spent = timed(lambda: [find_keypoints(frame, params=params) for frame in frames])  # noqa: B023
        seconds["keypoints"] += spent
        for prev, next, before, after, flow in zip(
            frames[:-1], frames[1:], keypoints[:-1], keypoints[1:], plain, strict=True
        ):
            _, spent = timed(
                lambda: camera_motion(prev, next, flow, before=before, after=after, params=params)  # noqa: B023
            )
            seconds["motion"] += spent
        plain_px += [length_px(flow) for flow in plain]
        warped_px += [length_px(pair.flow) for pair in warped]
        motion_px += [pair.motion_px for pair in warped]
        inliers += [pair.inliers for pair in warped]
    pairs = len(plain_px)
    moved = np.array(motion_px) > 0
    return {
        "pairs": pairs,
        **{f"{part}_ms_per_pair": 1e3 * spent / pairs for part, spent in seconds.items()},
        "cost_ratio": seconds["warped"] / seconds["plain"],
        "moved_pairs": int(moved.sum()),
        "median_inliers": float(np.median(inliers)),
        "camera_motion_px": float(np.mean(motion_px)),
        "plain_median_flow_px": float(np.mean(plain_px)),
        "warped_median_flow_px": float(np.mean(warped_px)),
    }


def rendered(params: CameraParams, *, clips: int, pairs: int, size_px: int = 96) -> dict[str, dict[str, float]]:
    """Errors against the truth by kind of camera, on clips as the demo has them: actor, distractors, quick cameras."""
    errors: dict[str, dict[str, list[float]]] = {}
    for seed in range(clips):
        scene = rendered_scene(seed, camera=CAMERA_KINDS[seed % len(CAMERA_KINDS)], size_px=size_px)
        frames = gray_clip(scene)
        truths = scene.camera.homographies(len(frames), size_px=scene.size_px)
        start = max(0, (len(frames) - pairs - 1) // 2)
        row = errors.setdefault(scene.camera.kind, {"camera_px": [], "corner_error_px": [], "plain": [], "warped": []})
        found = warped_flow(frames[start : start + pairs + 1], choose_solver(), params=params)
        for t, pair in enumerate(found, start):
            row["camera_px"].append(mean_displacement_px(truths[t], scene.size_px))
            row["corner_error_px"].append(corner_error_px(pair.homography, truths[t], size_px))
            row["plain"].append(length_px(solve(frames[t], frames[t + 1])))
            row["warped"].append(length_px(pair.flow))
    return {
        kind: {"pairs": len(row["plain"]), **{name: float(np.mean(values)) for name, values in row.items()}}
        for kind, row in sorted(errors.items())
    }


def corner_error_px(found: Array, truth: Array, size_px: int) -> float:
    """Distance of the frame's corners under two homographies, mean of the four."""
    end = size_px - 1.0
    corners = np.array([[[0, 0]], [[end, 0]], [[0, end]], [[end, end]]])
    apart = cv2.perspectiveTransform(corners, found) - cv2.perspectiveTransform(corners, truth)
    return float(np.linalg.norm(apart, axis=-1).mean())


def default_runs(clips: Sequence[Path], *, places: int, pairs: int) -> dict[str, list[Sequence[Array]]]:
    """Runs of frames by clip: of the clips given, else of those that are here, else of a rendered one."""
    there = clips or [path for path in DEFAULT_CLIPS if path.is_file()]
    if missing := [str(path) for path in there if not path.is_file()]:
        raise SystemExit(f"there is no clip {missing[0]}")
    frames = {path.name: clip_frames(path) for path in there} or {"rendered": rendered_frames()}
    return {name: windows(each, places=places, pairs=pairs) for name, each in frames.items()}


def cost(runs: dict[str, list[Sequence[Array]]]) -> tuple[dict[str, dict[str, float]], float]:
    """What `measure` finds of each clip, printed; and the cost of warped flow to plain flow's over all of them."""
    cv2.setNumThreads(1)
    solve(*np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH), np.uint8))  # compiles
    rows = {}
    for name, each in runs.items():
        rows[name] = measure(each)
        print(name, json.dumps({what: round(value, 3) for what, value in rows[name].items()}))
    warped, plain = (
        sum(row[f"{kind}_ms_per_pair"] * row["pairs"] for row in rows.values()) for kind in ("warped", "plain")
    )
    return rows, warped / plain


def cost_by_size(clip: Path | None, *, places: int, pairs: int) -> list[dict[str, Any]]:
    """Cost by size and variant where nearly every pair is solved twice: of a moving clip, else of a rendered one."""
    rows = []
    for width, height in SIZES:
        frames = clip_frames(clip, width=width, height=height) if clip else rendered_frames(min(width, height))
        runs = windows(frames, places=places, pairs=pairs)
        for variant in get_args(Variant):
            tvl1 = TVL1Params(variant=variant)
            solve(frames[0], frames[1], params=tvl1)  # compiles
            row: dict[str, Any] = {"width": frames[0].shape[1], "height": height, "variant": variant}
            rows.append(row | measure(runs, tvl1))
            print(*row.values(), *(f"{what} {rows[-1][what]:.2f}" for what in SHOWN_BY_SIZE))
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Cost and residual motion of warped flow on one core at 340x256.")
    parser.add_argument("--clip", type=Path, nargs="+", help="video files")
    parser.add_argument("--places", type=int, default=4, help="places a clip, spread evenly")
    parser.add_argument("--pairs", type=int, default=15, help="consecutive pairs a place")
    parser.add_argument("--picture", type=Path, help="PNG of frames, plain and warped flow to write")
    arguments = parser.parse_args(argv)
    runs = default_runs(arguments.clip or [], places=arguments.places, pairs=arguments.pairs)
    rows, ratio = cost(runs)
    if arguments.picture:
        picture = np.vstack([draw(each) for each in runs.values()])
        cv2.imwrite(str(arguments.picture), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    truth = {name: rendered(params, clips=RENDERED, pairs=arguments.pairs) for name, params in MODES.items()}
    for name, kinds in truth.items():
        for kind, row in kinds.items():
            print(f"rendered, {kind}, {name}", json.dumps({what: round(value, 3) for what, value in row.items()}))
    sizes = cost_by_size(MOVING_CLIP if MOVING_CLIP.is_file() else None, places=arguments.places, pairs=arguments.pairs)
    result = {
        "warped_cost_ratio": ratio,
        "by_size": sizes,
        "width": WIDTH,
        "height": HEIGHT,
        "clips": rows,
        "rendered": truth,
    }
    result["versions"] = {"opencv": cv2.__version__} | {name: version(name) for name in ("numba", "numpy")}
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
