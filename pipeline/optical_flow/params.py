"""Parameters of TV-L1, and the three discretisations of it that go by the name of OpenCV."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

Variant = Literal["opencv-cpu", "opencv-cuda", "opencv24-cuda"]

SMALLEST_LEVEL_PX = 16
"""The pyramid ends before a level with a side below this."""


class Discretisation(NamedTuple):
    """What sets a variant apart beside its parameters."""

    gaussian_pyramid: bool
    """Levels by `pyrDown` (5x5 binomial, then every second pixel), else by a bilinear resize, which does not smooth."""
    pixel_centres: bool
    """A resize puts pixel centres at halves, x -> (x + 0.5) s - 0.5, else at whole numbers, x -> s x."""
    cubic: float
    """Parameter a of the bicubic warp (Keys 1981): -0.75, or -0.5, which is Catmull and Rom's spline."""
    edges_repeat: bool
    """The warp finds the nearest edge pixel outside the frame, else zero."""
    stops_anywhere: bool
    """The stopping rule looks after every iteration, else as `stops_rarely` has it."""


_DISCRETISATIONS: dict[Variant, Discretisation] = {
    "opencv-cpu": Discretisation(False, True, -0.75, False, True),
    "opencv-cuda": Discretisation(False, False, -0.5, True, False),
    "opencv24-cuda": Discretisation(True, False, -0.5, True, False),
}

_CPU_DEFAULTS = {"inner_iterations": 30, "outer_iterations": 10, "scale_step": 0.8, "median_filtering": 5}
_CUDA_DEFAULTS = {"inner_iterations": 300, "outer_iterations": 1, "scale_step": 0.8, "median_filtering": 1}
_DEFAULTS: dict[Variant, dict[str, Any]] = {
    "opencv-cpu": _CPU_DEFAULTS,
    "opencv-cuda": _CUDA_DEFAULTS,
    "opencv24-cuda": _CUDA_DEFAULTS | {"scale_step": 0.5},
}

_OF_THE_VARIANT: Any = None


@dataclass(frozen=True, kw_only=True)
class TVL1Params:
    """Parameters of TV-L1 with the names and defaults of OpenCV's `DualTVL1OpticalFlow`; images are in 0-255.

    The variant says whose discretisation it is: OpenCV's CPU solver (`opencv-cpu`), its CUDA solver since version 3
    (`opencv-cuda`), or that of OpenCV 2.4 (`opencv24-cuda`), on which the published two-stream results rest.
    A parameter whose default is None takes the variant's own: None is replaced when the object is made.
    NumPy's numbers become Python's.
    Raises ValueError for a value out of range, and for one that the variant does not have.
    """

    variant: Variant = "opencv-cpu"
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
    inner_iterations: int = _OF_THE_VARIANT
    """Iterations between two medians: 30; without medians, iterations a warp at most: 300 (CUDA)."""
    outer_iterations: int = _OF_THE_VARIANT
    """Medians a warp at most: 10; 1 and no other for CUDA."""
    scale_step: float = _OF_THE_VARIANT
    """Size of a level relative to the one below it: 0.8; 0.5 and no other for opencv24-cuda."""
    gamma: float = 0.0
    """Weight of the illumination term; only the opencv backend has one."""
    median_filtering: int = _OF_THE_VARIANT
    """Side of the median window in pixels: 1 (none, and no other for CUDA), 3 (opencv backend only) or 5."""

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise ValueError(f"there is no TV-L1 variant {self.variant!r}; use one of {', '.join(get_args(Variant))}")
        for name, value in _DEFAULTS[self.variant].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in ("tau", "lambda_", "theta"):
            self._require(name, lambda value: math.isfinite(value) and value > 0, "a number > 0")
        for name in ("epsilon", "gamma"):
            self._require(name, lambda value: math.isfinite(value) and value >= 0, "a number >= 0")
        for name in ("nscales", "warps", "inner_iterations", "outer_iterations"):
            self._require(name, lambda value: isinstance(value, int) and value >= 1, "an integer >= 1")
        self._require("scale_step", lambda value: 0 < value < 1, "between 0 and 1, both excluded")
        self._require("median_filtering", lambda value: value in (1, 3, 5), "1, 3 or 5")
        if self.variant != "opencv-cpu":
            only = f"for variant {self.variant}; leave it out"
            self._require("median_filtering", lambda value: value == 1, f"1 (no median) {only}")
            self._require("outer_iterations", lambda value: value == 1, f"1 (there is no median between two) {only}")
            self._require("gamma", lambda value: value == 0, f"0 (no solver here has the illumination term) {only}")
        if self.discretisation.gaussian_pyramid:
            self._require("scale_step", lambda value: value == 0.5, f"0.5 {only}")

    def _require(self, name: str, holds: Callable[[Any], bool], wanted: str) -> None:
        value = getattr(self, name)
        if isinstance(value, np.integer | np.floating):
            value = value.item()
            object.__setattr__(self, name, value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not holds(value):
            raise ValueError(f"TV-L1 parameter {name} is {value!r}; it must be {wanted}")

    @property
    def discretisation(self) -> Discretisation:
        return _DISCRETISATIONS[self.variant]

    @property
    def iterations(self) -> int:
        """Iterations a warp at most."""
        return self.inner_iterations * self.outer_iterations

    def threshold(self, height: int, width: int) -> float:
        """Summed squared change of the flow at which a warp ends; for epsilon 0 the CUDA solvers never look."""
        if self.epsilon == 0 and not self.discretisation.stops_anywhere:
            return -1.0
        return self.epsilon**2 * height * width

    def level_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(rows, columns) of the pyramid's levels, finest first; a resize rounds half to even, `pyrDown` rounds up."""
        shapes = [(height, width)]
        while len(shapes) < self.nscales:
            sides = [
                (side + 1) // 2 if self.discretisation.gaussian_pyramid else round(side * self.scale_step)
                for side in shapes[-1]
            ]
            if min(sides) < SMALLEST_LEVEL_PX:
                break
            shapes.append((sides[0], sides[1]))
        return shapes


DEFAULT_PARAMS = TVL1Params()
