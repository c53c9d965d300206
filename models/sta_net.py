"""STA networks: a 3D CNN with attention modules in its blocks, and the same as a student of MARS.

Li, Liu, Zhang, Zhang, Song and Sebe, "Spatio-Temporal Attention Networks for Action Recognition and Detection", IEEE
TMM 2020, section 4. The modules are `sta_module`'s, which puts them into a backbone. A video's clips count alike: the
paper averages their logits.

MARS (Crasto, Weinzaepfel, Alahari and Schmid, CVPR 2019): an RGB network that also learns to have the features of a
trained flow network, its teacher, on the same frames. The teacher is no part of the student: not of its parameters, its
state_dict or its training mode. It only follows the student to a device.

Shapes: B videos, N clips, L channels of all frames of a clip together (16 RGB frames are 48), H W pixels, D features,
K classes, M clips of any videos.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.convention import Backbone, Normalise
from models.scoring import SnippetScores
from models.sta_module import mars_loss
from models.weights import LoadReport

GAUSS_STD = 0.01


class STANetOutput(NamedTuple):
    """The scores of B videos and what they came from."""

    logits: Tensor
    """(B, K) float32, before the softmax."""
    weights: Tensor
    """(B, N) float32, 1/N."""
    segment_logits: Tensor
    """(B, N, K) float32, of each clip."""
    features: Tensor | None
    """(B, D), the backbone's, mean over the clips; None where only logits were at hand."""
    teacher: Tensor | None
    """(B, D), the teacher's of the same clips, without gradient; None unless taught and in training mode."""


class STANet(nn.Module):
    """(B, N, L, H, W) raw values 0..255 -> `STANetOutput`. `backbone` is headless and takes clips.

    L are the channels of the frames of a clip, one frame after the other: `in_channels`. A taught network in training
    mode takes those of the teacher after them: 3 T of RGB, then 2 T of flow, of one and the same clip. Put published
    weights into the backbone before `sta_module.insert` gives it modules. Raises ValueError for a value out of range
    and for an input of another shape.
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
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is not a probability in [0, 1)")
        self.normalise = Normalise(backbone.input_spec, modality=modality, in_channels=in_channels)
        self.modality = modality
        self.in_channels = in_channels
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(backbone.feature_dim, num_classes)
        nn.init.normal_(self.fc.weight, std=fc_std)
        nn.init.zeros_(self.fc.bias)
        self._teachers: tuple[STANet, ...] = ()  # none or one; in a tuple, where torch does not look for modules
        self.alpha = 0.0

    @property
    def frame_channels(self) -> int:
        return 3 if self.modality == "rgb" else 2

    def teach(self, teacher: "STANet", *, alpha: float = 50.0) -> None:
        """Learn to have the features of `teacher`, weighted by `alpha`, beside the classes; it is frozen from here on.

        Raises ValueError when this is no RGB network, the teacher is none of flow, is itself taught, or sees clips of
        another length or has another number of features.
        """
        if self.modality != "rgb" or teacher.modality == "rgb" or teacher._teachers:
            raise ValueError(
                f"a network on {self.modality} cannot learn from one on {teacher.modality}"
                f"{' that is taught itself' if teacher._teachers else ''}; MARS needs rgb, and a teacher on flow"
            )
        for what, own, other in (
            ("frames a clip", self.in_channels // 3, teacher.in_channels // 2),
            ("features", self.fc.in_features, teacher.fc.in_features),
        ):
            if own != other:
                raise ValueError(f"the teacher has {other} {what} and the student {own}; they must be equal")
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha={alpha} is not the weight of a loss; it must be above 0")
        self.alpha = alpha
        parameter = self.fc.weight
        self._teachers = (teacher.to(device=parameter.device, dtype=parameter.dtype).eval().requires_grad_(False),)

    def clip_features(self, x: Tensor) -> Tensor:
        """M clips (M, L, H, W) -> the backbone's features (M, D)."""
        frames = self.normalise(x).unflatten(1, (-1, self.frame_channels))  # M L H W -> M T C H W
        return self.backbone(frames.transpose(1, 2))

    def score_snippets(self, x: Tensor) -> SnippetScores:
        """Logits for M clips (M, L, H, W) of any videos, and no energies."""
        logits = self._classify(self.clip_features(x))
        return SnippetScores(logits, logits.new_zeros(len(logits)))

    def consensus(
        self, logits: Tensor, energy: Tensor, *, features: Tensor | None = None, teacher: Tensor | None = None
    ) -> STANetOutput:
        """Clip logits (B, N, K) of whole videos -> their scores, the mean; `energy` (B, N) is not looked at."""
        weights = torch.full_like(energy, 1.0 / logits.shape[1])
        return STANetOutput(logits.mean(dim=1), weights, logits, features, teacher)

    def forward(self, x: Tensor) -> STANetOutput:
        if x.ndim != 5 or x.shape[1] < 1:
            raise ValueError(f"STANet takes (videos, clips, channels, height, width), got shape {tuple(x.shape)}")
        own, teachers = self._shares(x)
        features = self.clip_features(own.flatten(0, 1))  # B N L H W -> B*N L H W -> B*N D
        logits = self._classify(features).unflatten(0, x.shape[:2])
        return self.consensus(
            logits,
            logits.new_zeros(x.shape[:2]),
            features=features.unflatten(0, x.shape[:2]).mean(dim=1),
            teacher=None if teachers is None else self._taught(teachers),
        )

    def loss(self, output: STANetOutput, labels: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy, with a teacher `mars_loss`; mean over the videos. `labels` (B,) are class numbers."""
        if output.teacher is None:
            return F.cross_entropy(output.logits, labels, label_smoothing=label_smoothing)
        assert output.features is not None
        return mars_loss(
            output.logits, output.features, output.teacher, labels, alpha=self.alpha, label_smoothing=label_smoothing
        )

    def _classify(self, features: Tensor) -> Tensor:
        return self.fc(self.dropout(features)).float()

    def _shares(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Clips (B, N, channels, H, W) -> the channels of this network's, and those of its teacher if that has any."""
        if not (self._teachers and self.training):
            return x, None
        channels = [self.in_channels, self._teachers[0].in_channels]
        if x.shape[2] != sum(channels):
            raise ValueError(
                f"a taught network trains on {channels[0]} channels of RGB and then {channels[1]} of flow, "
                f"got an input of shape {tuple(x.shape)}"
            )
        own, teachers = x.split(channels, dim=2)
        return own, teachers

    @torch.no_grad()
    def _taught(self, x: Tensor) -> Tensor:
        """The teacher's clips (B, N, L, H, W) -> its features (B, D)."""
        return self._teachers[0].clip_features(x.flatten(0, 1)).unflatten(0, x.shape[:2]).mean(dim=1)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """What `to`, `cuda`, `float` and others do to every tensor, they do to the teacher's as well."""
        for teacher in self._teachers:
            teacher._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self
