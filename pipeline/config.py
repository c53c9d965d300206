"""Typed configuration: one model a stage, unknown keys refused, every field documented.

``python -m pipeline.config config/demo.yaml`` prints a configuration in full, defaults included.
Imports stay light: the Snakefile loads this file each time it is parsed.
"""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pipeline.optical_flow.params import TVL1Params, Variant

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Scale = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class Section(BaseModel):
    """A part of the configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class DemoConfig(Section):
    """The rendered demo dataset; read when ``dataset: demo``."""

    preset: Literal["tiny", "small"] = Field("small", description="tiny renders in seconds, small trains in minutes")
    seed: int = Field(0, ge=0, description="seed of the renderer; another seed is another dataset")
    videos_per_class: Count | None = Field(None, description="number of clips a class, in place of the preset's")


class GeometryConfig(Section):
    """Size and rate of what is decoded; part of the key of every stage that decodes."""

    size: tuple[Count, Count] | None = Field(None, description="width and height in pixels, aspect ratio not kept")
    short_side: Count | None = Field(None, description="length of the shorter side in pixels, aspect ratio kept")
    fps: Positive | None = Field(None, description="frames per second kept; null keeps every frame of the file")
    max_seconds: Positive | None = Field(None, description="longest duration kept from the start; null keeps all")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if (self.size is None) == (self.short_side is None):
            raise ValueError("give either size or short_side, not both and not none")
        return self


class FramesConfig(GeometryConfig):
    """RGB frames as JPEG in webdataset shards."""

    qscale: int = Field(2, ge=2, le=31, description="ffmpeg's MJPEG quantiser: 2 is best, 31 is smallest")


def _of_the_variant(name: str) -> Callable[[dict[str, Any]], Any]:
    """A default that the variant, which is read before, decides."""
    return lambda given: getattr(TVL1Params(variant=given.get("variant", "opencv-cpu")), name)


class FlowConfig(GeometryConfig):
    """TV-L1 optical flow, clipped and quantised to 8 bits, in a zarr store. Solver names are OpenCV's."""

    variant: Variant = Field("opencv-cpu", description="whose TV-L1: OpenCV's CPU or CUDA solver, or 2.4's of TSN")
    backend: Literal["auto", "numba", "opencv", "torch", "triton"] = Field(
        "auto", description="auto: the fastest here, and what any other has stored; a named one is part of the address"
    )
    bound: Positive = Field(20.0, description="clip at this many pixels per frame before quantising")
    tau: Positive = Field(0.25, description="time step of the dual update")
    lambda_: Positive = Field(0.15, alias="lambda", description="weight of the data term; smaller is smoother")
    theta: Positive = Field(0.3, description="tightness between the two flow fields")
    nscales: Count = Field(5, description="pyramid levels")
    warps: Count = Field(5, description="warps of the second frame a level")
    epsilon: Positive = Field(0.01, description="stopping threshold, pixels")
    inner_iterations: Count = Field(
        default_factory=_of_the_variant("inner_iterations"), description="dual updates between two medians, or a warp"
    )
    outer_iterations: Count = Field(
        default_factory=_of_the_variant("outer_iterations"), description="median-filtered rounds a warp"
    )
    scale_step: float = Field(
        default_factory=_of_the_variant("scale_step"), gt=0.0, lt=1.0, description="size ratio of two pyramid levels"
    )
    gamma: float = Field(0.0, ge=0.0, allow_inf_nan=False, description="weight of the illumination term; needs opencv")
    median_filtering: Literal[1, 3, 5] = Field(
        default_factory=_of_the_variant("median_filtering"),
        description="side of the median filter; 1 turns it off, 3 needs opencv",
    )
    step: Count = Field(1, description="flow[t] leads from frame t to frame t + step")
    reverse: bool = Field(False, description="flow[t] leads from frame t + step to frame t instead")

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    @model_validator(mode="after")
    def _what_the_solver_can(self) -> Self:
        params = self.tvl1  # raises for what the variant does not have
        if self.backend == "opencv" and params.variant != "opencv-cpu":
            raise ValueError(f"backend: opencv is OpenCV's CPU solver and has no variant {params.variant}; use auto")
        if self.backend != "opencv" and (params.gamma > 0 or params.median_filtering == 3):
            raise ValueError("gamma and median_filtering 3 need backend: opencv; the others have a 5x5 median, or none")
        if min(self.size or (self.short_side or 0,)) < 3:
            raise ValueError("flow needs frames of at least 3 x 3 pixels")
        return self

    @property
    def tvl1(self) -> TVL1Params:
        """The solver's parameters."""
        return TVL1Params(**self.model_dump(include=set(TVL1Params.__dataclass_fields__), by_alias=False))


class WarpedFlowConfig(FlowConfig):
    """Flow without camera motion; docs/warped_flow.md. What is not set here is as in the section flow."""

    mode: Literal["correct", "dense_flow"] = Field("correct", description="dense_flow: as the tool of that name has it")
    min_inliers: int = Field(26, ge=4, description="with fewer matches that agree the camera is taken to stand")
    defects: tuple[Literal["first_frame_keypoints", "corners_of_next_frame", "flow_y_of_wrong_column"], ...] | None = (
        Field(None, description="defects of dense_flow to repeat; null is all of them in that mode")
    )

    @model_validator(mode="after")
    def _defects_of_dense_flow(self) -> Self:
        if self.mode == "correct" and self.defects:
            raise ValueError("defects belong to mode: dense_flow; remove them, or set the mode")
        return self


class ModelConfig(Section):
    """An attention model; the switches are explained in models/atw.py."""

    family: Literal["atw"] = Field("atw", description="which paper's model")
    backbone: Literal["tiny", "bn_inception", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = Field(
        "tiny", description="CNN of the stream"
    )
    pretrained: Path | None = Field(None, description="checkpoint file of the backbone; null trains from scratch")
    consensus: Literal["softmax_att", "segment_linear", "avg", "max"] = Field(
        "softmax_att", description="how segments become one video score"
    )
    att_input: Literal["logits", "features"] = Field("logits", description="what the attention looks at")
    activation: Literal["relu", "tanh", "sigmoid", "identity"] = Field("relu", description="of the attention energy")
    init: Literal["gauss", "one", "inv_n"] = Field("gauss", description="initial attention weights")
    dropout: float = Field(0.5, ge=0.0, lt=1.0, description="before the classifier")
    partial_bn: bool = Field(False, description="freeze every BatchNorm but the first, for fine-tuning")

    @model_validator(mode="after")
    def _nothing_to_freeze(self) -> Self:
        if self.partial_bn and self.pretrained is None:
            raise ValueError("partial_bn would freeze untrained statistics; give pretrained, or set it to false")
        return self


class SamplingConfig(Section):
    """Which frames a model sees, and how they are cropped."""

    segments: Count = Field(4, description="snippets a video in training (N)")
    snippet: Count = Field(1, description="frames or flow fields a snippet; the papers: RGB 1, flow 5")
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


class ExperimentConfig(Section):
    """One stream: a model trained on one modality; one training job for each split and seed."""

    modality: Literal["frames", "flow", "warped_flow"] = Field(description="which store it reads")
    weight: float = Field(
        1.0, ge=0.0, allow_inf_nan=False, description="weight of its scores in the fusion; 0 leaves it out"
    )
    model: ModelConfig = ModelConfig()
    sampling: SamplingConfig = SamplingConfig()
    optim: OptimConfig = OptimConfig()

    @model_validator(mode="after")
    def _input_of_the_backbone(self) -> Self:
        side = self.sampling.input_size
        if self.model.backbone == "bn_inception" and side % 32:
            raise ValueError(f"sampling.input_size {side} does not suit bn_inception; use a multiple of 32, as 224")
        if side < 32:
            raise ValueError(f"sampling.input_size {side} is too small for a CNN; use 32 or more")
        return self


class ComputeConfig(Section):
    """Where training runs. Not part of any artifact's key."""

    accelerator: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU if there is one")
    devices: Count = Field(1, description="devices a training job, with DDP when more than one")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field("32-true", description="of training")
    threads: Count = Field(1, description="CPU threads of one training job")
    workers: int = Field(0, ge=0, description="loader processes of one training job; 0 loads in the job itself")


class Config(Section):
    """A whole run: a dataset, its preprocessing, the experiments and the report."""

    name: Name = Field(description="of the dataset; part of the default work folder")
    dataset: Literal["demo", "class_folders", "csv", "ut_interaction"] = Field(description="how videos are found")
    videos: Path | None = Field(None, description="folder of the videos; paths in a csv are relative to it")
    csv: Path | None = Field(None, description="table: path, label, and optionally id, split1, split2 ...")
    exclude_labels: tuple[str, ...] = Field((), description="classes left out")
    test_fraction: float = Field(0.25, gt=0.0, lt=1.0, description="held out by a stable hash if nothing names a split")
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

    @field_validator("warped_flow", mode="before")
    @classmethod
    def _like_flow(cls, given: Any, info: ValidationInfo) -> Any:
        """Fill in what is not set from the section flow, so that a stream differs from plain flow in one thing only."""
        if not isinstance(given, dict):
            return given
        flow = info.data.get("flow")
        if flow is None:  # it is wrong; saying so once is enough
            return WarpedFlowConfig(size=(340, 256))
        own_size = "size" in given or "short_side" in given
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
        needed = {"class_folders": "videos", "csv": "csv", "ut_interaction": "videos"}.get(self.dataset)
        if needed and getattr(self, needed) is None:
            raise ValueError(
                f"dataset: {self.dataset} needs the key {needed!r}; set it in the file or by --config {needed}=PATH"
            )
        if self.dataset == "demo" and self.videos is not None:
            raise ValueError("dataset demo renders its own videos; set dataset to what the folder in 'videos' holds")
        return self

    @property
    def work_dir(self) -> Path:
        """The folder of everything that is made."""
        return self.work or Path("work") / self.name

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


def canonical(section: BaseModel | dict[str, Any]) -> str:
    """JSON with sorted keys and no blanks: equal settings give equal text, however they were written."""
    values = section.model_dump(mode="json") if isinstance(section, BaseModel) else section
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


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
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    return [field.alias or name for name, field in section.model_fields.items()]


def _documented(section: BaseModel, indent: int = 0) -> list[str]:
    """YAML lines of a section, each with the description of its field."""
    lines = []
    pad = " " * indent
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), field.alias or name
        note = f"  # {field.description}" if field.description else ""
        if isinstance(value, BaseModel):
            lines += [f"{pad}{key}:", *_documented(value, indent + 2)]
        elif isinstance(value, dict) and value:
            lines.append(f"{pad}{key}:{note}")
            for item, nested in value.items():
                lines += [f"{pad}  {item}:", *_documented(nested, indent + 4)]
        else:
            plain = json.loads(section.model_dump_json())[key]
            lines.append(f"{pad}{key}: {json.dumps(plain)}{note}")
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
