"""Frames as JPEG in webdataset shards: one tar a shard, one sample a video, single frames readable at random.

A sample is a run of tar members, ``<key>.json`` and then ``<key>.000000.jpg``, ``<key>.000001.jpg`` ...; plain tar,
``tarfile`` and ``webdataset`` read it. ``key`` is the video's id, percent-encoded, dots too, because webdataset ends a
key at the first dot. Samples stand in the order of their ids. Equal inputs give equal bytes: no times, owners or modes.

The JSON says where each JPEG lies, so that three frames of a video cost one small read for the JSON and one for each
frame. Its values: ``id``, ``artifact_key``, what ``provenance.py`` lists, ``width``, ``height``, ``fps``, ``frames``,
``jpegs``: ``[offset, size, crc32c]`` of every image, the offset counted from the end of the JSON member; and
``checksum``, the crc32c of the canonical JSON without it, which is how the member is written. A reader checks what it
reads; ``check_sample`` checks every byte. Labels and splits are not packed: a relabelled video changes no shard.

Shapes: H W height and width of the stored frames.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tarfile
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, unquote

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.stores.checksum import crc32c, seal, unseal
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.provenance import check_address, refuse_other

Image = TypeVar("Image")
Jpeg = tuple[int, int, str]
"""Offset, size and checksum of an image."""

_BLOCK = tarfile.BLOCKSIZE
_SPOOL_BYTES = 16 << 20  # a video's JPEGs beyond this wait on disk, not in memory
_COPY_BYTES = 96 << 10  # memory of 128 KB and more would be had from the system, and zeroed, for each
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
            sums = [(spool.write(image), crc32c(image)) for image in images]
            spool.seek(0)
            return self._write(metadata, sums, (spool.read(size) for size, _ in sums))

    def copy(self, source: int, sample: Sample) -> Sample:
        """Write a sample of another tar, open as descriptor ``source``, as it is."""
        offset = self._file.tell()
        for start in range(0, sample.length, _COPY_BYTES):
            wanted = min(_COPY_BYTES, sample.length - start)
            self._file.write(_read_exactly(source, wanted, sample.offset + start))
        return Sample(sample.id, sample.artifact_key, offset, sample.length, sample.metadata)

    def repack(self, source: int, sample: Sample, *, video_id: str) -> Sample:
        """Write the images of a sample again under another id; ``source`` may be the tar that is being written.

        Raises:
            ValueError: the sample is damaged; nothing is written.
        """
        self._file.flush()
        check_sample(source, sample)
        metadata, start, jpegs = _read_json(source, sample.offset)
        images = (_read_exactly(source, size, start + offset) for offset, size, _ in jpegs)
        return self._write({**metadata, "id": video_id}, [(size, checksum) for _, size, checksum in jpegs], images)

    def finish(self) -> None:
        """Write the end of the tar."""
        self._file.write(bytes(2 * _BLOCK))

    def _write(self, metadata: dict[str, Any], sums: Sequence[tuple[int, str]], images: Iterable[bytes]) -> Sample:
        key, begin, metadata = encode_id(metadata["id"]), self._file.tell(), {**metadata, "frames": len(sums)}
        jpegs, end = [], 0
        for number, (size, checksum) in enumerate(sums):
            content = end + _header_length(len(_image_name(key, number)))
            jpegs.append([content, size, checksum])
            end = content + _padded(size)
        self._member(f"{key}.json", seal({**metadata, "jpegs": jpegs}))
        for number, image in enumerate(images):
            self._member(_image_name(key, number), image)
        length = self._file.tell() - begin
        return Sample(metadata["id"], metadata["artifact_key"], begin, length, metadata)

    def _member(self, name: str, content: bytes) -> None:
        self._file.write(_framed(name, content))


def samples(tar: Path) -> Iterator[Sample]:
    """The samples of a shard, in order, reading and checking their JSON members only.

    Raises:
        DamagedArtifact: the file is not a whole shard of ours; samples before the damage have been given.
        FileNotFoundError: there is no such file.
    """
    with tar.open("rb", buffering=0) as file:
        descriptor, size, offset = file.fileno(), os.fstat(file.fileno()).st_size, 0
        try:
            while not _is_end(descriptor, offset, size):
                sample = _sample_at(descriptor, offset, size)
                yield sample
                offset += sample.length
        except ValueError as error:
            told = f"{tar} is not a whole shard of frames ({error}); run again and it is made anew"
            raise DamagedArtifact(told) from None


def _sample_at(descriptor: int, offset: int, size: int) -> Sample:
    metadata, start, jpegs = _read_json(descriptor, offset)
    end = start + (jpegs[-1][0] + _padded(jpegs[-1][1]) if jpegs else 0)
    if end > size:
        raise ValueError(f"a sample ends at byte {end} of {size}")
    try:
        return Sample(metadata["id"], metadata["artifact_key"], offset, end - offset, metadata)
    except KeyError as error:
        raise ValueError(f"the sample at byte {offset} has no {error}") from None


def _is_end(descriptor: int, offset: int, size: int) -> bool:
    """Whether the shard ends at ``offset``, as it should with two empty blocks."""
    if _read_exactly(descriptor, _BLOCK, offset) != bytes(_BLOCK):
        return False
    if size != offset + 2 * _BLOCK or _read_exactly(descriptor, _BLOCK, offset + _BLOCK) != bytes(_BLOCK):
        raise ValueError("something else follows its end")
    return True


def check_sample(descriptor: int, sample: Sample) -> None:
    """Check every byte of a sample in an open tar.

    Raises:
        ValueError: one is not as it was written.
    """
    metadata, start, jpegs = _read_json(descriptor, sample.offset)
    key = encode_id(metadata["id"])
    text = seal({**metadata, "jpegs": [list(jpeg) for jpeg in jpegs]})
    if _read_exactly(descriptor, start - sample.offset, sample.offset) != _framed(f"{key}.json", text):
        raise ValueError("the header of its JSON is damaged")
    for number, (offset, size, checksum) in enumerate(jpegs):
        name = _image_name(key, number)
        begin = start + offset - _header_length(len(name))
        member = _read_exactly(descriptor, start + offset + _padded(size) - begin, begin)
        image = member[start + offset - begin :][:size]
        if crc32c(image) != checksum or member != _framed(name, image):
            raise ValueError(f"frame {number}: its checksum is wrong")


def check_shard(tar: Path) -> tuple[list[Sample], list[DamagedArtifact]]:
    """Check every byte of a shard, and that the key of each sample is the one of what it says of itself.

    Returns:
        The whole samples, those after damage too, and what is wrong with the others.

    Raises:
        FileNotFoundError: there is no such file.
    """
    whole: list[Sample] = []
    wrong: list[DamagedArtifact] = []
    offset = 0
    with tar.open("rb", buffering=0) as file:
        descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
        while offset < size:
            try:
                if _is_end(descriptor, offset, size):
                    return whole, wrong
                sample = _sample_at(descriptor, offset, size)
                check_sample(descriptor, sample)
                check_address(sample.artifact_key, sample.metadata)
                whole.append(sample)
                offset += sample.length
            except ValueError as error:
                name = _video_at(descriptor, offset, size)
                told = f"the frames of video {name!r} at byte {offset} of {tar} are damaged ({error})"
                wrong.append(DamagedArtifact(f"{told}; run again and they are made anew"))
                offset = _next_sample(descriptor, offset + _BLOCK, size)
    if not wrong:
        wrong.append(DamagedArtifact(f"{tar} is not a whole shard of frames; run again and it is made anew"))
    return whole, wrong


def _members(descriptor: int, offset: int, size: int) -> Iterator[tuple[int, str]]:
    """Place and name of every block from ``offset`` on that is a tar header."""
    for place in range(offset, size - _BLOCK + 1, _BLOCK):
        with contextlib.suppress(tarfile.TarError):
            info = tarfile.TarInfo.frombuf(_read_exactly(descriptor, _BLOCK, place), "utf-8", "surrogateescape")
            yield place, info.name


def _video_at(descriptor: int, offset: int, size: int) -> str:
    """Id of the video to whose sample a place belongs, as far as the next header tells; a long one is cut there."""
    names = (name for _, name in _members(descriptor, offset, size) if not name.startswith("."))  # of no pax header
    return unquote(next(names, "?").split(".")[0], errors="replace")


def _next_sample(descriptor: int, offset: int, size: int) -> int:
    """The first place from ``offset`` on where a sample begins, or the empty blocks at the end do."""
    for place, _ in _members(descriptor, offset, size):
        with contextlib.suppress(ValueError):
            return _sample_at(descriptor, place, size).offset
    return max(offset, size - 2 * _BLOCK)


class FrameShards:
    """Random access to single frames of a store of shards. Holds no file open: safe to fork and to pickle.

    Args:
        store: the folder of the tars.
        wanted: what every sample read must say of itself, beside the key that the facts name.
    """

    def __init__(self, store: Path, *, wanted: dict[str, Any] | None = None) -> None:
        self._store = store
        self._wanted = wanted or {}
        self._known: OrderedDict[tuple[str, str, int, int], tuple[int, list[Jpeg]]] = OrderedDict()

    def read_frames(self, facts: dict[str, Any], indices: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Decode some frames of a video; no other frame is read.

        Args:
            facts: of the video, as the frames stage gave them: where it lies and what it is.
            indices: frame numbers, 0 <= index < facts["frames"], in any order, repeats allowed.

        Returns:
            One (H, W, 3) uint8 array in RGB order for each index.

        Raises:
            ValueError: an index is out of range.
            DamagedArtifact: the shard does not hold what ``facts`` claim, because it is newer, damaged or missing, or
                was made otherwise.
        """
        return self._read(facts, indices, partial(_decode, facts=facts))

    def read_jpegs(self, facts: dict[str, Any], indices: Sequence[int]) -> list[bytes]:
        """The JPEG files of some frames of a video, as they were stored. Otherwise as ``read_frames``."""
        return self._read(facts, indices, bytes)

    def _read(self, facts: dict[str, Any], indices: Sequence[int], then: Callable[[bytes], Image]) -> list[Image]:
        wrong = [index for index in indices if not 0 <= index < facts["frames"]]
        if wrong:
            raise ValueError(f"frame {wrong[0]} was asked for; the video has frames 0 to {facts['frames'] - 1}")
        path = self._store / facts["shard"]
        try:
            with path.open("rb", buffering=0) as file:
                start, jpegs = self._locate(file.fileno(), facts)
                images = {index: _read_image(file.fileno(), start, jpegs[index]) for index in dict.fromkeys(indices)}
            read = {index: then(image) for index, image in images.items()}
        except (FileNotFoundError, ValueError) as error:
            where = f"frames {facts['key']} in {path}: byte {facts['offset']} does not hold what the index says"
            raise DamagedArtifact(f"{where} ({error}); run again so that shard and index agree") from None
        return [read[index] for index in indices]

    def _locate(self, descriptor: int, facts: dict[str, Any]) -> tuple[int, list[Jpeg]]:
        """End of the sample's JSON member, and the images from there."""
        # with the inode, because a tar may be replaced meanwhile
        place = facts["shard"], facts["key"], facts["offset"], os.fstat(descriptor).st_ino
        if place in self._known:
            self._known.move_to_end(place)
            return self._known[place]
        metadata, start, jpegs = _read_json(descriptor, facts["offset"])
        if metadata.get("artifact_key") != facts["key"] or len(jpegs) != facts["frames"]:
            raise ValueError(f"it holds {metadata.get('id')!r} with {len(jpegs)} frames, made otherwise")
        digest = {"source_digest": facts["digest"]} if "digest" in facts else {}
        refuse_other("frames", facts["key"], found=metadata, wanted=self._wanted | digest)
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


def _read_image(descriptor: int, start: int, jpeg: Jpeg) -> bytes:
    offset, size, checksum = jpeg
    image = _read_exactly(descriptor, size, start + offset)
    if crc32c(image) != checksum:
        raise ValueError("the checksum of a frame is wrong")
    return image


def _image_name(key: str, number: int) -> str:
    return f"{key}.{number:06d}.jpg"


@functools.cache
def _header_length(name_length: int) -> int:
    """Bytes of the tar header of a file whose name has this many characters."""
    return len(_header("x" * name_length, 0))


def _header(name: str, size: int) -> bytes:
    """The tar header of a file; a name over 100 characters takes a pax header in front."""
    if len(name) > tarfile.LENGTH_NAME or size >= 8 << 30 or not name.isascii():
        return _header_by_tarfile(name, size)
    # the same bytes in a tenth of the time, which copying many small images is made of
    named, sized = name.encode(), b"%011o" % size
    checksum = b"%06o" % (_PLAIN_SUM + sum(named) + sum(sized))
    return named.ljust(100, b"\0") + _PLAIN[100:124] + sized + _PLAIN[135:148] + checksum + _PLAIN[154:]


def _header_by_tarfile(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)  # time 0, user 0, group 0, mode 644
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


_PLAIN = _header_by_tarfile("", 0)
_PLAIN_SUM = int(_PLAIN[148:154], 8) - sum(b"%011o" % 0)


def _framed(name: str, content: bytes) -> bytes:
    """A member of a tar: header, content, padding."""
    return _header(name, len(content)) + content + bytes(_padded(len(content)) - len(content))


def _read_json(descriptor: int, offset: int) -> tuple[dict[str, Any], int, list[Jpeg]]:
    """Metadata of the sample at ``offset``, the end of its JSON member, and the images from there."""
    try:
        info = tarfile.TarInfo.frombuf(_read_exactly(descriptor, _BLOCK, offset), "utf-8", "surrogateescape")
        if info.type == tarfile.XHDTYPE:  # a pax header: the member's own comes after it
            offset += _BLOCK + _padded(info.size)
            info = tarfile.TarInfo.frombuf(_read_exactly(descriptor, _BLOCK, offset), "utf-8", "surrogateescape")
    except tarfile.TarError:
        raise ValueError(f"no sample begins at byte {offset}") from None
    metadata = unseal(_read_exactly(descriptor, info.size, offset + _BLOCK))
    try:
        jpegs = [(offset, size, checksum) for offset, size, checksum in metadata.pop("jpegs")]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"no sample begins at byte {offset}") from None
    return metadata, offset + _BLOCK + _padded(info.size), jpegs


def _read_exactly(descriptor: int, size: int, offset: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    if len(data) != size:
        raise ValueError(f"the file ends inside bytes {offset} to {offset + size}")
    return data


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
