"""Typed configuration: one model a stage, unknown keys refused, every field documented.

``python -m pipeline.config config/demo.yaml`` prints a configuration in full, defaults included.
Imports stay light: the Snakefile loads this file each time it is parsed.
"""

from __future__ import annotations

import argparse
import difflib
import json
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline.dataset.sources import ALL_KEYS, Dataset, check_keys
from pipeline.sections import (
    ComputeConfig,
    DemoConfig,
    ExperimentConfig,
    FlowConfig,
    Fraction,
    FramesConfig,
    GeometryConfig,
    ImportedFlowConfig,
    ModelConfig,
    Name,
    OptimConfig,
    Positive,
    SamplingConfig,
    Section,
    StoreConfig,
    WarpedFlowConfig,
    canonical,
)

__all__ = [
    "ComputeConfig",
    "Config",
    "DemoConfig",
    "ExperimentConfig",
    "FlowConfig",
    "FramesConfig",
    "GeometryConfig",
    "ImportedFlowConfig",
    "ModelConfig",
    "OptimConfig",
    "SamplingConfig",
    "StoreConfig",
    "WarpedFlowConfig",
    "canonical",
    "load",
    "main",
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
    fuse_on: Literal["logits", "prob"] = Field("logits", description="what is added up over streams")
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
        for name, experiment in self.experiments.items():
            if experiment.optim.batch_size % self.compute.devices:
                size, devices = experiment.optim.batch_size, self.compute.devices
                raise ValueError(f"batch_size {size} of {name} cannot be shared by {devices} devices; use a multiple")
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
        """The local store of a stage. Datasets can share flow, which is addressed by content; not buckets."""
        if stage in ("flow", "warped_flow"):
            return (self.store.local or self.work_dir / "stores") / "flow"
        return (self.store.local / self.name if self.store.local else self.work_dir / "stores") / f"{stage}-{recipe}"

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
        # a default that waits for a field with an error of its own has nothing to add
        problems = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
        raise ValueError("; ".join(map(_sentence, problems))) from None


def _sentence(problem: Any) -> str:
    """A pydantic problem as one clear sentence."""
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path) or "the configuration"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.0)
        return f"unknown key {key!r}; the nearest known key is {near[0]!r}" if near else f"unknown key {key!r}"
    if problem["type"] == "missing":
        return f"the key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{key}: {message}"
    return f"{key} is {problem['input']!r}: {message[0].lower()}{message[1:]}"


def _known_keys(path: list[str]) -> list[str]:
    """The keys of the section that ``path`` leads to."""
    section: type[BaseModel] = Config
    for part in path:
        if part == "experiments" or part not in section.model_fields:
            section = ExperimentConfig  # a name chosen by the user stands between experiments and its section
            continue
        annotation = section.model_fields[part].annotation
        for one in (annotation, *get_args(annotation)):  # an optional section is one of two
            if isinstance(one, type) and issubclass(one, BaseModel):
                section = one
    return [field.alias or name for name, field in section.model_fields.items()]


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
                lines += [f"{pad}  {item}:", *_documented(nested, indent + 4)]
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
