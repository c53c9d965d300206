"""How other tools name the images of a video's flow and frames, and which frames each image belongs to.

A folder a video, one grey image for each component of a field, images of frames beside them:

===========  =======================================  ========================  =================
tool         files                                    field k, counted from 0   image k
===========  =======================================  ========================  =================
denseflow    flow_x_00000.jpg, img_00000.jpg          frame k -> k + s          frame k
             (flow_x_p2_00000.jpg where s = 2)
  reverse    flow_x_m1_00000.jpg                      frame k + s -> k
dense_flow   flow_x_00001.jpg, img_00001.jpg          frame k s -> (k + 1) s    frame (k + 1) s
mmaction2    x_00001.jpg, img_00001.jpg               frame k -> k + 1          frame k
===========  =======================================  ========================  =================

Frames are counted from 0; s is the step. dense_flow, which TSN uses, writes with each pair its *second* frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tool = Literal["denseflow", "dense_flow", "mmaction2"]
Component = Literal["x", "y"]
Suffix = Literal["jpg", "png"]
Quantiser = Literal["round", "truncate"]

FIRST_NUMBER: dict[Tool, int] = {"denseflow": 0, "dense_flow": 1, "mmaction2": 1}
"""Number in the name of a tool's first image."""
QUANTISER: dict[Tool, Quantiser] = {"denseflow": "round", "dense_flow": "round", "mmaction2": "truncate"}
"""What a tool does with the fraction of 255 (v + b) / (2 b)."""


@dataclass(frozen=True, kw_only=True)
class FolderLayout:
    """The folder of a video as one tool writes it with one step.

    Raises:
        ValueError: the tool has no such step or direction.
    """

    tool: Tool
    step: int = 1
    """Frames from one end of a pair to the other."""
    reverse: bool = False
    """Flow leads from the later frame of a pair to the earlier one."""
    suffix: Suffix = "jpg"
    """Of the flow images; frames are always JPEG."""
    first_number: int

    def __post_init__(self) -> None:
        if self.reverse and self.tool != "denseflow":
            raise ValueError(f"{self.tool} does not compute reverse flow; of these tools denseflow alone does")
        if self.step > 1 and self.tool == "mmaction2":
            raise ValueError(f"mmaction2 has no step {self.step}; its flow leads from each frame to the next")

    @property
    def stride(self) -> int:
        """Frames from the start of one pair to the start of the next."""
        return self.step if self.tool == "dense_flow" else 1

    def fields(self, frames: int) -> int:
        """Number of fields of a video with ``frames`` frames."""
        return max(0, (frames - 1 - self.step) // self.stride + 1)

    def pair(self, index: int) -> tuple[int, int]:
        """Frames that the field at ``index`` leads from and to."""
        start = index * self.stride
        ends = start, start + self.step
        return ends[::-1] if self.reverse else ends

    def shown(self, index: int) -> int:
        """The frame that the image at ``index`` shows."""
        return (index + 1) * self.step if self.tool == "dense_flow" else index

    def prefix(self, component: Component) -> str:
        """What the names of the flow images of one component begin with, up to the number."""
        match self.tool:
            case "mmaction2":
                return f"{component}_"
            case "dense_flow":
                return f"flow_{component}_"
            case "denseflow":
                sign = f"m{self.step}_" if self.reverse else f"p{self.step}_" if self.step > 1 else ""
                return f"flow_{component}_{sign}"

    def flow_name(self, component: Component, index: int) -> str:
        """File name of a component of the field at ``index``."""
        return f"{self.prefix(component)}{self.first_number + index:05d}.{self.suffix}"

    def image_name(self, index: int) -> str:
        """File name of the image at ``index``."""
        return f"img_{self.first_number + index:05d}.jpg"
