"""3D ResNets and ResNeXts with the key names of the 3D-ResNets and MARS checkpoints.

Hara, Kataoka and Satoh, "Can Spatiotemporal 3D CNNs Retrace the History of 2D CNNs and ImageNet?", CVPR 2018:
ResNet-18/34 with basic blocks, 50/101/152 with bottlenecks, ResNeXt-101 with 32 groups (`cardinality`). Networks of 16
and of 64 frames are the same; only their weights differ.

Shortcuts where a block changes the shape: type B projects; type A, which the ResNet-18 and -34 files of 2018 have,
takes every second voxel and fills the new channels with zeros. The released type A cuts the gradient of that shortcut
(it reads `.data`); here it is differentiable.

Pixels: the files of 2018 and of MARS take RGB 0..255 minus the ActivityNet mean, flow minus 127.5 (two channels); those
of 2020 take RGB 0..1 with Kinetics mean and deviation, and have no flow network (its numbers here are those of TSN).

Shapes: B batch, C channels, T frames, H W pixels (any size from 16), D features.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.convention import InputSpec

ACTIVITYNET_INPUT = InputSpec(
    channel_order="RGB",
    max_value=255.0,
    mean=(114.7748, 107.7354, 99.4750),
    std=(1.0, 1.0, 1.0),
    flow_mean=127.5,
    flow_std=1.0,
)
KINETICS_INPUT = InputSpec(
    channel_order="RGB",
    max_value=1.0,
    mean=(0.4345, 0.4051, 0.3775),
    std=(0.2768, 0.2713, 0.2737),
    flow_mean=0.5,
    flow_std=0.226,
)
RELEASES = {"2018": ACTIVITYNET_INPUT, "2020": KINETICS_INPUT}

Shortcut = Literal["A", "B"]

# depth: blocks in layer1..layer4
BASIC_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
BOTTLENECK_DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ZeroPadShortcut(nn.Module):
    """Type A: (B, C, T, H, W) -> every `stride`-th voxel, with zero channels up to `channels`. No parameters."""

    def __init__(self, channels: int, *, stride: int) -> None:
        super().__init__()
        self.channels = channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        s = self.stride
        x = x[:, :, ::s, ::s, ::s]
        return F.pad(x, (0, 0, 0, 0, 0, 0, 0, self.channels - x.shape[1]))


def _shortcut(in_channels: int, out_channels: int, *, stride: int, kind: Shortcut) -> nn.Module | None:
    """The shortcut where a block changes the shape; None where the identity does."""
    if stride == 1 and in_channels == out_channels:
        return None
    if kind == "A":
        return ZeroPadShortcut(out_channels, stride=stride)
    conv = nn.Conv3d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions; the three empty modules are places for attention."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.after_conv1: nn.Module = nn.Identity()
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.before_add: nn.Module = nn.Identity()
        self.downsample = _shortcut(in_channels, channels, stride=stride, kind=shortcut)
        self.after_add: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.after_conv1(F.relu(self.bn1(self.conv1(x))))
        x = self.before_add(self.bn2(self.conv2(x)))
        return self.after_add(F.relu(x + shortcut))


class Bottleneck(nn.Module):
    """1x1x1 to `middle` channels, 3x3x3 in `groups`, 1x1x1 to `out_channels`; with places for attention."""

    def __init__(
        self, in_channels: int, middle: int, out_channels: int, *, stride: int, groups: int, shortcut: Shortcut
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(middle)
        self.after_conv1: nn.Module = nn.Identity()
        self.conv2 = nn.Conv3d(middle, middle, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm3d(middle)
        self.conv3 = nn.Conv3d(middle, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out_channels)
        self.before_add: nn.Module = nn.Identity()
        self.downsample = _shortcut(in_channels, out_channels, stride=stride, kind=shortcut)
        self.after_add: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.after_conv1(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.before_add(self.bn3(self.conv3(x)))
        return self.after_add(F.relu(x + shortcut))


class ResNet3D(nn.Module):
    """(B, in_channels, T, H, W) normalised -> (B, D) features, or (B, num_classes) logits with `num_classes`.

    D is 512 (depth 18, 34) or 2048. `cardinality` 32 makes the ResNeXt; `release` is the year of the weights, which
    decides the pixel convention; `width` below 64 makes a slim network of the same form. Raises ValueError for a
    depth, shortcut, cardinality or release that does not exist, and a width that its groups do not divide.
    """

    def __init__(
        self,
        depth: int,
        *,
        cardinality: int = 1,
        shortcut: Shortcut = "B",
        release: Literal["2018", "2020"] = "2018",
        in_channels: int = 3,
        width: int = 64,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        _check(depth, cardinality=cardinality, shortcut=shortcut, release=release, width=width)
        self.input_spec = RELEASES[release]
        self.in_channels = in_channels
        self.feature_dim = (8 if depth in BASIC_DEPTHS else 32) * width
        self.conv1 = nn.Conv3d(in_channels, width, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        layers = [_layer(i, depth, width=width, groups=cardinality, shortcut=shortcut) for i in range(4)]
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.fc = None if num_classes is None else nn.Linear(self.feature_dim, num_classes)

    def stages(self) -> dict[str, tuple[nn.Module, ...]]:
        """The blocks of every layer, in order: where attention can be inserted."""
        layers = {"layer1": self.layer1, "layer2": self.layer2, "layer3": self.layer3, "layer4": self.layer4}
        return {name: tuple(layer) for name, layer in layers.items()}

    def feature_map(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) normalised -> (B, D, ceil(T/16), ceil(H/32), ceil(W/32))."""
        x = F.max_pool3d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x: Tensor) -> Tensor:
        features = self.feature_map(x).mean(dim=(-3, -2, -1))
        return features if self.fc is None else self.fc(features)


def _layer(index: int, depth: int, *, width: int, groups: int, shortcut: Shortcut) -> nn.Sequential:
    """Layer 1 + `index`: the first block takes the layer before (or the stem) and, from layer2 on, halves T, H, W."""
    stride = 1 if index == 0 else 2
    channels = width * 2**index
    if depth in BASIC_DEPTHS:
        into = width if index == 0 else channels // 2
        first = BasicBlock(into, channels, stride=stride, shortcut=shortcut)
        rest = (
            BasicBlock(channels, channels, stride=1, shortcut=shortcut) for _ in range(BASIC_DEPTHS[depth][index] - 1)
        )
        return nn.Sequential(first, *rest)
    out, middle = 4 * channels, channels if groups == 1 else 2 * channels
    into = width if index == 0 else out // 2
    blocks = [Bottleneck(into, middle, out, stride=stride, groups=groups, shortcut=shortcut)]
    for _ in range(BOTTLENECK_DEPTHS[depth][index] - 1):
        blocks.append(Bottleneck(out, middle, out, stride=1, groups=groups, shortcut=shortcut))
    return nn.Sequential(*blocks)


def _check(depth: int, *, cardinality: int, shortcut: str, release: str, width: int) -> None:
    depths = [*BASIC_DEPTHS, *BOTTLENECK_DEPTHS]
    if depth not in depths:
        raise ValueError(f"ResNet3D depth {depth} is unknown; choose one of {', '.join(map(str, depths))}")
    if cardinality < 1 or (cardinality > 1 and depth in BASIC_DEPTHS):
        raise ValueError(f"cardinality={cardinality} does not fit depth {depth}; use 1, or 32 with depth 50 and more")
    if 2 * width % cardinality:
        raise ValueError(f"width={width} cannot be cut into {cardinality} groups; use a multiple of {cardinality // 2}")
    if shortcut not in ("A", "B"):
        raise ValueError(f"shortcut={shortcut!r} is unknown; choose A or B")
    if release not in RELEASES:
        raise ValueError(f"release={release!r} is unknown; choose one of {', '.join(RELEASES)}")


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a 3D-ResNets (2018 or 2020) or MARS file, its "module." stripped, under our names: they are the same.

    Raises ValueError for a file of another network.
    """
    stem = state.get("conv1.weight")
    if stem is None or stem.shape[2:] != (7, 7, 7) or "layer1.0.conv1.weight" not in state:
        raise ValueError(
            "the file is not one of a 3D ResNet or ResNeXt: it has no conv1.weight with kernel 7x7x7 before "
            f"layer1.0.conv1, its first tensors are {', '.join(list(state)[:3])}"
        )
    return dict(state)
