"""OpenCV's two CUDA TV-L1 solvers once more, in float64 and as plainly as can be: a check of the variants.

Written from what the kernels of OpenCV's `cudaoptflow` (and of the `gpu` module of 2.4) compute, sharing nothing with
the package: no padding, every border by an explicit index, taps one after the other, no in-place update. There is no
CUDA build of OpenCV on an ordinary test machine to compare with.

Shapes: H W images; flow (2, H, W), channel 0 = x.
"""

from __future__ import annotations

import numpy as np


def resized(image: np.ndarray, height: int, width: int, step_y: float, step_x: float) -> np.ndarray:
    """Bilinear, where pixel (y, x) of the result is at (y step_y, x step_x) of the image: no half pixel is added."""
    y, x = np.meshgrid(np.arange(height) * step_y, np.arange(width) * step_x, indexing="ij")
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    bottom, right = np.minimum(top + 1, image.shape[0] - 1), np.minimum(left + 1, image.shape[1] - 1)
    down, across = y - top, x - left
    return (
        image[top, left] * (1 - down) * (1 - across)
        + image[top, right] * (1 - down) * across
        + image[bottom, left] * down * (1 - across)
        + image[bottom, right] * down * across
    )


def halved(image: np.ndarray) -> np.ndarray:
    """pyrDown: the 5x5 binomial filter at every second pixel, borders mirrored about the edge pixels."""
    weights = np.array([1, 4, 6, 4, 1]) / 16
    padded = np.pad(image, 2, mode="reflect")
    height, width = image.shape
    smooth = sum(weights[i] * weights[j] * padded[i : i + height, j : j + width] for i in range(5) for j in range(5))
    return smooth[::2, ::2]


def pyramid(frame: np.ndarray, *, nscales: int, scale_step: float, gaussian: bool) -> list[np.ndarray]:
    levels = [frame.astype(np.float64)]
    while len(levels) < nscales:
        if gaussian:
            level = halved(levels[-1])
        else:
            height, width = (round(side * scale_step) for side in levels[-1].shape)
            level = resized(levels[-1], height, width, 1 / scale_step, 1 / scale_step)
        if min(level.shape) < 16:
            break
        levels.append(level)
    return levels


def catmull_rom(distance: np.ndarray) -> np.ndarray:
    x = np.abs(distance)
    near = x * x * (1.5 * x - 2.5) + 1
    far = x * (x * (-0.5 * x + 2.5) - 4) + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def sampled(images: list[np.ndarray], at_y: np.ndarray, at_x: np.ndarray) -> list[np.ndarray]:
    """Bicubic values at any places; outside, the nearest edge pixel."""
    height, width = images[0].shape
    first_y, first_x = np.ceil(at_y - 2).astype(int), np.ceil(at_x - 2).astype(int)
    totals, weight = [np.zeros_like(at_y) for _ in images], np.zeros_like(at_y)
    for y in (first_y + i for i in range(5)):
        for x in (first_x + i for i in range(5)):
            w = catmull_rom(at_y - y) * catmull_rom(at_x - x)
            weight += w
            for total, image in zip(totals, images, strict=True):
                total += w * image[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    return [total / weight for total in totals]


def gradient(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centred differences (x, y), halved at the edges."""
    padded = np.pad(image, 1, mode="edge")
    return (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2, (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2


def divergence(p: np.ndarray) -> np.ndarray:
    """p (2, H, W): backward differences, with zero before the first row and column."""
    return np.diff(p[0], axis=1, prepend=0) + np.diff(p[1], axis=0, prepend=0)


def forward(u: np.ndarray) -> np.ndarray:
    """Forward differences (2, H, W), zero at the last row and column."""
    return np.stack([np.diff(u, axis=1, append=u[:, -1:]), np.diff(u, axis=0, append=u[-1:])])


def level_flow(
    prev: np.ndarray,
    next: np.ndarray,
    u: np.ndarray,
    *,
    tau: float,
    lambda_: float,
    theta: float,
    warps: int,
    epsilon: float,
    iterations: int,
) -> tuple[np.ndarray, list[int]]:
    """Flow refined at one level, and the number of iterations of each warp."""
    height, width = prev.shape
    y, x = np.mgrid[:height, :width].astype(np.float64)
    threshold = epsilon**2 * height * width
    l_t = lambda_ * theta
    p = np.zeros((2, 2, height, width))
    counts = []
    for _ in range(warps):
        value, gx, gy = sampled([next, *gradient(next)], y + u[1], x + u[0])
        square = gx**2 + gy**2
        constant = value - gx * u[0] - gy * u[1] - prev
        error, prev_error, n = np.inf, 0.0, 0
        while error > threshold and n < iterations:
            rho = constant + gx * u[0] + gy * u[1]
            inner = np.where(square > np.finfo(np.float32).eps, -rho / np.where(square == 0, 1, square), 0)
            factor = np.where(rho < -l_t * square, l_t, np.where(rho > l_t * square, -l_t, inner))
            new = u + factor * np.stack([gx, gy]) + theta * np.stack([divergence(p[0]), divergence(p[1])])
            if epsilon > 0 and n % 2 == 1 and prev_error < threshold:
                error = prev_error = float(((new - u) ** 2).sum())
            else:
                error = np.inf
                prev_error -= threshold
            u = new
            slopes = np.stack([forward(u[0]), forward(u[1])])
            p = (p + tau / theta * slopes) / (1 + tau / theta * np.hypot(slopes[:, 0], slopes[:, 1]))[:, None]
            n += 1
        counts.append(n)
    return u, counts


def cuda_flow(
    prev: np.ndarray,
    next: np.ndarray,
    *,
    gaussian: bool,
    scale_step: float = 0.8,
    nscales: int = 5,
    **solver: float,
) -> np.ndarray:
    """Flow (2, H, W) between grey frames in 0-255. gaussian: OpenCV 2.4 (scale_step 0.5 then), else 3 and later."""
    defaults = {"tau": 0.25, "lambda_": 0.15, "theta": 0.3, "warps": 5, "epsilon": 0.01, "iterations": 300}
    scale_step = 0.5 if gaussian else scale_step
    pyramids = [pyramid(f, nscales=nscales, scale_step=scale_step, gaussian=gaussian) for f in (prev, next)]
    flow = np.zeros((2, *pyramids[0][-1].shape))
    for level, (before, after) in enumerate(zip(pyramids[0][::-1], pyramids[1][::-1], strict=True)):
        height, width = before.shape
        if level > 0:
            step_y, step_x = flow.shape[1] / height, flow.shape[2] / width
            flow = np.stack([resized(component, height, width, step_y, step_x) for component in flow]) / scale_step
        flow, _ = level_flow(before, after, flow, **(defaults | solver))
    return flow
