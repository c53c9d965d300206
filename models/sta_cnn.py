"""STA-CNN: hard attention over the segments of a video, soft attention over the places of a frame.

Yang, Yuan, Zhang, Sun, Hu and Maybank, "STA-CNN: Convolutional Spatial-Temporal Attention Learning for Action
Recognition", IEEE Transactions on Image Processing 29, 2020. One stream of section III; streams are trained apart and
fused on their softmax scores afterwards. Section III-B.1 (equations 3 and 4) is `flownet`.

    (1)  alpha_n = 1 / H(s_n)                       confidence in a snippet s_n
    (2)  H(s_n)  = - sum_j p_j(s_n) log p_j(s_n)    entropy of its class probabilities
         TS(N, top_n): the top_n most confident of N segments make the loss; TS(N x M, N x top_m): top_m of the M
         snippets of each of N segments
    (5)  S_c     = sum_i sum_m w_c^m x_i^m          auxiliary class scores from the Spatial Attention Network's map x
    (6)  L_aux   = sum_c y_c log S_c
    (7)  a_i     = sum_m w_i^m x_i^m                Spatial Attention Layer (SAL): importance of place i
    (8)  a-_i    = exp a_i / sum_k exp a_k          Spatial Attention Map
    (9)  f       = 1/K^2 sum_i a_i f_i              Weighted Spatial Pooling of the classifier's map f_i
    (10) L       = L_cls + lambda L_aux
    (11) p_dcw   = sum_n beta_n alpha_n p(s_n)      prediction from the 15 most confident of 25 test snippets

What the paper leaves open or states against itself, and the switch for each (first = default):

- Algorithm 1 is missing, so it is not said what a selection of segments does to the loss. `select_loss`:
  "mean_logits", cross-entropy on the mean of the selected logits, so that top_n = N is TSN | "mean_loss", the mean of
  the selected segments' cross-entropies (table II's "no averaging of multiple segments"). The auxiliary loss is taken
  over the same segments in the same way. Selecting has no gradient, and a segment left out gets none either.
- `groups`, `top`: TS(N, top_n) is groups 1, top top_n; TS(N x M, N x top_m) is groups N, top top_m; top null is all.
  The M snippets of a segment come from its M equal parts, one each. The paper ends with nine segments, groups 3, top 1.
- (5) is a sum, the text calls it global average pooling. `aux_pool`: "mean" | "sum". They differ by the number of
  places (49), which w could take up but for weight decay and its own learning rate.
- (6) and the first term of (10) lack their minus, and (6) is the logarithm of a number that may be negative:
  cross-entropy here.
- (7) gives every place its own weights, "unified" in the text. `sal_weights`: "per_position" (50,176 over BN-Inception
  at 224 pixels) | "shared" (1,024). Both start at zero: a uniform map.
- (9) has a_i where the text has the map, a-_i, and a further 1/K^2, which would shrink pretrained features 49 times.
  `pool_weights`: "softmax" (a-_i) | "raw" (a_i). `pool_scale`: "none" | "mean" (the further 1/K^2). By default a
  uniform map is global average pooling; "raw" with "mean" is (9) to the letter.
- lambda is unpublished. `aux_lambda`: 0.3; 0 builds no auxiliary head.
- Which network finds the places: `spatial`: "none" | "shared", the classifier's own last map (the paper's flow stream,
  which adds only SAL and auxiliary weights) | "san", a trunk of its own that reads both frames of an RGB snippet, while
  the classifier reads the first frame alone. Which frame it reads is unstated.
- Where the two maps differ in size, importances are resized to the classifier's map before the softmax.
- (11) is not normalised; `dcw` divides by the sum of the weights unless told otherwise, so that streams can be fused.

From scratch, hard selection fails: it keeps what the untrained network happens to be sure of. Start from a model
trained with top null (`weights.load_initial`). Dropout and partial BN are TSN's; the paper does not mention them.

Shapes: B videos, N snippets a video, C channels, H W pixels, K classes, M snippets of any videos, T test snippets;
h w cells of the classifier's last map of D channels, k l cells of the Spatial Attention Network's of X channels.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.convention import Backbone, Normalise
from models.flownet import FRAMES, SpatialAttentionNetwork
from models.scoring import SnippetScores
from models.switches import check_choice
from models.tsn import freeze_batch_norms
from models.weights import LoadReport

Spatial = Literal["none", "shared", "san"]
SelectLoss = Literal["mean_logits", "mean_loss"]
SALWeights = Literal["per_position", "shared"]
PoolWeights = Literal["softmax", "raw"]
PoolScale = Literal["none", "mean"]
AuxPool = Literal["mean", "sum"]

MIN_ENTROPY = 1e-8
DCW_TOP = 15


def confidence(probabilities: Tensor) -> Tensor:
    """Equations (1) and (2): class probabilities (..., K) -> alpha (...), float32, at most 1e8 (a certain snippet)."""
    entropy = torch.special.entr(probabilities.float()).sum(dim=-1)
    return 1.0 / entropy.clamp(min=MIN_ENTROPY)


def most_confident(alpha: Tensor, *, top: int) -> Tensor:
    """beta of equation (11): alpha (..., N) -> 1 for the `top` largest of N, 0 for the others; of equals the first."""
    order = alpha.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(alpha).scatter_(-1, order[..., :top], 1.0)


def select_segments(alpha: Tensor, *, groups: int, top: int | None) -> Tensor:
    """TS(N, top_n) and TS(N x M, N x top_m): alpha (B, N) -> weights (B, N), equal over what is kept, 0 elsewhere.

    Raises ValueError when N snippets do not fall into `groups`, or a group has less than `top`.
    """
    snippets = alpha.shape[1]
    check_selection(snippets, groups=groups, top=top)
    grouped = alpha.unflatten(1, (groups, -1))  # B N -> B groups N/groups
    kept = most_confident(grouped, top=top or grouped.shape[-1]).flatten(1)
    return kept / kept.sum(dim=1, keepdim=True)


def check_selection(snippets: int, *, groups: int, top: int | None) -> None:
    """Raise ValueError unless `top` (null: all) can be taken from each of `groups` equal parts of `snippets`."""
    if groups < 1 or snippets % groups:
        raise ValueError(f"{snippets} segments cannot be divided into groups={groups}; choose a divisor")
    if top is not None and not 1 <= top <= snippets // groups:
        raise ValueError(
            f"top={top} of the {snippets // groups} segments in a group cannot be taken; leave null for all"
        )


class SpatialAttentionLayer(nn.Module):
    """Equation (7): feature map (M, X, k, l) -> importance a (M, k, l) float32; zero at first.

    `side` is k = l for weights of each place, None for weights that all places share. Raises ValueError for a map of
    another size.
    """

    def __init__(self, channels: int, *, side: int | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, side or 1, side or 1))

    def forward(self, x: Tensor) -> Tensor:
        side = self.weight.shape[-1]
        if side > 1 and x.shape[-2:] != (side, side):
            raise ValueError(
                f"the Spatial Attention Layer has weights for {side}x{side} places, the map has {x.shape[-2]}x"
                f"{x.shape[-1]}; give the input size that it was built for, or use sal_weights 'shared'"
            )
        return (x.float() * self.weight.float()).sum(dim=1)


def attention_map(importance: Tensor) -> Tensor:
    """Equation (8): importance (M, h, w) -> Spatial Attention Map (M, h, w), which sums to one over its places."""
    return importance.flatten(1).softmax(dim=1).view_as(importance)


def weighted_pooling(features: Tensor, weights: Tensor, *, scale: PoolScale = "none") -> Tensor:
    """Equation (9): the classifier's map (M, D, h, w), weighted by (M, h, w) -> pooled features (M, D)."""
    pooled = torch.einsum("mdhw,mhw->md", features, weights)
    return pooled / weights[0].numel() if scale == "mean" else pooled


class STACNNOutput(NamedTuple):
    """The scores of B videos and what they came from."""

    logits: Tensor
    """(B, K) float32, mean over the selected segments, before the softmax."""
    weights: Tensor
    """(B, N) float32, sum to one: equal for the selected segments, 0 for the others."""
    segment_logits: Tensor
    """(B, N, K) float32."""
    aux_logits: Tensor | None
    """(B, N, K) float32, S of equation (5); None without an auxiliary head."""


class STACNN(nn.Module):
    """(B, N, C, H, W) raw values 0..255 -> `STACNNOutput`. `backbone` is headless.

    With `spatial` "san" C is 6, two RGB frames, and `backbone` takes 3 channels. `segments` is N in training.
    `input_size`, H = W in pixels, is needed for weights of each place. Raises ValueError for an unknown switch, for
    switches that contradict one another, and for an input of another shape.
    """

    load_report: LoadReport | None = None  # set by `build` when it loads pretrained weights
    san_load_report: LoadReport | None = None  # likewise, for the Spatial Attention Network

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
        fc_std: float = 0.001,
        input_size: int | None = None,
        spatial: Spatial = "none",
        groups: int = 1,
        top: int | None = None,
        select_loss: SelectLoss = "mean_logits",
        aux_lambda: float = 0.3,
        aux_pool: AuxPool = "mean",
        sal_weights: SALWeights = "per_position",
        pool_weights: PoolWeights = "softmax",
        pool_scale: PoolScale = "none",
        san_width: float = 1.0,
        san_last_pool_stride: int = 1,
    ) -> None:
        super().__init__()
        check_choice("spatial", spatial, get_args(Spatial))
        check_choice("select_loss", select_loss, get_args(SelectLoss))
        check_choice("sal_weights", sal_weights, get_args(SALWeights))
        check_choice("pool_weights", pool_weights, get_args(PoolWeights))
        check_choice("pool_scale", pool_scale, get_args(PoolScale))
        check_choice("aux_pool", aux_pool, get_args(AuxPool))
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is not a probability in [0, 1)")
        if not 0 <= aux_lambda < float("inf"):
            raise ValueError(f"aux_lambda={aux_lambda} is not the weight of a loss; it must be 0 or more")
        if segments < 1:
            raise ValueError(f"segments={segments} is not a number of segments; it must be at least 1")
        check_selection(segments, groups=groups, top=top)
        if spatial == "san" and (modality != "rgb" or in_channels != 3 * FRAMES):
            raise ValueError(
                f"spatial='san' reads {FRAMES} RGB frames a snippet (in_channels 6), not {in_channels} channels of "
                f"{modality}; set the snippet to {FRAMES} frames, or use spatial 'shared'"
            )
        self.groups, self.top, self.select_loss, self.aux_lambda = groups, top, select_loss, aux_lambda
        self.pool_weights, self.pool_scale, self.aux_pool = pool_weights, pool_scale, aux_pool
        self.partial_bn = partial_bn

        # the classifier's trunk stands first: its first convolution and first BN are the ones that `tsn` means
        self.classified_channels = 3 if spatial == "san" else in_channels
        self.normalise = Normalise(backbone.input_spec, modality=modality, in_channels=self.classified_channels)
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.fc = _linear(backbone.feature_dim, num_classes, std=fc_std, bias=True)
        self.san: SpatialAttentionNetwork | None = None
        self.aux: nn.Linear | None = None
        self.sal: SpatialAttentionLayer | None = None
        if spatial == "san":
            self.san = SpatialAttentionNetwork(width=san_width, last_pool_stride=san_last_pool_stride)
        if spatial != "none":
            channels = backbone.feature_dim if self.san is None else self.san.out_channels
            if aux_lambda > 0:
                self.aux = _linear(channels, num_classes, std=fc_std, bias=False)
            side = self._map_side(input_size) if sal_weights == "per_position" else None
            self.sal = SpatialAttentionLayer(channels, side=side)
        if partial_bn:
            freeze_batch_norms(self)

    def train(self, mode: bool = True) -> "STACNN":
        super().train(mode)
        if self.partial_bn:
            freeze_batch_norms(self)
        return self

    def score_snippets(self, x: Tensor) -> SnippetScores:
        """Logits, alpha of equation (1) as energy, and the map of (8) for M snippets (M, C, H, W) of any videos."""
        return self._score(x)[0]

    def consensus(self, logits: Tensor, energy: Tensor) -> STACNNOutput:
        """Segment logits (B, N, K) and confidences (B, N) of whole videos -> their scores, by the training's selection.

        The paper predicts otherwise: by `dcw`. Raises ValueError when N snippets cannot be selected from like that.
        """
        weights = select_segments(energy, groups=self.groups, top=self.top)
        return STACNNOutput(_weighted_sum(logits, weights), weights, logits, None)

    def forward(self, x: Tensor) -> STACNNOutput:
        if x.ndim != 5 or x.shape[1] < 1:
            raise ValueError(f"STA-CNN takes (videos, segments, channels, height, width), got shape {tuple(x.shape)}")
        scores, aux = self._score(x.flatten(0, 1))  # B N C H W -> B*N C H W
        output = self.consensus(scores.logits.unflatten(0, x.shape[:2]), scores.energy.unflatten(0, x.shape[:2]))
        return output if aux is None else output._replace(aux_logits=aux.unflatten(0, x.shape[:2]))

    def loss(self, output: STACNNOutput, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Equation (10), mean over the videos; `labels` (B,) are class numbers."""
        loss = self._selected_loss(output.segment_logits, output.weights, labels, label_smoothing=label_smoothing)
        if output.aux_logits is None:
            return loss
        aux = self._selected_loss(output.aux_logits, output.weights, labels, label_smoothing=label_smoothing)
        return loss + self.aux_lambda * aux

    def _score(self, x: Tensor) -> tuple[SnippetScores, Tensor | None]:
        """(M, C, H, W) -> scores, and (5) as (M, K) where there is an auxiliary head."""
        frames = self.normalise(x[:, : self.classified_channels])
        maps, aux = None, None
        if self.sal is None:
            pooled = self.backbone(frames)  # M D
        else:
            features = self.backbone.feature_map(frames)  # M D h w
            located = features if self.san is None else self.san(x)  # M X k l
            pooled, maps = self._attend(features, located)
            if self.aux is not None:
                pool = located.mean if self.aux_pool == "mean" else located.sum
                aux = self.aux(pool(dim=(-2, -1))).float()
        logits = self.fc(self.dropout(pooled)).float()
        with torch.no_grad():
            alpha = confidence(logits.softmax(dim=-1))
        return SnippetScores(logits, alpha, maps), aux

    def _attend(self, features: Tensor, located: Tensor) -> tuple[Tensor, Tensor]:
        """Equations (7) to (9): (M, D, h, w) and (M, X, k, l) -> pooled (M, D) and Spatial Attention Maps (M, h, w)."""
        assert self.sal is not None
        with torch.autocast(device_type=features.device.type, enabled=False):
            importance = self.sal(located)  # M k l
            if importance.shape[-2:] != features.shape[-2:]:
                size = features.shape[-2:]
                importance = F.interpolate(importance[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
            maps = attention_map(importance)
            weights = maps if self.pool_weights == "softmax" else importance
            return weighted_pooling(features.float(), weights, scale=self.pool_scale), maps

    def _selected_loss(self, logits: Tensor, weights: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
        """Cross-entropy of (B, N, K) over the segments that `weights` (B, N) select; labels (B,)."""
        match self.select_loss:
            case "mean_logits":
                return F.cross_entropy(_weighted_sum(logits, weights), labels, label_smoothing=label_smoothing)
            case "mean_loss":
                each = F.cross_entropy(
                    logits.movedim(2, 1),  # B N K -> B K N
                    labels[:, None].expand(logits.shape[:2]),
                    reduction="none",
                    label_smoothing=label_smoothing,
                )
                return (weights * each).sum(dim=1).mean()

    @torch.no_grad()
    def _map_side(self, input_size: int | None) -> int:
        """Cells along a side of the map that (7) reads."""
        if input_size is None or input_size < 1:
            raise ValueError(f"sal_weights='per_position' needs the input_size in pixels, got {input_size}")
        if self.san is not None:
            return self.san.map_side(input_size)
        self.eval()  # leaves BN statistics as they are
        image = self.fc.weight.new_zeros(1, self.classified_channels, input_size, input_size)
        side = self.backbone.feature_map(image).shape[-1]
        self.train()
        return side


def dcw(probabilities: Tensor, *, top: int | None = DCW_TOP, normalise: bool = True) -> tuple[Tensor, Tensor]:
    """Equation (11), Discriminative Confidence Weighted prediction, of one video.

    `probabilities` (T, K) are p(s_n), averaged over crops. Returns the class scores (K,) and the snippets' weights (T,)
    in float32: alpha for the `top` most confident (all where there are fewer, or with None), 0 for the others, divided
    by their sum unless `normalise` is false. Raises ValueError for a `top` below 1.
    """
    if top is not None and top < 1:
        raise ValueError(f"top={top} is not a number of snippets; it must be at least 1, or null for all")
    alpha = confidence(probabilities)
    weights = alpha * most_confident(alpha, top=len(alpha) if top is None else top)
    if normalise:
        weights = weights / weights.sum()
    return (weights[:, None] * probabilities.float()).sum(dim=0), weights


def _linear(inputs: int, outputs: int, *, std: float, bias: bool) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=std)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _weighted_sum(logits: Tensor, weights: Tensor) -> Tensor:
    """(B, N, K) and (B, N) -> (B, K), in the precision of its arguments whatever autocast says."""
    return (weights[..., None] * logits).sum(dim=1)
