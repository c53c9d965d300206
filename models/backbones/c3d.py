"""C3D: eight 3x3x3 convolutions and two fully-connected layers.

Tran, Bourdev, Fergus, Torresani and Paluri, "Learning Spatiotemporal Features with 3D Convolutional Networks", ICCV
2015, figure 3, with the key names of the PyTorch port (conv1, conv2, conv3a, ... fc8). With 101 classes it has
78,409,573 parameters, of which the convolutions 27,655,936. No batch normalisation.

Pixels: BGR 0..255 minus (90, 98, 102), 112x112 crops of 128x171 frames. There are no published weights for flow.

Shapes: B batch, C channels, T frames, H W pixels, D features.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.convention import InputSpec

SPORTS1M_INPUT = InputSpec(
    channel_order="BGR", max_value=255.0, mean=(90.0, 98.0, 102.0), std=(1.0, 1.0, 1.0), flow_mean=128.0, flow_std=1.0
)


class ConvReLU(nn.Conv3d):
    """A 3x3x3 convolution and its ReLU. It is the convolution, so that its tensors keep the published names.

    The two empty modules are places for attention: before the ReLU (where a residual block would add) and after it.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.before_add: nn.Module = nn.Identity()
        self.after_add: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.after_add(F.relu(self.before_add(super().forward(x))))


class C3D(nn.Module):
    """(B, in_channels, frames, size, size) normalised -> (B, 4096) from fc7, or (B, num_classes) logits from fc8.

    `frames` and `size` of the clip decide the inputs of fc6; `width` below 64 makes a slim network of the same form
    (its D is 64 `width`). Dropout follows fc6, and fc7 where there is an fc8. Raises ValueError for clips under 16
    frames or 16 pixels.
    """

    input_spec = SPORTS1M_INPUT

    def __init__(
        self,
        *,
        in_channels: int = 3,
        frames: int = 16,
        size: int = 112,
        width: int = 64,
        dropout: float = 0.5,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if frames < 16 or size < 16:
            raise ValueError(
                f"C3D takes clips of at least 16 frames of 16 pixels, not {frames} frames of {size} pixels"
            )
        self.in_channels = in_channels
        self.clip = (frames, size, size)
        self.feature_dim = 64 * width
        # output for 16 frames of 112x112
        self.conv1 = ConvReLU(in_channels, width)  #  64 x 16 x 112 x 112
        self.conv2 = ConvReLU(width, 2 * width)  # 128 x 16 x  56 x  56
        self.conv3a = ConvReLU(2 * width, 4 * width)  # 256 x  8 x  28 x  28
        self.conv3b = ConvReLU(4 * width, 4 * width)
        self.conv4a = ConvReLU(4 * width, 8 * width)  # 512 x  4 x  14 x  14
        self.conv4b = ConvReLU(8 * width, 8 * width)
        self.conv5a = ConvReLU(8 * width, 8 * width)  # 512 x  2 x   7 x   7
        self.conv5b = ConvReLU(8 * width, 8 * width)
        pooled = (frames // 16) * (size // 16 // 2 + 1) ** 2  # 1 x 4 x 4
        self.fc6 = nn.Linear(8 * width * pooled, self.feature_dim)
        self.fc7 = nn.Linear(self.feature_dim, self.feature_dim)
        self.dropout = nn.Dropout(dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.fc8 = None if num_classes is None else nn.Linear(self.feature_dim, num_classes)

    def stages(self) -> dict[str, tuple[nn.Module, ...]]:
        """The convolutions of every stage, in order: where attention can be inserted."""
        return {
            "conv1": (self.conv1,),
            "conv2": (self.conv2,),
            "conv3": (self.conv3a, self.conv3b),
            "conv4": (self.conv4a, self.conv4b),
            "conv5": (self.conv5a, self.conv5b),
        }

    def feature_map(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) normalised, of any size -> conv5b's (B, 512, T//8, H//16, W//16)."""
        x = F.max_pool3d(self.conv1(x), (1, 2, 2))
        x = F.max_pool3d(self.conv2(x), 2)
        x = F.max_pool3d(self.conv3b(self.conv3a(x)), 2)
        x = F.max_pool3d(self.conv4b(self.conv4a(x)), 2)
        return self.conv5b(self.conv5a(x))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != self.clip:
            raise ValueError(
                f"C3D was built for clips of {self.clip} (frames, height, width), got {tuple(x.shape[2:])}"
            )
        x = F.max_pool3d(self.feature_map(x), 2, padding=(0, 1, 1)).flatten(1)  # B 512 1 4 4 -> B 8192
        x = self.dropout(F.relu(self.fc6(x)))
        x = F.relu(self.fc7(x))
        return x if self.fc8 is None else self.fc8(self.dropout(x))


# position of every layer in the port's pretrained file, whose network is an nn.Sequential
_PRETRAINED = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3a",
    "features.8": "conv3b",
    "features.11": "conv4a",
    "features.13": "conv4b",
    "features.16": "conv5a",
    "features.18": "conv5b",
    "classifier.0": "fc6",
    "classifier.3": "fc7",
    "classifier.6": "fc8",
}


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the pretrained file (features.N, classifier.N) or of a trained C3D (conv1, ...), under our names.

    A family of ours calls the classifier fc. Raises ValueError for a file of another network, such as a VGG, which has
    the same kind of names.
    """
    ours: dict[str, Tensor] = {}
    for key, tensor in state.items():
        layer, _, parameter = key.rpartition(".")
        ours[f"{_PRETRAINED.get(layer, layer)}.{parameter}"] = tensor
    layers = {name.rpartition(".")[0] for name in ours}
    first = ours.get("conv1.weight")
    if first is None or first.shape[2:] != (3, 3, 3) or not layers <= {*_PRETRAINED.values(), "fc"}:
        raise ValueError(
            "the file is not one of C3D: it should hold conv1 ... fc8, or features.0 with kernel 3x3x3 ... "
            f"classifier.3, and its first tensors are {', '.join(list(state)[:3])}"
        )
    return ours
