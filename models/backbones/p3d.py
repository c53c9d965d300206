"""P3D-63/131/199: residual networks whose 3x3x3 convolutions are split into 1x3x3 (space) and 3x1x1 (time).

Qiu, Yao and Mei, "Learning Spatio-Temporal Representation with Pseudo-3D Residual Networks", ICCV 2017, with the
layers and key names of the PyTorch port. Blocks cycle through the paper's three forms:

    A   T(S(x))           space, then time
    B   S(x) + T(x)       side by side
    C   S(x) + T(S(x))    a compromise

up to layer4, which is a layer of a 2D ResNet on a map that has one frame left: time is halved by the stem's pool and
after each of layer1 to layer3. P3D-199 with 400 classes has 66,492,240 parameters. The port calls the first
convolution conv1_custom; here it is conv1.

Pixels: RGB 0..1 with the ImageNet mean and standard deviation, 160x160; flow (two channels) 0..1 with .5 and .226.

Shapes: B batch, C channels, T frames, H W pixels (any size from 32), D features.
"""

from collections.abc import Mapping
from itertools import cycle

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

# depth: blocks in layer1..layer4
DEPTHS = {63: (3, 4, 6, 3), 131: (3, 4, 23, 3), 199: (3, 8, 36, 3)}


class PseudoBlock(nn.Module):
    """1x1x1 (which halves the map in `stride`), space and time as `form` says, 1x1x1 to 4 `channels`, add.

    The three empty modules are places for attention.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int, project: bool, form: str) -> None:
        super().__init__()
        assert form in ("A", "B", "C")
        self.form = form
        space_stride = (1, stride, stride)
        self.conv1 = nn.Conv3d(in_channels, channels, 1, stride=space_stride, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.after_conv1: nn.Module = nn.Identity()
        self.conv2 = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1), bias=False)
        self.bn2 = nn.BatchNorm3d(channels)
        self.conv3 = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.bn3 = nn.BatchNorm3d(channels)
        self.conv4 = nn.Conv3d(channels, 4 * channels, 1, bias=False)
        self.bn4 = nn.BatchNorm3d(4 * channels)
        self.before_add: nn.Module = nn.Identity()
        self.downsample: nn.Sequential | None = None
        if project:
            conv = nn.Conv3d(in_channels, 4 * channels, 1, stride=space_stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm3d(4 * channels))
        self.after_add: nn.Module = nn.Identity()

    def _space(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(x)))

    def _time(self, x: Tensor) -> Tensor:
        return F.relu(self.bn3(self.conv3(x)))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.after_conv1(F.relu(self.bn1(self.conv1(x))))
        match self.form:
            case "A":
                x = self._time(self._space(x))
            case "B":
                x = self._space(x) + self._time(x)
            case "C":
                x = self._space(x)
                x = x + self._time(x)
        x = self.before_add(self.bn4(self.conv4(x)))
        return self.after_add(F.relu(x + shortcut))


class PlaneBlock(nn.Module):
    """The 2D bottleneck of layer4: 1x1 (which halves the map in `stride`), 3x3, 1x1 to 4 `channels`, add.

    It has the same places for attention, but maps without a time axis.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int, project: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.after_conv1: nn.Module = nn.Identity()
        self.conv_normal = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn_normal = nn.BatchNorm2d(channels)
        self.conv4 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(4 * channels)
        self.before_add: nn.Module = nn.Identity()
        self.downsample: nn.Sequential | None = None
        if project:
            conv = nn.Conv2d(in_channels, 4 * channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * channels))
        self.after_add: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.after_conv1(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.bn_normal(self.conv_normal(x)))
        x = self.before_add(self.bn4(self.conv4(x)))
        return self.after_add(F.relu(x + shortcut))


class P3D(nn.Module):
    """(B, in_channels, 16, H, W) normalised -> (B, 2048) features, or (B, num_classes) logits with `num_classes`.

    Dropout acts before the classifier only. `width` below 64 makes a slim network of the same form (its D is 32
    `width`). Raises ValueError for an unknown depth, and for clips that do not leave one frame: 16 to 31 do.
    """

    input_spec = IMAGENET_INPUT

    def __init__(
        self,
        depth: int = 199,
        *,
        in_channels: int = 3,
        width: int = 64,
        dropout: float = 0.5,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if depth not in DEPTHS:
            raise ValueError(f"P3D depth {depth} is unknown; choose one of {', '.join(map(str, DEPTHS))}")
        n1, n2, n3, n4 = DEPTHS[depth]
        self.in_channels = in_channels
        self.feature_dim = 32 * width
        self.conv1 = nn.Conv3d(in_channels, width, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        forms = cycle("ABC")
        # output for 16 frames of 160x160; the pool after the stem gives 64 x 8 x 40 x 40
        self.layer1 = nn.Sequential(  #  256 x 8 x 40 x 40
            PseudoBlock(width, width, stride=1, project=True, form=next(forms)),
            *(PseudoBlock(4 * width, width, stride=1, project=False, form=next(forms)) for _ in range(n1 - 1)),
        )
        self.layer2 = nn.Sequential(  #  512 x 4 x 20 x 20
            PseudoBlock(4 * width, 2 * width, stride=2, project=True, form=next(forms)),
            *(PseudoBlock(8 * width, 2 * width, stride=1, project=False, form=next(forms)) for _ in range(n2 - 1)),
        )
        self.layer3 = nn.Sequential(  # 1024 x 2 x 10 x 10
            PseudoBlock(8 * width, 4 * width, stride=2, project=True, form=next(forms)),
            *(PseudoBlock(16 * width, 4 * width, stride=1, project=False, form=next(forms)) for _ in range(n3 - 1)),
        )
        self.layer4 = nn.Sequential(  # 2048 x 5 x 5
            PlaneBlock(16 * width, 8 * width, stride=2, project=True),
            *(PlaneBlock(32 * width, 8 * width, stride=1, project=False) for _ in range(n4 - 1)),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.dropout = nn.Dropout(dropout)
        self.fc = None if num_classes is None else nn.Linear(self.feature_dim, num_classes)

    def stages(self) -> dict[str, tuple[nn.Module, ...]]:
        """The blocks of every layer, in order: where attention can be inserted."""
        layers = {"layer1": self.layer1, "layer2": self.layer2, "layer3": self.layer3, "layer4": self.layer4}
        return {name: tuple(layer) for name, layer in layers.items()}

    def feature_map(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) normalised -> (B, 2048, 1, ceil(H/32), ceil(W/32))."""
        if x.shape[2] // 16 != 1:
            raise ValueError(
                f"P3D halves time four times down to one frame and takes 16 to 31 frames, got {x.shape[2]}"
            )
        x = F.max_pool3d(F.relu(self.bn1(self.conv1(x))), (2, 3, 3), stride=2, padding=(0, 1, 1))
        for layer in (self.layer1, self.layer2, self.layer3):
            x = F.max_pool3d(layer(x), (2, 1, 1))
        return self.layer4(x.squeeze(2)).unsqueeze(2)  # B C 1 H W -> B C H W -> B C 1 H W

    def forward(self, x: Tensor) -> Tensor:
        features = self.feature_map(x).mean(dim=(-3, -2, -1))
        return features if self.fc is None else self.fc(self.dropout(features))


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the port's files (first convolution conv1_custom), under our names. A file with ours passes unchanged.

    Raises ValueError for a file of another network.
    """
    ours = {name.replace("conv1_custom.", "conv1.", 1): tensor for name, tensor in state.items()}
    first = ours.get("conv1.weight")
    if first is None or first.shape[2:] != (1, 7, 7) or "layer4.0.conv_normal.weight" not in ours:
        raise ValueError(
            "the file is not one of P3D: it has no conv1_custom.weight with kernel 1x7x7 and no layer4.0.conv_normal, "
            f"its first tensors are {', '.join(list(state)[:3])}"
        )
    return ours
