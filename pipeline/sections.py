"""The sections of the configuration but for experiments: typed, every field documented, unknown keys refused.

Those are in ``pipeline.experiments``; ``pipeline.config`` puts them together and reads them from a file. Imports stay
light: the Snakefile loads this file each time it is parsed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from pipeline.optical_flow.params import TVL1Params, Variant
from pipeline.stores.layouts import FIRST_NUMBER, QUANTISER, FolderLayout, Quantiser, Suffix, Tool

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

    preset: Literal["tiny", "small", "full"] = Field(
        "small", description="tiny renders in seconds, small trains in minutes, full is for a GPU"
    )
    seed: int = Field(0, ge=0, description="seed of the renderer; another seed is another dataset")
    videos_per_class: Count | None = Field(
        None, description="number of clips a class, in place of the preset's; a multiple of 3, of 6 with small"
    )


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


class ImportedFlowConfig(Section):
    """Flow that another tool has computed: what is known of it, all of it part of its address."""

    tool: Tool = Field(description="whose folders: decides their names, their numbers and which frames a field joins")
    solver: Literal[Variant, "farneback", "brox", "nvof", "unknown"] = Field(
        "unknown", description="what computed it; dense_flow's default is farneback, denseflow's opencv-cuda"
    )
    images: Suffix = Field("jpg", description="kind of the flow images")
    first_number: int = Field(
        default_factory=lambda given: FIRST_NUMBER[given["tool"]], ge=0, description="in the name of the first field"
    )
    quantiser: Quantiser = Field(
        default_factory=lambda given: QUANTISER[given["tool"]], description="what became of fractions of a code"
    )
    own_images: bool = Field(
        False, description="dense_flow: the videos are the folders of its own images, which lack the first frame"
    )

    @model_validator(mode="after")
    def _images_without_the_first(self) -> Self:
        if self.own_images and self.tool != "dense_flow":
            raise ValueError(f"own_images is for dense_flow; the images of {self.tool} begin with the first frame")
        return self


def _of_the_variant(name: str) -> Callable[[dict[str, Any]], Any]:
    """A default that the variant, which is read before, decides."""
    return lambda given: getattr(TVL1Params(variant=given.get("variant", "opencv-cpu")), name)


IMPORTED_KEYS = ("bound", "imported", "reverse", "step")
"""Keys of a flow section that imported flow has too."""


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
    imported: ImportedFlowConfig | None = Field(
        None, description="take what another tool has computed, as imported; docs/import_export.md"
    )

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)

    @model_serializer(mode="wrap")
    def _what_counts(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Only what the flow depends on, so that addresses and their parameters hold no setting that nobody heard."""
        values: dict[str, Any] = dump(self)
        if self.imported is None:
            return {name: value for name, value in values.items() if name != "imported"}
        return {name: values[name] for name in IMPORTED_KEYS if name in values}

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        """In place of the check for what decodes: imported flow has the sizes that it has."""
        if self.imported is None:
            return super()._one_size()  # type: ignore[operator]
        heard = {name for name in self.model_fields_set if getattr(self, name) is not None}
        for name in sorted(heard - set(IMPORTED_KEYS)):
            raise ValueError(f"imported flow is taken as it is, so {name} would not be heard; remove {name}")
        if "bound" not in heard:
            raise ValueError("imported flow needs bound, as its tool was told; the tools' own defaults differ")
        assert self.layout is not None  # raises for what the tool does not do
        return self

    @property
    def layout(self) -> FolderLayout | None:
        """How imported flow lies in its folders; None for flow that is solved here."""
        if self.imported is None:
            return None
        tool, first, suffix = self.imported.tool, self.imported.first_number, self.imported.images
        return FolderLayout(tool=tool, step=self.step, reverse=self.reverse, suffix=suffix, first_number=first)

    @model_validator(mode="after")
    def _what_the_solver_can(self) -> Self:
        if self.imported is not None:
            return self
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


MOST_LOADERS = 4
"""Loader processes of one GPU, unless more are asked for: some 2,000 videos a second of three frames or flow stacks."""


class ComputeConfig(Section):
    """Where training runs. Not part of any artifact's key."""

    accelerator: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU if there is one")
    devices: Count = Field(1, description="devices a training job, with DDP when more than one")
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = Field("32-true", description="of training")
    threads: Count = Field(1, description="CPU threads of one training job, a device")
    workers: int | None = Field(
        None, ge=0, description="loader processes, a device; 0: it loads itself; null: 0 for a CPU, up to 4 for a GPU"
    )
    accumulate: Count = Field(1, description="parts in which a device takes its share of a step, to need less memory")
    channels_last: bool = Field(False, description="channels beside each other in memory; often faster in bf16 or 16")
    compile: bool = Field(False, description="torch.compile for training: minutes at the start, then faster steps")
    checkpoint_minutes: float = Field(5.0, ge=0.0, description="between two checkpoints within an epoch, at least")
    frames_from: str | None = Field(
        None, description="a copy of the folder of frame shards to read instead: a folder, s3:// or http(s)://"
    )

    def loader_processes(self, *, cuda: bool, cores: int | None) -> int:
        """Loader processes of one device.

        A CPU that trains has no core to spare, and a batch takes it a hundredth of a step. A GPU's step is short.

        Args:
            cuda: whether the device is a GPU.
            cores: for this device and its loaders; None if there are as many as are asked for.
        """
        if self.workers is not None:
            return self.workers
        most = MOST_LOADERS if cores is None else min(MOST_LOADERS, cores - self.threads)
        return max(1, most) if cuda else 0


class StoreConfig(Section):
    """Where artifacts lie. Not part of any artifact's key; docs/stores.md."""

    local: Path | None = Field(None, description="folder of the stores, common to datasets or not; null: <work>/stores")
    shared: str | None = Field(None, description="what the team shares: a folder, s3://bucket/prefix or http(s)://")
    mode: Literal["read", "read-write"] = Field("read", description="read-write publishes what was computed")
    access: Literal["copy", "in-place"] = Field(
        "copy", description="in-place: flow stays in the shared store and is read there; frames are always copied"
    )

    @model_validator(mode="after")
    def _writable(self) -> Self:
        if self.shared is None and self.mode == "read-write":
            raise ValueError("mode: read-write has nothing to write to; set shared, or mode: read")
        if self.mode == "read-write" and (self.shared or "").startswith(("http://", "https://")):
            raise ValueError(f"{self.shared} can only be read; set mode: read, or give the store's folder or s3://")
        return self


def canonical(section: BaseModel | dict[str, Any]) -> str:
    """JSON with sorted keys and no blanks: equal settings give equal text, however they were written."""
    values = section.model_dump(mode="json") if isinstance(section, BaseModel) else section
    return json.dumps(values, sort_keys=True, separators=(",", ":"))
