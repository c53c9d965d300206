"""What a network makes of a video, in a zarr v3 store: one array a video, addressed by its artifact key.

The array of key ``k`` is ``<store>/<k[:2]>/<k>``: (n, D) float32 features of clips, or (n, C, h, w) float16 maps of
frames. One chunk is one clip or frame (blosc-lz4, then crc32c), and all chunks lie together in one shard file. Any zarr
reads it; ``FeatureStore.read`` does it as ``FlowStore`` does, in the forked workers of a data loader too.

Every byte is covered by a checksum: chunks and the shard's index by zarr's crc32c, ``zarr.json`` by its attribute
``checksum``.

Shapes: n clips or frames of a video, D features, C channels, h w cells of a map; F is (D,) or (C, h, w).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from pipeline.stores.checksum import seal, unseal
from pipeline.stores.damage import DamagedArtifact, damaged
from pipeline.stores.members import ArrayFolder
from pipeline.stores.provenance import check_address, refuse_other
from pipeline.stores.publish import atomic_folder, remove_broken, remove_folder
from pipeline.stores.sharding import Layout, checked_spans, layout, read_chunks

DIMENSIONS = {2: ("clip", "feature"), 4: ("frame", "channel", "height", "width")}
TYPES = {2: "float32", 4: "float16"}
"""By number of dimensions."""

_METADATA = "zarr.json"


@dataclass(frozen=True)
class _Array:
    """An array that was opened and found to be what was asked for."""

    files: ArrayFolder
    layout: Layout
    attributes: dict[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.layout.count, *self.layout.chunk

    @property
    def data_type(self) -> str:
        return TYPES[len(self.shape)]


class FeatureStore:
    """Features in a folder. Holds no file open and starts no thread: safe to fork and to pickle.

    Args:
        root: the folder of the store.
        wanted: attributes that every array read must have; none for a store that only writes.
    """

    def __init__(self, root: Path, *, wanted: dict[str, Any] | None = None) -> None:
        self.root = root
        self._wanted = wanted or {}

    def path(self, key: str) -> Path:
        """Folder of the array of a key."""
        return self.root / key[:2] / key

    def has(self, key: str) -> bool:
        """True if the array is there; what is there is whole."""
        return (self.path(key) / _METADATA).is_file()

    def write(self, key: str, features: NDArray[Any], attributes: dict[str, Any]) -> None:
        """Write an array, atomically. If another process writes the same key meanwhile, either may win.

        Args:
            key: artifact key.
            features: (n, D) float32 or (n, C, h, w) float16, n at least 1.
            attributes: how and from what they were made, JSON values only. ``artifact_key`` is added.

        Raises:
            ValueError: the array is of another shape or type, or has values that are not finite.
        """
        _check(key, features)
        remove_broken(self.path(key), needs=_METADATA)
        with atomic_folder(self.path(key), root=self.root) as folder:
            array = _create(folder, features)
            array[:] = features
            array.update_attributes({**attributes, "artifact_key": key})
            metadata = json.loads((folder / _METADATA).read_bytes())
            (folder / _METADATA).write_bytes(seal(metadata, part="attributes"))

    def attributes(self, key: str) -> dict[str, Any]:
        """What is known of an array: how and from what it was made.

        Raises:
            DamagedArtifact: it is missing, damaged, or made otherwise than this store was opened for.
        """
        return self._open(key).attributes

    def shape(self, key: str) -> tuple[int, ...]:
        """(n, D) or (n, C, h, w). Raises DamagedArtifact as ``attributes`` does."""
        return self._open(key).shape

    def read(self, key: str) -> NDArray[Any]:
        """The whole array: (n, D) float32 or (n, C, h, w) float16.

        Raises:
            DamagedArtifact: it is missing, damaged, or made otherwise than this store was opened for.
        """
        array = self._open(key)
        features = np.empty(array.shape, array.data_type)
        try:
            read_chunks(array.files, 0, features, layout=array.layout)
        except ValueError as error:
            raise damaged("features", key=key, file=array.files.where, reason=error) from None
        return features

    def verify(self, key: str) -> int:
        """Check every byte of an array, and that its address is the one of what it says of itself.

        Returns:
            Number of bytes.

        Raises:
            DamagedArtifact: one is not as it was written, or a file is missing or too many.
        """
        array = self._open(key)
        shard = array.layout.file(0)
        try:
            check_address(key, array.attributes)
            if other := array.files.names() ^ {_METADATA, shard}:
                raise ValueError(f"{min(other)} is missing, or is none of its files")
            size = sum(map(len, checked_spans(array.files, 0, layout=array.layout)))
        except (FileNotFoundError, ValueError) as error:
            raise damaged("features", key=key, file=array.files.where, reason=error) from None
        return size + array.files.size(_METADATA)

    def remove(self, key: str) -> None:
        """Delete an array, if it is there."""
        remove_folder(self.path(key))

    def _open(self, key: str) -> _Array:
        """Find an array and check what it says of itself."""
        try:
            array = _load(ArrayFolder(self.path(key)), key)
        except FileNotFoundError:
            raise DamagedArtifact(f"there are no features {key} in {self.root}; run again and they are made") from None
        except ValueError as error:
            raise damaged("features", key=key, file=self.path(key), reason=error) from None
        refuse_other("features", key, found=array.attributes, wanted=self._wanted)
        return array


def _check(key: str, features: NDArray[Any]) -> None:
    if TYPES.get(features.ndim) != features.dtype or not len(features):
        raise ValueError(
            f"features {key} of shape {features.shape} and type {features.dtype} are neither clips (n, D) float32 nor "
            "maps (n, C, h, w) float16"
        )
    if not np.isfinite(features).all():
        raise ValueError(
            f"features {key} are not finite: the network diverged, or is too loud for float16; train it with a lower "
            "learning rate"
        )


def _load(files: ArrayFolder, key: str) -> _Array:
    """What an array says of itself. Raises FileNotFoundError or ValueError."""
    with files.open(_METADATA) as file:
        metadata = unseal(file.read(0, file.size), part="attributes")
    attributes: dict[str, Any] = metadata["attributes"]
    if attributes.get("artifact_key") != key:
        raise ValueError(f"it is the array {attributes.get('artifact_key')}")
    found = layout(metadata, data_type=TYPES.get(len(metadata.get("shape", ())), "of no features"))
    if found.shards != 1:
        raise ValueError("it is not laid out as this version writes it")
    return _Array(files, found, attributes)


def _create(folder: Path, features: NDArray[Any]) -> Any:
    each = features.shape[1:]
    return zarr.create_array(
        store=folder,
        shape=features.shape,
        chunks=(1, *each),
        shards=(len(features), *each),
        dtype=features.dtype,
        fill_value=0,
        # what is written once is read in every epoch: 25 maps of ResNet-50 in 2 ms, zstd in 7, at 0.5 to 0.8 of their
        # 5 MB against 0.3 to 0.65; no shuffle: the zeros after a ReLU are runs already
        compressors=[BloscCodec(cname="lz4", clevel=5, shuffle="noshuffle"), Crc32cCodec()],
        dimension_names=DIMENSIONS[features.ndim],
        config={"write_empty_chunks": True},  # a map of zeros is a map, not a hole
    )
