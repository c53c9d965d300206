"""Optical flow of a pair, of a batch of pairs, or of a video: the one place where algorithm and backend are chosen.

Shapes: B pairs, H W rows and columns. Flow is (2, H, W) float32 in pixels, channel 0 = x, from `prev` to `next`.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.optical_flow.pairs import check_step
from pipeline.optical_flow.params import DEFAULT_PARAMS, TVL1Params

Array = np.ndarray[Any, np.dtype[Any]]
Flow = np.ndarray[Any, np.dtype[np.float32]]
Algorithm = Literal["tvl1"]
Backend = Literal["auto", "numba", "opencv", "torch", "triton"]

MINIMUM_SIDE_PX = 3
"""The centred gradient needs a neighbour on either side. (Below 16 px a side the pyramid is a single level.)"""


class Solver(NamedTuple):
    """What a backend offers: the work on frames alone, done once a frame in a video, and that on prepared frames.

    It takes frames as they are; `checked` says which are right.
    """

    prepare: Callable[[Array], Sequence[Any]]
    """Frames (F, H, W) -> one prepared frame each."""
    solve_prepared: Callable[[Sequence[Any], Sequence[Any]], Flow]
    """B prepared frames and B that come next -> flow (B, 2, H, W)."""
    pairs_at_once: Callable[[int, int], int]
    """Pairs of H, W that are worth solving together, and that bound the memory."""


def solve(
    prev: Array,
    next: Array,
    *,
    algorithm: Algorithm = "tvl1",
    backend: Backend = "auto",
    params: TVL1Params = DEFAULT_PARAMS,
) -> Flow:
    """Flow (2, H, W), or (B, 2, H, W) for batches, float32 in pixels, channel 0 = x.

    prev, next: grey frames (H, W) or (B, H, W) of equal shape, uint8, or floating in 0-255 as well: in 0-1 they are
    nearly black, which is no error, and next to nothing moves. `auto` is triton where there is a CUDA device and
    triton, else numba; torch takes the best device it finds, of several CUDA devices the first. Large batches go in
    parts.

    Raises ValueError for frames of another rank, dtype, range, or of different shapes, for NaN or infinite values, for
    frames with a side under 3 px, for an algorithm, backend or parameter that there is not, and for a backend that
    cannot run here or does not have the variant; OSError where the memory of the GPU is too small.
    """
    solver = choose_solver(algorithm=algorithm, backend=backend, params=params)
    prev, next = np.asarray(prev), np.asarray(next)
    _check_frames(prev, "prev", ranks=(2, 3))
    _check_frames(next, "next", ranks=(2, 3))
    if prev.shape != next.shape:
        raise ValueError(f"prev has shape {prev.shape} and next {next.shape}; flow needs frames of one shape")
    if prev.ndim == 2:
        return solver.solve_prepared(solver.prepare(prev[None]), solver.prepare(next[None]))[0]
    flow = np.empty((prev.shape[0], 2, *prev.shape[1:]), np.float32)
    at_once = solver.pairs_at_once(*prev.shape[1:])
    for start in range(0, len(prev), at_once):
        part = slice(start, start + at_once)
        flow[part] = solver.solve_prepared(solver.prepare(prev[part]), solver.prepare(next[part]))
    return flow


def solve_video(
    frames: Iterable[Array],
    *,
    step: int = 1,
    reverse: bool = False,
    algorithm: Algorithm = "tvl1",
    backend: Backend = "auto",
    params: TVL1Params = DEFAULT_PARAMS,
) -> Iterator[Flow]:
    """Flow (2, H, W) from every frame t to frame t + `step`, or with `reverse` from t + `step` to t.

    T frames give T - step flows, which overlap; fewer frames give none. Values are those of `solve` on each pair; the
    work that depends on one frame is done once. numba and opencv hold `step` + 1 frames and read no further than the
    flow that is asked for; torch and triton solve some pairs together, and hold as many frames more.
    Raises ValueError for a step below 1, and as `solve` does, naming the frame, when that frame is reached.
    """
    check_step(step)
    return _spaced(checked(frames), choose_solver(algorithm=algorithm, backend=backend, params=params), step, reverse)


def resolved_backend(backend: Backend) -> Backend:
    """The backend that runs where `backend` is asked for: `auto` is triton where it can run, else numba."""
    if backend != "auto":
        return backend
    return "triton" if _missing_for_triton() is None else "numba"


def jobs_share_a_gpu(backend: Backend, *, promised: bool, devices: Path = Path("/dev")) -> bool:
    """Whether flow jobs solve on a CUDA device, one that is here or, if so `promised`, where they will run.

    Here it is what `resolved_backend` goes by, but torch is only asked where the driver has put a device's file.
    """
    if backend in ("numba", "opencv") or (backend != "torch" and find_spec("triton") is None):
        return False
    return promised or (any(devices.glob("nvidia[0-9]*")) and _cuda_is_there())


def _spaced(frames: Iterator[Array], solver: Solver, step: int, reverse: bool) -> Iterator[Flow]:
    held: list[Any] = []  # prepared frames from the first one on whose flow is to come
    for first in frames:
        more = islice(frames, solver.pairs_at_once(*first.shape) - 1)
        held.extend(solver.prepare(np.stack([first, *more])))
        count = len(held) - step
        if count > 0:
            earlier, later = held[:count], held[step:]
            yield from solver.solve_prepared(later, earlier) if reverse else solver.solve_prepared(earlier, later)
            del held[:count]


def checked(frames: Iterable[Array]) -> Iterator[Array]:
    """The frames of a video, (H, W). Raises ValueError for one that `solve` would refuse, when it is reached."""
    shape: tuple[int, ...] | None = None
    for index, frame in enumerate(map(np.asarray, frames)):
        _check_frames(frame, f"frame {index}", ranks=(2,))
        if shape is not None and frame.shape != shape:
            raise ValueError(
                f"frame {index} has shape {frame.shape} and those before it {shape}; resize them to one shape"
            )
        shape = frame.shape
        yield frame


def choose_solver(
    *, algorithm: Algorithm = "tvl1", backend: Backend = "auto", params: TVL1Params = DEFAULT_PARAMS
) -> Solver:
    """The solver of a backend with these parameters. Raises ValueError as `solve` does of its choices."""
    if not isinstance(params, TVL1Params):
        raise ValueError(f"params is {params!r}; give TVL1Params")
    if algorithm != "tvl1":
        raise ValueError(f"there is no flow algorithm {algorithm!r}; use 'tvl1'")
    match resolved_backend(backend):
        case "numba":
            _refuse_what_only_opencv_has("numba", params)
            from pipeline.optical_flow import tvl1_numba

            return _one_by_one(
                partial(tvl1_numba.prepare, params=params), partial(tvl1_numba.solve_prepared, params=params)
            )
        case "opencv":
            if params.variant != "opencv-cpu":
                raise ValueError(
                    f"the opencv backend is OpenCV's CPU solver and has no variant {params.variant}; use 'numba'"
                )
            from pipeline.optical_flow import tvl1_opencv

            tvl1_opencv.check_installed()
            return _one_by_one(
                partial(tvl1_opencv.prepare, params=params), partial(tvl1_opencv.solve_prepared, params=params)
            )
        case "torch":
            _refuse_what_only_opencv_has("torch", params)
            from pipeline.optical_flow import tvl1_torch

            return Solver(
                partial(tvl1_torch.prepare, params=params),
                partial(tvl1_torch.solve_prepared, params=params),
                tvl1_torch.pairs_at_once,
            )
        case "triton":
            _refuse_what_only_opencv_has("triton", params)
            interprets = os.environ.get("TRITON_INTERPRET") == "1"
            if (missing := _missing_for_triton()) and not (interprets and find_spec("triton")):
                raise ValueError(f"the triton backend cannot run here: there is no {missing}; use 'numba' or 'torch'")
            from pipeline.optical_flow import tvl1_triton

            return Solver(
                partial(tvl1_triton.prepare, params=params),
                partial(tvl1_triton.solve_prepared, params=params),
                tvl1_triton.pairs_at_once,
            )
        case _:
            raise ValueError(
                f"there is no flow backend {backend!r}; use 'auto', 'numba', 'opencv', 'torch' or 'triton'"
            )


def _one_by_one(prepare: Callable[[Array], Any], solve_pair: Callable[[Any, Any], Flow]) -> Solver:
    """A solver of single pairs as one of batches."""
    return Solver(
        lambda frames: [prepare(frame) for frame in frames],
        lambda prev, next: np.stack([solve_pair(*pair) for pair in zip(prev, next, strict=True)]),
        lambda height, width: 1,
    )


@cache
def _missing_for_triton() -> str | None:
    if find_spec("triton") is None:
        return "package triton"
    return None if _cuda_is_there() else "CUDA device"


def _cuda_is_there() -> bool:
    import torch

    return torch.cuda.is_available()


def _refuse_what_only_opencv_has(backend: str, params: TVL1Params) -> None:
    if params.gamma != 0 or params.median_filtering == 3:
        raise ValueError(
            f"the {backend} backend has neither gamma nor a 3x3 median, and gamma is {params.gamma}, "
            f"median_filtering {params.median_filtering}; use backend='opencv'"
        )


def _check_frames(frames: Array, name: str, *, ranks: tuple[int, ...]) -> None:
    if frames.ndim not in ranks:
        wanted = " or ".join("(H, W)" if rank == 2 else "(B, H, W)" for rank in ranks)
        raise ValueError(f"{name} has shape {frames.shape}; flow needs grey frames {wanted}")
    height, width = frames.shape[-2:]
    if min(height, width) < MINIMUM_SIDE_PX:
        raise ValueError(
            f"{name} is {width}x{height} px; flow needs at least {MINIMUM_SIDE_PX}x{MINIMUM_SIDE_PX}, "
            "for a gradient takes a pixel on either side"
        )
    if frames.dtype == np.uint8:
        return
    if not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"{name} has dtype {frames.dtype}; flow needs uint8, or floating values in 0-255")
    if frames.size and not (frames.min() >= 0 and frames.max() <= 255):  # false for NaN, too
        raise ValueError(f"{name} holds values outside 0-255, infinite or NaN; flow needs finite grey values in 0-255")
