"""Crops, resizing and mirror images for a whole batch, on the device that it lies on.

Resizing is bilinear as OpenCV's INTER_LINEAR: centres of pixels at one half, clamped to the crop's border. Results are
rounded to uint8, so that 128 still is no motion in flow and every device gives a model the same kind of values. On the
CPU OpenCV does it, in about a sixth of torch's time (`benchmarks/augmentation.py`); elsewhere torch does, in one
call for the whole batch, within one grey level of OpenCV.

Flow is quantised: 128 is no motion, so a mirrored field needs its x components negated, which the papers do as
255 - v. That maps 128 to 127 (0.16 px at a bound of 20) and is kept, because it is its own inverse and published models
were trained so.

Shapes: images are uint8 (*batch, N, C, H, W), planar; C holds R, G, B of each frame of a snippet, flow x, y, or both,
with flow last; H W are stored sizes, padded below and on the right where the batch's videos differ in size. Views are
int64 (*batch, *views, 5): the numbers of `transforms.View`. S is the side of the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.learning.clock import Clock, clocked


@dataclass(frozen=True, kw_only=True)
class Augmented:
    """The batches of a loader with their views cut: (images, views, *rest) becomes (snippets, *rest).

    ``rest`` stays where the loader left it.
    """

    batches: Iterable[Any]
    size: int
    """Side of the network's input (S), pixels."""
    flow_from: int | None
    """First channel of flow x and y, which all that follow are too; None without flow."""
    device: torch.device
    """Where the cutting happens and the snippets lie."""
    clock: Clock | None = None
    """Of the training that steps on them."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return clocked(self.batches, self.clock, then=self._cut)

    def _cut(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        images, views, *rest = batch
        images, views = (values.to(self.device, non_blocking=True) for values in (images, views))
        return cut(images, views, size=self.size, flow_from=self.flow_from), *rest


def cut(images: Tensor, views: Tensor, *, size: int, flow_from: int | None) -> Tensor:
    """Cut every view out of all images of its video, resize it and mirror it.

    Args:
        images: (*batch, N, C, H, W) uint8.
        views: (*batch, *views, 5) int64 on the same device, inside the images.
        size: side of the result (S), pixels.
        flow_from: first channel of flow x and y, which all that follow are too; x is negated in mirrored views.

    Returns:
        (*batch, *views, N, C, S, S) uint8.
    """
    batch = images.shape[:-4]
    flat = images.reshape(math.prod(batch), *images.shape[-4:])  # B N C H W
    each = views.reshape(len(flat), -1, 5)  # B V 5
    cut_there = cut_opencv if images.device.type == "cpu" else cut_torch
    return cut_there(flat, each, size=size, flow_from=flow_from).reshape(
        *views.shape[:-1], *images.shape[-4:-2], size, size
    )


def cut_opencv(images: Tensor, views: Tensor, *, size: int, flow_from: int | None) -> Tensor:
    """``cut`` of (B, N, C, H, W) by (B, V, 5) on the CPU: (B, V, N, C, S, S)."""
    out = np.empty((*views.shape[:2], *images.shape[1:3], size, size), np.uint8)
    for video, boxes, results in zip(images.numpy(), views.tolist(), out, strict=True):
        for (y, x, height, width, mirrored), result in zip(boxes, results, strict=True):
            _resize(video[..., y : y + height, x : x + width], result)
            if mirrored:
                _mirror(result, flow_from=flow_from)
    return torch.from_numpy(out)


def _resize(images: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """(N, C, h, w), of any strides, into (N, C, S, S)."""
    size = out.shape[-2:]
    if images.strides[1] == 1 and images.shape[1] == 3:  # interleaved RGB: all of a pixel at once
        for image, planes in zip(images.transpose(0, 2, 3, 1), out, strict=True):
            fits = image.shape[:2] == size
            cv2.split(image if fits else cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), list(planes))
        return
    if images.shape == out.shape:
        out[...] = images
        return
    planes = images.reshape(-1, *images.shape[-2:])  # a view, unless the strides do not allow it
    for plane, resized in zip(planes, out.reshape(-1, *size), strict=True):
        cv2.resize(plane, size, dst=resized, interpolation=cv2.INTER_LINEAR)


def _mirror(images: NDArray[np.uint8], *, flow_from: int | None) -> None:
    """(N, C, S, S) in place."""
    rows = images.reshape(-1, images.shape[-1])
    cv2.flip(rows, 1, dst=rows)
    if flow_from is not None:
        x = images[:, flow_from::2]
        np.subtract(255, x, out=x)


def cut_torch(images: Tensor, views: Tensor, *, size: int, flow_from: int | None) -> Tensor:
    """``cut`` of (B, N, C, H, W) by (B, V, 5) on any device: (B, V, N, C, S, S), without waiting for the device."""
    y, x, height, width, mirrored = views.unsqueeze(-1).unbind(dim=2)  # each B V 1
    rows, columns = _taps(y, height, size=size), _taps(x, width, size=size)  # B V S
    columns = torch.where(mirrored.bool(), columns.flip(-1), columns)
    H, W = images.shape[-2:]
    grid = torch.stack(
        torch.broadcast_tensors(
            (2 * columns[:, :, None, :] + 1) / W - 1,  # from pixels to [-1, 1] over the padded images
            (2 * rows[:, :, :, None] + 1) / H - 1,
        ),
        dim=-1,
    )  # B V S S 2
    planes = images.flatten(1, 2).float()  # B N*C H W
    out = F.grid_sample(planes, grid.flatten(1, 2), mode="bilinear", align_corners=False)  # B N*C V*S S
    out = out.round_().to(torch.uint8).unflatten(2, (-1, size)).unflatten(1, images.shape[1:3]).movedim(3, 1)
    if flow_from is not None:
        negated = mirrored.bool()[..., None, None, None]  # B V 1 1 1 1
        x = out[:, :, :, flow_from::2]
        out[:, :, :, flow_from::2] = torch.where(negated, 255 - x, x)
    return out.contiguous()


def _taps(start: Tensor, length: Tensor, *, size: int) -> Tensor:
    """Where the centres of ``size`` pixels over [start, start + length) lie, in pixels: (B, V, 1) -> (B, V, S)."""
    centres = (torch.arange(size, device=start.device) + 0.5) * length / size - 0.5
    return start + centres.clamp(min=0).minimum(length - 1)
