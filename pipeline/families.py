"""The section ``model`` of an experiment, one for each family. Typed, documented, unknown keys refused.

Imports stay light, as in ``pipeline.sections``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.sections import Count, Positive, Scale, Section

Backbone = Literal["tiny", "bn_inception", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
VideoBackbone = Literal[
    "c3d",
    "p3d199",
    "res3d18",
    "resnet3d18",
    "resnet3d34",
    "resnet3d50",
    "resnet3d101",
    "resnet3d152",
    "resnext3d101",
]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]

_FAMILY = "which paper's model: atw, sta_cnn, jsta, jsta_temporal, sta_net or where_when"


class FamilyConfig(Section):
    """What every family has."""

    family: str

    @property
    def unheard(self) -> set[str]:
        """Switches that mean nothing beside the others."""
        return set()


class NetworkConfig(FamilyConfig):
    """What the families share that look at pixels: a CNN and how its weights begin."""

    pretrained: Path | None = Field(None, description="checkpoint file of the backbone; null trains from scratch")
    dropout: float = Field(0.5, ge=0.0, lt=1.0, description="before the classifier")


class ImageNetworkConfig(NetworkConfig):
    """Families over a 2D CNN, which sees a snippet's frames as its channels."""

    backbone: Backbone = Field("tiny", description="CNN of the stream")
    partial_bn: bool = Field(False, description="freeze every BatchNorm but the first, for fine-tuning")


class VideoNetworkConfig(NetworkConfig):
    """Families over a 3D CNN, which sees clips: a snippet's frames one after the other."""

    backbone: VideoBackbone
    width: Count | None = Field(None, description="channels of the first layer, for small runs; null: as published, 64")
    shortcut: Literal["A", "B"] = Field("B", description="of a ResNet3D where shapes change: A pads, B projects")
    release: Literal["2018", "2020"] = Field("2018", description="of 3D-ResNets' weights: decides the pixel values")

    @property
    def unheard(self) -> set[str]:
        return set() if self.backbone.startswith(("resnet3d", "resnext3d")) else {"shortcut", "release"}


class ATWConfig(ImageNetworkConfig):
    """ATW; the switches are explained in models/atw.py."""

    family: Literal["atw"] = Field("atw", description=_FAMILY)
    consensus: Literal["softmax_att", "segment_linear", "avg", "max"] = Field(
        "softmax_att", description="how segments become one video score"
    )
    att_input: Literal["logits", "features"] = Field("logits", description="what the attention looks at")
    activation: Literal["relu", "tanh", "sigmoid", "identity"] = Field("relu", description="of the attention energy")
    init: Literal["gauss", "one", "inv_n"] = Field("gauss", description="initial attention weights")

    @property
    def unheard(self) -> set[str]:
        match self.consensus:
            case "softmax_att":
                return set()
            case "segment_linear":
                return {"att_input"}
            case "avg" | "max":
                return {"att_input", "activation", "init"}


class SanConfig(Section):
    """The Spatial Attention Network of STA-CNN's RGB stream and its pre-training, which predicts optical flow."""

    width: Scale = Field(1.0, description="part of FlowNetS's channels that every layer keeps, for small runs")
    last_pool_stride: Literal[1, 2] = Field(1, description="2: as all, and the map is resized to the classifier's")
    targets: Literal["flow", "flying_chairs", "none"] = Field(
        "flow", description="flow to predict: of the own stores, training videos only; rendered pairs; no pre-training"
    )
    flying_chairs: Path | None = Field(None, description="folder of FlyingChairs' pairs; with targets: flying_chairs")
    encoder: Path | None = Field(None, description="checkpoint file of FlowNetS to begin with; null: random weights")
    epochs: Count = Field(300, description="passes over the pairs, or one random pair of each training video")
    batch_size: Count = Field(8, description="pairs a step, over all devices")
    lr: Positive = Field(1e-4, description="initial learning rate of Adam")
    weight_decay: float = Field(4e-4, ge=0.0, description="on weights, not on biases")
    milestones: tuple[Count, ...] = Field((100, 150, 200), description="epochs after which lr is multiplied by gamma")
    gamma: Positive = Field(0.5, description="factor at a milestone")
    crop: tuple[Count, Count] | Count | None = Field(
        None, description="height and width of the input, or one side; null: 320 x 448, of videos the input_size"
    )
    theta: Literal["exp2", "hundredth"] = Field(
        "exp2", description="error that costs nothing: exp(-2) or 0.01 of the true flow"
    )

    @model_validator(mode="after")
    def _folder_of_its_targets(self) -> Self:
        chairs = self.targets == "flying_chairs"
        if chairs != (self.flying_chairs is not None):
            raise ValueError(
                "targets: flying_chairs needs the folder flying_chairs"
                if chairs
                else f"targets: {self.targets} does not read the folder flying_chairs; remove it, or set the targets"
            )
        if min(self.crop_px) < 32:
            raise ValueError(f"crop {self.crop} is too small for a CNN; use sides of 32 or more")
        return self

    @property
    def crop_px(self) -> tuple[int, int]:
        """Height and width of the pre-training's input; an experiment fills in its ``input_size`` before."""
        match self.crop:
            case None:
                return (320, 448) if self.targets == "flying_chairs" else (224, 224)
            case int():
                return (self.crop, self.crop)
            case _:
                return self.crop


class STACNNConfig(ImageNetworkConfig):
    """STA-CNN; the switches are explained in models/sta_cnn.py."""

    family: Literal["sta_cnn"] = Field("sta_cnn", description=_FAMILY)
    spatial: Literal["none", "shared", "san"] = Field(
        "none", description="spatial attention: from the classifier's own features, or a network of its own (RGB)"
    )
    groups: Count = Field(1, description="runs of segments that each choose their own; TS(N, n): 1, TS(NxM, Nxm): N")
    top: Count | None = Field(None, description="segments that count in a group, the most confident; null: all")
    select_loss: Literal["mean_logits", "mean_loss"] = Field(
        "mean_logits", description="loss of the mean of the chosen segments' logits, or the mean of their losses"
    )
    aux_lambda: float = Field(
        0.3, ge=0.0, allow_inf_nan=False, description="weight of the auxiliary loss; 0: no such head"
    )
    aux_pool: Literal["mean", "sum"] = Field("mean", description="what equation 5 does with the places of the map")
    sal_weights: Literal["per_position", "shared"] = Field(
        "per_position", description="whether each position of the map has its own weights"
    )
    pool_weights: Literal["softmax", "raw"] = Field("softmax", description="what weighs the features in equation 9")
    pool_scale: Literal["none", "mean"] = Field("none", description="mean: the further 1/K^2 of equation 9")
    san: SanConfig = Field(SanConfig(), description="read with spatial: san only")

    @property
    def own_san(self) -> SanConfig | None:
        """The section ``san`` if it is read."""
        return self.san if self.spatial == "san" else None

    @property
    def unheard(self) -> set[str]:
        if self.spatial == "none":
            return {"aux_lambda", "aux_pool", "sal_weights", "pool_weights", "pool_scale"}
        return {"aux_pool"} if self.aux_lambda == 0 else set()


class JSTAConfig(VideoNetworkConfig):
    """JSTA's S-step: spatial attention in a 3D CNN on clips; the switches are explained in models/jsta.py."""

    family: Literal["jsta"] = Field("jsta", description=_FAMILY)
    backbone: VideoBackbone = Field("res3d18", description="3D CNN of the stream")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="before the classifier")
    sa_position: Literal["after_3b", "replace_3b", "none"] = Field(
        "after_3b", description="place of the attention block in res3d18; none: the plain 3D CNN"
    )
    softmax_axis: Literal["channel", "spatial", "st"] = Field("channel", description="axis of the block's softmax")
    sa_bias: bool = Field(False, description="biases in the block")
    sa_output: Literal["identity", "softmax"] = Field("identity", description="what the block ends in")

    @property
    def unheard(self) -> set[str]:
        return super().unheard | ({"softmax_axis", "sa_bias", "sa_output"} if self.sa_position == "none" else set())

    @model_validator(mode="after")
    def _place_exists(self) -> Self:
        if self.sa_position != "none" and self.backbone != "res3d18":
            raise ValueError(f"sa_position {self.sa_position} is a place in res3d18, not in {self.backbone}; use none")
        return self


class JSTATemporalConfig(FamilyConfig):
    """JSTA's T-step: attention over the clips of a video; the switches are explained in models/jsta_temporal.py."""

    family: Literal["jsta_temporal"] = Field("jsta_temporal", description=_FAMILY)
    temporal: Literal["paper", "keras_gate", "none"] = Field("paper", description="attention over clips")
    merge: Literal["concat", "sum", "mul", "avg"] = Field("concat", description="of the two directions of the LSTM")
    clip_pool: Literal["avg", "max", "concat"] = Field("avg", description="how weighted clips become one video")
    classifier: Literal["fc", "moe", "lstm"] = Field("fc", description="over the pooled clips; lstm: over the clips")
    clips: Count = Field(4, description="clips that are put together with clip_pool: concat")
    hidden: Count = Field(512, description="units of an LSTM, in each direction")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="before the classifier")

    @property
    def unheard(self) -> set[str]:
        unheard: set[str] = set() if self.temporal == "paper" else {"merge"}
        unheard |= {"hidden"} if self.temporal != "paper" and self.classifier != "lstm" else set()
        return unheard | ({"clips"} if self.clip_pool != "concat" else set())

    @model_validator(mode="after")
    def _one_merging(self) -> Self:
        if self.classifier == "lstm" and self.clip_pool != "avg":
            raise ValueError(f"clip_pool {self.clip_pool} means nothing to classifier lstm; use avg")
        return self


class STANetConfig(VideoNetworkConfig):
    """STA networks for 3D CNNs; the switches are explained in models/sta_module.py."""

    family: Literal["sta_net"] = Field("sta_net", description=_FAMILY)
    backbone: VideoBackbone = Field("resnext3d101", description="3D CNN of the stream")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="before the classifier")
    variant: Literal["sta", "ta", "sa", "se", "no_deconv", "none"] = Field(
        "sta", description="attention module; none: the plain 3D CNN"
    )
    stages: tuple[str, ...] = Field(("layer4",), min_length=1, description="of the backbone that get modules")
    blocks: Literal["all", "last"] = Field("all", description="of a stage")
    position: Literal["before_add", "after_add", "after_conv1"] = Field("before_add", description="in a block")
    deconv_stride: Count = Field(1, description="of Deconv and Conv2")
    identity_init: bool = Field(False, description="begin with weights of .98, for fine-tuning")

    @property
    def unheard(self) -> set[str]:
        plain = {"stages", "blocks", "position", "deconv_stride", "identity_init"} if self.variant == "none" else set()
        return super().unheard | plain


class WhereWhenConfig(FamilyConfig):
    """Where-and-When: ConvLSTM attention over maps; the switches are explained in models/where_when.py."""

    family: Literal["where_when"] = Field("where_when", description=_FAMILY)
    hidden: Count = Field(512, description="channels of the ConvLSTM")
    dropout: float = Field(0.2, ge=0.0, lt=1.0, description="of whole channels, before the mask")
    spatial: bool = Field(True, description="a mask over the places of every frame")
    temporal: Literal["paper", "post_lstm", "none"] = Field("paper", description="weights over the frames")
    energy: Literal["additive", "joint_tanh"] = Field("additive", description="equation 2, or one that hears the state")
    y_scale: Literal["none", "inv_n"] = Field("none", description="the further 1/n of equation 4")
    lambda_tv: Weight = Field(1e-5, description="weight of the total variation of masks")
    lambda_contrast: Weight = Field(1e-4, description="weight of the contrast of masks")
    lambda_unimodal: Weight = Field(1.0, description="weight of the unimodality of temporal weights")
    tv_reduce: Literal["batch_mean", "batch_sum"] = Field("batch_mean", description="over the videos of a batch")
    unimodal: Literal["sum", "sqrt_mean"] = Field("sum", description="equation 10, or the released code's")

    @property
    def unheard(self) -> set[str]:
        unheard: set[str] = set() if self.spatial else {"lambda_tv", "lambda_contrast", "tv_reduce"}
        if self.temporal != "paper":
            unheard |= {"energy", "y_scale"}
        if self.temporal == "none":
            unheard |= {"lambda_unimodal", "unimodal"}
        return unheard


FAMILIES = ("atw", "sta_cnn", "jsta", "jsta_temporal", "sta_net", "where_when")


def _family(given: Any) -> str:
    """Which family's section this is; what is neither a mapping nor a section is left to fail as one."""
    return str(given.get("family", "atw") if isinstance(given, dict) else getattr(given, "family", "atw"))


HeadConfig: TypeAlias = JSTATemporalConfig | WhereWhenConfig
"""Families that read what another experiment's network makes of a video, from the store of features."""
ModelConfig = Annotated[
    Annotated[ATWConfig, Tag("atw")]
    | Annotated[STACNNConfig, Tag("sta_cnn")]
    | Annotated[JSTAConfig, Tag("jsta")]
    | Annotated[JSTATemporalConfig, Tag("jsta_temporal")]
    | Annotated[STANetConfig, Tag("sta_net")]
    | Annotated[WhereWhenConfig, Tag("where_when")],
    Discriminator(_family),
]
"""An attention model: the section of its family."""
