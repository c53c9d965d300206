"""Res3D-18, the "ResNet3D" of JSTA and of S-CNN's second release.

Tran, Ray, Shou, Chang and Paluri, "ConvNet Architecture Search for Spatiotemporal Feature Learning", 2017, with the
layers of its published Caffe model: a 3x7x7 stem without max-pool; four stages of two basic blocks, of which stage 2
keeps the resolution and yet has a projection in its first block; a pool over space alone, so that time stays in the
features (512 for 8 frames, 1024 for 16). No convolution has a bias. With 101 classes and 8 frames it has 33,222,309
parameters.

Pixels: BGR 0..255 minus 128, 112x112 crops of 128x171 frames. There are no published weights for flow.

Shapes: B batch, C channels, T frames, H W pixels (any size from 16), D features.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.convention import InputSpec

SPORTS1M_INPUT = InputSpec(
    channel_order="BGR", max_value=255.0, mean=(128.0, 128.0, 128.0), std=(1.0, 1.0, 1.0), flow_mean=128.0, flow_std=1.0
)


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions around a shortcut (B, C, T, H, W); the three empty modules are places for attention."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.after_conv1: nn.Module = nn.Identity()
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.before_add: nn.Module = nn.Identity()
        self.downsample: nn.Sequential | None = None
        if project:
            conv = nn.Conv3d(in_channels, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm3d(channels))
        self.after_add: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.after_conv1(F.relu(self.bn1(self.conv1(x))))
        x = self.before_add(self.bn2(self.conv2(x)))
        return self.after_add(F.relu(x + shortcut))


class Res3D18(nn.Module):
    """(B, in_channels, frames, H, W) normalised -> (B, D) features, or (B, num_classes) logits with `num_classes`.

    D is 512 for every 8 frames begun; `width` below 64 makes a slim network of the same form.
    """

    input_spec = SPORTS1M_INPUT

    def __init__(
        self, *, in_channels: int = 3, frames: int = 8, width: int = 64, num_classes: int | None = None
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.frames = frames
        self.feature_dim = 8 * width * -(-frames // 8)
        self.conv1 = nn.Conv3d(in_channels, width, (3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        # output of each stage for 8 frames of 112x112
        self.res2a = BasicBlock(width, width, stride=1, project=True)  #  64 x 8 x 56 x 56
        self.res2b = BasicBlock(width, width, stride=1, project=False)
        self.res3a = BasicBlock(width, 2 * width, stride=2, project=True)  # 128 x 4 x 28 x 28
        self.res3b = BasicBlock(2 * width, 2 * width, stride=1, project=False)
        self.res4a = BasicBlock(2 * width, 4 * width, stride=2, project=True)  # 256 x 2 x 14 x 14
        self.res4b = BasicBlock(4 * width, 4 * width, stride=1, project=False)
        self.res5a = BasicBlock(4 * width, 8 * width, stride=2, project=True)  # 512 x 1 x  7 x  7
        self.res5b = BasicBlock(8 * width, 8 * width, stride=1, project=False)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.fc = None if num_classes is None else nn.Linear(self.feature_dim, num_classes)

    def stages(self) -> dict[str, tuple[nn.Module, ...]]:
        """The blocks of every stage, in order: where attention can be inserted."""
        return {
            "res2": (self.res2a, self.res2b),
            "res3": (self.res3a, self.res3b),
            "res4": (self.res4a, self.res4b),
            "res5": (self.res5a, self.res5b),
        }

    def feature_map(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) normalised -> (B, 512, ceil(T/8), ceil(H/16), ceil(W/16))."""
        x = F.relu(self.bn1(self.conv1(x)))
        for blocks in self.stages().values():
            for block in blocks:
                x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        features = self.feature_map(x).mean(dim=(-2, -1)).flatten(1)  # B 512 T/8 -> B D, channel by channel as in Caffe
        if features.shape[1] != self.feature_dim:
            raise ValueError(f"Res3D-18 was built for clips of {self.frames} frames, got a clip of {x.shape[2]}")
        return features if self.fc is None else self.fc(features)


_BRANCHES = {"branch2a": ("conv1", "bn1"), "branch2b": ("conv2", "bn2"), "branch1": ("downsample.0", "downsample.1")}
_BLOBS = {
    "conv": {"0": "weight", "weight": "weight"},
    "bn": {
        "0": "running_mean",
        "running_mean": "running_mean",
        "1": "running_var",
        "running_var": "running_var",
        "2": "factor",
    },
    "scale": {"0": "weight", "weight": "weight", "1": "bias", "bias": "bias"},
    "fc": {"0": "weight", "weight": "weight", "1": "bias", "bias": "bias"},
}


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the Caffe model (Sports-1M, S-CNN v1.1, JSTA), one per blob, under our names.

    The published file must first be converted to a dict of tensors called `<layer>.<number of the blob>`
    ("res2a_branch2a.0", "bn2a_branch2a.1"; the spellings .weight, .bias, .running_mean, .running_var are understood
    too). Caffe keeps BatchNorm's sums (blobs 0 and 1) with their count (blob 2), and its gain and shift in a "scale"
    layer: together they become one BatchNorm3d. The classifier, whatever its number ("fc8-pro"), becomes fc. A file
    with our own names passes unchanged. Raises ValueError for a file of another network.
    """
    if "res2a.conv1.weight" in state:
        return dict(state)
    names = {key: _our_name(key) for key in state}
    if not {"conv1.weight", "res5b.conv2.weight"} <= set(names.values()):
        raise ValueError(
            "the file is not one of Res3D-18: it has no layers conv1 and res5b_branch2b, its first tensors are "
            f"{', '.join(list(state)[:3])}"
        )
    unknown = [key for key, name in names.items() if name is None]
    if unknown:
        raise ValueError(f"the file is not one of Res3D-18, which has no {', '.join(unknown[:3])}")
    ours = {f"{name}": state[key] for key, name in names.items()}
    factors = {name.removesuffix(".factor"): ours.pop(name) for name in list(ours) if name.endswith(".factor")}
    for norm, factor in factors.items():
        scale = torch.where(factor == 0, 0.0, 1.0 / factor)  # as Caffe: no statistics yet
        for name in (f"{norm}.running_mean", f"{norm}.running_var"):
            ours[name] = ours[name] * scale
    return ours


def _our_name(key: str) -> str | None:
    """ "bn2a_branch2a.1" -> "res2a.bn1.running_var"; None for a name that Res3D-18 does not have."""
    layer, _, blob = key.rpartition(".")
    if layer.startswith("fc"):
        return f"fc.{_BLOBS['fc'][blob]}" if blob in _BLOBS["fc"] else None
    match = re.fullmatch(r"(res|bn|scale)([2-5][ab])_(branch1|branch2a|branch2b)", layer)
    if match is not None:
        kind, block, branch = match.groups()
        conv, norm = (f"res{block}.{part}" for part in _BRANCHES[branch])
    elif layer in ("conv1", "bn_conv1", "scale_conv1"):
        kind, conv, norm = layer.split("_")[0], "conv1", "bn1"
    else:
        return None
    kind = {"res": "conv", "conv1": "conv"}.get(kind, kind)
    parameter = _BLOBS[kind].get(blob)
    return None if parameter is None else f"{conv if kind == 'conv' else norm}.{parameter}"
