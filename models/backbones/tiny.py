"""TinyCNN: four convolutions that train from scratch on a few hundred small clips in a few CPU minutes.

No paper and no published weights: the smallest network on which the attention families can be told apart on the
synthetic demo, and what the tests use. About 100,000 parameters, 16 million multiply-adds for a 10x96x96 input.

Pixels: centred on 128 (grey, or zero motion) and scaled so that typical contrast and motion have a spread near one.

Shapes: B batch, C channels, H W pixels (any size from 32).
"""

from torch import Tensor, nn

from models.backbones.convention import InputSpec

TINY_INPUT = InputSpec(
    channel_order="RGB",
    max_value=255.0,
    mean=(128.0, 128.0, 128.0),
    std=(64.0, 64.0, 64.0),
    flow_mean=128.0,
    flow_std=16.0,  # 2.5 px of motion at the default bound of 20 px
)


def _stage(in_channels: int, out_channels: int, *, kernel: int) -> nn.Sequential:
    """Convolution with stride 2, BN, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride=2, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


class TinyCNN(nn.Module):
    """(B, in_channels, H, W) normalised -> (B, 128) features, or (B, num_classes) logits with `num_classes`."""

    feature_dim = 128
    input_spec = TINY_INPUT

    def __init__(self, *, in_channels: int = 3, num_classes: int | None = None) -> None:
        super().__init__()
        self.stage1 = _stage(in_channels, 16, kernel=5)
        self.stage2 = _stage(16, 32, kernel=3)
        self.stage3 = _stage(32, 64, kernel=3)
        self.stage4 = _stage(64, self.feature_dim, kernel=3)
        self.fc = None if num_classes is None else nn.Linear(self.feature_dim, num_classes)

    def feature_map(self, x: Tensor) -> Tensor:
        """(B, C, H, W) normalised -> (B, 128, ceil(H/16), ceil(W/16))."""
        return self.stage4(self.stage3(self.stage2(self.stage1(x))))

    def forward(self, x: Tensor) -> Tensor:
        features = self.feature_map(x).mean(dim=(-2, -1))
        return features if self.fc is None else self.fc(features)
