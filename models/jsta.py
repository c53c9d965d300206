"""JSTA, S-step: attention inside a 3D network that sees clips of eight frames.

Yu, Guo, Wang, Gu, Xiang and Pan, "Joint spatial-temporal attention for action recognition", Pattern Recognition
Letters, 2018. Section 3.3 trains two models one after the other: `JSTASpatial`, a 3D network with the spatial attention
block of section 3.1, on clips; then `jsta_temporal`, on the clip features of the trained one, which a cache holds. So
neither training can touch the other's weights.

    (12) S = X * W_s + B_s,  T = X * W_t + B_t         3x3 in space; 3 in time
    (13) G = softmax(S + T)                            (14) O = relu(G . X)
    (15) A = softmax((X * W_1 + B_1) * W_3 + B_3)      1x1x1, then 3x3x3, with nothing between
    (16) O <- relu(O . A)                              (17) F = O + X
    (21) cross-entropy plus weight decay, which is the optimiser's

What the paper leaves open or its released model does otherwise, and the switch for each (first = default):

- The axis of the softmax in (13) and (15). `softmax_axis`: "channel" (Caffe's default, so the released model's) |
  "spatial" | "st" (space and time). With "channel" and untrained weights O is X / C^2, next to nothing; and as small is
  the gradient that the block gets.
- (12) and (15) have biases, the released model has none. `sa_bias`: False | True.
- The text replaces Identity3b by the block, the released model appends it. `sa_position`: "after_3b" | "replace_3b" |
  "none", the plain 3D network of table 1.
- The released model ends in a layer that is named relu and is a softmax. `sa_output`: "identity" | "softmax".

Shapes: B videos, N clips, C channels, T frames of a clip, H W pixels, D features, K classes, M clips of any videos;
h w cells of a map, L channels of all frames of a clip together (8 RGB frames are 24).
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.convention import Backbone, Normalise
from models.backbones.res3d18 import Res3D18
from models.scoring import SnippetScores
from models.switches import check_choice
from models.weights import LoadReport

SoftmaxAxis = Literal["channel", "spatial", "st"]
SAPosition = Literal["after_3b", "replace_3b", "none"]
SAOutput = Literal["identity", "softmax"]

GAUSS_STD = 0.01


class JSTASpatialOutput(NamedTuple):
    """The scores of B videos and what they came from."""

    logits: Tensor
    """(B, K) float32, before the softmax."""
    weights: Tensor
    """(B, N) float32, 1/N."""
    segment_logits: Tensor
    """(B, N, K) float32, of each clip."""


class SpatialAttentionBlock(nn.Module):
    """Equations (12) to (17): (B, C, T, h, w) -> the same shape. 40 C^2 weights, 4 C more with `bias`."""

    def __init__(
        self,
        channels: int,
        *,
        softmax_axis: SoftmaxAxis = "channel",
        bias: bool = False,
        output: SAOutput = "identity",
    ) -> None:
        super().__init__()
        check_choice("softmax_axis", softmax_axis, get_args(SoftmaxAxis))
        check_choice("sa_output", output, get_args(SAOutput))
        self.softmax_axis = softmax_axis
        self.output = output
        self.spatial = nn.Conv3d(channels, channels, (1, 3, 3), padding=(0, 1, 1), bias=bias)
        self.temporal = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=bias)
        self.point = nn.Conv3d(channels, channels, 1, bias=bias)
        self.cube = nn.Conv3d(channels, channels, 3, padding=1, bias=bias)
        self.attended = nn.Identity()  # O of equation (16) passes: a place to listen
        for conv in (self.spatial, self.temporal, self.point, self.cube):
            nn.init.normal_(conv.weight, std=GAUSS_STD)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        gate = self._softmax(self.spatial(x) + self.temporal(x))  # (12), (13)
        addition = self._softmax(self.cube(self.point(x)))  # (15)
        # in float32: what is added is some C^2 times smaller than x
        attended = self.attended(F.relu(F.relu(gate * x) * addition))  # (14), (16)
        result = attended + x  # (17)
        return (self._softmax(result) if self.output == "softmax" else result).to(x.dtype)

    def _softmax(self, x: Tensor) -> Tensor:
        x = x.float()
        match self.softmax_axis:
            case "channel":
                return x.softmax(dim=1)
            case "spatial":
                return x.flatten(3).softmax(dim=3).view_as(x)
            case "st":
                return x.flatten(2).softmax(dim=2).view_as(x)


def insert_spatial_attention(
    backbone: Backbone,
    *,
    position: SAPosition = "after_3b",
    softmax_axis: SoftmaxAxis = "channel",
    bias: bool = False,
    output: SAOutput = "identity",
) -> SpatialAttentionBlock:
    """Put a block behind the block res3b of a Res3D-18, or in its place; the other tensors keep their names.

    Read published weights before. Raises ValueError for a position that does not exist or is taken, and for another
    backbone, leaving the backbone as it was.
    """
    check_choice("sa_position", position, get_args(SAPosition)[:-1])
    if not isinstance(backbone, Res3D18):
        raise ValueError(
            f"sa_position={position!r} is a place in Res3D-18, not in {type(backbone).__name__}; use 'none'"
        )
    if any(isinstance(module, SpatialAttentionBlock) for module in backbone.modules()):
        raise ValueError("the backbone already has a spatial attention block; build a new one")
    weight = backbone.res3b.conv2.weight
    block = SpatialAttentionBlock(weight.shape[0], softmax_axis=softmax_axis, bias=bias, output=output)
    block.to(device=weight.device, dtype=weight.dtype)
    if position == "after_3b":
        backbone.res3b.after_add = block
    else:
        backbone.register_module("res3b", block)
    return block


def attention_map(attended: Tensor) -> Tensor:
    """O of equation (16), (B, C, T, h, w), over channels and frames -> (B, h, w) float32 that sums to one.

    The paper shows such maps in figure 3 without saying how it comes by them. Uniform where the block adds nothing.
    """
    added = attended.float().sum(dim=(1, 2)) + torch.finfo(torch.float32).tiny
    return added / added.sum(dim=(-2, -1), keepdim=True)


class JSTASpatial(nn.Module):
    """S-step: (B, N, L, H, W) raw values 0..255 -> `JSTASpatialOutput`. `backbone` is headless and takes clips.

    L are the channels of the frames of a clip, one frame after the other: `in_channels`. The clips of a video, three in
    training, count alike: their logits are averaged. The block is inserted here unless `sa_position` is "none", so put
    published weights into `backbone` before. Raises ValueError for an unknown switch or an input of another shape.
    """

    load_report: LoadReport | None = None  # set by `build` when it loads pretrained weights

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        modality: str,
        in_channels: int,
        dropout: float = 0.0,
        fc_std: float = GAUSS_STD,
        sa_position: SAPosition = "after_3b",
        softmax_axis: SoftmaxAxis = "channel",
        sa_bias: bool = False,
        sa_output: SAOutput = "identity",
    ) -> None:
        super().__init__()
        check_choice("sa_position", sa_position, get_args(SAPosition))
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is not a probability in [0, 1)")
        self.normalise = Normalise(backbone.input_spec, modality=modality, in_channels=in_channels)
        self.frame_channels = 3 if modality == "rgb" else 2
        self.backbone = backbone
        if sa_position != "none":
            insert_spatial_attention(
                backbone, position=sa_position, softmax_axis=softmax_axis, bias=sa_bias, output=sa_output
            )
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(backbone.feature_dim, num_classes)
        nn.init.normal_(self.fc.weight, std=fc_std)
        nn.init.zeros_(self.fc.bias)

    def clip_features(self, x: Tensor) -> Tensor:
        """x_i of section 3.2, what the T-step reads: M clips (M, L, H, W) -> (M, D). Set the model to eval first."""
        frames = self.normalise(x).unflatten(1, (-1, self.frame_channels))  # M L H W -> M T C H W
        return self.backbone(frames.transpose(1, 2))

    def score_snippets(self, x: Tensor) -> SnippetScores:
        """Logits for M clips (M, L, H, W) of any videos, no energies, and where the block adds most, over the clip."""
        maps: list[Tensor] = []
        places = [module.attended for module in self.modules() if isinstance(module, SpatialAttentionBlock)]
        hooks = [place.register_forward_hook(lambda *args: maps.append(attention_map(args[-1]))) for place in places]
        try:
            logits = self._logits(x)
        finally:
            for hook in hooks:
                hook.remove()
        return SnippetScores(logits, logits.new_zeros(len(logits)), maps[0] if maps else None)

    def consensus(self, logits: Tensor, energy: Tensor) -> JSTASpatialOutput:
        """Clip logits (B, N, K) of whole videos -> their scores, the mean; `energy` (B, N) is not looked at."""
        return JSTASpatialOutput(logits.mean(dim=1), torch.full_like(energy, 1.0 / logits.shape[1]), logits)

    def forward(self, x: Tensor) -> JSTASpatialOutput:
        if x.ndim != 5 or x.shape[1] < 1:
            raise ValueError(f"JSTA takes (videos, clips, channels, height, width), got shape {tuple(x.shape)}")
        logits = self._logits(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # B N L H W -> B*N L H W -> B N K
        return self.consensus(logits, logits.new_zeros(x.shape[:2]))

    def loss(self, output: JSTASpatialOutput, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Equation (21) without its last term, mean over the videos; `labels` (B,) are class numbers."""
        return F.cross_entropy(output.logits, labels, label_smoothing=label_smoothing)

    def _logits(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.clip_features(x))).float()
