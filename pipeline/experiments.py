"""The sections of an experiment: model, sampling, optimisation, prediction. Typed, documented, unknown keys refused.

Imports stay light, as in ``pipeline.sections``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.sections import Count, Fraction, Name, Positive, Scale, Section

Backbone = Literal["tiny", "bn_inception", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


class BackboneConfig(Section):
    """What the families share: a CNN and how its weights begin."""

    family: str
    backbone: Backbone = Field("tiny", description="CNN of the stream")
    pretrained: Path | None = Field(None, description="checkpoint file of the backbone; null trains from scratch")
    dropout: float = Field(0.5, ge=0.0, lt=1.0, description="before the classifier")
    partial_bn: bool = Field(False, description="freeze every BatchNorm but the first, for fine-tuning")

    @property
    def unheard(self) -> set[str]:
        """Switches that mean nothing beside the others."""
        return set()


class ATWConfig(BackboneConfig):
    """ATW; the switches are explained in models/atw.py."""

    family: Literal["atw"] = Field("atw", description="which paper's model: atw or sta_cnn")
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


class STACNNConfig(BackboneConfig):
    """STA-CNN; the switches are explained in models/sta_cnn.py."""

    family: Literal["sta_cnn"] = Field("sta_cnn", description="which paper's model: atw or sta_cnn")
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


FAMILIES = ("atw", "sta_cnn")


def _family(given: Any) -> str:
    """Which family's section this is; what is neither a mapping nor a section is left to fail as one."""
    return str(given.get("family", "atw") if isinstance(given, dict) else getattr(given, "family", "atw"))


ModelConfig = Annotated[
    Annotated[ATWConfig, Tag("atw")] | Annotated[STACNNConfig, Tag("sta_cnn")], Discriminator(_family)
]
"""An attention model: the section of its family."""


class SamplingConfig(Section):
    """Which frames a model sees, and how they are cropped."""

    segments: Count = Field(4, description="snippets a video in training (N)")
    snippet: Count = Field(1, description="frames or flow fields a snippet; the papers: RGB 1 or 2, flow 5")
    test_segments: Count = Field(25, description="snippets a video in testing (T)")
    test_crops: Literal[1, 5, 10] = Field(1, description="1: centre; 5: corners too; 10: mirrored too")
    input_size: Count = Field(224, description="side of the square network input, pixels")
    crop_scales: tuple[Scale, ...] = Field(
        (1.0, 0.875, 0.75), min_length=1, description="training crops, parts of the short side"
    )
    flip: bool = Field(True, description="mirror at random in training; flow x is negated with it")


class OptimConfig(Section):
    """Optimisation of one experiment."""

    epochs: Count = Field(50, description="passes over the training videos")
    batch_size: Count = Field(32, description="videos a step, over all devices")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd has momentum")
    lr: Positive = Field(0.001, description="initial learning rate")
    momentum: Fraction = Field(0.9, description="of sgd")
    weight_decay: float = Field(5e-4, ge=0.0, description="on weights, not on biases or BatchNorm")
    schedule: Literal["step", "cosine"] = Field("step", description="step: at milestones; cosine: to zero")
    milestones: tuple[Count, ...] = Field((), description="epochs after which the learning rate is multiplied by gamma")
    gamma: Positive = Field(0.1, description="factor at a milestone")
    clip_norm: Positive | None = Field(None, description="largest gradient norm")
    label_smoothing: Fraction = Field(0.0, description="of the cross-entropy")


Prediction = Literal["model", "average", "dcw"]


class PredictionConfig(Section):
    """How the scores of a video's snippets become its own. A matter of testing: it trains nothing again."""

    kind: Prediction | None = Field(
        None,
        description="model: its consensus; average of probabilities; dcw: weighted by confidence; null: family's own",
    )
    top: Count | None = Field(15, description="of dcw: snippets that count, the most confident; null: all")
    normalise: bool = Field(True, description="divide average and dcw by the sum of the weights")


class ExperimentConfig(Section):
    """One stream: a model trained on one modality; one training job for each split and seed."""

    modality: Literal["frames", "flow", "warped_flow"] = Field(description="which store it reads")
    weight: float = Field(
        1.0, ge=0.0, allow_inf_nan=False, description="weight of its scores in the fusion; 0 leaves it out"
    )
    splits: tuple[Name, ...] | None = Field(None, min_length=1, description="of the run's splits; null: all of them")
    initial: Name | None = Field(None, description="experiment whose trained model this one's training begins with")
    paper: float | None = Field(None, ge=0.0, le=100.0, description="the paper's accuracy, per cent, to stand beside")
    model: ModelConfig = ATWConfig()
    sampling: SamplingConfig = SamplingConfig()
    optim: OptimConfig = OptimConfig()
    prediction: PredictionConfig = PredictionConfig()

    @property
    def predicts(self) -> Prediction:
        """How it predicts, its family's own way unless told."""
        return self.prediction.kind or ("model" if self.model.family == "atw" else "dcw")

    @property
    def san(self) -> SanConfig | None:
        """Of the Spatial Attention Network that it has beside its classifier, if any; its crop is not left open."""
        found = self.model.own_san if isinstance(self.model, STACNNConfig) else None
        if found is None or found.crop is not None or found.targets == "flying_chairs":
            return found
        return found.model_copy(update={"crop": self.sampling.input_size})

    @property
    def in_channels(self) -> int:
        """Channels of a snippet as it is read."""
        return (3 if self.modality == "frames" else 2) * self.sampling.snippet

    @property
    def classifier_channels(self) -> int:
        """Channels that the backbone takes: beside a Spatial Attention Network the first frame alone."""
        return 3 if self.san else self.in_channels

    @model_validator(mode="after")
    def _nothing_to_freeze(self) -> Self:
        if self.model.partial_bn and self.model.pretrained is None and self.initial is None:
            raise ValueError(
                "model.partial_bn would freeze untrained statistics; give model.pretrained or initial, or use false"
            )
        return self

    @model_validator(mode="after")
    def _splits_once(self) -> Self:
        if self.splits is not None and len(set(self.splits)) < len(self.splits):
            raise ValueError(f"splits names a value twice: {list(self.splits)}; each runs once")
        return self

    @model_validator(mode="after")
    def _input_of_the_backbone(self) -> Self:
        side = self.sampling.input_size
        if self.model.backbone == "bn_inception" and side % 32:
            raise ValueError(f"sampling.input_size {side} does not suit bn_inception; use a multiple of 32, as 224")
        if side < 32:
            raise ValueError(f"sampling.input_size {side} is too small for a CNN; use 32 or more")
        return self

    @model_validator(mode="after")
    def _input_of_the_san(self) -> Self:
        snippet = self.sampling.snippet
        if self.san is None:
            return self
        if self.modality != "frames":
            raise ValueError(f"model.spatial: san looks at frames; for {self.modality} use spatial: shared")
        if snippet != 2:
            raise ValueError(
                f"sampling.snippet {snippet} does not suit model.spatial: san, which sees two frames; use 2"
            )
        return self

    @model_validator(mode="after")
    def _segments_that_count(self) -> Self:
        if isinstance(self.model, STACNNConfig):
            segments, groups, top = self.sampling.segments, self.model.groups, self.model.top
            chosen_from = {"segments": segments}
            if self.predicts == "model":
                chosen_from["test_segments"] = self.sampling.test_segments
            for key, number in chosen_from.items():
                if number % groups:
                    raise ValueError(f"sampling.{key} {number} are no multiple of model.groups {groups}; make them one")
                if top is not None and top > number // groups:
                    raise ValueError(
                        f"model.top {top} is more than the {number // groups} segments of a group, of sampling.{key} "
                        f"{number}; lower it"
                    )
        top = self.prediction.top
        if self.predicts == "dcw" and top is not None and top > self.sampling.test_segments:
            raise ValueError(
                f"prediction.top {top} is more than sampling.test_segments {self.sampling.test_segments}; lower it, or "
                "set it to null for all"
            )
        return self


def check_splits(experiments: Mapping[str, ExperimentConfig], splits: Sequence[str]) -> None:
    """Check that every experiment runs on splits of the run.

    Raises:
        ValueError: one does not.
    """
    for name, experiment in experiments.items():
        if unknown := sorted(set(experiment.splits or ()) - set(splits)):
            raise ValueError(
                f"{name} runs on {unknown[0]}, which is not among splits: {', '.join(splits)}; add it there"
            )


def check_initials(experiments: Mapping[str, ExperimentConfig]) -> None:
    """Check that every ``initial`` names an experiment whose model can be begun with.

    Raises:
        ValueError: it is no experiment, its classifier has another input or backbone, or experiments wait for each
            other in a circle.
    """
    for name, experiment in experiments.items():
        if experiment.initial is None:
            continue
        source = experiments.get(experiment.initial)
        if source is None:
            known = ", ".join(sorted(experiments.keys() - {name})) or "no other"
            raise ValueError(f"{name} begins with {experiment.initial!r}, which is no experiment; there is {known}")
        for what, own, other in (
            ("modality", experiment.modality, source.modality),
            ("backbone", experiment.model.backbone, source.model.backbone),
            ("number of channels", experiment.classifier_channels, source.classifier_channels),
        ):
            if own != other:
                raise ValueError(
                    f"{name} begins with {experiment.initial}, whose {what} is {other} and not {own}; "
                    "begin with an experiment on the same input and backbone"
                )
        _check_no_circle(name, experiments)


def _check_no_circle(name: str, experiments: Mapping[str, ExperimentConfig]) -> None:
    chain = [name]
    while (source := experiments[chain[-1]].initial) is not None and source in experiments:
        if source in chain:
            circle = " begins with ".join([*chain, source])
            raise ValueError(f"experiments wait for each other: {circle}; cut the circle")
        chain.append(source)


def check_flow_of_frames(frames: Mapping[str, Any], flow: Mapping[str, Any]) -> None:
    """Check that stored flow leads from each stored frame to the next, pixel by pixel, so that a SAN can learn it.

    Args:
        frames, flow: settings of the two stores, as JSON has them. Sizes of imported flow are not among them.

    Raises:
        ValueError: it does not.
    """
    if flow.get("step", 1) != 1 or flow.get("reverse", False):
        raise ValueError(
            f"a SAN learns the flow from a frame to the next, but flow.step is {flow.get('step', 1)} and flow.reverse "
            f"{flow.get('reverse', False)}; use 1 and false, or set other san.targets"
        )
    sizes = () if flow.get("imported") else ("size", "short_side")
    for key in (*sizes, "fps", "max_seconds"):
        if frames.get(key) != flow.get(key):
            raise ValueError(
                f"a SAN learns the flow between the very frames that it sees, but frames.{key} is {frames.get(key)} "
                f"and flow.{key} {flow.get(key)}; make them equal, or set other san.targets"
            )
