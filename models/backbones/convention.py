"""What every backbone promises, and how raw pixels become what its weights expect.

Loaders deliver raw values: 0..255, uint8 or float; RGB order for images; for flow the quantised values (zero motion =
128) with channels x1, y1, ..., xL, yL. `Normalise` is the only place that turns those into network input, so that a
loader cannot disagree with a checkpoint, and uint8 can travel to the device.

Shapes: B batch, C channels, H W pixels, D features, h w cells of the last feature map. "..." is any leading dimensions.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

Modality = Literal["rgb", "flow", "warped_flow"]


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The pixel convention that a backbone's published weights were trained with."""

    channel_order: Literal["RGB", "BGR"]
    """Order of the image channels; loaders always deliver RGB."""
    max_value: float
    """Raw 0..255 is scaled to 0..max_value before mean and std apply: 255 (Caffe) or 1 (torchvision)."""
    mean: tuple[float, float, float]
    """Image mean in `channel_order`, on the 0..max_value scale."""
    std: tuple[float, float, float]
    """Image standard deviation in `channel_order`, on the 0..max_value scale."""
    flow_mean: float
    """Mean of every flow channel, on the 0..max_value scale."""
    flow_std: float
    """Standard deviation of every flow channel, on the 0..max_value scale."""


class Backbone(Protocol):
    """The part of a backbone that model families use (headless: built with `num_classes=None`)."""

    feature_dim: int
    input_spec: InputSpec

    def feature_map(self, x: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, D, h, w)."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, D): the spatial mean of `feature_map`."""


def check_channels(in_channels: int, *, modality: str) -> None:
    """Raise ValueError unless `in_channels` fits `modality`: 3 an image; 2 (x and y) a flow field."""
    if modality not in get_args(Modality):
        raise ValueError(f"modality {modality!r} is unknown; choose one of {', '.join(get_args(Modality))}")
    per_image, wants = (3, "a multiple of 3 (R, G, B)") if modality == "rgb" else (2, "even (x, y of each flow field)")
    if in_channels < per_image or in_channels % per_image:
        raise ValueError(f"in_channels={in_channels} does not fit modality {modality!r}; it must be {wants}")


class Normalise(nn.Module):
    """(..., C, H, W) raw 0..255 (uint8 or float) -> the same shape in the floating type of the model, per `InputSpec`.

    Its constants follow the module's device and dtype but stay out of state_dict: they belong to the architecture.
    Raises ValueError when the input has another number of channels than the model.
    """

    order: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, spec: InputSpec, *, modality: str, in_channels: int) -> None:
        super().__init__()
        check_channels(in_channels, modality=modality)
        self.in_channels = in_channels
        self.scale = spec.max_value / 255.0
        if modality == "rgb":
            images = in_channels // 3
            reverse = spec.channel_order == "BGR"
            order = [3 * i + c for i in range(images) for c in ((2, 1, 0) if reverse else (0, 1, 2))]
            mean, std = list(spec.mean) * images, list(spec.std) * images
        else:
            order = list(range(in_channels))
            mean, std = [spec.flow_mean] * in_channels, [spec.flow_std] * in_channels
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-3] != self.in_channels:
            raise ValueError(f"the model takes {self.in_channels} channels, got an input of shape {tuple(x.shape)}")
        return (x.index_select(-3, self.order).to(self.mean.dtype) * self.scale - self.mean) / self.std
