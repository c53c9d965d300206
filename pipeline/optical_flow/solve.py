"""Optical flow of a pair, of a batch of pairs, or of a video: the one place where algorithm and backend are chosen.

Shapes: B pairs, H W rows and columns. Flow is (2, H, W) float32 in pixels, channel 0 = x, from `prev` to `next`.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Flow = np.ndarray[Any, np.dtype[np.float32]]
Algorithm = Literal["tvl1"]
Backend = Literal["auto", "numba", "opencv"]

MINIMUM_SIDE_PX = 3
"""The centred gradient needs a neighbour on either side. (Below 16 px a side the pyramid is a single level.)"""


@dataclass(frozen=True, kw_only=True)
class TVL1Params:
    """Parameters of TV-L1 with the names and defaults of OpenCV's CPU `DualTVL1OpticalFlow`; images are in 0-255."""

    tau: float = 0.25
    """Time step of the dual update."""
    lambda_: float = 0.15
    """Weight of the data term: smaller gives smoother flow."""
    theta: float = 0.3
    """Tightness of the coupling between the data and the smoothness problem."""
    nscales: int = 5
    """Levels of the pyramid at most; it ends before a level with a side under 16 px."""
    warps: int = 5
    """Linearisations a level."""
    epsilon: float = 0.01
    """A warp ends when the flow's mean squared change in one iteration is at most epsilon^2, in px^2."""
    inner_iterations: int = 30
    """Iterations between two medians."""
    outer_iterations: int = 10
    """Medians a warp at most."""
    scale_step: float = 0.8
    """Size of a level relative to the one below it."""
    gamma: float = 0.0
    """Weight of the illumination term; only the opencv backend has one."""
    median_filtering: int = 5
    """Side of the median window in pixels: 1 (none), 3 (opencv backend only) or 5."""

    def __post_init__(self) -> None:
        for name in ("tau", "lambda_", "theta"):
            self._require(name, lambda value: math.isfinite(value) and value > 0, "a number > 0")
        for name in ("epsilon", "gamma"):
            self._require(name, lambda value: math.isfinite(value) and value >= 0, "a number >= 0")
        for name in ("nscales", "warps", "inner_iterations", "outer_iterations"):
            self._require(name, lambda value: isinstance(value, int) and value >= 1, "an integer >= 1")
        self._require("scale_step", lambda value: 0 < value < 1, "between 0 and 1, both excluded")
        self._require("median_filtering", lambda value: value in (1, 3, 5), "1, 3 or 5")

    def _require(self, name: str, holds: Callable[[Any], bool], wanted: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
            raise ValueError(f"TV-L1 parameter {name} is {value!r}; it must be {wanted}")


DEFAULT_PARAMS = TVL1Params()


class _Solver(NamedTuple):
    """What a backend offers: the work on one frame, done once a frame in a video, and that on two prepared frames."""

    prepare: Callable[[Array], Any]
    solve_prepared: Callable[[Any, Any], Flow]


def solve(
    prev: Array,
    next: Array,
    *,
    algorithm: Algorithm = "tvl1",
    backend: Backend = "auto",
    params: TVL1Params = DEFAULT_PARAMS,
) -> Flow:
    """Flow (2, H, W), or (B, 2, H, W) for batches, float32 in pixels, channel 0 = x.

    prev, next: grey frames (H, W) or (B, H, W) of equal shape, uint8, or floating in 0-255. `auto` is numba.

    Raises ValueError for frames of another rank, dtype, range, or of different shapes, for NaN or infinite values, for
    frames with a side under 3 px, and for an algorithm, backend or parameter that there is not.
    """
    solver = _choose(algorithm, backend, params)
    prev, next = np.asarray(prev), np.asarray(next)
    _check_frames(prev, "prev", ranks=(2, 3))
    _check_frames(next, "next", ranks=(2, 3))
    if prev.shape != next.shape:
        raise ValueError(f"prev has shape {prev.shape} and next {next.shape}; flow needs frames of one shape")
    if prev.ndim == 2:
        return solver.solve_prepared(solver.prepare(prev), solver.prepare(next))
    flow = np.empty((prev.shape[0], 2, *prev.shape[1:]), np.float32)
    for pair in range(len(prev)):
        flow[pair] = solver.solve_prepared(solver.prepare(prev[pair]), solver.prepare(next[pair]))
    return flow


def solve_video(
    frames: Iterable[Array],
    *,
    algorithm: Algorithm = "tvl1",
    backend: Backend = "auto",
    params: TVL1Params = DEFAULT_PARAMS,
) -> Iterator[Flow]:
    """Flow (2, H, W) of every consecutive pair: T frames give T - 1 flows, fewer than two frames give none.

    Values are those of `solve` on each pair; the work that depends on one frame is done once, and no more than two
    frames are held. Raises ValueError as `solve` does, naming the frame, when that frame is reached.
    """
    return _consecutive(frames, _choose(algorithm, backend, params))


def _consecutive(frames: Iterable[Array], solver: _Solver) -> Iterator[Flow]:
    shape: tuple[int, ...] | None = None
    before: Any = None
    for index, frame in enumerate(frames):
        frame = np.asarray(frame)
        _check_frames(frame, f"frame {index}", ranks=(2,))
        if shape is not None and frame.shape != shape:
            raise ValueError(
                f"frame {index} has shape {frame.shape} and those before it {shape}; resize them to one shape"
            )
        prepared = solver.prepare(frame)
        if shape is not None:
            yield solver.solve_prepared(before, prepared)
        shape, before = frame.shape, prepared


def _choose(algorithm: str, backend: str, params: TVL1Params) -> _Solver:
    if algorithm != "tvl1":
        raise ValueError(f"there is no flow algorithm {algorithm!r}; use 'tvl1'")
    match backend:
        case "auto" | "numba":
            if params.gamma != 0 or params.median_filtering == 3:
                raise ValueError(
                    f"the numba backend has neither gamma nor a 3x3 median, and gamma is {params.gamma}, "
                    f"median_filtering {params.median_filtering}; use backend='opencv'"
                )
            from pipeline.optical_flow import tvl1_numba

            return _Solver(
                partial(tvl1_numba.prepare, params=params), partial(tvl1_numba.solve_prepared, params=params)
            )
        case "opencv":
            from pipeline.optical_flow import tvl1_opencv

            return _Solver(
                partial(tvl1_opencv.prepare, params=params), partial(tvl1_opencv.solve_prepared, params=params)
            )
        case _:
            raise ValueError(f"there is no flow backend {backend!r}; use 'auto', 'numba' or 'opencv'")


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
