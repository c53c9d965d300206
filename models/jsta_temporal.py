"""JSTA, T-step: attention over the clips of a video.

Yu, Guo, Wang, Gu, Xiang and Pan, "Joint spatial-temporal attention for action recognition", Pattern Recognition
Letters, 2018, section 3.2. Reads what the trained S-step (`jsta`) makes of a video's clips, features x_i in R^512.

    (18) h_i = merge(forward h_i, backward h_i)        bidirectional LSTM over the clips
    (19) b_i = sigmoid(w . h_i + b)                    (20) beta = softmax_i(w_t b_i)
    (22) c_0 = f_c(mean x),  h_0 = f_h(mean x)         of both directions
    (21) cross-entropy plus weight decay, which is the optimiser's

What the paper leaves open or its released model does otherwise, and the switch for each (first = default):

- (18) may merge in four ways. `merge`: "concat" | "sum" | "mul" | "avg".
- (20) multiplies by an undefined w_t: a learnt number here, 1 at first. At 1 no weight is more than e times another.
- (22) has a "multi-layer perceptron" for each: two layers with tanh here.
- The released model is another: a bidirectional LSTM of one unit whose softmax over that one unit is always 1, so that
  its output gate alone is the weight, which nothing normalises; and no (22). `temporal`: "paper" | "keras_gate" |
  "none". Of the gate's LSTM only what reaches its output is kept.
- Merging the weighted clips: "max-pooling, average-pooling or concatenation", the best counts. `clip_pool`: "avg" |
  "max" | "concat" (of `clips` clips, spread evenly over a video's). beta_i x_i is multiplied by the number of clips, so
  that equal weights are the plain average, maximum or concatenation. The gate's weights are left as they are.
- `classifier`: "fc" | "moe", unspecified: experts that are linear with a softmax, mixed by a linear gate | "lstm", over
  the weighted clips, which therefore are not pooled.

Shapes: B videos, N clips, D features of a clip, P pooled features, K classes.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.switches import check_choice

Temporal = Literal["paper", "keras_gate", "none"]
Merge = Literal["concat", "sum", "mul", "avg"]
ClipPool = Literal["avg", "max", "concat"]
Classifier = Literal["fc", "moe", "lstm"]

EXPERTS = 4


class JSTATemporalOutput(NamedTuple):
    """The scores of B videos and what they came from."""

    logits: Tensor
    """(B, K) float32, before the softmax."""
    weights: Tensor
    """(B, N) float32, 0 for padding: beta of equation (20), or 1/N; these sum to one. Of the Keras gate: its gates."""
    segment_logits: Tensor
    """(B, N, K) float32: the classifier on each clip alone, with no weight. Without meaning for padding."""


class ClipAttention(nn.Module):
    """Equations (18) to (20) and (22): clip features (B, N, D) and mask (B, N) -> beta (B, N), 0 where masked."""

    def __init__(self, feature_dim: int, *, hidden: int, merge: Merge) -> None:
        super().__init__()
        self.merge = merge
        self.lstm = nn.LSTM(feature_dim, hidden, batch_first=True, bidirectional=True)
        self.initial_h = nn.ModuleList(_perceptron(feature_dim, hidden) for _ in range(2))
        self.initial_c = nn.ModuleList(_perceptron(feature_dim, hidden) for _ in range(2))
        self.energy = nn.Linear(2 * hidden if merge == "concat" else hidden, 1)
        self.scale = nn.Parameter(torch.ones(()))  # w_t of (20)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        lengths = mask.sum(dim=1)
        mean = (x * mask[..., None]).sum(dim=1) / lengths[:, None]
        h0, c0 = (torch.stack([init(mean) for init in inits]) for inits in (self.initial_h, self.initial_c))  # 2 B D
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed, (h0, c0))[0], batch_first=True, total_length=x.shape[1])
        beta = torch.sigmoid(self.energy(self._merge(*states.chunk(2, dim=-1)))).squeeze(-1)  # (19)
        return (self.scale * beta).masked_fill(~mask, -torch.inf).softmax(dim=1)  # (20)

    def _merge(self, forward: Tensor, backward: Tensor) -> Tensor:
        """Equation (18)."""
        match self.merge:
            case "concat":
                return torch.cat([forward, backward], dim=-1)
            case "sum":
                return forward + backward
            case "mul":
                return forward * backward
            case "avg":
                return (forward + backward) / 2


class KerasGate(nn.Module):
    """The released temporal model's weights: clip features (B, N, D) and mask (B, N) -> gates (B, N) in 0..1.

    Mean of the output gates of two LSTMs of one unit, forward and backward, whose outputs are these gates:
    g_i = clip(0.2 (w . x_i + u g_(i-1) + b) + 0.5, 0, 1), Keras's hard sigmoid.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(feature_dim, 2)
        self.recurrent = nn.Parameter(torch.empty(2))
        nn.init.xavier_uniform_(self.input.weight)
        nn.init.zeros_(self.input.bias)
        nn.init.normal_(self.recurrent, std=0.5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        drive = self.input(x)  # B N 2
        valid = mask.to(x.dtype)
        forward = self._gates(drive[..., 0], valid, self.recurrent[0])
        backward = self._gates(drive[..., 1].flip(1), valid.flip(1), self.recurrent[1]).flip(1)
        return (forward + backward) / 2

    @staticmethod
    def _gates(drive: Tensor, valid: Tensor, recurrent: Tensor) -> Tensor:
        """w . x_i + b and validity, (B, N) both -> g_i of one direction (B, N), 0 where not valid."""
        gate, gates = torch.zeros_like(drive[:, 0]), []
        for driven, present in zip(drive.unbind(1), valid.unbind(1), strict=True):
            gate = present * (0.2 * (driven + recurrent * gate) + 0.5).clamp(0, 1)
            gates.append(gate)
        return torch.stack(gates, dim=1)


class MixtureOfExperts(nn.Module):
    """(..., P) -> (..., K), the logarithm of the mixture's class probabilities: cross-entropy is its likelihood."""

    def __init__(self, inputs: int, num_classes: int, *, experts: int = EXPERTS) -> None:
        super().__init__()
        self.num_experts = experts
        self.gate = nn.Linear(inputs, experts)
        self.experts = nn.Linear(inputs, experts * num_classes)

    def forward(self, x: Tensor) -> Tensor:
        experts = self.experts(x).unflatten(-1, (self.num_experts, -1)).log_softmax(dim=-1)  # ... experts K
        return torch.logsumexp(self.gate(x).log_softmax(dim=-1)[..., None] + experts, dim=-2)


class JSTATemporal(nn.Module):
    """T-step: clip features (B, N, D) and mask (B, N) -> `JSTATemporalOutput`; in float32, under autocast too.

    The mask is true for a video's clips, which come before its padding; left out, there is no padding. `hidden` is the
    width of the LSTMs. Raises ValueError for an unknown switch, for switches that contradict one another, for features
    or a mask of another shape, and for a video without clips.
    """

    load_report: None = None  # a head reads no pretrained file

    def __init__(
        self,
        *,
        num_classes: int,
        feature_dim: int = 512,
        dropout: float = 0.0,
        temporal: Temporal = "paper",
        merge: Merge = "concat",
        clip_pool: ClipPool = "avg",
        classifier: Classifier = "fc",
        hidden: int = 512,
        clips: int = 4,
    ) -> None:
        super().__init__()
        check_choice("temporal", temporal, get_args(Temporal))
        check_choice("merge", merge, get_args(Merge))
        check_choice("clip_pool", clip_pool, get_args(ClipPool))
        check_choice("classifier", classifier, get_args(Classifier))
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is not a probability in [0, 1)")
        if classifier == "lstm" and clip_pool != "avg":
            raise ValueError(f"clip_pool={clip_pool!r} would do nothing: classifier 'lstm' reads clip after clip")
        if clips < 1:
            raise ValueError(f"clips={clips} is not a number of clips; it must be at least 1")
        self.feature_dim = feature_dim
        self.clip_pool = clip_pool
        self.clips = clips
        self.attention: ClipAttention | KerasGate | None = None
        if temporal == "paper":
            self.attention = ClipAttention(feature_dim, hidden=hidden, merge=merge)
        elif temporal == "keras_gate":
            self.attention = KerasGate(feature_dim)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(feature_dim, hidden, batch_first=True) if classifier == "lstm" else None
        inputs = hidden if self.lstm is not None else feature_dim * (clips if clip_pool == "concat" else 1)
        self.classify: nn.Linear | MixtureOfExperts
        self.classify = MixtureOfExperts(inputs, num_classes) if classifier == "moe" else nn.Linear(inputs, num_classes)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> JSTATemporalOutput:
        if mask is None:
            mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        self._check_input(features, mask)
        with torch.autocast(device_type=features.device.type, enabled=False):
            x = features.float().masked_fill(~mask[..., None], 0.0)
            if self.clip_pool == "concat":
                chosen = spread(mask.sum(dim=1), clips=self.clips)  # B clips
                picked = x.gather(1, chosen[..., None].expand(-1, -1, x.shape[2]))
                logits, beta = self._scores(picked, torch.ones_like(chosen, dtype=torch.bool))
                weights = x.new_zeros(mask.shape).scatter_add(1, chosen, beta)  # B clips -> B N
            else:
                logits, weights = self._scores(x, mask)
            return JSTATemporalOutput(logits, weights, self._each_alone(x))

    def loss(self, output: JSTATemporalOutput, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Equation (21) without its last term, mean over the videos; `labels` (B,) are class numbers."""
        return F.cross_entropy(output.logits, labels, label_smoothing=label_smoothing)

    def _scores(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Clips (B, N, D) and mask (B, N) -> logits (B, K) and weights (B, N)."""
        lengths = mask.sum(dim=1, keepdim=True)
        weights = mask / lengths if self.attention is None else self.attention(x, mask)
        factors = weights if isinstance(self.attention, KerasGate) else weights * lengths
        return self.classify(self.dropout(self._summary(x * factors[..., None], mask))), weights

    def _summary(self, x: Tensor, mask: Tensor) -> Tensor:
        """Weighted clips (B, N, D), zero where the mask (B, N) is false -> the classifier's input (B, P)."""
        lengths = mask.sum(dim=1)
        if self.lstm is not None:
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            _, (state, _) = self.lstm(packed)
            return state[0]
        match self.clip_pool:
            case "avg":
                return x.sum(dim=1) / lengths[:, None]
            case "max":
                return x.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)
            case "concat":
                return x.flatten(1)

    def _each_alone(self, x: Tensor) -> Tensor:
        """Clips (B, N, D) -> logits (B, N, K) of each as if it were the whole video."""
        repeats = self.clips if self.clip_pool == "concat" else 1
        videos = x.flatten(0, 1)[:, None].expand(-1, repeats, -1)  # B*N repeats D
        mask = torch.ones(videos.shape[:2], dtype=torch.bool, device=x.device)
        return self.classify(self._summary(videos, mask)).unflatten(0, x.shape[:2])

    def _check_input(self, features: Tensor, mask: Tensor) -> None:
        fits = features.ndim == 3 and features.shape[1] > 0 and features.shape[2] == self.feature_dim
        if not fits or mask.shape != features.shape[:2]:
            raise ValueError(
                f"JSTA's T-step takes features (videos, clips, {self.feature_dim}) and a mask (videos, clips), "
                f"got shapes {tuple(features.shape)} and {tuple(mask.shape)}"
            )
        if mask.dtype != torch.bool or not mask[:, 0].all() or (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError("a mask must be bool and true for one clip or more of each video, before any padding")


def spread(lengths: Tensor, *, clips: int) -> Tensor:
    """Which `clips` of the first lengths (B,) clips of each video to take: (B, clips) numbers, from the middles of as
    many equal parts; the same clip more than once where there are fewer."""
    middles = torch.arange(clips, device=lengths.device) + 0.5
    return (middles * lengths[:, None] / clips).long()


def _perceptron(inputs: int, hidden: int) -> nn.Sequential:
    """f of equation (22) for one direction."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
