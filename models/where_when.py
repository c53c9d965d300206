"""Where and When: a mask over the places of every frame, weights over the frames at every step of a ConvLSTM.

Meng, Zhao, Chang, Huang, Sun, Tung and Sigal, "Interpretable Spatio-temporal Attention for Video Action Recognition",
ICCV Workshops 2019, as submitted to ICLR 2019 under the title "Where and When to Look?". The head: it reads maps X_i,
what a fine-tuned ResNet's last convolution makes of n frames of a video, which a cache holds (2048 x 7 x 7 each).

    (1)  X~_i = X_i . M_i                               M: table 5, one mask for all channels
    (2)  e_ti = Phi_H(H_(t-1)) + Phi_X(X~_i)            energy of frame i at step t
    (3)  w_ti = softmax_i(e_ti)                         (4)  Y_t = 1/n sum_i w_ti X~_i
         H_t, C_t = ConvLSTM(Y_t, H_(t-1), C_(t-1))     one layer, 3x3, no peepholes; n steps
    (5)  C_0 = g_c(1/n sum_i X~_i),  H_0 = g_h(1/n sum_i X~_i)
    (6)  H = 1/T sum_t H_t                              pooled over space, then a linear classifier
    (7)  L = L_CE + l_TV L_TV + l_contrast L_contrast + l_unimodal L_unimodal
    (8)  L_TV = sum_i sum_jk |M_i,j+1,k - M_i,j,k| + |M_i,j,k+1 - M_i,j,k|
    (9)  L_contrast = sum_i -1/2 M_i . B_i + 1/2 M_i . (1 - B_i),  B_i = 1{M_i > 0.5}
    (10) L_unimodal = sum_t sum_(i=2..n-1) max(0, w_t,i-1 w_t,i+1 - w_ti^2)

What the paper leaves open or its released code does otherwise, and the switch for each (first = default):

- (2) is additive, so that Phi_H is the same for all i and cancels in (3): w_ti is the same for every t and never hears
  of H. `energy`: "additive" | "joint_tanh", v . tanh(Phi_H(H) + Phi_X(X~)), which does. Phi is linear in pooled maps.
- (4) divides by n what already sums to one; the code does not. `y_scale`: "none" | "inv_n".
- The index of (10) is garbled and corrected after (11). The sums (8) to (10) are over one video, then averaged over a
  batch. `tv_reduce`: "batch_mean" | "batch_sum" (the code's (8), over 30 videos). `unimodal`: "sum" | "sqrt_mean" (the
  code's: the mean of square roots, whose gradient is without bound near zero).
- The sign of (9) is right as printed: minimising it drives a mask's values away from 0.5. B has no gradient.
- The code that has (2) to (6) takes the weights out of the graph, so that Phi never learns. Here it does.
- The code of the published results has neither: a ConvLSTM over the masked frames, from zero, whose pooled states are
  weighted by softmax_i(v . H_i + b) and summed. `temporal`: "paper" | "post_lstm" | "none" (Y_t = X~_t, table 1's
  ablation, which the paper does not define). `spatial`: True | False (M = 1, likewise).
- Dropout takes a channel from all frames of a video at once, before the mask (the code's, 0.2).

With 2048 channels, 512 hidden and 51 classes: 118,009,395 parameters.

Shapes: B videos, n frames, C channels, h w cells of a map, K classes, D hidden channels, T = n steps.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.switches import check_choice

Temporal = Literal["paper", "post_lstm", "none"]
Energy = Literal["additive", "joint_tanh"]
YScale = Literal["none", "inv_n"]
TVReduce = Literal["batch_mean", "batch_sum"]
Unimodal = Literal["sum", "sqrt_mean"]


class WhereWhenOutput(NamedTuple):
    """The scores of B videos and what they came from."""

    logits: Tensor
    """(B, K) float32, before the softmax."""
    weights: Tensor
    """(B, n) float32, sum to one: mean over t of w_ti; with "post_lstm" the weights; with "none" 1/n."""
    segment_logits: Tensor
    """(B, T, K) float32: the classifier on H_t. Their mean, or with "post_lstm" weighted sum, is `logits`."""
    attention: Tensor | None
    """(B, T, n) float32: w_ti of equation (3); (B, 1, n) with "post_lstm"; None with "none"."""
    masks: Tensor | None
    """(B, n, h, w) float32 in 0..1: M_i of equation (1); None without spatial attention."""


class SpatialMask(nn.Module):
    """Table 5: maps (B, C, h, w) -> masks (B, h, w) float32, each value in 0..1."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.features = _two_convolutions(channels, hidden)
        self.score = nn.Conv2d(hidden, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.features(x)).squeeze(1).float().sigmoid()


class TemporalEnergy(nn.Module):
    """Equation (2), in two parts since the frames stay the same from step to step; in float32, under autocast too."""

    def __init__(self, channels: int, hidden: int, *, kind: Energy) -> None:
        super().__init__()
        outputs = 1 if kind == "additive" else hidden
        self.of_frames = nn.Linear(channels, outputs, bias=False)  # Phi_X
        self.of_state = nn.Linear(hidden, outputs, bias=False)  # Phi_H
        self.joint = None if kind == "additive" else nn.Linear(outputs, 1, bias=False)  # v

    def project(self, frames: Tensor) -> Tensor:
        """Phi_X: masked frames (B, n, C, h, w) -> (B, n, 1 or D)."""
        with torch.autocast(device_type=frames.device.type, enabled=False):
            return self.of_frames(_pool(frames))

    def forward(self, projected: Tensor, state: Tensor) -> Tensor:
        """Phi_X of the frames, H_(t-1) (B, D, h, w) -> e_t (B, n)."""
        with torch.autocast(device_type=state.device.type, enabled=False):
            energy = projected + self.of_state(_pool(state))[:, None]
            return (energy if self.joint is None else self.joint(energy.tanh())).squeeze(-1)


class ConvLSTMCell(nn.Module):
    """One step: Y_t (B, C, h, w) and H, C of t - 1 (B, D, h, w) -> H_t, C_t, in float32.

    Shi et al., "Convolutional LSTM Network", NIPS 2015, equation (3), without peepholes. The 4 D outputs of the
    convolution are the gates i, f, o and the candidate g.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(channels + hidden, 4 * hidden, 3, padding=1)

    def forward(self, y: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, o, g = self.gates(torch.cat([y, h], dim=1)).float().chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class WhereWhen(nn.Module):
    """Maps (B, n, C, h, w) of any float type -> `WhereWhenOutput`. n, h and w are free.

    `channels` is C, `hidden` D; the networks of table 5 and (5) narrow from C to 2 D to D. `lambda_tv`,
    `lambda_contrast` and `lambda_unimodal` weigh the terms of (7); 0 leaves one out. Raises ValueError for an unknown
    switch, a value out of range and an input of another shape.
    """

    load_report: None = None  # a head reads no pretrained file

    def __init__(
        self,
        *,
        num_classes: int,
        channels: int = 2048,
        hidden: int = 512,
        dropout: float = 0.2,
        spatial: bool = True,
        temporal: Temporal = "paper",
        energy: Energy = "additive",
        y_scale: YScale = "none",
        lambda_tv: float = 1e-5,
        lambda_contrast: float = 1e-4,
        lambda_unimodal: float = 1.0,
        tv_reduce: TVReduce = "batch_mean",
        unimodal: Unimodal = "sum",
    ) -> None:
        super().__init__()
        check_choice("temporal", temporal, get_args(Temporal))
        check_choice("energy", energy, get_args(Energy))
        check_choice("y_scale", y_scale, get_args(YScale))
        check_choice("tv_reduce", tv_reduce, get_args(TVReduce))
        check_choice("unimodal", unimodal, get_args(Unimodal))
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is not a probability in [0, 1)")
        lambdas = {"lambda_tv": lambda_tv, "lambda_contrast": lambda_contrast, "lambda_unimodal": lambda_unimodal}
        for name, value in lambdas.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} is not the weight of a loss; it must be 0 or more")
        self.channels, self.hidden = channels, hidden
        self.temporal, self.y_scale = temporal, y_scale
        self.lambda_tv, self.lambda_contrast, self.lambda_unimodal = lambda_tv, lambda_contrast, lambda_unimodal
        self.tv_reduce, self.unimodal = tv_reduce, unimodal

        self.dropout = nn.Dropout(dropout)
        self.mask = SpatialMask(channels, hidden) if spatial else None
        self.energy = TemporalEnergy(channels, hidden, kind=energy) if temporal == "paper" else None
        self.cell = ConvLSTMCell(channels, hidden)
        self.initial_c: nn.Sequential | None = None
        self.initial_h: nn.Sequential | None = None
        self.state_energy: nn.Linear | None = None
        if temporal == "post_lstm":
            self.state_energy = nn.Linear(hidden, 1)
        else:
            self.initial_c = _two_convolutions(channels, hidden)  # g_c
            self.initial_h = _two_convolutions(channels, hidden)  # g_h
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> WhereWhenOutput:
        if x.ndim != 5 or x.shape[1] < 1 or x.shape[2] != self.channels:
            raise ValueError(
                f"Where-and-When takes maps (videos, frames, {self.channels}, height, width), got {tuple(x.shape)}"
            )
        x = x.to(self.fc.weight.dtype)
        x = x * self.dropout(x.new_ones(len(x), 1, self.channels, 1, 1))
        masks = None
        if self.mask is not None:
            masks = self.mask(x.flatten(0, 1)).unflatten(0, x.shape[:2])  # B*n C h w -> B n h w
            x = x * masks[:, :, None]  # (1)
        states, attention = self._states(x)
        if self.state_energy is not None:
            with torch.autocast(device_type=x.device.type, enabled=False):
                attention = self.state_energy(states).transpose(1, 2).softmax(dim=-1)  # B T 1 -> B 1 n
        weights = x.new_full(x.shape[:2], 1.0 / x.shape[1]) if attention is None else attention.mean(dim=1)
        scores = self.fc(states).float()  # B T K
        # the classifier is affine and the factors sum to one: classify every state, then merge, as (6) does before
        factors = weights if self.temporal == "post_lstm" else torch.full_like(weights, 1.0 / x.shape[1])
        return WhereWhenOutput((factors[..., None] * scores).sum(dim=1), weights, scores, attention, masks)

    def loss(self, output: WhereWhenOutput, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Equation (7), mean over the videos; `labels` (B,) are class numbers."""
        loss = F.cross_entropy(output.logits, labels, label_smoothing=label_smoothing)
        if output.masks is not None:
            loss = loss + self.lambda_tv * total_variation(output.masks, reduce=self.tv_reduce)
            loss = loss + self.lambda_contrast * contrast(output.masks)
        if output.attention is not None:
            loss = loss + self.lambda_unimodal * unimodality(output.attention, reduce=self.unimodal)
        return loss

    def _states(self, frames: Tensor) -> tuple[Tensor, Tensor | None]:
        """Masked frames (B, n, C, h, w) -> H_t pooled over space (B, T, D), and w (B, T, n) of equation (3)."""
        state = self._initial_state(frames)
        projected = None if self.energy is None else self.energy.project(frames)
        states, weights = [], []
        for t in range(frames.shape[1]):
            if self.energy is None:
                y = frames[:, t]
            else:
                weights.append(self.energy(projected, state[0]).softmax(dim=1))  # (3)
                y = weighted_frames(frames, weights[-1], scale=self.y_scale)
            state = self.cell(y, state)
            states.append(_pool(state[0]))
        return torch.stack(states, dim=1), torch.stack(weights, dim=1) if weights else None

    def _initial_state(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """H_0 and C_0 (B, D, h, w) float32: equation (5), or zeros."""
        if self.initial_h is None or self.initial_c is None:
            zeros = frames.new_zeros(len(frames), self.hidden, *frames.shape[-2:])
            return zeros, zeros
        mean = frames.mean(dim=1)
        return self.initial_h(mean).float(), self.initial_c(mean).float()


def weighted_frames(frames: Tensor, weights: Tensor, *, scale: YScale = "none") -> Tensor:
    """Equation (4): masked frames (B, n, C, h, w) and w_t (B, n) -> Y_t (B, C, h, w); 1/n only with "inv_n"."""
    y = torch.einsum("bn,bnchw->bchw", weights, frames)
    return y / frames.shape[1] if scale == "inv_n" else y


def total_variation(masks: Tensor, *, reduce: TVReduce = "batch_mean") -> Tensor:
    """Equation (8): masks (B, n, h, w) -> scalar; "batch_mean" | "batch_sum"."""
    total = masks.diff(dim=-2).abs().sum() + masks.diff(dim=-1).abs().sum()
    return total / len(masks) if reduce == "batch_mean" else total


def contrast(masks: Tensor) -> Tensor:
    """Equation (9): masks (B, n, h, w) -> scalar, the mean over the batch."""
    background = (masks <= 0.5).to(masks.dtype)  # 1 - B
    return (masks * (background - 0.5)).sum() / len(masks)


def unimodality(attention: Tensor, *, reduce: Unimodal = "sum") -> Tensor:
    """Equation (10): w (B, T, n) -> scalar. "sum": (10), mean over the batch. "sqrt_mean": the released code's.

    Zero for log-concave weights (uniform, one-hot, Gaussian-shaped) and for fewer than three frames.
    """
    excess = F.relu(attention[..., :-2] * attention[..., 2:] - attention[..., 1:-1].square())
    if reduce == "sum" or excess.numel() == 0:
        return excess.sum() / len(attention)
    return excess.sqrt().mean()  # at zero ReLU's gradient is a zero that the root's infinity does not pass


def _two_convolutions(channels: int, hidden: int) -> nn.Sequential:
    """3x3 convolutions from `channels` to 2 `hidden` to `hidden`, each with BN and ReLU (table 5's first; (5))."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((channels, 2 * hidden), (2 * hidden, hidden)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _pool(maps: Tensor) -> Tensor:
    """(..., h, w) -> (...) float32, the mean."""
    return maps.float().mean(dim=(-2, -1))
