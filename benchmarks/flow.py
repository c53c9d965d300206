"""TV-L1 at 340x256: every backend and variant that runs here, on one core and on all, beside OpenCV's CPU DualTVL1.

    python -m benchmarks.flow [--clip PATH] [--pairs N]
    python -m benchmarks.flow --accuracy [--truth DIR]      errors against ground truth
    python -m benchmarks.flow --pictures DIR [--truth DIR]  flow in colour: truth, OpenCV's, ours, difference

Pairs are spread evenly over the clip. numba and OpenCV run in one process, turn about on the same pair, OpenCV with one
thread; time on one core is processor time, so that other programs disturb it less, and time on all cores and on a
CUDA device is wall time. Compilation is measured once in a fresh process without a cache and is not part of the rates.
From the file to the store is all that the flow stage does, by the wall clock.
The profile runs the solver's compiled parts from Python, a clock around each. The cost of warped flow is that of
`python -m benchmarks.warped_flow`, on fewer pairs. What cannot run here has a row that says
so. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_args

import cv2
import numpy as np
import torch

from benchmarks import warped_flow
from benchmarks.flow_truth import accuracy, draw, pairs_with_truth
from pipeline.media.decode import gray_frames
from pipeline.optical_flow import tvl1_numba
from pipeline.optical_flow.params import DEFAULT_PARAMS, TVL1Params, Variant
from pipeline.optical_flow.pyramid_numba import enlarge
from pipeline.optical_flow.quantise import clipped_fraction, quantise
from pipeline.optical_flow.solve import Backend, solve, solve_video
from pipeline.stores.flow import FlowStore

Array = np.ndarray[Any, np.dtype[Any]]
Pairs = list[tuple[Array, Array]]
Result = TypeVar("Result")

WIDTH, HEIGHT = 340, 256
OURS_REPEATED = 3  # ours is short: more runs a pair steady its mean
TORCH_PAIRS = 4  # on a CPU, where torch takes a second a pair
GPU_PAIRS = 512
STORED_PAIRS = 60
WARPED_PLACES, WARPED_PAIRS = 4, 5
ROOT = Path(__file__).resolve().parent.parent
DEFAULT_CLIP = ROOT.parent / "shared/data/clips/ucf101/v_ApplyEyeMakeup_g01_c01.avi"
DEFAULT_TRUTH = ROOT.parent / "shared/data/flow"
NO_GPU = "not measured: there is no CUDA device"


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


def spread_pairs(frames: list[Array], count: int) -> Pairs:
    starts = np.unique(np.linspace(0, len(frames) - 2, count).round().astype(int))
    return [(frames[start], frames[start + 1]) for start in starts]


def timed(function: Callable[[], Result], clock: Callable[[], float] = time.process_time) -> tuple[Result, float]:
    start = clock()
    result = function()
    return result, clock() - start


def compile_seconds() -> float:
    """Time to the first flow of a fresh process without a compilation cache, less the imports."""
    code = (
        "import time, numpy as np; from pipeline.optical_flow import tvl1_numba, solve\n"
        "z = np.zeros((32, 32), np.uint8); start = time.process_time(); solve.solve(z, z, backend='numba')\n"
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


def measure(pairs: Pairs) -> dict[str, float]:
    """Rates of numba's and OpenCV's solver on one core and how far their flows are apart."""
    cv2.setNumThreads(1)
    solve(*pairs[0], backend="numba")
    ours_seconds = opencv_seconds = 0.0
    differences, ratios = [], []
    for number, (prev, next) in enumerate(pairs):
        opencv, seconds = timed(partial(solve, prev, next, backend="opencv"))
        opencv_seconds += seconds
        repeats = [timed(partial(solve, prev, next, backend="numba")) for _ in range(OURS_REPEATED)]
        pair_seconds = sum(repeat for _, repeat in repeats) / OURS_REPEATED
        ours_seconds += pair_seconds
        ratios.append(seconds / pair_seconds)
        differences.append(difference_px(repeats[0][0], opencv))
        speed = float(np.hypot(*opencv).mean())
        print(f"pair {number}: mean flow {speed:.2f} px, OpenCV {seconds:.3f} s, ours {pair_seconds:.4f} s, "
              f"ratio {ratios[-1]:.1f}, difference {differences[-1]:.4f} px")  # fmt: skip
    return {
        "ratio": opencv_seconds / ours_seconds,
        "smallest_pair_ratio": min(ratios),
        "largest_pair_ratio": max(ratios),
        "mean_difference_px": float(np.mean(differences)),
        "max_pair_difference_px": max(differences),
        "ours_pairs_per_second": len(pairs) / ours_seconds,
        "opencv_pairs_per_second": len(pairs) / opencv_seconds,
    }


def difference_px(flow: Array, other: Array) -> float:
    """Mean endpoint difference of flows (..., 2, H, W)."""
    return float(np.hypot(*np.moveaxis(flow - other, -3, 0)).mean())


def rows(pairs: Pairs, one_core: dict[str, float]) -> list[dict[str, Any]]:
    """One row a backend, variant and device; `mean_difference_px` is to OpenCV, or to numba for a CUDA variant."""
    done: list[dict[str, Any]] = [
        row("opencv", "opencv-cpu", "one core", one_core["opencv_pairs_per_second"]),
        row("numba", "opencv-cpu", "one core", one_core["ours_pairs_per_second"], one_core["mean_difference_px"]),
    ]
    all_cores = f"{len(os.sched_getaffinity(0))} cores" if hasattr(os, "sched_getaffinity") else "all cores"
    done.append(row("opencv", "opencv-cpu", all_cores, threaded_rate(pairs, "opencv", DEFAULT_PARAMS, repeated=1)))
    for variant in get_args(Variant):
        params = TVL1Params(variant=variant)
        if variant != "opencv-cpu":
            solve(*pairs[0], backend="numba", params=params)
            seconds = sum(timed(partial(solve, *pair, backend="numba", params=params))[1] for pair in pairs)
            done.append(row("numba", variant, "one core", len(pairs) / seconds))
        done.append(row("numba", variant, all_cores, threaded_rate(pairs, "numba", params, repeated=8)))
    for variant in get_args(Variant):
        done.append(torch_row(pairs[:: max(1, len(pairs) // TORCH_PAIRS)], variant))
    for backend in get_args(Backend)[-2:]:
        done.extend(gpu_row(pairs, backend, variant) for variant in get_args(Variant))
    return done


def row(
    backend: str, variant: str, device: str, rate: float | None, difference: float | None = None, note: str = ""
) -> dict[str, Any]:
    """A row of the table, printed."""
    values = {"pairs_per_second": rate, "mean_difference_px": difference, "note": note or None}
    shown = "" if rate is None else f"{rate:9.2f} pairs/s"
    apart = "" if difference is None else f"  difference {difference:.4f} px"
    print(f"{backend:7s} {variant:14s} {device:9s} {shown}{apart}{note}")
    return {"backend": backend, "variant": variant, "device": device} | {
        name: value for name, value in values.items() if value is not None or name == "pairs_per_second"
    }


def threaded_rate(pairs: Pairs, backend: Backend, params: TVL1Params, *, repeated: int) -> float:
    """Pairs a second by the wall clock, a thread a core, each with pairs of its own."""
    work = pairs * repeated
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as pool:
        start = time.perf_counter()
        list(pool.map(lambda pair: solve(*pair, backend=backend, params=params), work))
        return len(work) / (time.perf_counter() - start)


def torch_row(pairs: Pairs, variant: Variant) -> dict[str, Any]:
    """torch on one core; on a machine with a CUDA device it takes that, and `gpu_row` measures it."""
    if torch.cuda.is_available():
        return row("torch", variant, "one core", None, note="not measured: torch takes the CUDA device")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    params = TVL1Params(variant=variant)
    prev, next = (np.stack(frames) for frames in zip(*pairs, strict=True))
    flow, seconds = timed(lambda: solve(prev, next, backend="torch", params=params))
    torch.set_num_threads(threads)
    reference = solve(prev, next, backend="opencv" if variant == "opencv-cpu" else "numba", params=params)
    return row("torch", variant, "one core", len(prev) / seconds, difference_px(flow, reference))


def gpu_row(pairs: Pairs, backend: Backend, variant: Variant) -> dict[str, Any]:
    """One large batch, from frames in the host's memory to flow there."""
    if not torch.cuda.is_available():
        return row(backend, variant, "cuda", None, note=NO_GPU)
    params = TVL1Params(variant=variant)
    work = (pairs * (GPU_PAIRS // len(pairs) + 1))[:GPU_PAIRS]
    prev, next = (np.stack(frames) for frames in zip(*work, strict=True))
    solve(prev, next, backend=backend, params=params)  # compiles, and fills the caching allocator
    flow, seconds = timed(lambda: solve(prev, next, backend=backend, params=params), time.perf_counter)
    expected = solve(*pairs[0], backend="opencv" if variant == "opencv-cpu" else "numba", params=params)
    return row(backend, variant, torch.cuda.get_device_name(), len(work) / seconds, difference_px(flow[0], expected))


def from_file(clip: Path) -> dict[str, float]:
    """A second by the wall clock: frames decoded; pairs from the file to flow, and from the file to the store."""
    frames, decoding = timed(lambda: np.stack(list(gray_frames(clip, width=WIDTH, height=HEIGHT))), time.perf_counter)
    count, seconds = timed(
        lambda: sum(1 for _ in solve_video(gray_frames(clip, width=WIDTH, height=HEIGHT))), time.perf_counter
    )
    _, storing = timed(partial(store, clip), time.perf_counter)
    result = {
        "decode_frames_per_second": len(frames) / decoding,
        "file_to_flow_pairs_per_second": count / seconds,
        "file_to_store_pairs_per_second": count / storing,
    } | after_solving(frames[: STORED_PAIRS + 1])
    print(json.dumps({name: round(value, 2) for name, value in result.items()}))
    return result


def store(clip: Path) -> None:
    """All that the flow stage does to a video: decode, solve, quantise, compress, write."""
    with tempfile.TemporaryDirectory() as folder:
        fields = quantised(solve_video(gray_frames(clip, width=WIDTH, height=HEIGHT)))
        FlowStore(Path(folder)).write("0" * 32, fields, describe=lambda count: {"frames": count})


def quantised(flows: Iterable[Array]) -> Iterator[Array]:
    for flow in flows:
        clipped_fraction(flow)
        yield quantise(flow)


def after_solving(frames: Array) -> dict[str, float]:
    """Processor time a pair takes when it is solved, in ms, and its bytes: what bounds a job whose GPU is fast."""
    flows = list(solve_video(frames))
    list(quantised(flows[:1]))  # compiles
    fields, quantising = timed(lambda: list(quantised(flows)))
    with tempfile.TemporaryDirectory() as folder:
        arrays = FlowStore(Path(folder))
        _, writing = timed(lambda: arrays.write("0" * 32, fields, describe=lambda count: {"frames": count}))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        "quantise_ms_per_pair": 1e3 * quantising / len(fields),
        "store_ms_per_pair": 1e3 * writing / len(fields),
        "stored_bytes_per_pair": size / len(fields),
    }


def profile(pairs: Pairs) -> dict[str, float]:
    """Seconds of each part of numba's solver over the pairs, and pixel-iterations: `_relax` with a clock."""
    p = DEFAULT_PARAMS
    steps = [np.float32(value) for value in (p.lambda_ * p.theta, p.tau, p.tau / p.theta)]
    spent = dict.fromkeys(("prepare", "warp", "median", "iterate"), 0.0)
    pixel_iterations = 0

    def clocked(part: str, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        result, seconds = timed(partial(function, *arguments, **keywords))
        spent[part] += seconds
        return result

    for frames in pairs:
        prev, next = (clocked("prepare", tvl1_numba.prepare, frame, params=p) for frame in frames)
        flow = np.zeros((2, *prev[-1].shape), np.float32)
        for prev_level, next_level in zip(prev[::-1], next[::-1], strict=True):
            height, width = prev_level.shape
            if flow.shape[1:] != (height, width):
                flow = clocked("prepare", enlarge, flow, (height, width), params=p)
            plane = tvl1_numba._plane_size(height, width)
            size = (height, width, plane // (height + 2))
            planes = tvl1_numba._aligned_zeros(12 * plane).reshape(12, plane)
            inside = planes.reshape(12, height + 2, size[2])[:, 1:-1, :width]
            inside[:2], inside[tvl1_numba._PREV] = flow, prev_level
            image = clocked("prepare", tvl1_numba.with_gradients, next_level, False)
            columns = np.empty((5, width + 4), np.float32)
            data = (planes[:2], planes[tvl1_numba._PREV], planes[tvl1_numba._GX : tvl1_numba._RHO + 1])
            for _ in range(p.warps):
                clocked("warp", tvl1_numba.warp, image, *data, *size, np.float32(p.discretisation.cubic))
                for iteration in range(p.iterations):
                    if iteration % p.inner_iterations == 0:
                        for u in planes[:2]:
                            clocked("median", tvl1_numba._median, u, planes[-1], columns, *size)
                    error = clocked("iterate", tvl1_numba._iterate, planes, *size, *steps)
                    pixel_iterations += height * width
                    if error <= p.threshold(height, width):
                        break
            flow = inside[:2].copy()
    return {f"{part}_ms_per_pair": 1e3 * seconds / len(pairs) for part, seconds in spent.items()} | {
        "iterate_ns_per_pixel": 1e9 * spent["iterate"] / pixel_iterations,
        "pixel_iterations_per_pair": pixel_iterations / len(pairs),
    }


def speed(given: Path | None, count: int) -> dict[str, Any]:
    """Everything but accuracy; of the clip given, or of those that are here, or of synthetic frames."""
    clip = given or (DEFAULT_CLIP if DEFAULT_CLIP.exists() else None)
    frames = list(clip_frames(clip) if clip else synthetic_frames())
    if len(frames) < 2 or count < 1:
        raise SystemExit(f"{len(frames)} frames and {count} pairs: at least 2 frames and 1 pair are needed")
    pairs = spread_pairs(frames, count)
    name = clip.name if clip else "synthetic panning texture"
    print(f"{name}: {len(pairs)} pairs of {WIDTH}x{HEIGHT}")
    result: dict[str, Any] = measure(pairs)
    result |= {"rows": rows(pairs, result), "profile": profile(pairs)}
    result |= from_file(clip) if clip else {}
    runs = warped_flow.default_runs([given] if given else [], places=WARPED_PLACES, pairs=WARPED_PAIRS)
    result["warped_cost_ratio"] = warped_flow.cost(runs)[1]
    result |= {"clip": name, "width": WIDTH, "height": HEIGHT, "pairs": len(pairs), "cpu": cpu_model()}
    versions = {name: version(name) for name in ("llvmlite", "numba", "numpy", "torch")} | {"opencv": cv2.__version__}
    result |= {"versions": versions | {"python": platform.python_version()}, "compile_seconds": compile_seconds()}
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Our TV-L1 solvers and OpenCV's at 340x256.")
    parser.add_argument("--clip", type=Path, help="video file (default: a UCF-101 clip, else a synthetic one)")
    parser.add_argument("--pairs", type=int, default=12, help="pairs, spread over the clip")
    parser.add_argument("--accuracy", action="store_true", help="errors against ground truth, in place of speed")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="draw the pairs with ground truth into this folder"
    )
    parser.add_argument("--truth", type=Path, default=DEFAULT_TRUTH, help="folder with middlebury/ and flyingchairs/")
    arguments = parser.parse_args(argv)
    if not (arguments.accuracy or arguments.pictures):
        print(json.dumps(speed(arguments.clip, arguments.pairs), sort_keys=True))
        return
    if not arguments.truth.is_dir():
        raise SystemExit(f"there is no folder {arguments.truth} with pairs whose flow is known; give it with --truth")
    pairs = pairs_with_truth(arguments.truth)
    result: dict[str, Any] = {}
    if arguments.accuracy:
        result["accuracy"] = accuracy(pairs)
    if arguments.pictures:
        result["pictures"] = [str(path) for path in draw(pairs, arguments.pictures)]
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
