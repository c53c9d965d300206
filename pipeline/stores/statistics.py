"""Statistics of whole flow stores: what was clipped, how far pixels move, what it takes. Through dask, array by array.

Magnitudes are exact for what is stored: pairs of codes (x, y) are counted, and each pair has one magnitude.

Shapes: H W height and width of the flow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.flow import FlowStore
from pipeline.stores.inventory import folder_bytes
from pipeline.stores.parallel import through_dask
from pipeline.stores.shared import SharedStore

CODES = 256
_FIELDS = 32  # read at a time
EDGES_PX = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


@dataclass(frozen=True)
class FlowArray:
    """One array, in a folder or, if it is not there, in a shared store."""

    root: Path
    key: str
    shared: SharedStore | None = None


@dataclass(frozen=True)
class FlowStatistics:
    """Of arrays of one stage and one quantisation."""

    stage: str
    bound_px: float
    code_shift: float
    arrays: int = 0
    fields: int = 0
    bytes: int = 0
    values: int = 0
    """Numbers that are stored, one byte each before compression."""
    clipped: float = 0.0
    """Sum over fields of the clipped fraction, as it was measured before quantising."""
    most_clipped: tuple[float, str] = (0.0, "")
    """Largest fraction of an array, and its key."""
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((CODES, CODES), np.int64))
    """(256, 256): vectors by their codes x and y."""

    @property
    def group(self) -> tuple[str, float, float]:
        return self.stage, self.bound_px, self.code_shift

    def __add__(self, other: FlowStatistics) -> FlowStatistics:
        assert self.group == other.group
        return FlowStatistics(
            *self.group,
            arrays=self.arrays + other.arrays,
            fields=self.fields + other.fields,
            bytes=self.bytes + other.bytes,
            values=self.values + other.values,
            clipped=self.clipped + other.clipped,
            most_clipped=max(self.most_clipped, other.most_clipped),
            counts=self.counts + other.counts,
        )

    def magnitudes_px(self) -> NDArray[np.float64]:
        """(256, 256): length of the vector of each pair of codes, pixels."""
        values = 2 * self.bound_px * (np.arange(CODES) + self.code_shift) / (CODES - 1) - self.bound_px
        return np.hypot(*np.meshgrid(values, values, indexing="ij"))

    def histogram(self, edges: Sequence[float] = EDGES_PX) -> NDArray[np.float64]:
        """Share of the vectors in each interval [edge, next edge); in the last everything from its edge on."""
        bins = np.searchsorted(edges, self.magnitudes_px(), side="right") - 1
        shares = np.bincount(bins.ravel(), weights=self.counts.ravel(), minlength=len(edges))
        return shares / max(1, self.counts.sum())

    def quantile_px(self, part: float) -> float:
        """Smallest magnitude that at least this part of the vectors does not exceed, pixels."""
        magnitudes = self.magnitudes_px().ravel()
        order = np.argsort(magnitudes)
        reached = np.cumsum(self.counts.ravel()[order])
        place = np.searchsorted(reached, part * reached[-1])
        return float(magnitudes[order][min(place, reached.size - 1)])


def flow_statistics(
    arrays: Sequence[FlowArray], *, threads: int, scheduler: str | None = None
) -> tuple[list[FlowStatistics], list[str]]:
    """Statistics by stage and quantisation.

    Args:
        arrays: all of them.
        threads: of this process, without a scheduler.
        scheduler: address of a running dask scheduler whose workers see the same stores.

    Returns:
        The statistics, and a sentence for each array that is damaged, which is left out.

    Raises:
        OSError: a shared store cannot be reached.
        ValueError: the scheduler does not answer.
    """
    found: dict[tuple[str, float, float], FlowStatistics] = {}
    damaged: list[str] = []
    for batch, wrong in through_dask(count, arrays, threads=threads, scheduler=scheduler, label="stats"):
        damaged += wrong
        for one in batch:
            found[one.group] = found[one.group] + one if one.group in found else one
    return [found[group] for group in sorted(found)], damaged


def count(arrays: Sequence[FlowArray]) -> tuple[list[FlowStatistics], list[str]]:
    """Statistics of some arrays, added up."""
    found: list[FlowStatistics] = []
    damaged: list[str] = []
    for array in arrays:
        try:
            found.append(_count(array))
        except DamagedArtifact as error:
            damaged.append(str(error))
    groups = groupby(sorted(found, key=lambda one: one.group), key=lambda one: one.group)
    return [reduce(lambda a, b: a + b, group) for _, group in groups], damaged


def _count(array: FlowArray) -> FlowStatistics:
    store = FlowStore(array.root, shared=array.shared)
    attributes = store.attributes(array.key)
    counts, values = np.zeros(CODES * CODES, np.int64), 0
    for block in _blocks(store, array.key, attributes["frames"]):
        pairs = block[:, 0].astype(np.uint16) * CODES + block[:, 1]
        counts += np.bincount(pairs.ravel(), minlength=CODES * CODES)
        values += block.size
    clipped, fields = attributes["clipped_fraction"], attributes["frames"]
    return FlowStatistics(
        attributes["stage"],
        attributes["bound"],
        attributes.get("code_shift", 0.0),
        arrays=1,
        fields=fields,
        bytes=_bytes(store, array),
        values=values,
        clipped=clipped * fields,
        most_clipped=(clipped, array.key),
        counts=counts.reshape(CODES, CODES),
    )


def _blocks(store: FlowStore, key: str, fields: int) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, fields, _FIELDS):
        yield store.read(key, start, min(fields, start + _FIELDS))


def _bytes(store: FlowStore, array: FlowArray) -> int:
    if store.has(array.key) or array.shared is None:
        return folder_bytes(store.path(array.key))
    return array.shared.size("flow", array.key) or 0
