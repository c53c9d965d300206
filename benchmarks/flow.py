"""TV-L1 at 340x256 on one core: our numba solver against OpenCV's CPU DualTVL1.

    python -m benchmarks.flow [--clip PATH] [--pairs N]

Pairs are spread evenly over the clip. Both solvers run in one process, turn about on the same pair, OpenCV with one
thread; time is processor time, so that other programs disturb it less. Compilation is measured once in a fresh process
without a cache and is not part of the rates. The profile runs the solver's compiled parts from Python, a clock around
each. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.optical_flow import tvl1_numba
from pipeline.optical_flow.pyramid_numba import enlarge
from pipeline.optical_flow.solve import DEFAULT_PARAMS, solve

Array = np.ndarray[Any, np.dtype[Any]]

WIDTH, HEIGHT = 340, 256
OURS_REPEATED = 3  # ours is short: more runs a pair steady its mean
ROOT = Path(__file__).resolve().parent.parent
DEFAULT_CLIP = ROOT.parent / "shared/data/clips/ucf101/v_ApplyEyeMakeup_g01_c01.avi"


def clip_frames(path: Path) -> Iterator[Array]:
    """Grey frames (H, W) uint8 of a video, resized."""
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise SystemExit(f"cannot open the clip {path}")
    while True:
        there, frame = video.read()
        if not there:
            break
        yield cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), (WIDTH, HEIGHT))
    video.release()


def grey(image: Array) -> Array:
    """The image stretched to 0-255."""
    return (image - image.min()) * (255 / np.ptp(image))


def synthetic_frames(count: int = 40) -> Iterator[Array]:
    """A texture that pans by 2.5 px a frame under a swaying patch."""
    noise = np.random.default_rng(0).normal(size=(HEIGHT + 200, WIDTH + 200)).astype(np.float32)
    texture = grey(cv2.GaussianBlur(noise, (0, 0), 2.0))
    patch = grey(cv2.GaussianBlur(noise[::-1], (0, 0), 3.0))[:90, :90]
    for t in range(count):
        pan = np.array([[1, 0, -2.5 * t], [0, 1, -0.8 * t]])
        frame = cv2.warpAffine(texture, pan, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_WRAP)
        left = 120 + round(40 * np.sin(t / 4))
        frame[80:170, left : left + 90] = patch
        yield np.clip(frame, 0, 255).astype(np.uint8)


def spread_pairs(frames: list[Array], count: int) -> list[tuple[Array, Array]]:
    starts = np.unique(np.linspace(0, len(frames) - 2, count).round().astype(int))
    return [(frames[start], frames[start + 1]) for start in starts]


def timed(function: Callable[[], Array]) -> tuple[Array, float]:
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def compile_seconds() -> float:
    """Time to the first flow of a fresh process without a compilation cache, less the imports."""
    code = (
        "import time, numpy as np; from pipeline.optical_flow import tvl1_numba, solve\n"
        "z = np.zeros((32, 32), np.uint8); start = time.process_time(); solve.solve(z, z)\n"
        "print(time.process_time() - start)"
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"NUMBA_CACHE_DIR": cache}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
    return float(done.stdout)


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def measure(pairs: list[tuple[Array, Array]]) -> dict[str, float]:
    """Rates of both solvers and how far their flows are apart."""
    cv2.setNumThreads(1)
    solve(*pairs[0])
    ours_seconds = opencv_seconds = 0.0
    differences = []
    for number, (prev, next) in enumerate(pairs):
        opencv, seconds = timed(lambda: solve(prev, next, backend="opencv"))  # noqa: B023 - called at once
        opencv_seconds += seconds
        ours = opencv
        for _ in range(OURS_REPEATED):
            ours, repeat_seconds = timed(lambda: solve(prev, next, backend="numba"))  # noqa: B023
            ours_seconds += repeat_seconds / OURS_REPEATED
        differences.append(float(np.hypot(*(ours - opencv)).mean()))
        speed = float(np.hypot(*opencv).mean())
        print(f"pair {number}: mean flow {speed:.2f} px, OpenCV {seconds:.3f} s, ours {repeat_seconds:.4f} s, "
              f"difference {differences[-1]:.4f} px")  # fmt: skip
    return {
        "ratio": opencv_seconds / ours_seconds,
        "mean_difference_px": float(np.mean(differences)),
        "max_pair_difference_px": max(differences),
        "ours_pairs_per_second": len(pairs) / ours_seconds,
        "opencv_pairs_per_second": len(pairs) / opencv_seconds,
    }


def profile(pairs: list[tuple[Array, Array]]) -> dict[str, float]:
    """Seconds of each part of our solver over the pairs, and pixel-iterations: `_solve_level` with a clock."""
    p = DEFAULT_PARAMS
    step = [np.float32(value) for value in (p.lambda_ * p.theta, p.tau, p.tau / p.theta)]
    spent = dict.fromkeys(("prepare", "warp", "median", "iterate"), 0.0)
    pixel_iterations = 0

    def clocked(part: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        start = time.process_time()
        result = function(*arguments, **keywords)
        spent[part] += time.process_time() - start
        return result

    for frames in pairs:
        prev, next = (clocked("prepare", tvl1_numba.prepare, frame, params=p) for frame in frames)
        flow = np.zeros((2, *prev[-1].shape), np.float32)
        for prev_level, next_level in zip(prev[::-1], next[::-1], strict=True):
            height, width = prev_level.shape
            if flow.shape[1:] != (height, width):
                flow = clocked("prepare", enlarge, flow, (height, width), scale_step=p.scale_step)
            size = tvl1_numba._plane_size(height, width)
            stride = size // (height + 2)
            planes = tvl1_numba._aligned_zeros(12 * size).reshape(12, size)
            inside = planes.reshape(12, height + 2, stride)[:, 1:-1, :width]
            inside[:2], inside[tvl1_numba._PREV] = flow, prev_level
            image = clocked("prepare", tvl1_numba._with_gradients, next_level)
            columns = np.empty((5, width + 4), np.float32)
            for _ in range(p.warps):
                clocked("warp", tvl1_numba._warp, image, planes, height, width, stride)
                for iteration in range(p.outer_iterations * p.inner_iterations):
                    if iteration % p.inner_iterations == 0:
                        for u in planes[:2]:
                            clocked("median", tvl1_numba._median, u, planes[-1], columns, height, width, stride)
                    error = clocked("iterate", tvl1_numba._iterate, planes, height, width, stride, *step)
                    pixel_iterations += height * width
                    if error <= p.epsilon**2 * height * width:
                        break
            flow = inside[:2].copy()
    return {f"{part}_ms_per_pair": 1e3 * seconds / len(pairs) for part, seconds in spent.items()} | {
        "iterate_ns_per_pixel": 1e9 * spent["iterate"] / pixel_iterations,
        "pixel_iterations_per_pair": pixel_iterations / len(pairs),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Our TV-L1 against OpenCV's on one core at 340x256.")
    parser.add_argument("--clip", type=Path, help="video file (default: a UCF-101 clip, else a synthetic one)")
    parser.add_argument("--pairs", type=int, default=12, help="pairs, spread over the clip")
    arguments = parser.parse_args(argv)
    clip = arguments.clip or (DEFAULT_CLIP if DEFAULT_CLIP.exists() else None)
    frames = list(clip_frames(clip) if clip else synthetic_frames())
    if len(frames) < 2 or arguments.pairs < 1:
        raise SystemExit(f"{len(frames)} frames and {arguments.pairs} pairs: at least 2 frames and 1 pair are needed")
    pairs = spread_pairs(frames, arguments.pairs)
    name = clip.name if clip else "synthetic panning texture"
    print(f"{name}: {len(pairs)} pairs of {WIDTH}x{HEIGHT}")
    versions = {name: version(name) for name in ("llvmlite", "numba", "numpy")} | {"opencv": cv2.__version__}
    result: dict[str, Any] = measure(pairs)
    result["profile"] = profile(pairs)
    result |= {"clip": name, "width": WIDTH, "height": HEIGHT, "pairs": len(pairs), "cpu": cpu_model()}
    result |= {"versions": versions | {"python": platform.python_version()}, "compile_seconds": compile_seconds()}
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
