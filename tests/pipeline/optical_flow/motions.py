"""Frames whose motion is known: textures moved in closed form, real clips, and flow files with the truth.

Shapes: frames (H, W) grey; flow (2, H, W) in pixels, channel 0 = x.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

MARGIN_PX = 16  # analytic motions are compared away from the frame, across which content enters and leaves


def texture(height: int, width: int, *, seed: int = 0, blur_px: float = 2.0) -> np.ndarray:
    """Smooth random grey texture over the whole range 0-255, uint8."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), blur_px) + 2 * cv2.GaussianBlur(noise, (0, 0), 3 * blur_px)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def moved(frame: np.ndarray, flow_x: np.ndarray, flow_y: np.ndarray) -> np.ndarray:
    """The frame after motion given where it arrives: next(p) = frame(p - flow(p))."""
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
    at_x, at_y = (x - flow_x).astype(np.float32), (y - flow_y).astype(np.float32)
    return cv2.remap(frame, at_x, at_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def affine_pair(
    matrix: np.ndarray, *, height: int = 160, width: int = 200
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A pair under p' = matrix p about the centre, and its exact flow p' - p at the pixels of the first frame."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    points = np.stack([x - width / 2, y - height / 2])
    forward = np.einsum("ij,jhw->ihw", matrix, points) - points
    arriving = points - np.einsum("ij,jhw->ihw", np.linalg.inv(matrix), points)
    prev = texture(height, width)
    return prev, moved(prev, arriving[0], arriving[1]), forward


def endpoint_error(flow: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.hypot(flow[0] - truth[0], flow[1] - truth[1])


def inner_error(flow: np.ndarray, truth: np.ndarray) -> float:
    inside = (slice(MARGIN_PX, -MARGIN_PX), slice(MARGIN_PX, -MARGIN_PX))
    return float(endpoint_error(flow, truth)[inside].mean())


def read_flo(path: Path) -> np.ndarray:
    """Middlebury .flo -> (2, H, W); unknown flow has components above 1e6."""
    raw = path.read_bytes()
    assert raw[:4] == b"PIEH"
    width, height = np.frombuffer(raw, "<i4", 2, 4)
    return np.moveaxis(np.frombuffer(raw, "<f4", 2 * width * height, 12).reshape(height, width, 2), -1, 0)


def grey_clip(path: Path, first: int, count: int) -> list[np.ndarray]:
    """Frames [first, first + count) in grey at 340x256."""
    video = cv2.VideoCapture(str(path))
    frames = [video.read()[1] for _ in range(first + count)][first:]
    video.release()
    return [cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), (340, 256)) for frame in frames]
