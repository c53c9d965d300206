"""ATW: attention-based temporal weighting of video segments.

Zang, Wang, Liu, Zhang, Hua and Zheng, "Attention-Based Temporal Weighted Convolutional Neural Network for Action
Recognition", AIAI 2018. One stream (image, flow or warped flow) of section 3; streams are trained apart and fused on
their scores afterwards.

    (1)  a_i = C(M_i)                     a snippet M_i of each of N segments through one shared network C
    (2)  e_i = f(w_att . a_i + b)         its energy
    (3)  w_i = exp e_i / sum_j exp e_j    its temporal weight
    (4)  A   = sum_i w_i a_i              the video's vector; cross-entropy on A

What the paper leaves open, and the switch for each (first = default):

- What a_i is. "Previous fully-connected hidden state" and "per-snippet probabilities" both occur; section 4 puts the
  attention at the last fully-connected layer, before the softmax. `att_input`: "logits" | "features". With "features"
  the energy reads the pooled features and (4) still sums logits: the classifier is affine and the weights sum to one,
  so classifying the weighted feature is the same thing.
- Equation (2) has no activation, the text wants a ReLU, table 2 compares three. `activation`: "relu" | "tanh" |
  "sigmoid" | "identity". With "relu", energies that are all <= 0 give exactly uniform weights and no gradient to
  w_att; "identity" cannot die like that.
- Table 2 says that weight = 1/N equals average consensus, which is false for (2)-(4) (there w_att = 0 does) and true
  for one static weight per segment. `consensus`: "softmax_att" | "segment_linear", A = f(sum_i v_i a_i + b). N weights
  do not fit 80 test snippets, so v is interpolated there and scaled to keep its sum. Here the activation acts on the
  scores: with "relu" a class that scores <= 0 on a video gets no gradient from it, and from scratch whole classes stay
  unlearnt; "identity" avoids that. "avg" and "max" are table 1's rivals.
- Table 2 gives 85.80 to random Gaussian initialisation, the text credits weight = 1 with it. The table is followed.
  `init`: "gauss" | "one" | "inv_n" (weights 1/N); bias 0. The Gaussian's spread is unstated: .001 for w_att, as for a
  new classifier in TSN; 1/N for v, which at .001 would shut off all gradient to the network.

Not from the paper: dropout before the classifier and partial BN (the recipe of TSN, see `tsn`).

Shapes: B videos, N segments (any number, at test 80), C channels, H W pixels, D features, K classes, M snippets.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.convention import Backbone, Normalise
from models.scoring import SnippetScores
from models.switches import check_choice
from models.tsn import freeze_batch_norms
from models.weights import LoadReport

Consensus = Literal["softmax_att", "segment_linear", "avg", "max"]
AttentionInput = Literal["logits", "features"]
Activation = Literal["relu", "tanh", "sigmoid", "identity"]
AttentionInit = Literal["gauss", "one", "inv_n"]

GAUSS_STD = 0.001


class ATWOutput(NamedTuple):
    """The scores of B videos and what they came from."""

    logits: Tensor
    """(B, K) float32, before the softmax."""
    weights: Tensor
    """(B, N) float32. "softmax_att", "avg": w_i. "max": share of the classes that segment i decides. These sum to one.
    "segment_linear": v itself, of any sign and sum."""
    segment_logits: Tensor
    """(B, N, K) float32."""


class ATW(nn.Module):
    """(B, N, C, H, W) raw values 0..255 -> `ATWOutput`. `backbone` is headless.

    `segments` is N in training: the number of static weights, and the N of init "inv_n". `fc_std` is the spread of the
    new classifier. Raises ValueError for an unknown switch or an input of another shape.
    """

    load_report: LoadReport | None = None  # set by `build` when it loads pretrained weights

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        modality: str,
        in_channels: int,
        segments: int,
        dropout: float,
        partial_bn: bool = False,
        fc_std: float = GAUSS_STD,
        consensus: Consensus = "softmax_att",
        att_input: AttentionInput = "logits",
        activation: Activation = "relu",
        init: AttentionInit = "gauss",
    ) -> None:
        super().__init__()
        check_choice("consensus", consensus, get_args(Consensus))
        check_choice("att_input", att_input, get_args(AttentionInput))
        check_choice("activation", activation, get_args(Activation))
        check_choice("init", init, get_args(AttentionInit))
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is not a probability in [0, 1)")
        if segments < 1:
            raise ValueError(f"segments={segments} is not a number of segments; it must be at least 1")
        self.consensus_kind = consensus
        self.att_input = att_input
        self.activation = activation
        self.partial_bn = partial_bn
        self.normalise = Normalise(backbone.input_spec, modality=modality, in_channels=in_channels)
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(backbone.feature_dim, num_classes)
        nn.init.normal_(self.fc.weight, std=fc_std)
        nn.init.zeros_(self.fc.bias)
        self.attention: nn.Linear | None = None
        if consensus == "softmax_att":
            inputs = num_classes if att_input == "logits" else backbone.feature_dim
            self.attention = _attention(inputs, init=init, segments=segments, std=GAUSS_STD)
        elif consensus == "segment_linear":
            self.attention = _attention(segments, init=init, segments=segments, std=1.0 / segments)
        if partial_bn:
            freeze_batch_norms(self)

    def train(self, mode: bool = True) -> "ATW":
        super().train(mode)
        if self.partial_bn:
            freeze_batch_norms(self)
        return self

    def score_snippets(self, x: Tensor) -> SnippetScores:
        """Equations (1) and (2) for M snippets (M, C, H, W) of any videos: run a long video in chunks of them.

        The energy is e_i of equation (2), zeros for a consensus without energies.
        """
        features = self.backbone(self.normalise(x))  # M D
        logits = self.fc(self.dropout(features)).float()  # M K
        if self.consensus_kind != "softmax_att":
            return SnippetScores(logits, logits.new_zeros(len(logits)))
        assert self.attention is not None
        with torch.autocast(device_type=x.device.type, enabled=False):
            a = logits if self.att_input == "logits" else features.float()
            weight, bias = self.attention.weight.float(), self.attention.bias.float()
            energy = F.linear(a, weight, bias).squeeze(-1)  # M
            return SnippetScores(logits, _activate(energy, kind=self.activation))

    def consensus(self, logits: Tensor, energy: Tensor) -> ATWOutput:
        """Equations (3) and (4): segment logits (B, N, K) and energies (B, N) of whole videos -> their scores."""
        with torch.autocast(device_type=logits.device.type, enabled=False):
            match self.consensus_kind:
                case "softmax_att":
                    weights = energy.softmax(dim=1)
                    video = torch.einsum("bn,bnk->bk", weights, logits)
                case "segment_linear":
                    assert self.attention is not None
                    static = _resample(self.attention.weight.float().squeeze(0), logits.shape[1])  # N
                    weights = static.expand(logits.shape[:2])
                    video = torch.einsum("n,bnk->bk", static, logits) + self.attention.bias.float()
                    video = _activate(video, kind=self.activation)
                case "avg":
                    weights = torch.full_like(energy, 1.0 / logits.shape[1])
                    video = logits.mean(dim=1)
                case "max":
                    video, winner = logits.max(dim=1)  # B K
                    weights = F.one_hot(winner, logits.shape[1]).float().mean(dim=1)  # B K N -> B N
        return ATWOutput(video, weights, logits)

    def forward(self, x: Tensor) -> ATWOutput:
        if x.ndim != 5 or x.shape[1] < 1:
            raise ValueError(f"ATW takes (videos, segments, channels, height, width), got shape {tuple(x.shape)}")
        scores = self.score_snippets(x.flatten(0, 1))  # B N C H W -> B*N C H W
        return self.consensus(scores.logits.unflatten(0, x.shape[:2]), scores.energy.unflatten(0, x.shape[:2]))

    def loss(self, output: ATWOutput, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy on A of equation (4), mean over the videos; `labels` (B,) are class numbers."""
        return F.cross_entropy(output.logits, labels, label_smoothing=label_smoothing)


def _attention(inputs: int, *, init: AttentionInit, segments: int, std: float) -> nn.Linear:
    """The attention layer, `inputs` weights and a bias, initialised as in table 2."""
    layer = nn.Linear(inputs, 1)
    nn.init.zeros_(layer.bias)
    match init:
        case "gauss":
            nn.init.normal_(layer.weight, std=std)
        case "one":
            nn.init.ones_(layer.weight)
        case "inv_n":
            nn.init.constant_(layer.weight, 1.0 / segments)
    return layer


def _activate(x: Tensor, *, kind: Activation) -> Tensor:
    match kind:
        case "relu":
            return x.relu()
        case "tanh":
            return x.tanh()
        case "sigmoid":
            return x.sigmoid()
        case "identity":
            return x


def _resample(weights: Tensor, segments: int) -> Tensor:
    """Static weights (N,) linearly interpolated to another number of segments; a constant's sum is kept."""
    if len(weights) == segments:
        return weights
    stretched = F.interpolate(weights[None, None], size=segments, mode="linear", align_corners=False)
    return stretched[0, 0] * (len(weights) / segments)
