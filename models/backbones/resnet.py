"""ResNet-18/34/50/101/152 with the key names of the torchvision checkpoints.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, table 1. Deviation (as in the
published torchvision weights): a bottleneck that halves the map does so in its 3x3 convolution, not in the first 1x1.

Pixels: RGB 0..1 with the ImageNet mean and standard deviation; flow 0..1 with mean .5 and standard deviation .226.

Shapes: B batch, C channels, H W pixels (any size from 32).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.convention import InputSpec

IMAGENET_INPUT = InputSpec(
    channel_order="RGB",
    max_value=1.0,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    flow_mean=0.5,
    flow_std=0.226,
)


def _projection(in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential | None:
    """The shortcut where a block changes the shape; None where the identity does."""
    if stride == 1 and in_channels == out_channels:
        return None
    conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (table 1, 18 and 34 layers)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _projection(in_channels, channels, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1x1 to `channels`, 3x3, 1x1 to 4 `channels` (table 1, 50 layers and more)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.downsample = _projection(in_channels, channels * self.expansion, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


# depth: (block, how many in layer1..layer4)
DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """(B, in_channels, H, W) normalised -> (B, 512 or 2048) features, or (B, num_classes) logits with `num_classes`."""

    input_spec = IMAGENET_INPUT

    def __init__(self, depth: int, *, in_channels: int = 3, num_classes: int | None = None) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"ResNet depth {depth} is unknown; choose one of {', '.join(map(str, DEPTHS))}")
        block, (n1, n2, n3, n4) = DEPTHS[depth]
        self.feature_dim = 512 * block.expansion
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _layer(block, 64, 64, blocks=n1, stride=1)
        self.layer2 = _layer(block, 64 * block.expansion, 128, blocks=n2, stride=2)
        self.layer3 = _layer(block, 128 * block.expansion, 256, blocks=n3, stride=2)
        self.layer4 = _layer(block, 256 * block.expansion, 512, blocks=n4, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.fc = None if num_classes is None else nn.Linear(self.feature_dim, num_classes)

    def feature_map(self, x: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, feature_dim, ceil(H/32), ceil(W/32))."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x: Tensor) -> Tensor:
        features = self.feature_map(x).mean(dim=(-2, -1))
        return features if self.fc is None else self.fc(features)


def _layer(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, *, blocks: int, stride: int
) -> nn.Sequential:
    first = block(in_channels, channels, stride=stride)
    rest = [block(channels * block.expansion, channels, stride=1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
