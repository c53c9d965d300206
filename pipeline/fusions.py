"""Fusions of streams: whose scores are added up, with what weights, and as what. Imports stay light."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from pydantic import Field

from pipeline.experiments import ExperimentConfig
from pipeline.sections import Name, Positive, Section

FuseOn = Literal["logits", "prob", "exp"]


class FusionConfig(Section):
    """A weighted sum of the scores of some experiments."""

    experiments: dict[Name, Positive] = Field(min_length=1, description="weight of each experiment's scores")
    fuse_on: FuseOn | None = Field(None, description="what is added up; null: as the run's own fuse_on says")
    paper: float | None = Field(None, ge=0.0, le=100.0, description="the paper's accuracy, per cent, to stand beside")


class FusionRow(TypedDict):
    """A fusion with nothing left open, as plain values."""

    name: str
    experiments: dict[str, float]
    on: FuseOn
    paper: float | None


class Reading(TypedDict):
    """What evaluating needs to know of an experiment beside its scores."""

    modality: str
    family: str
    """Of the model: decides what its maps mean."""
    snippet: int
    """Frames or flow fields a snippet."""
    stride: int
    """From one of them to the next."""
    paper: float | None
    """Per cent."""


class EvaluationSettings(TypedDict):
    """What evaluating is told."""

    experiments: dict[str, Reading]
    fusions: list[FusionRow]
    """In the order of the configuration."""


def check_fusions(fusions: Mapping[str, FusionConfig], experiments: Mapping[str, ExperimentConfig]) -> None:
    """Refuse fusions that cannot be made, and weights that they leave unheard.

    Raises:
        ValueError: a name that is taken, an experiment that is not there, a weight beside fusions.
    """
    for name, fusion in fusions.items():
        if name in {"baseline", "chance", *experiments}:
            raise ValueError(f"the fusion {name!r} has the name of something else that is in the results; rename it")
        if unknown := sorted(fusion.experiments.keys() - experiments.keys()):
            raise ValueError(f"the fusion {name!r} adds {unknown[0]!r}, which is no experiment; correct it")
        if not _meet([experiments[one] for one in fusion.experiments]):
            raise ValueError(f"the fusion {name!r} adds experiments that have no split in common; give them one")
    for name, experiment in experiments.items():
        if fusions and experiment.weight != 1.0:
            raise ValueError(
                f"weight of {name} is not heard beside fusions, which have weights of their own; remove it"
            )


def check_scale(fusions: Sequence[FusionRow], experiments: Mapping[str, ExperimentConfig]) -> None:
    """Refuse to add up exponentials of what are no logarithms of probabilities.

    Raises:
        ValueError: a fusion does, and the stream with the largest scores would decide alone.
    """
    for fusion in fusions:
        for name in fusion["experiments"]:
            if fusion["on"] == "exp" and experiments[name].predicts == "model":
                raise ValueError(
                    f"the fusion {fusion['name']!r} adds exp(logits), but {name} predicts by its model, whose logits "
                    "have no common scale; use fuse_on: prob, or prediction.kind: average or dcw"
                )


def _meet(experiments: Sequence[ExperimentConfig]) -> bool:
    """Whether there is a split that all of them run on."""
    limited = [set(experiment.splits) for experiment in experiments if experiment.splits]
    return not limited or bool(set.intersection(*limited))


def evaluation_settings(
    fusions: Mapping[str, FusionConfig], experiments: Mapping[str, ExperimentConfig], *, fuse_on: FuseOn
) -> EvaluationSettings:
    """What evaluating is told.

    Without fusions there is one, called fused, of the experiments that have a weight, if they have a split in common.
    """
    weighted = {name: experiment for name, experiment in experiments.items() if experiment.weight}
    chosen = dict(fusions)
    if weighted and not fusions and _meet(list(weighted.values())):
        chosen["fused"] = FusionConfig(experiments={name: one.weight for name, one in weighted.items()})
    return {
        "experiments": {
            name: {
                "modality": experiment.modality,
                "family": experiment.model.family,
                "snippet": experiment.sampling.snippet,
                "stride": experiment.sampling.stride,
                "paper": experiment.paper,
            }
            for name, experiment in experiments.items()
        },
        "fusions": [
            {"name": name, "experiments": fusion.experiments, "on": fusion.fuse_on or fuse_on, "paper": fusion.paper}
            for name, fusion in chosen.items()
        ],
    }
