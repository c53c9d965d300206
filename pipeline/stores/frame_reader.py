"""Frames out of webdataset shards as ``frames.py`` writes them, at random: on this machine, in S3 or on a web server.

A video costs one small read of its JSON, which is remembered, and one of each frame; from elsewhere these are requests
for ranges of bytes, those of neighbouring frames in one and all at once. JPEGs are decoded by libjpeg-turbo (through
simplejpeg) to the pixels that OpenCV gives, or to a half, a fourth or an eighth of their size.

Shapes: n frames, H W height and width of the decoded ones.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.stores.checksum import crc32c
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.frames import read_json
from pipeline.stores.places import Folder, place
from pipeline.stores.provenance import refuse_other
from pipeline.stores.tar import Jpeg

_CACHED_SAMPLES = 16384
"""Of which each takes some 24 bytes a frame."""
_JSON_BYTES, _JSON_BYTES_A_FRAME = 2048, 32
"""What is read at first of a sample: its JSON is seldom longer."""


class _Located(NamedTuple):
    """Where the images of a sample lie, in little memory and few objects, because many samples are remembered."""

    offsets: array[int]
    sizes: array[int]
    checksums: str
    """One after the other."""

    def jpeg(self, number: int) -> tuple[int, int, str]:
        """Place in the tar, size and checksum of an image."""
        return self.offsets[number], self.sizes[number], self.checksums[8 * number : 8 * number + 8]


class FrameShards:
    """Random access to single frames of a store of shards. Holds no file open: safe to fork and to pickle.

    Args:
        store: the folder of the tars; as text also ``file://``, ``s3://bucket/prefix`` or ``http(s)://server/prefix``.
        wanted: what every sample read must say of itself, beside the key that the facts name.
        copied: whether the tars are a copy of those that the facts were written about.

    Raises:
        ValueError: ``store`` is none of these, or its library is not installed.
    """

    def __init__(self, store: Path | str, *, wanted: dict[str, Any] | None = None, copied: bool = False) -> None:
        self._where = str(store).rstrip("/")
        self._place = Folder(store) if isinstance(store, Path) else place(self._where, writable=False)
        self._wanted = wanted or {}
        self._remedy = "copy the shards there again" if copied else "run again so that shard and index agree"
        self._known: OrderedDict[tuple[str, str, int], _Located] = OrderedDict()

    def read_frames(self, facts: dict[str, Any], indices: Sequence[int], *, reduction: int = 1) -> NDArray[np.uint8]:
        """Decode some frames of a video; no other frame is read.

        Args:
            facts: of the video, as the frames stage gave them: where it lies and what it is.
            indices: frame numbers, 0 <= index < facts["frames"], in any order, repeats allowed.
            reduction: 1, 2, 4 or 8: the sides are divided by it and rounded up, which the decoder does by leaving
                frequencies out.

        Returns:
            (n, H, W, 3) uint8 in RGB order, a frame for each index.

        Raises:
            ValueError: an index is out of range.
            DamagedArtifact: the shard does not hold what ``facts`` claim, because it is newer, damaged or missing, or
                was made otherwise.
            OSError: the store cannot be reached.
        """
        assert reduction in (1, 2, 4, 8)
        images = self.read_jpegs(facts, indices)
        height, width = -(-facts["height"] // reduction), -(-facts["width"] // reduction)
        frames, first = np.empty((len(indices), height, width, 3), np.uint8), dict[int, int]()
        for number, (index, image) in enumerate(zip(indices, images, strict=True)):
            if index in first:
                frames[number] = frames[first[index]]
                continue
            first[index] = number
            try:
                _decode(image, frames[number], reduced=reduction > 1)
            except ValueError as error:
                raise self._damaged(facts, error) from None
        return frames

    def read_jpegs(self, facts: dict[str, Any], indices: Sequence[int]) -> list[bytes]:
        """The JPEG files of some frames of a video, as they were stored. Otherwise as ``read_frames``."""
        wrong = [index for index in indices if not 0 <= index < facts["frames"]]
        if wrong:
            raise ValueError(f"frame {wrong[0]} was asked for; the video has frames 0 to {facts['frames'] - 1}")
        try:
            located = self._locate(facts)
            wanted = {index: located.jpeg(index) for index in indices}
            ranges = [(offset, offset + size) for offset, size, _ in wanted.values()]
            images = dict(zip(wanted, self._read(facts["shard"], ranges), strict=True))
            for index, (_, _, checksum) in wanted.items():
                if crc32c(images[index]) != checksum:
                    raise ValueError("the checksum of a frame is wrong")
        except (FileNotFoundError, ValueError) as error:
            raise self._damaged(facts, error) from None
        return [images[index] for index in indices]

    def _locate(self, facts: dict[str, Any]) -> _Located:
        # what is remembered of a tar that was replaced is noticed by the checksums of the images
        where = facts["shard"], facts["key"], facts["offset"]
        if where in self._known:
            self._known.move_to_end(where)
            return self._known[where]
        metadata, start, jpegs = self._read_json(facts)
        if metadata.get("artifact_key") != facts["key"] or len(jpegs) != facts["frames"]:
            raise ValueError(f"it holds {metadata.get('id')!r} with {len(jpegs)} frames, made otherwise")
        digest = {"source_digest": facts["digest"]} if "digest" in facts else {}
        refuse_other("frames", facts["key"], found=metadata, wanted=self._wanted | digest)
        offsets, sizes, checksums = zip(*jpegs, strict=True) if jpegs else ((), (), ())
        located = _Located(array("q", [start + offset for offset in offsets]), array("q", sizes), "".join(checksums))
        self._known[where] = located
        if len(self._known) > _CACHED_SAMPLES:
            self._known.popitem(last=False)
        return located

    def _read_json(self, facts: dict[str, Any]) -> tuple[dict[str, Any], int, list[Jpeg]]:
        """As ``read_json`` gives it, by one read unless it is long."""
        begin = facts["offset"]
        (head,) = self._read(facts["shard"], [(begin, begin + _JSON_BYTES + _JSON_BYTES_A_FRAME * facts["frames"])])

        def read(size: int, offset: int) -> bytes:
            data = head[offset - begin : offset - begin + size]
            if len(data) < size:
                (data,) = self._read(facts["shard"], [(offset, offset + size)])
            if len(data) < size:
                raise ValueError(f"the file ends inside bytes {offset} to {offset + size}")
            return data

        return read_json(read, begin)

    def _read(self, shard: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """Bytes of a tar; fewer where it ends before."""
        try:
            return self._place.read_ranges(shard, ranges)
        except FileNotFoundError:
            raise
        except Exception as error:  # of many kinds: the libraries of S3 and HTTP have their own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"frames cannot be read from {self._where} ({reason}); see to it and run again") from None

    def _damaged(self, facts: dict[str, Any], reason: Exception) -> DamagedArtifact:
        where = f"frames {facts['key']} in {self._where}/{facts['shard']}: byte {facts['offset']}"
        return DamagedArtifact(f"{where} does not hold what the index says ({reason}); {self._remedy}")


def _decode(image: bytes, out: NDArray[np.uint8], *, reduced: bool) -> None:
    """A JPEG file into (H, W, 3) uint8 RGB; ``reduced``: to the size of ``out``, which is a part of its own."""
    height, width = out.shape[:2]
    least = {"min_height": height, "min_width": width} if reduced else {}
    try:
        found = simplejpeg.decode_jpeg(image, "RGB", buffer=out, **least).shape
    except ValueError as error:
        told = " ".join(str(error).split())
        raise ValueError(f"no readable JPEG where {width}x{height} is expected: {told}") from None
    if found != out.shape:
        raise ValueError(f"an image of {found[1]}x{found[0]} where {width}x{height} is expected")
