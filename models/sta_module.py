"""STA: a module that weights the frames and channels of a 3D network's maps, and the loss of MARS.

Li, Liu, Zhang, Zhang, Song and Sebe, "Spatio-Temporal Attention Networks for Action Recognition and Detection", IEEE
TMM 2020, section 3. On a map X of c channels, l frames and h x w cells:

    Conv1    whole map, all channels -> 1     Z: 1 x l              (2), with S_s moved here from Deconv (section 3.C)
    Deconv   3 frames, stride s               1 x (l - 1) s + 3     E_t
    psi      ReLU
    Conv2    3 frames, stride s, 1 -> c       c x l                 S_t and E_s
    delta    sigmoid                          W: c x l
    Y = W . X, the same weight for all cells of a frame and channel                                             (7)

Conv1, Deconv and Conv2 have biases; together c (hw + 4) + 5 parameters, as in table 4. What the paper leaves open:

- Equation (4) squeezes with c l c h w weights, against tables 3 and 4. The tables are followed.
- Conv2 repeats the stride of Deconv, or figure 7's wider strides would not give back l frames.
- Where in a block the module sits. Figure 4 puts it at the bottom, table 3's parameters fit `position` "before_add".
- Its initialisation. PyTorch's gives W near .5, which halves what a pretrained block adds; `identity_init` starts with
  W = sigmoid(4) = .982 everywhere.

Variants of tables 7 and 9: "ta" one weight a frame, (1)-(2); "sa" one weight a channel, (3)-(4), for a fixed l;
"no_deconv"; "se" squeeze-and-excitation (Hu, Shen and Sun, CVPR 2018) with reduction 16.

Shapes: B batch, c channels, T frames (the paper's l), H W pixels, h w cells of a map, D features, K classes.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.c3d import C3D
from models.backbones.p3d import P3D
from models.backbones.res3d18 import Res3D18
from models.backbones.resnet3d import ResNet3D

Variant = Literal["sta", "ta", "sa", "se", "no_deconv"]
Position = Literal["before_add", "after_add", "after_conv1"]
Blocks = Literal["all", "last"]
VideoBackbone: TypeAlias = C3D | P3D | Res3D18 | ResNet3D

IDENTITY_BIAS = 4.0
SE_REDUCTION = 16


class STA(nn.Module):
    """(B, c, T, h, w) -> the same shape, weighted. T is free; `map_size` (h, w) is fixed.

    `gates` is the number of weights a frame: c, or 1 for the temporal variant. `deconv_stride` None leaves Deconv out.
    Raises ValueError for a map of another size.
    """

    def __init__(
        self,
        channels: int,
        map_size: tuple[int, int],
        *,
        gates: int,
        deconv_stride: int | None = 1,
        identity_init: bool = False,
    ) -> None:
        super().__init__()
        self.map_size = map_size
        stride = deconv_stride or 1
        self.conv1 = nn.Conv3d(channels, 1, (1, *map_size))
        self.deconv = None if deconv_stride is None else nn.ConvTranspose3d(1, 1, (3, 1, 1), stride=(stride, 1, 1))
        padding = (1, 0, 0) if self.deconv is None else 0
        self.conv2 = nn.Conv3d(1, gates, (3, 1, 1), stride=(stride, 1, 1), padding=padding)
        if identity_init:
            _open(self.conv2)
        if deconv_stride is not None and gates == channels:
            h, w = map_size
            assert sum(p.numel() for p in self.parameters()) == channels * (h * w + 4) + 5

    def weights(self, x: Tensor) -> Tensor:
        """W of equation (6): (B, c, T, h, w) -> (B, gates, T, 1, 1), each in 0..1."""
        _check_map(x, self.map_size)
        z = torch.einsum("bcthw,chw->bt", x, self.conv1.weight[0, :, 0])  # Conv1, several times faster than as Conv3d
        assert self.conv1.bias is not None
        z = (z + self.conv1.bias)[:, None, :, None, None]  # B T -> B 1 T 1 1
        if self.deconv is not None:
            z = self.deconv(z)  # B 1 (T-1)s+3 1 1
        return torch.sigmoid(self.conv2(F.relu(z)))

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x) * x


class SpatialAttention(nn.Module):
    """Equations (3) and (4): (B, c, T, h, w) -> the same shape, weighted by channel. `map_size` (T, h, w) is fixed.

    Raises ValueError for a map of another size.
    """

    def __init__(self, channels: int, map_size: tuple[int, int, int], *, identity_init: bool = False) -> None:
        super().__init__()
        self.map_size = map_size
        self.conv1 = nn.Conv3d(channels, 1, map_size)
        self.conv2 = nn.Conv3d(1, channels, 1)
        if identity_init:
            _open(self.conv2)

    def weights(self, x: Tensor) -> Tensor:
        """(B, c, T, h, w) -> (B, c, 1, 1, 1), each in 0..1."""
        _check_map(x, self.map_size)
        z = F.linear(x.flatten(1), self.conv1.weight.flatten(1), self.conv1.bias)  # B 1
        return torch.sigmoid(self.conv2(F.relu(z)[:, :, None, None, None]))

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x) * x


class SqueezeExcitation(nn.Module):
    """(B, c, T, h, w) of any size -> the same shape, weighted by channel."""

    def __init__(self, channels: int, *, identity_init: bool = False) -> None:
        super().__init__()
        hidden = max(1, channels // SE_REDUCTION)
        self.conv1 = nn.Conv3d(channels, hidden, 1)
        self.conv2 = nn.Conv3d(hidden, channels, 1)
        if identity_init:
            _open(self.conv2)

    def weights(self, x: Tensor) -> Tensor:
        """(B, c, T, h, w) -> (B, c, 1, 1, 1), each in 0..1."""
        z = x.mean(dim=(-3, -2, -1), keepdim=True)  # B c 1 1 1
        return torch.sigmoid(self.conv2(F.relu(self.conv1(z))))

    def forward(self, x: Tensor) -> Tensor:
        return self.weights(x) * x


AttentionModule: TypeAlias = STA | SpatialAttention | SqueezeExcitation


def sta_module(
    variant: Variant,
    channels: int,
    map_size: tuple[int, int, int],
    *,
    deconv_stride: int = 1,
    identity_init: bool = False,
) -> AttentionModule:
    """The module of a variant for maps of `map_size` (T, h, w). Raises ValueError for switches that do not exist."""
    if deconv_stride < 1:
        raise ValueError(f"deconv_stride={deconv_stride} is not a stride; it must be at least 1")
    if deconv_stride > 1 and variant not in ("sta", "ta"):
        raise ValueError(f"deconv_stride={deconv_stride} needs a Deconv, which variant {variant!r} does not have")
    cells = map_size[1:]
    match variant:
        case "sta":
            return STA(channels, cells, gates=channels, deconv_stride=deconv_stride, identity_init=identity_init)
        case "ta":
            return STA(channels, cells, gates=1, deconv_stride=deconv_stride, identity_init=identity_init)
        case "no_deconv":
            return STA(channels, cells, gates=channels, deconv_stride=None, identity_init=identity_init)
        case "sa":
            return SpatialAttention(channels, map_size, identity_init=identity_init)
        case "se":
            return SqueezeExcitation(channels, identity_init=identity_init)
        case _:
            raise ValueError(f"variant {variant!r} is unknown; choose one of {', '.join(get_args(Variant))}")


def insert(
    backbone: VideoBackbone,
    *,
    clip: tuple[int, int, int],
    stages: Sequence[str],
    blocks: Blocks = "all",
    position: Position = "before_add",
    variant: Variant = "sta",
    deconv_stride: int = 1,
    identity_init: bool = False,
) -> dict[str, AttentionModule]:
    """Put a module of its own into the blocks of `stages` of a backbone that will see clips of size `clip` (T, H, W).

    `blocks` takes every block of a stage or its last one. `position` is "before_add": at the end of the residual
    branch, before the shortcut is added (in C3D, which has none, before the ReLU); "after_add": after the ReLU that
    ends the block; "after_conv1": after the first convolution of the block and its ReLU. The names of the backbone's
    own tensors do not change, so that its checkpoints load as before, with the new modules' names missing.

    The paper's own places are layer4 and, as early layers, layer1 of a ResNet3D. Returns the new modules by name.
    Raises ValueError, leaving the backbone as it was, for a stage, position or variant that does not exist, a place
    that is taken, and a place whose maps have no time axis (P3D's layer4).
    """
    chosen = _chosen_blocks(backbone, stages=stages, blocks=blocks)
    slots = [_slot(block, position) for block in chosen]
    names = {module: name for name, module in backbone.named_modules()}
    like = next(backbone.parameters())
    added: dict[str, AttentionModule] = {}
    for block, shape in zip(chosen, _arriving_shapes(backbone, slots, clip=clip), strict=True):
        if len(shape) != 5:
            raise ValueError(f"{names[block]} has maps without a time axis; attention needs an earlier stage")
        _, channels, *map_size = shape
        module = sta_module(
            variant,
            channels,
            (map_size[0], map_size[1], map_size[2]),
            deconv_stride=deconv_stride,
            identity_init=identity_init,
        )
        added[f"{names[block]}.{position}"] = module.to(device=like.device, dtype=like.dtype)
    for block, module in zip(chosen, added.values(), strict=True):
        setattr(block, position, module)
    return added


def mars_loss(
    logits: Tensor,
    features: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: float = 50.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy of the student's (B, K) logits plus `alpha` times the mean squared error of its (B, D) features.

    Crasto, Weinzaepfel, Alahari and Schmid, "MARS: Motion-Augmented RGB Stream for Action Recognition", CVPR 2019, with
    `alpha` and the mean over all features as in its released code. The student sees images; the `teacher` features
    (B, D) come from a trained flow network and get no gradient. `labels` (B,) are class indices, smoothed in the
    cross-entropy by `label_smoothing`. Computed in float32. Raises ValueError when the features differ in shape.
    """
    if features.shape != teacher.shape:
        raise ValueError(
            f"student features of shape {tuple(features.shape)} cannot imitate a teacher's of {tuple(teacher.shape)}"
        )
    imitation = F.mse_loss(features.float(), teacher.detach().float())
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing) + alpha * imitation


def _open(last: nn.Conv3d) -> None:
    """Make the layer before the sigmoid say `IDENTITY_BIAS` whatever it sees."""
    assert last.bias is not None
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, IDENTITY_BIAS)


def _check_map(x: Tensor, map_size: tuple[int, ...]) -> None:
    """A map of another size would go through the convolutions and be broadcast into nonsense."""
    if x.shape[-len(map_size) :] != map_size:
        raise ValueError(
            f"the attention was built for maps of size {map_size}, got {tuple(x.shape[-len(map_size) :])}; "
            "give the clip size of the input when inserting it"
        )


def _chosen_blocks(backbone: VideoBackbone, *, stages: Sequence[str], blocks: str) -> list[nn.Module]:
    available = backbone.stages()
    unknown = [stage for stage in stages if stage not in available]
    if unknown or not stages or len(set(stages)) < len(stages):
        raise ValueError(f"stages={list(stages)} must name some of {', '.join(available)}, each once")
    if blocks not in get_args(Blocks):
        raise ValueError(f"blocks={blocks!r} is unknown; choose one of {', '.join(get_args(Blocks))}")
    return [block for stage in stages for block in (available[stage] if blocks == "all" else available[stage][-1:])]


def _slot(block: nn.Module, position: str) -> nn.Module:
    if position not in get_args(Position):
        raise ValueError(f"position={position!r} is unknown; choose one of {', '.join(get_args(Position))}")
    slot = getattr(block, position, None)
    if slot is None:
        raise ValueError(f"a {type(block).__name__} has no position {position!r}; choose before_add or after_add")
    if not isinstance(slot, nn.Identity):
        raise ValueError(f"position {position!r} already holds a {type(slot).__name__}")
    return slot


def _arriving_shapes(
    backbone: VideoBackbone, slots: Sequence[nn.Module], *, clip: tuple[int, int, int]
) -> list[tuple[int, ...]]:
    """The shapes that reach `slots` for two clips of size `clip`. Meta tensors pass, so that nothing is computed."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def record(slot: nn.Module, args: tuple[Tensor, ...]) -> None:
        shapes[slot] = tuple(args[0].shape)

    tensors = [*backbone.named_parameters(), *backbone.named_buffers()]
    meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    x = torch.empty(2, backbone.in_channels, *clip, device="meta", dtype=next(backbone.parameters()).dtype)
    hooks = [slot.register_forward_pre_hook(record) for slot in slots]
    try:
        with torch.no_grad():
            torch.func.functional_call(backbone, meta, (x,))
    finally:
        for hook in hooks:
            hook.remove()
    return [shapes[slot] for slot in slots]
