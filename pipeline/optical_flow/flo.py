"""Flow files as Middlebury and FlyingChairs have them (.flo).

The format (Baker et al., "A Database and Evaluation Methodology for Optical Flow", IJCV 2011, and the authors' flowIO):
little-endian float32 202021.25 (the bytes "PIEH"), int32 width, int32 height, then x and y of each pixel as float32,
row by row. A vector with a part over 1e9 is not known.

Shapes: flow (2, H, W) in pixels, channel 0 = x.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.stores.publish import write_bytes

MAGIC = b"PIEH"
HEADER_BYTES = 12
UNKNOWN_OVER_PX = 1e9
UNKNOWN_PX = 1e10
"""What is written for a vector that is not known."""


def read_flo(path: Path) -> npt.NDArray[np.float32]:
    """Flow of a .flo file, (2, H, W) in pixels; NaN in both channels where it is not known.

    Raises:
        ValueError: the file cannot be read, is not a .flo file, or is shorter or longer than its header says.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the flow {path}: {error.strerror}") from None
    if len(content) < HEADER_BYTES or not content.startswith(MAGIC):
        raise ValueError(f"{path} is not a .flo file: it starts with {content[:4]!r}, not {MAGIC!r}; get it anew")
    width, height = (int(side) for side in np.frombuffer(content, "<i4", 2, len(MAGIC)))
    expected = HEADER_BYTES + 8 * width * height
    if width < 1 or height < 1 or len(content) != expected:
        raise ValueError(
            f"{path} has {len(content)} bytes, but its header says {width} x {height} pixels; get the file anew"
        )
    vectors = np.frombuffer(content, "<f4", offset=HEADER_BYTES).reshape(height, width, 2)
    flow = np.ascontiguousarray(np.moveaxis(vectors, 2, 0), np.float32)  # (2, H, W), a copy that can be written to
    flow[:, ~(np.abs(flow).max(axis=0) <= UNKNOWN_OVER_PX)] = np.nan  # negated, so that a NaN is unknown too
    return flow


def write_flo(path: Path, flow: npt.NDArray[np.floating]) -> None:
    """Write flow (2, H, W) in pixels as a .flo file, atomically; a vector with a NaN is written as not known.

    Raises:
        ValueError: the array has another shape, or values that would be read as not known.
    """
    if flow.ndim != 3 or flow.shape[0] != 2 or not flow.size:
        raise ValueError(f"the flow has shape {flow.shape}; it must be (2, height, width)")
    vectors = np.moveaxis(flow, 0, 2).astype("<f4")  # (H, W, 2)
    unknown = np.isnan(vectors).any(axis=2)
    vectors[unknown] = UNKNOWN_PX
    largest = float(np.abs(vectors[~unknown]).max(initial=0))
    if largest > UNKNOWN_OVER_PX:
        raise ValueError(f"the flow has a vector of {largest:g} px; use NaN where it is not known")
    size = np.array(unknown.shape[::-1], "<i4")
    write_bytes(path, MAGIC + size.tobytes() + vectors.tobytes())
