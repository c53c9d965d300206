"""The sections of an experiment: sampling, optimisation, prediction, and what it begins with. Typed, documented.

The section ``model`` is in ``pipeline.families``. Imports stay light, as in ``pipeline.sections``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from pipeline.families import (
    ATWConfig,
    HeadConfig,
    ImageNetworkConfig,
    JSTAConfig,
    JSTATemporalConfig,
    ModelConfig,
    NetworkConfig,
    SanConfig,
    STACNNConfig,
    STANetConfig,
    VideoNetworkConfig,
    WhereWhenConfig,
)
from pipeline.sections import Count, Fraction, Name, Positive, Scale, Section


class SamplingConfig(Section):
    """Which frames a model sees, and how they are cropped."""

    segments: Count = Field(4, description="snippets (of 3D CNNs clips) a video in training (N)")
    snippet: Count = Field(1, description="frames or flow fields a snippet; the papers: RGB 1 or 2, flow 5, clips 8 on")
    stride: Count = Field(1, description="from one frame of a snippet to its next")
    spread: bool = Field(True, description="training snippets in equal parts of the video; false: one run of frames")
    short: Literal["hold", "loop"] = Field("hold", description="past a video's end: its last frame, or from its start")
    test_segments: Count | None = Field(25, description="snippets a video in testing (T); null: all, one after another")
    test_crops: Literal["whole", 1, 5, 10] = Field(
        1, description="1: centre; 5: corners too; 10: mirrored too; whole: all of the frame, squashed to a square"
    )
    test_scale: Scale = Field(0.875, description="side of a test crop as a part of the short side")
    input_size: Count = Field(224, description="side of the square network input, pixels")
    crop_scales: tuple[Scale, ...] = Field(
        (1.0, 0.875, 0.75), min_length=1, description="training crops, parts of the short side"
    )
    crop_places: Literal["tsn", "corners", "random"] = Field(
        "tsn", description="of training crops: tsn: 13, nearly square; corners: those and the centre; random: anywhere"
    )
    flip: bool = Field(True, description="mirror at random in training; flow x is negated with it")
    reduced_decode: bool = Field(
        False, description="decode frames at 1/2, 1/4 or 1/8 where a crop has so many pixels more than the input"
    )


class OptimConfig(Section):
    """Optimisation of one experiment."""

    epochs: int = Field(50, ge=0, description="passes over the training videos; 0 keeps what training begins with")
    batch_size: Count = Field(32, description="videos a step, over all devices")
    shuffle: Literal["videos", "shards"] = Field(
        "videos", description="shards: of frames, shard by shard, for disks and servers that are slow at random access"
    )
    shuffle_buffer: Count = Field(2048, description="of shards: videos among which their order is shuffled")
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = Field("sgd", description="sgd has momentum")
    lr: Positive = Field(0.001, description="initial learning rate")
    momentum: Fraction = Field(0.9, description="of sgd")
    dampening: Fraction = Field(0.0, description="of sgd's momentum")
    weight_decay: float = Field(5e-4, ge=0.0, description="on weights, not on biases or BatchNorm")
    schedule: Literal["step", "cosine", "plateau"] = Field(
        "step", description="step: at milestones; cosine: to zero; plateau: when the training loss no longer falls"
    )
    milestones: tuple[Count, ...] = Field((), description="epochs after which the learning rate is multiplied by gamma")
    patience: int = Field(10, ge=0, description="of plateau: epochs without a lower loss before lr is multiplied")
    gamma: Positive = Field(0.1, description="factor at a milestone or on a plateau")
    clip_norm: Positive | None = Field(None, description="largest gradient norm")
    label_smoothing: Fraction = Field(0.0, description="of the cross-entropy")
    train_only: tuple[str, ...] | None = Field(
        None, min_length=1, description="parts of names of the parameters that learn, as layer4; null: all"
    )


class MarsConfig(Section):
    """MARS: an RGB network that also learns to have the features of a trained flow network."""

    teacher: Name = Field(description="experiment on flow whose trained model is the teacher")
    alpha: Positive = Field(50.0, description="weight of the features' mean squared error")


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
    features: Name | None = Field(
        None, description="experiment whose trained network makes the features that jsta_temporal and where_when read"
    )
    mars: MarsConfig | None = Field(None, description="of sta_net on frames: the flow teacher that it imitates")
    paper: float | None = Field(None, ge=0.0, le=100.0, description="the paper's accuracy, per cent, to stand beside")
    model: ModelConfig = ATWConfig()
    sampling: SamplingConfig = SamplingConfig()
    optim: OptimConfig = OptimConfig()
    prediction: PredictionConfig = PredictionConfig()

    @property
    def predicts(self) -> Prediction:
        """How it predicts, its family's own way unless told."""
        return self.prediction.kind or ("dcw" if self.model.family == "sta_cnn" else "model")

    @property
    def pretrained(self) -> Path | None:
        """The checkpoint file that its network begins with, if it has a network of its own and such a file."""
        return self.model.pretrained if isinstance(self.model, NetworkConfig) else None

    @property
    def depends_on(self) -> Iterator[str]:
        """Experiments that must be trained before."""
        teacher = self.mars.teacher if self.mars else None
        yield from (name for name in (self.initial, self.features, teacher) if name is not None)

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
        partial = isinstance(self.model, ImageNetworkConfig) and self.model.partial_bn
        if partial and self.pretrained is None and self.initial is None:
            raise ValueError(
                "model.partial_bn would freeze untrained statistics; give model.pretrained or initial, or use false"
            )
        return self

    @model_validator(mode="after")
    def _reduced_frames(self) -> Self:
        if self.sampling.reduced_decode and (self.modality != "frames" or self.mars is not None):
            raise ValueError("sampling.reduced_decode is for frames alone; flow is stored otherwise, set it to false")
        return self

    @model_validator(mode="after")
    def _shards_of_frames(self) -> Self:
        if self.optim.shuffle == "shards" and (self.modality != "frames" or self.features is not None):
            raise ValueError("optim.shuffle shards is for frames; flow and features do not lie in shards, use videos")
        return self

    @model_validator(mode="after")
    def _features_of_another(self) -> Self:
        family, heads = self.model.family, isinstance(self.model, get_args(HeadConfig))
        if heads != (self.features is not None):
            raise ValueError(
                f"model.family {family} reads features; name the experiment that makes them in features"
                if heads
                else f"features {self.features!r} is not read by model.family {family}; remove it"
            )
        if heads and self.sampling.test_crops not in ("whole", 1):
            raise ValueError(
                f"sampling.test_crops {self.sampling.test_crops} are too many for {family}, whose features are of one "
                "view; use 1 or whole"
            )
        if heads and self.initial is not None:
            raise ValueError(f"initial {self.initial!r} has no network to begin in {family}; remove it")
        return self

    @model_validator(mode="after")
    def _mars_of_frames(self) -> Self:
        if self.mars is None:
            return self
        if not isinstance(self.model, STANetConfig) or self.modality != "frames":
            raise ValueError(
                f"mars is for family sta_net on frames, not {self.model.family} on {self.modality}; remove it"
            )
        return self

    @model_validator(mode="after")
    def _every_snippet(self) -> Self:
        """Without a number of test snippets there are as many as a video has room for."""
        if self.sampling.test_segments is None and isinstance(self.model, ImageNetworkConfig | WhereWhenConfig):
            raise ValueError(
                f"sampling.test_segments null is for clips; give a number of snippets for {self.model.family}"
            )
        if self.predicts != "model" and not isinstance(self.model, ImageNetworkConfig):
            raise ValueError(
                f"prediction.kind {self.predicts} is for atw and sta_cnn; {self.model.family} predicts by its model"
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
        backbone = self.model.backbone if isinstance(self.model, ImageNetworkConfig | VideoNetworkConfig) else None
        if backbone == "bn_inception" and side % 32:
            raise ValueError(f"sampling.input_size {side} does not suit bn_inception; use a multiple of 32, as 224")
        if side < 32:
            raise ValueError(f"sampling.input_size {side} is too small for a CNN; use 32 or more")
        if backbone == "c3d" and self.sampling.snippet < 16:
            raise ValueError(f"sampling.snippet {self.sampling.snippet} is too short for c3d; use 16 frames or more")
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
                assert self.sampling.test_segments is not None  # seen to above
                chosen_from["test_segments"] = self.sampling.test_segments
            for key, number in chosen_from.items():
                if number % groups:
                    raise ValueError(f"sampling.{key} {number} are no multiple of model.groups {groups}; make them one")
                if top is not None and top > number // groups:
                    raise ValueError(
                        f"model.top {top} is more than the {number // groups} segments of a group, of sampling.{key} "
                        f"{number}; lower it"
                    )
        top, scored = self.prediction.top, self.sampling.test_segments
        if self.predicts == "dcw" and top is not None and scored is not None and top > scored:
            raise ValueError(
                f"prediction.top {top} is more than sampling.test_segments {scored}; lower it, or "
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


def check_dependencies(experiments: Mapping[str, ExperimentConfig]) -> None:
    """Check that what an experiment begins with, reads features of or imitates can be that.

    Raises:
        ValueError: it is no experiment, it does not fit, or experiments wait for each other in a circle.
    """
    for name, experiment in experiments.items():
        for source in experiment.depends_on:
            if source not in experiments:
                known = ", ".join(sorted(experiments.keys() - {name})) or "no other"
                raise ValueError(f"{name} begins with {source!r}, which is no experiment; there is {known}")
        if experiment.initial is not None:
            _check_initial(name, experiment, experiments[experiment.initial])
        if experiment.features is not None:
            _check_features(name, experiment, experiments[experiment.features])
        if experiment.mars is not None:
            _check_teacher(name, experiment, experiments[experiment.mars.teacher])
    for name in experiments:
        _check_no_circle([name], experiments)


def _check_initial(name: str, one: ExperimentConfig, source: ExperimentConfig) -> None:
    assert isinstance(one.model, ImageNetworkConfig | VideoNetworkConfig)  # heads have none
    for what, own, other in (
        ("modality", one.modality, source.modality),
        ("backbone", one.model.backbone, getattr(source.model, "backbone", None)),
        ("number of channels", one.classifier_channels, source.classifier_channels),
    ):
        if own != other:
            raise ValueError(
                f"{name} begins with {one.initial}, whose {what} is {other} and not {own}; "
                "begin with an experiment on the same input and backbone"
            )


def _check_features(name: str, one: ExperimentConfig, source: ExperimentConfig) -> None:
    clips = isinstance(one.model, JSTATemporalConfig)
    if not isinstance(source.model, JSTAConfig if clips else ImageNetworkConfig) or source.san is not None:
        wanted = "the clips of a jsta" if clips else "the maps of a 2D network without a SAN"
        raise ValueError(
            f"{name} reads features of {one.features}, a {source.model.family}; {one.model.family} takes {wanted}"
        )
    size = one.sampling.input_size, source.sampling.input_size
    for what, own, other in (
        ("sampling.snippet", one.sampling.snippet, source.sampling.snippet),
        ("modality", one.modality, source.modality),
        *([("sampling.input_size", *size)] if clips else []),
    ):
        if own != other:
            raise ValueError(
                f"{name} reads features of {one.features}, whose {what} is {other} and not {own}; make it so"
            )


def _check_teacher(name: str, one: ExperimentConfig, teacher: ExperimentConfig) -> None:
    assert one.mars is not None
    if not isinstance(teacher.model, STANetConfig) or teacher.modality == "frames" or teacher.mars is not None:
        raise ValueError(f"{name} imitates {one.mars.teacher}, which is no sta_net on flow; MARS needs one")
    for what in ("snippet", "stride", "input_size"):
        own, other = getattr(one.sampling, what), getattr(teacher.sampling, what)
        if own != other:
            raise ValueError(
                f"{name} imitates {one.mars.teacher}, whose sampling.{what} is {other} and not {own}; make it so"
            )


def _check_no_circle(chain: list[str], experiments: Mapping[str, ExperimentConfig]) -> None:
    for source in experiments[chain[-1]].depends_on:
        if source in chain:
            circle = " begins with ".join([*chain, source])
            raise ValueError(f"experiments wait for each other: {circle}; cut the circle")
        _check_no_circle([*chain, source], experiments)


def check_flow_of_frames(frames: Mapping[str, Any], flow: Mapping[str, Any], *, who: str = "a SAN") -> None:
    """Check that stored flow leads from each stored frame to the next, pixel by pixel, so that both can be looked at.

    Args:
        frames, flow: settings of the two stores, as JSON has them. Sizes of imported flow are not among them.
        who: looks at both.

    Raises:
        ValueError: it does not.
    """
    if flow.get("step", 1) != 1 or flow.get("reverse", False):
        raise ValueError(
            f"{who} needs the flow from a frame to the next, but flow.step is {flow.get('step', 1)} and flow.reverse "
            f"{flow.get('reverse', False)}; use 1 and false, or do without"
        )
    sizes = () if flow.get("imported") else ("size", "short_side")
    for key in (*sizes, "fps", "max_seconds"):
        if frames.get(key) != flow.get(key):
            raise ValueError(
                f"{who} needs the flow between the very frames that it sees, but frames.{key} is {frames.get(key)} "
                f"and flow.{key} {flow.get(key)}; make them equal, or do without"
            )
