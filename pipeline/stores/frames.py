"""Frames as JPEG in webdataset shards: one tar a shard, one sample a video, single frames readable at random.

A sample is a run of tar members, ``<key>.json`` and then ``<key>.000000.jpg``, ``<key>.000001.jpg`` ...; plain tar,
``tarfile`` and ``webdataset`` read it. ``key`` is the video's id, percent-encoded, dots too, because webdataset ends a
key at the first dot. Samples stand in the order of their ids. Equal inputs give equal bytes: no times, owners or modes.

The JSON says where each JPEG lies, so that three frames of a video cost one small read for the JSON and one for each
frame. Its values: ``id``, ``artifact_key``, ``digest`` of the source, ``parameters``, ``width``, ``height``, ``fps``,
``frames``, ``ffmpeg`` version, and ``jpegs``: ``[offset, size]`` of every image, counted from the end of the JSON
member. Labels and splits are not packed: a relabelled video changes no shard.

Shapes: H W height and width of the stored frames.
"""

from __future__ import annotations

import functools
import json
import os
import tarfile
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

import cv2
import numpy as np
from numpy.typing import NDArray

_BLOCK = tarfile.BLOCKSIZE
_SPOOL_BYTES = 64 << 20  # a video's JPEGs beyond this wait on disk, not in memory
_COPY_BYTES = 1 << 20
_CACHED_SAMPLES = 2048


def encode_id(video_id: str) -> str:
    """A video's id as a webdataset key: ASCII letters, digits, ``_``, ``-``, ``~`` and ``%XX``; no dot, no slash."""
    if not video_id:
        raise ValueError("a video's id is empty; give every video a name")
    return quote(video_id, safe="", errors="surrogatepass").replace(".", "%2E")


def decode_id(key: str) -> str:
    """The id that ``encode_id`` encoded."""
    return unquote(key, errors="surrogatepass")


@dataclass(frozen=True)
class Sample:
    """Where one video lies in a tar."""

    id: str
    artifact_key: str
    offset: int
    """Of the first tar header, bytes from the start of the file."""
    length: int
    """Of all its members with their headers and padding, bytes."""
    metadata: dict[str, Any]
    """The values of the JSON, without ``jpegs``."""


class ShardWriter:
    """Writes samples into an open tar, one after the other; add them in the order of their ids.

    Args:
        file: positioned at its start; its descriptor must be readable too, for ``repack`` from the same file.
        folder: where images wait until their sizes are known.
    """

    def __init__(self, file: BinaryIO, *, folder: Path) -> None:
        self._file = file
        self._folder = folder

    def add(self, images: Iterable[bytes], *, metadata: dict[str, Any]) -> Sample:
        """Write a video's JPEGs. Nothing is written if ``images`` raises.

        Args:
            images: JPEG files in presentation order; taken one at a time.
            metadata: at least ``id`` and ``artifact_key``; ``frames`` is added.
        """
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES, dir=str(self._folder)) as spool:
            sizes = [spool.write(image) for image in images]
            spool.seek(0)
            return self._write(metadata, sizes, (spool.read(size) for size in sizes))

    def copy(self, source: int, sample: Sample) -> Sample:
        """Write a sample of another tar, open as descriptor ``source``, as it is."""
        offset = self._file.tell()
        for start in range(0, sample.length, _COPY_BYTES):
            wanted = min(_COPY_BYTES, sample.length - start)
            self._file.write(_read_exactly(source, wanted, sample.offset + start))
        return Sample(sample.id, sample.artifact_key, offset, sample.length, sample.metadata)

    def repack(self, source: int, sample: Sample, *, video_id: str) -> Sample:
        """Write the images of a sample again under another id; ``source`` may be the tar that is being written."""
        self._file.flush()
        metadata, start, jpegs = _read_json(source, sample.offset)
        images = (_read_exactly(source, size, start + offset) for offset, size in jpegs)
        return self._write({**metadata, "id": video_id}, [size for _, size in jpegs], images)

    def finish(self) -> None:
        """Write the end of the tar."""
        self._file.write(bytes(2 * _BLOCK))

    def _write(self, metadata: dict[str, Any], sizes: Sequence[int], images: Iterable[bytes]) -> Sample:
        key, begin, metadata = encode_id(metadata["id"]), self._file.tell(), {**metadata, "frames": len(sizes)}
        jpegs, end = [], 0
        for number, size in enumerate(sizes):
            content = end + _header_length(len(_image_name(key, number)))
            jpegs.append([content, size])
            end = content + _padded(size)
        text = json.dumps({**metadata, "jpegs": jpegs}, sort_keys=True, separators=(",", ":")).encode()
        self._member(f"{key}.json", text)
        for number, image in enumerate(images):
            self._member(_image_name(key, number), image)
        length = self._file.tell() - begin
        return Sample(metadata["id"], metadata["artifact_key"], begin, length, metadata)

    def _member(self, name: str, content: bytes) -> None:
        self._file.write(_header(name, len(content)) + content + bytes(_padded(len(content)) - len(content)))


def samples(tar: Path) -> Iterator[Sample]:
    """The samples of a shard, in order, reading their JSON members only.

    Raises:
        ValueError: the file is not a whole shard of ours.
        FileNotFoundError: there is no such file.
    """
    with tar.open("rb", buffering=0) as file:
        descriptor, size, offset = file.fileno(), os.fstat(file.fileno()).st_size, 0
        try:
            while _read_exactly(descriptor, _BLOCK, offset) != bytes(_BLOCK):
                metadata, start, jpegs = _read_json(descriptor, offset)
                end = start + (jpegs[-1][0] + _padded(jpegs[-1][1]) if jpegs else 0)
                if end > size:
                    raise ValueError(f"a sample ends at byte {end} of {size}")
                yield Sample(metadata["id"], metadata["artifact_key"], offset, end - offset, metadata)
                offset = end
        except (ValueError, KeyError) as error:
            raise ValueError(f"{tar} is not a whole shard of frames ({error}); delete it and run again") from None


class FrameShards:
    """Random access to single frames of a store of shards. Holds no file open: safe to fork and to pickle.

    Args:
        store: the folder of the tars.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._known: OrderedDict[tuple[str, str, int, int], tuple[int, list[list[int]]]] = OrderedDict()

    def read_frames(self, facts: dict[str, Any], indices: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Decode some frames of a video; no other frame is read.

        Args:
            facts: of the video, as the frames stage gave them: where it lies and what it is.
            indices: frame numbers, 0 <= index < facts["frames"], in any order, repeats allowed.

        Returns:
            One (H, W, 3) uint8 array in RGB order for each index.

        Raises:
            ValueError: an index is out of range; or the shard does not hold what ``facts`` claim, because it is newer,
                damaged or missing.
        """
        wrong = [index for index in indices if not 0 <= index < facts["frames"]]
        if wrong:
            raise ValueError(f"frame {wrong[0]} was asked for; the video has frames 0 to {facts['frames'] - 1}")
        path = self._store / facts["shard"]
        try:
            with path.open("rb", buffering=0) as file:
                start, jpegs = self._locate(file.fileno(), facts)
                images = {
                    index: _read_exactly(file.fileno(), jpegs[index][1], start + jpegs[index][0])
                    for index in dict.fromkeys(indices)
                }
            decoded = {index: _decode(image, facts) for index, image in images.items()}
        except (OSError, ValueError) as error:
            where = f"{path} at byte {facts['offset']} does not hold what the index says"
            raise ValueError(f"{where} ({error}); run again so that shard and index agree") from None
        return [decoded[index] for index in indices]

    def _locate(self, descriptor: int, facts: dict[str, Any]) -> tuple[int, list[list[int]]]:
        """End of the sample's JSON member, and offset and size of every image from there."""
        # with the inode, because a tar may be replaced meanwhile
        place = facts["shard"], facts["key"], facts["offset"], os.fstat(descriptor).st_ino
        if place in self._known:
            self._known.move_to_end(place)
            return self._known[place]
        metadata, start, jpegs = _read_json(descriptor, facts["offset"])
        if metadata.get("artifact_key") != facts["key"] or len(jpegs) != facts["frames"]:
            raise ValueError(f"it holds {metadata.get('id')!r} with {len(jpegs)} frames, made otherwise")
        self._known[place] = start, jpegs
        if len(self._known) > _CACHED_SAMPLES:
            self._known.popitem(last=False)
        return start, jpegs


def _decode(image: bytes, facts: dict[str, Any]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of a JPEG file."""
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR_RGB)
    if pixels is None or pixels.shape != (facts["height"], facts["width"], 3):
        found = "no readable JPEG" if pixels is None else f"an image of {pixels.shape[1]}x{pixels.shape[0]}"
        raise ValueError(f"{found} where {facts['width']}x{facts['height']} is expected")
    return pixels  # type: ignore[return-value]


def _image_name(key: str, number: int) -> str:
    return f"{key}.{number:06d}.jpg"


@functools.cache
def _header_length(name_length: int) -> int:
    """Bytes of the tar header of a file whose name has this many characters."""
    return len(_header("x" * name_length, 0))


def _header(name: str, size: int) -> bytes:
    """The tar header of a file; a name over 100 characters takes a pax header in front."""
    info = tarfile.TarInfo(name)  # time 0, user 0, group 0, mode 644
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def _read_json(descriptor: int, offset: int) -> tuple[dict[str, Any], int, list[list[int]]]:
    """Metadata of the sample at ``offset``, the end of its JSON member, and the offsets and sizes from there."""
    try:
        info = tarfile.TarInfo.frombuf(_read_exactly(descriptor, _BLOCK, offset), "utf-8", "surrogateescape")
        if info.type == tarfile.XHDTYPE:  # a pax header: the member's own comes after it
            offset += _BLOCK + _padded(info.size)
            info = tarfile.TarInfo.frombuf(_read_exactly(descriptor, _BLOCK, offset), "utf-8", "surrogateescape")
        metadata = json.loads(_read_exactly(descriptor, info.size, offset + _BLOCK))
        jpegs = metadata.pop("jpegs")
    except (tarfile.TarError, UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError):
        raise ValueError(f"no sample begins at byte {offset}") from None
    return metadata, offset + _BLOCK + _padded(info.size), jpegs


def _read_exactly(descriptor: int, size: int, offset: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    if len(data) != size:
        raise ValueError(f"the file ends inside bytes {offset} to {offset + size}")
    return data


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
