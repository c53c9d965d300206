"""Typed configuration: one model a stage, unknown keys refused, every field documented.

``python -m pipeline.config config/demo.yaml`` prints a configuration in full, defaults included.
Imports stay light: the Snakefile loads this file each time it is parsed.
"""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline.dataset.sources import ALL_KEYS, Dataset, check_keys
from pipeline.experiments import (
    ExperimentConfig,
    OptimConfig,
    PredictionConfig,
    SamplingConfig,
    check_dependencies,
    check_flow_of_frames,
    check_splits,
)
from pipeline.families import (
    ATWConfig,
    JSTAConfig,
    JSTATemporalConfig,
    ModelConfig,
    SanConfig,
    STACNNConfig,
    STANetConfig,
    WhereWhenConfig,
)
from pipeline.fusions import EvaluationSettings, FuseOn, FusionConfig, check_fusions, check_scale, evaluation_settings
from pipeline.sections import (
    ComputeConfig,
    DemoConfig,
    FlowConfig,
    Fraction,
    FramesConfig,
    GeometryConfig,
    ImportedFlowConfig,
    Name,
    Positive,
    Section,
    StoreConfig,
    WarpedFlowConfig,
    canonical,
)

__all__ = [
    "ATWConfig",
    "ComputeConfig",
    "Config",
    "DemoConfig",
    "ExperimentConfig",
    "FlowConfig",
    "FramesConfig",
    "FusionConfig",
    "GeometryConfig",
    "ImportedFlowConfig",
    "JSTAConfig",
    "JSTATemporalConfig",
    "ModelConfig",
    "OptimConfig",
    "PredictionConfig",
    "STACNNConfig",
    "STANetConfig",
    "SamplingConfig",
    "SanConfig",
    "StoreConfig",
    "WarpedFlowConfig",
    "WhereWhenConfig",
    "canonical",
    "load",
    "main",
    "told",
]


class Config(Section):
    """A whole run: a dataset, its preprocessing, the experiments and the report."""

    name: Name = Field(description="of the dataset; part of the default work folder")
    dataset: Dataset = Field(description="how videos and labels are found; docs/datasets.md")
    videos: Path | None = Field(None, description="folder of the videos; paths in a csv are relative to it")
    annotations: Path | None = Field(None, description="folder of the dataset's official lists and labels")
    trimmed: Path | None = Field(None, description="thumos14: folder of UCF-101's clips, to train on; null: validation")
    csv: Path | None = Field(None, description="table: path, label, and optionally id, split1, split2 ...")
    allow_missing: bool = Field(False, description="go on, and say so, if listed videos are not there")
    single_label: bool = Field(False, description="thumos14: leave out videos with actions of several classes")
    exclude_labels: tuple[str, ...] = Field((), description="classes left out")
    test_fraction: float = Field(0.25, gt=0.0, lt=1.0, description="held out by a stable hash if nothing names a split")
    image_fps: Positive = Field(25.0, description="frames per second of a video that is a folder of images")
    demo: DemoConfig = DemoConfig()
    work: Path | None = Field(None, description="folder of everything that is made; null is work/<name>")
    shards: int = Field(
        16, ge=1, le=100_000, description="buckets of videos, about one per 200; fixed for a dataset's life"
    )
    splits: tuple[Name, ...] = Field(("split1",), min_length=1, description="splits to run; results are averaged")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="training seeds; one job for each")
    on_error: Literal["quarantine", "fail"] = Field("quarantine", description="what to do with an unusable video")
    max_quarantined: Fraction = Field(0.05, description="the run fails if a larger part is quarantined")
    frames: FramesConfig = FramesConfig(size=(340, 256))
    flow: FlowConfig = FlowConfig(size=(340, 256))
    warped_flow: WarpedFlowConfig = Field(default_factory=dict, validate_default=True)
    experiments: dict[Name, ExperimentConfig] = Field(default_factory=dict, description="the streams, by name")
    fusions: dict[Name, FusionConfig] = Field(
        default_factory=dict, description="sums of streams by name; none: the one called fused, by the streams' weights"
    )
    fuse_on: FuseOn = Field(
        "logits", description="what fusions add up: logits, their softmax (prob), or exp(logits) as they are (exp)"
    )
    compute: ComputeConfig = ComputeConfig()
    store: StoreConfig = StoreConfig()

    @field_validator("warped_flow", mode="before")
    @classmethod
    def _like_flow(cls, given: Any, info: ValidationInfo) -> Any:
        """Fill in what is not set from the section flow, so that a stream differs from plain flow in one thing only."""
        if not isinstance(given, dict):
            return given
        flow = info.data.get("flow")
        if flow is None:  # it is wrong; saying so once is enough
            return WarpedFlowConfig(size=(340, 256))
        if "imported" in given:
            return given
        own_size = "size" in given or "short_side" in given
        if flow.imported is not None:  # flow that is solved elsewhere says nothing of how to solve it
            return given if own_size else {"size": (340, 256)} | given
        not_taken = {"size", "short_side"} if own_size else None
        return flow.model_dump(by_alias=True, exclude_unset=True, exclude=not_taken) | given

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for key, values in (("seeds", self.seeds), ("splits", self.splits)):
            if len(set(values)) < len(values):
                raise ValueError(f"{key} names a value twice: {list(values)}; each runs once")
        taken = {"baseline", "chance", "fused"} & self.experiments.keys()
        if taken:
            raise ValueError(f"an experiment cannot be called {min(taken)!r}, which the results use; rename it")
        if "all" in self.experiments:
            raise ValueError("an experiment cannot be called 'all', because train_all is the whole run; rename it")
        for name, experiment in self.experiments.items():
            devices, sizes = self.compute.devices, [experiment.optim.batch_size]
            if experiment.san:
                sizes.append(experiment.san.batch_size)
            for size in sizes:
                if size % devices:
                    raise ValueError(
                        f"batch_size {size} of {name} cannot be shared by {devices} devices; use a multiple"
                    )
        return self

    @model_validator(mode="after")
    def _across_experiments(self) -> Self:
        check_splits(self.experiments, self.splits)
        check_dependencies(self.experiments)
        check_fusions(self.fusions, self.experiments)
        check_scale(self.evaluation["fusions"], self.experiments)
        if any(experiment.san and experiment.san.targets == "flow" for experiment in self.experiments.values()):
            check_flow_of_frames(self.frames.model_dump(mode="json"), self.flow.model_dump(mode="json"))
        for teacher in {one.mars.teacher for one in self.experiments.values() if one.mars}:
            flow = getattr(self, self.experiments[teacher].modality)
            check_flow_of_frames(self.frames.model_dump(mode="json"), flow.model_dump(mode="json"), who="MARS")
        return self

    @model_validator(mode="after")
    def _sources(self) -> Self:
        if self.dataset == "demo" and self.videos is not None:
            raise ValueError("dataset demo renders its own videos; set dataset to what the folder in 'videos' holds")
        defaults = type(self).model_fields
        check_keys(self.dataset, given={key for key in ALL_KEYS if getattr(self, key) != defaults[key].default})
        return self

    @property
    def work_dir(self) -> Path:
        """The folder of everything that is made."""
        return self.work or Path("work") / self.name

    def store_folder(self, stage: str, recipe: str) -> Path:
        """The local store of a stage. Datasets can share what is addressed by content; not buckets."""
        if stage in ("flow", "warped_flow", "features"):
            return (self.store.local or self.work_dir / "stores") / ("features" if stage == "features" else "flow")
        return (self.store.local / self.name if self.store.local else self.work_dir / "stores") / f"{stage}-{recipe}"

    @property
    def evaluation(self) -> EvaluationSettings:
        """What evaluating is told: it reads no other key."""
        return evaluation_settings(self.fusions, self.experiments, fuse_on=self.fuse_on)

    @property
    def stores(self) -> tuple[str, ...]:
        """Stages whose results are kept; warped flow, which costs twice as much as flow, only if a stream reads it."""
        wanted = any(experiment.modality == "warped_flow" for experiment in self.experiments.values())
        return ("frames", "flow", "warped_flow") if wanted else ("frames", "flow")


def load(source: Path | dict[str, Any]) -> Config:
    """Read and check a configuration.

    Args:
        source: a YAML file, or the mapping that Snakemake has read and overridden.

    Raises:
        ValueError: one sentence a problem: the key, what is wrong with its value, the nearest known key.
    """
    if isinstance(source, Path):
        try:
            values = yaml.safe_load(source.read_text())
        except FileNotFoundError:
            raise ValueError(f"there is no configuration file {source}; config/demo.yaml is an example") from None
        except yaml.YAMLError as error:
            raise ValueError(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    else:
        values = source
    if not isinstance(values, dict):
        raise ValueError(f"a configuration is a mapping of keys to values, not {type(values).__name__}")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ValueError(told(error, of=Config)) from None


def told(error: ValidationError, *, of: type[BaseModel]) -> str:
    """What is wrong with a section, one clear sentence a problem."""
    # a default that waits for a field with an error of its own has nothing to add
    problems = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
    sentences: dict[tuple[str, ...], str] = {}
    for problem in problems:
        key = tuple(_walk(problem["loc"], of=of)[0])
        if key in sentences:  # another alternative of the same value
            sentences[key] += f", or {_message(problem)}"
        else:
            sentences[key] = _sentence(problem, of=of)
    return "; ".join(sentences.values())


def _message(problem: Any) -> str:
    text = str(problem["msg"]).removeprefix("Value error, ")
    return text if problem["type"] == "value_error" else text[0].lower() + text[1:]


def _sentence(problem: Any, *, of: type[BaseModel]) -> str:
    path, section = _walk(problem["loc"], of=of)
    key = ".".join(path) or ("the configuration" if of is Config else "the settings")
    match problem["type"]:
        case "extra_forbidden":
            known = [field.alias or name for name, field in section.model_fields.items()] if section else []
            near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.0)
            return f"unknown key {key!r}; the nearest known key is {near[0]!r}" if near else f"unknown key {key!r}"
        case "missing":
            return f"the key {key!r} is missing"
        case "union_tag_invalid":
            found, expected = problem["ctx"]["tag"], problem["ctx"]["expected_tags"]
            return f"{key}.family is {found!r}: input should be one of {expected}"
    found = key if problem["type"] == "value_error" else f"{key} is {problem['input']!r}"
    return f"{found}: {_message(problem)}"


def _walk(loc: Sequence[str | int], *, of: type[BaseModel]) -> tuple[list[str], type[BaseModel] | None]:
    """The keys on the way to a problem, without the names that pydantic puts between, and the section it lies in."""
    path: list[str] = []
    kind: Any = of
    section: type[BaseModel] | None = None
    for part in map(str, loc):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            section = kind
            fields = {field.alias or name: field for name, field in kind.model_fields.items()}
            kind = _inside(fields[part].annotation) if part in fields else None
        elif (tagged := _tagged(kind)) and part in tagged:
            kind = tagged[part]
            continue
        elif get_origin(kind) in (Union, UnionType):  # of plain values: the name of an alternative
            kind = None
            continue
        else:
            kind = get_args(kind)[-1] if get_origin(kind) is dict else None
        path.append(part)
    return path, section


def _inside(annotation: Any) -> Any:
    """The section that an optional one is, or the annotation again."""
    options = [one for one in get_args(annotation) if isinstance(one, type) and issubclass(one, BaseModel)]
    return options[0] if options and get_origin(annotation) is not dict else annotation


def _tagged(annotation: Any) -> dict[str, Any]:
    """The sections of a union by the tags that tell them apart."""
    members = [get_args(one) for one in get_args(annotation)]
    return {tag.tag: kind for kind, *notes in filter(None, members) for tag in notes if isinstance(tag, Tag)}


def _documented(section: BaseModel, indent: int = 0) -> list[str]:
    """YAML lines of a section, each with the description of its field."""
    lines = []
    pad = " " * indent
    plain = json.loads(section.model_dump_json())
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), field.alias or name
        if value is not None and key not in plain:  # not heard beside the others
            continue
        note = f"  # {field.description}" if field.description else ""
        if isinstance(value, BaseModel):
            lines += [f"{pad}{key}:", *_documented(value, indent + 2)]
        elif isinstance(value, dict) and value:
            lines.append(f"{pad}{key}:{note}")
            for item, nested in value.items():
                if isinstance(nested, BaseModel):
                    lines += [f"{pad}  {item}:", *_documented(nested, indent + 4)]
                else:
                    lines.append(f"{pad}  {item}: {json.dumps(nested)}")
        else:
            lines.append(f"{pad}{key}: {json.dumps(plain.get(key))}{note}")
    return lines


def main(argv: list[str] | None = None) -> None:
    """Print a configuration in full, or one sentence about what is wrong with it."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.config", description=main.__doc__)
    parser.add_argument("file", type=Path)
    arguments = parser.parse_args(argv)
    try:
        config = load(arguments.file)
    except ValueError as error:
        parser.exit(2, f"{arguments.file}: {error}\n")
    print("\n".join(_documented(config)))


if __name__ == "__main__":
    main()
