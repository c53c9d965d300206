"""Experiments and fusions in few words, as the report's table of results has them."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import (
    ATWConfig,
    ExperimentConfig,
    JSTAConfig,
    JSTATemporalConfig,
    STACNNConfig,
    STANetConfig,
    WhereWhenConfig,
)
from pipeline.families import VideoNetworkConfig

ADDED_AS = {"logits": "scores before the softmax", "prob": "probabilities", "exp": "probabilities, not normalised"}
"""What a fusion adds up."""

BEGIN_AS = {"gauss": "Gaussian", "one": "at 1", "inv_n": "at 1/N"}
"""How ATW's attention weights begin."""

VARIANTS = {"sta": "STA", "ta": "TA", "sa": "SA", "se": "SE", "no_deconv": "STA without Deconv"}
"""Modules of STA networks."""


def model_text(experiment: ExperimentConfig) -> str:
    """An experiment's model in few words: network, segments, attention, what it begins with or reads, prediction."""
    words = [*_network_text(experiment), *_sampling_text(experiment), *_origin_text(experiment)]
    return "; ".join([*words, *_prediction_text(experiment)])


def scored_text(experiment: ExperimentConfig) -> str:
    """Why the last point of the curve of training need not be the accuracy of the results."""
    sampling = experiment.sampling
    if experiment.features is not None:
        return "Test videos are scored on the same features here as for the results."
    tested = "all there are" if sampling.test_segments is None else sampling.test_segments
    return f"Test videos are scored on {sampling.segments} snippets here, on {tested} for the results."


def _network_text(experiment: ExperimentConfig) -> list[str]:
    model, segments = experiment.model, experiment.sampling.segments
    match model:
        case ATWConfig():
            return [f"{model.backbone}, {model.consensus}, N = {segments}", *_attention_text(model)]
        case STACNNConfig():
            network = [f"{model.backbone}, {_selection_text(model, segments)}", *_spatial_text(model)]
            return network + (["mean of losses"] if model.select_loss == "mean_loss" else [])
        case JSTAConfig():
            return [_backbone_text(model), _block_text(model)]
        case JSTATemporalConfig():
            return _clip_attention_text(model)
        case STANetConfig():
            return [_backbone_text(model), _modules_text(model)]
        case WhereWhenConfig():
            read = experiment.sampling.test_segments  # features are of the same frames in training and in testing
            return [f"ConvLSTM of {model.hidden}, N = {read}", *_mask_text(model)]


def _backbone_text(model: VideoNetworkConfig) -> str:
    return model.backbone if model.width is None else f"{model.backbone} of width {model.width}"


def _block_text(model: JSTAConfig) -> str:
    """JSTA's spatial attention block."""
    if model.sa_position == "none":
        return "no attention"
    words = [f"spatial attention {model.sa_position.replace('_', ' ')}, softmax over {model.softmax_axis}"]
    words += ["biases"] if model.sa_bias else []
    words += ["ends in a softmax"] if model.sa_output == "softmax" else []
    return ", ".join(words)


def _clip_attention_text(model: JSTATemporalConfig) -> list[str]:
    """JSTA's attention over clips, and its classifier."""
    attention = {
        "paper": f"temporal attention, {model.merge} of directions",
        "keras_gate": "temporal gate",
        "none": "no attention",
    }[model.temporal]
    if model.classifier == "lstm":
        return [attention, "LSTM over clips"]
    clips = f" {model.clips}" if model.clip_pool == "concat" else ""
    return [attention, f"{model.classifier.upper()} of the {model.clip_pool} of{clips} clips"]


def _modules_text(model: STANetConfig) -> str:
    if model.variant == "none":
        return "no attention"
    blocks = "last blocks of " if model.blocks == "last" else ""
    words = [f"{VARIANTS[model.variant]} in {blocks}{', '.join(model.stages)} {model.position.replace('_', ' ')}"]
    words += [f"Deconv stride {model.deconv_stride}"] if model.deconv_stride > 1 else []
    return ", ".join([*words, "begins as identity"] if model.identity_init else words)


def _mask_text(model: WhereWhenConfig) -> list[str]:
    """What Where-and-When attends with, and which of its losses are off."""
    energy = {"additive": "additive", "joint_tanh": "joint tanh"}[model.energy]
    words = ["spatial mask" if model.spatial else "no spatial mask"]
    words += {
        "paper": [f"temporal attention, {energy}"],
        "post_lstm": ["temporal attention after the ConvLSTM"],
        "none": ["no temporal attention"],
    }[model.temporal]
    losses = {"lambda_tv": "total variation", "lambda_contrast": "contrast", "lambda_unimodal": "unimodality"}
    off = [loss for name, loss in losses.items() if name not in model.unheard and not getattr(model, name)]
    return [*words, *([f"no loss of {', '.join(off)}"] if off else [])]


def _sampling_text(experiment: ExperimentConfig) -> list[str]:
    """Clips of the families that see clips; a stride of any other."""
    sampling = experiment.sampling
    what = "frames" if experiment.modality == "frames" else "flow fields"
    stride = f"stride {sampling.stride}"
    if isinstance(experiment.model, ATWConfig | STACNNConfig | WhereWhenConfig):
        return [stride] if sampling.stride > 1 else []
    tested = "all" if sampling.test_segments is None else str(sampling.test_segments)
    if isinstance(experiment.model, JSTATemporalConfig):  # as in training
        return [", ".join([f"{tested} clips of {sampling.snippet} {what}", *([stride] if sampling.stride > 1 else [])])]
    clips = f"{sampling.segments} clip{'s' if sampling.segments > 1 else ''} of {sampling.snippet} {what}"
    return [", ".join([clips, *([stride] if sampling.stride > 1 else []), f"{tested} in testing"])]


def _origin_text(experiment: ExperimentConfig) -> list[str]:
    """What it begins with, reads and imitates."""
    words = [f"begins with {experiment.initial}"] if experiment.initial else []
    words += [f"features of {experiment.features}"] if experiment.features else []
    if experiment.mars:
        words.append(f"MARS with teacher {experiment.mars.teacher}, α = {experiment.mars.alpha:g}")
    return words


def _attention_text(model: ATWConfig) -> list[str]:
    """What decides the weights of ATW's segments; nothing does with avg and max."""
    if model.consensus not in ("softmax_att", "segment_linear"):
        return []
    looks = " of features" if (model.consensus, model.att_input) == ("softmax_att", "features") else ""
    return [f"{model.activation}{looks}, weights begin {BEGIN_AS[model.init]}"]


def _selection_text(model: STACNNConfig, segments: int) -> str:
    """As the paper writes it."""
    groups, part = model.groups, segments // model.groups
    top = part if model.top is None else model.top
    return f"TS({segments}, {top})" if groups == 1 else f"TS({groups}×{part}, {groups}×{top})"


def _spatial_text(model: STACNNConfig) -> list[str]:
    if model.spatial == "none":
        return []
    own = "SAN from scratch" if model.san.targets == "none" and model.san.encoder is None else "SAN"
    words = [own if model.spatial == "san" else "spatial attention"]
    words += [] if model.aux_lambda else ["no auxiliary loss"]
    words += ["auxiliary scores summed"] if model.aux_lambda and model.aux_pool == "sum" else []
    words += ["shared weights"] if model.sal_weights == "shared" else []
    words += ["pools with raw weights, of which the map shown is the softmax"] if model.pool_weights == "raw" else []
    words += ["pooled features / K²"] if model.pool_scale == "mean" else []
    return [", ".join(words)]


def _prediction_text(experiment: ExperimentConfig) -> list[str]:
    tested, model = experiment.sampling.test_segments, experiment.model
    whole = [] if experiment.prediction.normalise else ["not normalised"]
    match experiment.predicts:
        case "dcw":
            return [", ".join([f"DCW {experiment.prediction.top or tested} of {tested}", *whole])]
        case "average":
            return [", ".join(["average of probabilities", *whole])]
        case "model" if isinstance(model, STACNNConfig):
            assert tested is not None  # every segment of a video is for clips
            chooses = model.top is not None and model.top < tested // model.groups
            return ["average of the logits that the model selects" if chooses else "average of logits"]
        case _:
            return []  # the model's own, which is named first


def fusion_text(weights: Mapping[str, float], *, on: str) -> str:
    """A fusion as a sum."""
    return " + ".join(f"{weight:g} × {name}" for name, weight in weights.items()) + f", of {ADDED_AS[on]}"
