"""Frames as JPEG in webdataset shards: one tar a shard, one sample a video, single frames readable at random.

A sample is a run of tar members, ``<key>.json`` and then ``<key>.000000.jpg``, ``<key>.000001.jpg`` ...; plain tar,
``tarfile`` and ``webdataset`` read it. ``key`` is the video's id, percent-encoded, dots too, because webdataset ends a
key at the first dot. Samples stand in the order of their ids. Equal inputs give equal bytes: no times, owners or modes.

The JSON says where each JPEG lies, so that three frames of a video cost one small read for the JSON and one for each
frame. Its values: ``id``, ``artifact_key``, what ``provenance.py`` lists, ``width``, ``height``, ``fps``, ``frames``,
``jpegs``: ``[offset, size, crc32c]`` of every image, the offset counted from the end of the JSON member; and
``checksum``, the crc32c of the canonical JSON without it, which is how the member is written. A reader
(``frame_reader.py``) checks what it reads; ``check_sample`` checks every byte. Labels and splits are not packed: a
relabelled video changes no shard.
"""

from __future__ import annotations

import contextlib
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

from pipeline.stores.checksum import crc32c, seal, unseal
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.provenance import check_address
from pipeline.stores.tar import BLOCK, Jpeg, header_length, image_headers, laid_out, member, padded, runs, told_by

_SPOOL_BYTES = 16 << 20  # a video's JPEGs beyond this wait on disk, not in memory
_COPY_BYTES = 1 << 20


def encode_id(video_id: str) -> str:
    """A video's id as a webdataset key: ASCII letters, digits, ``_``, ``-``, ``~`` and ``%XX``; no dot, no slash."""
    if not video_id:
        raise ValueError("a video's id is empty; give every video a name")
    return quote(video_id, safe="", errors="surrogatepass").replace(".", "%2E")


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
            parts = ([spool.read(size) for size, _ in sums[first:stop]] for first, stop in runs(sums))
            return self._write(metadata, sums, parts)

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
        begin = self._file.tell()
        try:
            metadata, start, jpegs = _checked_json(source, sample.offset)
            parts = _checked_images(source, start, jpegs, key=encode_id(metadata["id"]))
            return self._write({**metadata, "id": video_id}, [(size, crc) for _, size, crc in jpegs], parts)
        except ValueError:
            self._file.seek(begin)
            self._file.truncate()
            raise

    def finish(self) -> None:
        """Write the end of the tar."""
        self._file.write(bytes(2 * BLOCK))

    def _write(
        self, metadata: dict[str, Any], sums: Sequence[tuple[int, str]], parts: Iterable[Sequence[bytes]]
    ) -> Sample:
        key, begin, metadata = encode_id(metadata["id"]), self._file.tell(), {**metadata, "frames": len(sums)}
        self._file.write(member(f"{key}.json", seal({**metadata, "jpegs": laid_out(key, sums)})))
        headers = image_headers(key, [size for size, _ in sums])
        for images in parts:
            pieces = ((next(headers), image, bytes(-len(image) % BLOCK)) for image in images)
            self._file.write(b"".join(chain.from_iterable(pieces)))
        length = self._file.tell() - begin
        return Sample(metadata["id"], metadata["artifact_key"], begin, length, metadata)


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
    metadata, start, jpegs = read_json(partial(_read_exactly, descriptor), offset)
    end = start + (jpegs[-1][0] + padded(jpegs[-1][1]) if jpegs else 0)
    if end > size:
        raise ValueError(f"a sample ends at byte {end} of {size}")
    name, key = metadata.get("id"), metadata.get("artifact_key")
    if not isinstance(name, str) or not isinstance(key, str):
        raise ValueError(f"the sample at byte {offset} does not say of which video it is")
    return Sample(name, key, offset, end - offset, metadata)


def _is_end(descriptor: int, offset: int, size: int) -> bool:
    """Whether the shard ends at ``offset``, as it should with two empty blocks."""
    if _read_exactly(descriptor, BLOCK, offset) != bytes(BLOCK):
        return False
    if size != offset + 2 * BLOCK or _read_exactly(descriptor, BLOCK, offset + BLOCK) != bytes(BLOCK):
        raise ValueError("something else follows its end")
    return True


def check_sample(descriptor: int, sample: Sample) -> None:
    """Check every byte of a sample in an open tar.

    Raises:
        ValueError: one is not as it was written.
    """
    metadata, start, jpegs = _checked_json(descriptor, sample.offset)
    for _ in _checked_images(descriptor, start, jpegs, key=encode_id(metadata["id"])):
        pass


def _checked_json(descriptor: int, offset: int) -> tuple[dict[str, Any], int, list[Jpeg]]:
    """As ``read_json``, every byte of the member checked."""
    metadata, start, jpegs = read_json(partial(_read_exactly, descriptor), offset)
    name, found = f"{encode_id(metadata['id'])}.json", _read_exactly(descriptor, start - offset, offset)
    if found != member(name, found[header_length(len(name)) :].rstrip(b"\0")):
        raise ValueError("the header of its JSON is damaged")
    return metadata, start, jpegs


def _checked_images(descriptor: int, start: int, jpegs: Sequence[Jpeg], *, key: str) -> Iterator[list[bytes]]:
    """The images of a sample, some at a time, every byte of their members checked.

    Args:
        descriptor: of the tar.
        start: end of the sample's JSON member.
        jpegs: as that says.
        key: of the sample.
    """
    sums, end = [(size, checksum) for _, size, checksum in jpegs], 0
    if any(type(size) is not int or size < 0 for size, _ in sums) or jpegs != laid_out(key, sums):
        raise ValueError("its images do not lie as they should")
    headers = image_headers(key, [size for size, _ in sums])
    for first, stop in runs(sums):
        begin, end = end, jpegs[stop - 1][0] + padded(jpegs[stop - 1][1])
        data, images, place = _read_exactly(descriptor, end - begin, start + begin), [], 0
        for number in range(first, stop):
            _, size, checksum = jpegs[number]
            before = next(headers)
            content = place + len(before)
            image, after = data[content : content + size], content + padded(size)
            if data[place:content] != before or crc32c(image) != checksum or data[content + size : after].strip(b"\0"):
                raise ValueError(f"frame {number}: its checksum is wrong")
            images.append(image)
            place = after
        yield images


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
                offset = _next_sample(descriptor, offset + BLOCK, size)
    if not wrong:
        wrong.append(DamagedArtifact(f"{tar} is not a whole shard of frames; run again and it is made anew"))
    return whole, wrong


def _members(descriptor: int, offset: int, size: int) -> Iterator[tuple[int, str]]:
    """Place and name of every block from ``offset`` on that is a tar header."""
    for place in range(offset, size - BLOCK + 1, BLOCK):
        with contextlib.suppress(tarfile.TarError):
            info = tarfile.TarInfo.frombuf(_read_exactly(descriptor, BLOCK, place), "utf-8", "surrogateescape")
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
    return max(offset, size - 2 * BLOCK)


def read_json(read: Callable[[int, int], bytes], offset: int) -> tuple[dict[str, Any], int, list[Jpeg]]:
    """What stands in the JSON member of a sample.

    Args:
        read: gives as many bytes of the tar as its first argument says, from its second on, or raises ValueError.
        offset: of the sample's first tar header.

    Returns:
        Its metadata, the end of the member, and where the images lie from there.

    Raises:
        ValueError: no sample begins there, or its JSON is damaged.
    """
    try:
        kind, size = told_by(read(BLOCK, offset))
        if kind == tarfile.XHDTYPE:  # a pax header: the member's own comes after it
            offset += BLOCK + padded(size)
            _, size = told_by(read(BLOCK, offset))
    except tarfile.TarError:
        raise ValueError(f"no sample begins at byte {offset}") from None
    metadata = unseal(read(size, offset + BLOCK))
    try:
        jpegs = [(offset, size, checksum) for offset, size, checksum in metadata.pop("jpegs")]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"no sample begins at byte {offset}") from None
    return metadata, offset + BLOCK + padded(size), jpegs


def _read_exactly(descriptor: int, size: int, offset: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    if len(data) != size:
        raise ValueError(f"the file ends inside bytes {offset} to {offset + size}")
    return data
