"""TV-L1 optical flow in PyTorch: batches of pairs on any device, in float32.

The equations, their source and their order are those of `tvl1_numba.py`, written with whole tensors; theta * p stands
for the dual variable there and here. Every pair has its own stopping rule. A pair that has stopped is masked: its
change and its slopes count as zero, which leaves u and p as they are to the last bit. Every few iterations the host
looks which pairs have stopped and drops them from the batch; in between it waits for nothing.

Shapes: B pairs, F frames, H W rows and columns of a level; u (B, 2, H, W); p (B, 2, 2, H, W): component of the flow,
direction of the derivative; channel 0 is x in both.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.optical_flow.median_network import SORT_5, live_comparators

if TYPE_CHECKING:
    from pipeline.optical_flow.params import TVL1Params

Array = np.ndarray[Any, np.dtype[Any]]
Given = ParamSpec("Given")
Result = TypeVar("Result")

_BORDER = 4  # pixels around the image that is sampled: a tap further out is moved into them
_LOOK_EVERY = 8  # iterations between two looks of the host at which pairs have stopped
_PIXELS_AT_ONCE = {"cpu": 2**20, "cuda": 2**23, "mps": 2**22}  # some 200 to 400 bytes each


class Linearised(NamedTuple):
    """The data term around the flow: g (B, 2, H, W), and 1 / |g|^2 and the constant part of rho, (B, 1, H, W)."""

    g: Tensor
    inverse: Tensor
    rho: Tensor


class _Running(NamedTuple):
    """The pairs that are iterated: flow, dual variable, data term, and two numbers of the stopping rule, (B,)."""

    u: Tensor
    p: Tensor
    g: Tensor
    inverse: Tensor
    rho: Tensor
    error: Tensor
    expected: Tensor


def best_device() -> torch.device:
    """The first CUDA device, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def says_when_memory_ends(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """The function, with an OSError of one sentence in place of torch's out-of-memory error."""

    @wraps(function)
    def guarded(*arguments: Given.args, **keywords: Given.kwargs) -> Result:
        try:
            return function(*arguments, **keywords)
        except torch.OutOfMemoryError:
            raise OSError(
                "the memory of the GPU is too small for this batch of optical flow; let fewer jobs share it, as with "
                "--resources flow_gpu=1, or set the backend to numba"
            ) from None

    return guarded


def pairs_at_once(height: int, width: int) -> int:
    """Pairs of a batch that bounds the memory: 12 of 340x256 on a CPU, 96 on a CUDA device."""
    return max(1, _PIXELS_AT_ONCE[best_device().type] // (height * width))


@says_when_memory_ends
@torch.inference_mode()
def prepare(frames: Array, *, params: "TVL1Params") -> list[list[Tensor]]:
    """For each of the frames (F, H, W) in 0-255, the levels of its pyramid, finest first, on the device."""
    frames = np.ascontiguousarray(frames, frames.dtype if frames.dtype == np.uint8 else np.float32)
    uploaded = torch.tensor(frames).to(best_device())  # bytes, where they are bytes: a quarter of the copy
    levels = pyramid(uploaded.float(), params=params)
    return [list(frame) for frame in zip(*levels, strict=True)]


@says_when_memory_ends
@torch.inference_mode()
def solve_prepared(prev: Sequence[list[Tensor]], next: Sequence[list[Tensor]], *, params: "TVL1Params") -> Array:
    """Flow (B, 2, H, W) float32 in pixels, channel 0 = x, between B pairs of prepared frames."""
    flow: Tensor | None = None
    for before, after in stacked_levels(prev, next):
        flow = start_of_level(flow, before, params=params)
        p = flow.new_zeros(len(flow), 2, *flow.shape[1:])
        image = with_gradients(after, edges_repeat=params.discretisation.edges_repeat)
        for _ in range(params.warps):
            _relax(flow, p, warp(image, before, flow, cubic=params.discretisation.cubic), params=params)
    assert flow is not None
    return flow.cpu().numpy()


def stacked_levels(prev: Sequence[list[Tensor]], next: Sequence[list[Tensor]]) -> Iterable[tuple[Tensor, Tensor]]:
    """Both images of all pairs, (B, H, W), from the coarsest level to the finest."""
    for level in reversed(range(len(prev[0]))):
        yield torch.stack([frame[level] for frame in prev]), torch.stack([frame[level] for frame in next])


def start_of_level(flow: Tensor | None, image: Tensor, *, params: "TVL1Params") -> Tensor:
    """The flow of the next coarser level at the size of this one, or zero."""
    count, height, width = image.shape
    if flow is None:
        return image.new_zeros(count, 2, height, width)
    steps = (flow.shape[2] / height, flow.shape[3] / width)
    finer = _resize(flow.flatten(0, 1), (height, width), steps, params=params) * (1 / params.scale_step)
    return finer.view(count, 2, height, width)


def pyramid(frames: Tensor, *, params: "TVL1Params") -> list[Tensor]:
    """Levels of the frames (F, H, W), finest first."""
    levels = [frames]
    for shape in params.level_shapes(*frames.shape[1:])[1:]:
        if params.discretisation.gaussian_pyramid:
            levels.append(_halve(levels[-1]))
        else:
            levels.append(_resize(levels[-1], shape, (1 / params.scale_step,) * 2, params=params))
    return levels


def _resize(images: Tensor, shape: tuple[int, int], steps: tuple[float, float], *, params: "TVL1Params") -> Tensor:
    """Bilinear with clamped edges; steps: rows and columns of the images for one of the result."""
    centre = 0.5 if params.discretisation.pixel_centres else 0.0
    for axis, size, step in ((1, shape[0], steps[0]), (2, shape[1], steps[1])):
        last = images.shape[axis] - 1
        position = ((torch.arange(size, dtype=torch.float64) + centre) * step - centre).clamp(0, last)
        first = position.long().clamp(max=max(last - 1, 0))
        weight = (position - first).float().to(images.device)
        first = first.to(images.device)
        low = images.index_select(axis, first)
        high = images.index_select(axis, (first + 1).clamp(max=last))
        images = torch.lerp(low, high, weight[:, None] if axis == 1 else weight)
    return images


def _halve(images: Tensor) -> Tensor:
    """Every second pixel under the 5x5 binomial filter, mirrored about edge pixels."""
    for axis in (1, 2):
        count = (images.shape[axis] + 1) // 2
        mirrored = functional.pad(images, (2, 2) if axis == 2 else (0, 0, 2, 2), mode="reflect")
        a, b, c, d, e = (mirrored.narrow(axis, tap, mirrored.shape[axis] - 4) for tap in range(5))
        smooth = (a + e) * (1 / 16) + (b + d) * (4 / 16) + c * (6 / 16)
        images = smooth.index_select(axis, 2 * torch.arange(count, device=images.device))
    return images.contiguous()


def with_gradients(images: Tensor, *, edges_repeat: bool) -> Tensor:
    """(B, H + 8, W + 8, 4): value, centred x and y differences and 0, framed by the edge pixels or by 0."""
    padded = functional.pad(images[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    dx = 0.5 * (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2])
    dy = 0.5 * (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1])
    channels = torch.stack([images, dx, dy, torch.zeros_like(images)], dim=1)
    framed = functional.pad(channels, (_BORDER,) * 4, mode="replicate" if edges_repeat else "constant")
    return framed.permute(0, 2, 3, 1).contiguous()


def warp(image: Tensor, prev: Tensor, u: Tensor, *, cubic: float) -> Linearised:
    """Linearise around the flow. image: of `with_gradients`; cubic: Keys' a."""
    count, _, height, width = u.shape
    shift = _BORDER - 1  # from a pixel to its first tap
    x = (u[:, 0] + torch.arange(shift, width + shift, device=u.device)).clamp(0, width + _BORDER)
    y = (u[:, 1] + torch.arange(shift, height + shift, device=u.device)[:, None]).clamp(0, height + _BORDER)
    column, row = x.long(), y.long()
    start = torch.arange(count, device=u.device)[:, None, None] * (image.shape[1] * image.shape[2])
    first_tap = (start + row * image.shape[2] + column).flatten()
    weights_x, weights_y = (_cubic_weights((at - whole).flatten(), cubic) for at, whole in ((x, column), (y, row)))
    taps = image.flatten(0, 2)
    sampled = taps.new_zeros(len(first_tap), 4)
    for j in range(4):
        line = taps.new_zeros(len(first_tap), 4)
        for i in range(4):
            line.addcmul_(taps.index_select(0, first_tap + (j * image.shape[2] + i)), weights_x[i][:, None])
        sampled.addcmul_(line, weights_y[j][:, None])
    value, gx, gy, _ = sampled.view(count, height, width, 4).permute(3, 0, 1, 2)
    g = torch.stack([gx, gy], dim=1)
    square = (g * g).sum(1, keepdim=True)
    rho = (value - prev)[:, None] - (g * u).sum(1, keepdim=True)
    return Linearised(g, 1 / square.clamp(min=1e-30), rho)


def _cubic_weights(t: Tensor, a: float) -> list[Tensor]:
    """Keys' weights of the taps at -1, 0, 1, 2 for a fraction t."""
    outer, inner = ((a * t - 2 * a) * t + a) * t, ((a + 2) * t - (a + 3)) * t * t + 1
    return [outer, inner, ((-(a + 2) * t + (2 * a + 3)) * t - a) * t, (a - a * t) * t * t]


def median(u: Tensor) -> Tensor:
    """5x5 median of planes (..., H, W), edges replicated."""
    height, width = u.shape[-2:]
    padded = functional.pad(u, (2, 2, 2, 2), mode="replicate")
    rows = [padded[..., r : r + height, :] for r in range(5)]
    for low, high in SORT_5:
        rows[low], rows[high] = torch.minimum(rows[low], rows[high]), torch.maximum(rows[low], rows[high])
    wires = [row[..., c : c + width] for row in rows for c in range(5)]
    for low, high, keeps_low, keeps_high in live_comparators():
        a, b = wires[low], wires[high]
        if keeps_low:
            wires[low] = torch.minimum(a, b)
        if keeps_high:
            wires[high] = torch.maximum(a, b)
    return wires[12]


def _relax(u: Tensor, p: Tensor, data: Linearised, *, params: "TVL1Params") -> None:
    """Iterate u and p in place until the flow hardly changes, each pair for itself."""
    threshold = params.threshold(*u.shape[2:])
    pairs = torch.arange(len(u), device=u.device)
    running = _Running(u, p, *data, u.new_full((len(u),), torch.inf), u.new_zeros(len(u)))
    for done in range(params.iterations):
        if done > 0 and done % _LOOK_EVERY == 0:
            goes_on = running.error > threshold
            if not goes_on.all():
                _put_back(running, u, p, pairs)
                if not goes_on.any():
                    return
                pairs, running = pairs[goes_on], _Running(*(tensor[goes_on] for tensor in running))
        moves = (running.error > threshold)[:, None, None, None]
        if params.median_filtering > 1 and done % params.inner_iterations == 0:
            running.u.copy_(torch.where(moves, median(running.u), running.u))
        change = _iterate(running, moves.float(), params)
        _note(running, change, done, threshold, params.discretisation.stops_anywhere)
    _put_back(running, u, p, pairs)


def _put_back(running: _Running, u: Tensor, p: Tensor, pairs: Tensor) -> None:
    if running.u is not u:  # a part of the batch, copied
        u[pairs], p[pairs] = running.u, running.p


def _note(running: _Running, change: Tensor, done: int, threshold: float, stops_anywhere: bool) -> None:
    """The stopping rule: `error` becomes the change of the flow wherever the rule looks at it, see `tvl1_numba._relax`.

    A pair that has stopped keeps its error, or gets the change of a masked pair, which is zero.
    """
    if stops_anywhere:
        running.error.copy_(change)
        return
    later = running.expected - threshold
    if done % 2 == 1:
        looks = (running.expected < threshold) & (running.error > threshold)
        running.error.copy_(torch.where(looks, change, running.error))
        later = torch.where(looks, change, later)
    running.expected.copy_(later)


def _iterate(running: _Running, moves: Tensor, params: "TVL1Params") -> Tensor:
    """One iteration in place, where `moves` (B, 1, 1, 1) is 1; returns the summed squared change of the flow, (B,)."""
    u, p, g = running.u, running.p, running.g
    l_t = params.lambda_ * params.theta
    residual = running.rho + (g * u).sum(1, keepdim=True)
    step = (residual * running.inverse).neg_().clamp_(-l_t, l_t)
    change = (g * step).add_(p[:, :, 0]).add_(p[:, :, 1])
    change[..., 1:] -= p[:, :, 0, :, :-1]
    change[..., 1:, :] -= p[:, :, 1, :-1]
    u += change.mul_(moves)
    slopes = torch.zeros_like(p)
    torch.sub(u[..., 1:], u[..., :-1], out=slopes[:, :, 0, :, :-1])
    torch.sub(u[..., 1:, :], u[..., :-1, :], out=slopes[:, :, 1, :-1])
    slopes.mul_(moves[..., None])
    norm = (slopes[:, :, 0].square() + slopes[:, :, 1].square()).sqrt_()
    p.add_(slopes, alpha=params.tau).div_(norm.mul_(params.tau / params.theta).add_(1)[:, :, None])
    return change.square_().sum((1, 2, 3))
