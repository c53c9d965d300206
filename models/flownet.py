"""The Spatial Attention Network of STA-CNN and its pre-training: predict the optical flow between two frames.

Yang, Yuan, Zhang, Sun, Hu and Maybank, "STA-CNN: Convolutional Spatial-Temporal Attention Learning for Action
Recognition", IEEE Transactions on Image Processing 29, 2020, section III-B.1. The network extends the encoder of
FlowNetSimple (Dosovitskiy et al., "FlowNet: Learning Optical Flow with Convolutional Networks", ICCV 2015).

    (3)  f^ = f_exp(f_san(s))                      flow predicted from the two frames of a snippet s
    (4)  L  = sum max(|f^ - f| - theta, 0)^2       with theta = "e-2 f"

What the paper leaves open, and the switch for each (first = default):

- "Ten convolutional and six max-pooling layers", no table. Here: FlowNetS's ten convolutions with its sizes, each
  stride of 2 replaced by a 2x2 max-pool. FlowNetS weights therefore load by name.
- Six halvings leave 3x3 or 4x4 cells at 224 pixels, but equations (7)-(9) need the K x K cells of BN-Inception, 7x7.
  `last_pool_stride`: 1 (the sixth pool is 3x3, stride 1: K = 7) | 2 (the map is resized where it is used).
- The Expanded Part has "four convolutional layers and four unpooling layers". Here: each unpooling repeats the nearest
  cell twice as large, the convolutions are 3x3 and narrow to 512, 256, 128 and 2 channels.
- The sign and the base of theta: a negative theta would enlarge errors, so theta = exp(-2) |f| for "exp2"; "hundredth"
  reads e-2 as in a computer's notation, theta = 0.01 |f|.
- The scale of f: as in FlowNetS, pixels / 20, area-averaged to the prediction's size.
- The sum over videos and snippets is a mean here, so that the step does not grow with the batch.

`width` multiplies every number of channels but the 6 that enter and the 2 of flow; it is for small runs.

Shapes: B snippets, H W pixels, M channels, h w cells of the last map (H/32, rounded up).
"""

import math
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.convention import InputSpec, Normalise
from models.weights import LoadReport, read_state_dict, strip, write_torch_file

Theta = Literal["exp2", "hundredth"]

FRAMES = 2
FLOW_SCALE_PX = 20.0
SLOPE = 0.1
EXPANDED = (512, 256, 128)
THETA = {"exp2": math.exp(-2.0), "hundredth": 0.01}

FLOWNET_INPUT = InputSpec(
    channel_order="RGB", max_value=1.0, mean=(0.411, 0.432, 0.45), std=(1.0, 1.0, 1.0), flow_mean=0.0, flow_std=1.0
)
"""Of the published PyTorch weights of FlowNetS; the flow entries are never read."""

# fmt: off
ENCODER = (
    # name      channels  kernel  pool after it
    ("conv1",   64,       7,      True),
    ("conv2",   128,      5,      True),
    ("conv3",   256,      5,      False),
    ("conv3_1", 256,      3,      True),
    ("conv4",   512,      3,      False),
    ("conv4_1", 512,      3,      True),
    ("conv5",   512,      3,      False),
    ("conv5_1", 512,      3,      True),
    ("conv6",   1024,     3,      False),
    ("conv6_1", 1024,     3,      False),  # the sixth pool is `last_pool`
)
# fmt: on


class SpatialAttentionNetwork(nn.Module):
    """f_san of equation (3): (B, 6, H, W) two RGB frames, raw 0..255 -> (B, M, h, w).

    M is 1024 `width`. The convolutions have FlowNetS's names (`conv1.0.weight`, ..., `conv6_1.0.bias`), no BatchNorm,
    and 24,050,752 parameters at width 1. Raises ValueError for a width or a stride out of range.
    """

    def __init__(self, *, width: float = 1.0, last_pool_stride: int = 1) -> None:
        super().__init__()
        if last_pool_stride not in (1, 2):
            raise ValueError(f"san_last_pool_stride={last_pool_stride} is unknown; choose 1 or 2")
        self.normalise = Normalise(FLOWNET_INPUT, modality="rgb", in_channels=3 * FRAMES)
        self.last_pool_stride = last_pool_stride
        channels = 3 * FRAMES
        for name, full, kernel, _ in ENCODER:
            out_channels = _scaled(full, width=width)
            self.add_module(name, nn.Sequential(_conv(channels, out_channels, kernel=kernel), nn.LeakyReLU(SLOPE)))
            channels = out_channels
        self.out_channels = channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalise(x)
        for name, _, _, pool in ENCODER:
            x = self.get_submodule(name)(x)
            if pool:
                x = F.max_pool2d(x, 2, ceil_mode=True)
        if self.last_pool_stride == 2:
            return F.max_pool2d(x, 2, ceil_mode=True)
        return F.max_pool2d(x, 3, stride=1, padding=1)

    def map_side(self, input_size: int) -> int:
        """Cells along a side of the map for an input of `input_size` pixels: pools of 2 round up."""
        return math.ceil(input_size / (32 * self.last_pool_stride))


class FlowPredictor(nn.Module):
    """Equation (3): (B, 6, H, W) two RGB frames, raw 0..255 -> flow in units of 20 px (B, 2, 16 h, 16 w).

    `san` is the network to be trained and kept, `expanded` the Expanded Part, which is thrown away after it
    (6,196,354 parameters at width 1).
    """

    def __init__(self, *, width: float = 1.0, last_pool_stride: int = 1) -> None:
        super().__init__()
        self.san = SpatialAttentionNetwork(width=width, last_pool_stride=last_pool_stride)
        layers: list[nn.Module] = []
        channels = self.san.out_channels
        for full in EXPANDED:
            out_channels = _scaled(full, width=width)
            layers += [nn.Upsample(scale_factor=2), _conv(channels, out_channels, kernel=3), nn.LeakyReLU(SLOPE)]
            channels = out_channels
        self.expanded = nn.Sequential(*layers, nn.Upsample(scale_factor=2), _conv(channels, 2, kernel=3))

    def forward(self, x: Tensor) -> Tensor:
        return self.expanded(self.san(x))


def flow_loss(predicted: Tensor, flow: Tensor, *, theta: Theta = "exp2") -> Tensor:
    """Equation (4), mean over snippets: `predicted` of `FlowPredictor`, `flow` (B, 2, H, W) in pixels of the input.

    Raises ValueError for an unknown `theta`.
    """
    if theta not in get_args(Theta):
        raise ValueError(f"theta={theta!r} is unknown; choose one of {', '.join(get_args(Theta))}")
    predicted = predicted.float()
    target = _at_size(flow, predicted) / FLOW_SCALE_PX
    return relaxed_error(predicted, target, share=THETA[theta]).sum(dim=(1, 2, 3)).mean()


def relaxed_error(predicted: Tensor, target: Tensor, *, share: float) -> Tensor:
    """max(|predicted - target| - share |target|, 0)^2, elementwise."""
    return ((predicted - target).abs() - share * target.abs()).clamp(min=0).square()


def endpoint_error(predicted: Tensor, flow: Tensor) -> Tensor:
    """Mean distance in pixels between prediction and flow, at the prediction's size; arguments as in `flow_loss`."""
    difference = predicted.float() * FLOW_SCALE_PX - _at_size(flow, predicted)
    return torch.linalg.vector_norm(difference, dim=1).mean()


def save_encoder(path: str | Path, san: SpatialAttentionNetwork) -> None:
    """Write the weights of `san` to `path` in one atomic step, under FlowNetS's names."""
    state = {name: tensor.detach().cpu() for name, tensor in san.state_dict().items()}
    write_torch_file(path, {"format": "wherewhen-san", "version": 1, "state_dict": state})


def load_encoder(san: SpatialAttentionNetwork, path: str | Path) -> LoadReport:
    """Copy the ten convolutions at `path` into `san`: a file of `save_encoder`, or published FlowNetS weights.

    Every other tensor of the file, such as FlowNetS's decoder, is reported as unexpected. Raises ValueError, leaving
    `san` as it was, when the file is not a checkpoint or when a convolution is missing or of another shape.
    """
    source = {strip(name): tensor for name, tensor in read_state_dict(path).items()}
    target = san.state_dict()
    missing = [name for name in target if name not in source]
    shapes = [
        f"{name} {tuple(source[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in target.items()
        if name in source and source[name].shape != tensor.shape
    ]
    faults = missing + shapes
    if faults:
        raise ValueError(
            f"{path} does not fit this Spatial Attention Network: {len(faults)} of {len(target)} tensors are missing "
            f"or of another shape ({', '.join(faults[:3])}); give FlowNetS weights without BatchNorm to a network of "
            "san_width 1, or weights that were pre-trained with the same san_width"
        )
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])
    unexpected = tuple(name for name in source if name not in target)
    return LoadReport(path=str(path), loaded=tuple(target), missing=(), unexpected=unexpected, reshaped=(), dropped=())


def _scaled(channels: int, *, width: float) -> int:
    if not 0 < width <= 1:
        raise ValueError(f"san_width={width} is not a fraction of the channels in (0, 1]")
    return max(1, round(channels * width))


def _conv(in_channels: int, out_channels: int, *, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the map's size, initialised as FlowNetS: Kaiming for the leaky slope, zero bias."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    nn.init.kaiming_normal_(conv.weight, a=SLOPE)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _at_size(flow: Tensor, predicted: Tensor) -> Tensor:
    """Flow (B, 2, H, W) averaged over the area of each cell of the prediction; still in pixels of the input."""
    height, width = predicted.shape[-2:]
    return F.adaptive_avg_pool2d(flow.float(), (height, width))
