"""BN-Inception (Inception with batch normalisation), the backbone of temporal segment networks.

Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
ICML 2015, figure 5, in the variant that the published Caffe weights use: every convolution has a bias and is followed
by BN and ReLU (69 of each), and all layers lie flat in the module so that the published key names fit
(`inception_3a_double_3x3_reduce.weight`, ...). With a 1000-class `fc` it has 11,295,240 parameters.

Deviation: the last pool is global, so that inputs other than 224x224 work. Sides must be multiples of 32: the
stride-2 blocks join a convolution with a ceil-mode pool and the two disagree on odd maps.

Pixels: BGR 0..255 minus (104, 117, 123), flow minus 128. The PyTorch port of TSN subtracts 128 from the third channel
instead of 123; weights converted from Caffe were trained with 123, so that is what is used here.

Shapes: B batch, C channels, H W pixels.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.convention import InputSpec

CAFFE_INPUT = InputSpec(
    channel_order="BGR", max_value=255.0, mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0), flow_mean=128.0, flow_std=1.0
)


class InceptionBlock(NamedTuple):
    """One row of the table: channels of each branch, (reduce, out) where two numbers; 0 = the branch is absent."""

    name: str
    conv1x1: int
    conv3x3: tuple[int, int]
    double3x3: tuple[int, int]
    pool: str
    pool_proj: int

    @property
    def stride(self) -> int:
        """The blocks without a 1x1 branch halve the map."""
        return 1 if self.conv1x1 else 2

    def out_channels(self, in_channels: int) -> int:
        return self.conv1x1 + self.conv3x3[1] + self.double3x3[1] + (self.pool_proj or in_channels)


# fmt: off
BLOCKS = (
    #              name  1x1  3x3         double 3x3  pool   proj       output at 224x224
    InceptionBlock("3a", 64,  (64, 64),   (64, 96),   "avg", 32),   #  256 x 28 x 28
    InceptionBlock("3b", 64,  (64, 96),   (64, 96),   "avg", 64),   #  320 x 28 x 28
    InceptionBlock("3c", 0,   (128, 160), (64, 96),   "max", 0),    #  576 x 14 x 14
    InceptionBlock("4a", 224, (64, 96),   (96, 128),  "avg", 128),  #  576 x 14 x 14
    InceptionBlock("4b", 192, (96, 128),  (96, 128),  "avg", 128),  #  576 x 14 x 14
    InceptionBlock("4c", 160, (128, 160), (128, 160), "avg", 128),  #  608 x 14 x 14
    InceptionBlock("4d", 96,  (128, 192), (160, 192), "avg", 128),  #  608 x 14 x 14
    InceptionBlock("4e", 0,   (128, 192), (192, 256), "max", 0),    # 1056 x  7 x  7
    InceptionBlock("5a", 352, (192, 320), (160, 224), "avg", 128),  # 1024 x  7 x  7
    InceptionBlock("5b", 352, (192, 320), (192, 224), "max", 128),  # 1024 x  7 x  7
)
# fmt: on


class BNInception(nn.Module):
    """(B, in_channels, H, W) normalised -> (B, 1024) features, or (B, num_classes) logits with `num_classes`."""

    feature_dim = 1024
    input_spec = CAFFE_INPUT

    def __init__(self, *, in_channels: int = 3, num_classes: int | None = None) -> None:
        super().__init__()
        self._add_conv("conv1_7x7_s2", in_channels, 64, kernel=7, stride=2)
        self._add_conv("conv2_3x3_reduce", 64, 64, kernel=1)
        self._add_conv("conv2_3x3", 64, 192, kernel=3)
        channels = 192
        for block in BLOCKS:
            self._add_block(block, channels)
            channels = block.out_channels(channels)
        assert channels == self.feature_dim
        self.fc = None if num_classes is None else nn.Linear(channels, num_classes)

    def _add_conv(self, name: str, in_channels: int, out_channels: int, *, kernel: int, stride: int = 1) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
        self.add_module(name, conv)
        self.add_module(f"{name}_bn", nn.BatchNorm2d(out_channels))

    def _add_block(self, block: InceptionBlock, in_channels: int) -> None:
        name, (reduce, out), (double_reduce, double_out) = f"inception_{block.name}", block.conv3x3, block.double3x3
        if block.conv1x1:
            self._add_conv(f"{name}_1x1", in_channels, block.conv1x1, kernel=1)
        self._add_conv(f"{name}_3x3_reduce", in_channels, reduce, kernel=1)
        self._add_conv(f"{name}_3x3", reduce, out, kernel=3, stride=block.stride)
        self._add_conv(f"{name}_double_3x3_reduce", in_channels, double_reduce, kernel=1)
        self._add_conv(f"{name}_double_3x3_1", double_reduce, double_out, kernel=3)
        self._add_conv(f"{name}_double_3x3_2", double_out, double_out, kernel=3, stride=block.stride)
        if block.pool_proj:
            self._add_conv(f"{name}_pool_proj", in_channels, block.pool_proj, kernel=1)

    def _conv(self, name: str, x: Tensor) -> Tensor:
        return F.relu(self.get_submodule(f"{name}_bn")(self.get_submodule(name)(x)))

    def _block(self, block: InceptionBlock, x: Tensor) -> Tensor:
        name = f"inception_{block.name}"
        branches = [self._conv(f"{name}_1x1", x)] if block.conv1x1 else []
        branches.append(self._conv(f"{name}_3x3", self._conv(f"{name}_3x3_reduce", x)))
        double = self._conv(f"{name}_double_3x3_1", self._conv(f"{name}_double_3x3_reduce", x))
        branches.append(self._conv(f"{name}_double_3x3_2", double))
        pooled = _pool(x, kind=block.pool, stride=block.stride)
        branches.append(self._conv(f"{name}_pool_proj", pooled) if block.pool_proj else pooled)
        return torch.cat(branches, dim=1)

    def feature_map(self, x: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, 1024, H/32, W/32). Raises ValueError unless H and W are multiples of 32."""
        if x.shape[-2] % 32 or x.shape[-1] % 32:
            raise ValueError(
                f"BN-Inception takes heights and widths that are multiples of 32, got {tuple(x.shape[-2:])}"
            )
        x = F.max_pool2d(self._conv("conv1_7x7_s2", x), 3, stride=2, ceil_mode=True)
        x = self._conv("conv2_3x3", self._conv("conv2_3x3_reduce", x))
        x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
        for block in BLOCKS:
            x = self._block(block, x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        features = self.feature_map(x).mean(dim=(-2, -1))
        return features if self.fc is None else self.fc(features)


def _pool(x: Tensor, *, kind: str, stride: int) -> Tensor:
    """3x3 pool inside a block: padded at stride 1 (the average counts the padding), ceil mode without padding at 2."""
    if stride == 2:
        return F.max_pool2d(x, 3, stride=2, ceil_mode=True)
    if kind == "max":
        return F.max_pool2d(x, 3, stride=1, padding=1)
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=True)
