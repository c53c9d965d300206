"""Frame shards: plain tar and webdataset read them; single frames at random; a wrong or stale index is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import tarfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.keys import artifact_key
from pipeline.stores import frames as module
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.frame_reader import FrameShards
from pipeline.stores.frames import Sample, ShardWriter, check_shard, encode_id, samples
from pipeline.stores.provenance import made_by
from pipeline.stores.publish import atomic_file

IDS = ["a/b.c%2E d", "plain", "v_Apply.Eye-1", "视频." * 60]  # in the order of their ids
COUNTS = [3, 1, 7, 2]
WIDTH, HEIGHT = 24, 16


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(pixels, (WIDTH, HEIGHT)))[1].tobytes()


def pictures(name: str) -> list[bytes]:
    number = IDS.index(name)
    return [picture(100 * number + i) for i in range(COUNTS[number])]


def metadata(name: str) -> dict[str, Any]:
    return {"id": name, "artifact_key": f"key of {name}", "width": WIDTH, "height": HEIGHT, "fps": 25.0}


def facts(sample: Sample, tar: Path) -> dict[str, Any]:
    place = {"shard": tar.name, "offset": sample.offset, "length": sample.length, "key": sample.artifact_key}
    return place | {"frames": sample.metadata["frames"], "width": WIDTH, "height": HEIGHT}


def write(tar: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Write a shard; facts by id."""
    with atomic_file(tar) as file:
        writer = ShardWriter(file, folder=tar.parent)
        written = {name: writer.add(iter(pictures(name)), metadata=metadata(name)) for name in names}
        writer.finish()
    return {name: facts(sample, tar) for name, sample in written.items()}


def decode(image: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


@given(st.text(st.characters(exclude_categories=()), min_size=1))  # lone surrogates too
def test_any_id_is_encoded_and_decoded(video_id: str) -> None:
    key = encode_id(video_id)
    assert unquote(key, errors="surrogatepass") == video_id
    assert key.isascii()
    assert not set(key) & set("./ \\")


def test_an_empty_id_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        encode_id("")


def test_tarfile_reads_the_images_in_order(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", IDS)
    with tarfile.open(tmp_path / "0.tar") as tar:
        members = tar.getmembers()
        expected = []
        for name, count in zip(IDS, COUNTS, strict=True):
            expected += [f"{encode_id(name)}.json", *(f"{encode_id(name)}.{i:06d}.jpg" for i in range(count))]
        assert [member.name for member in members] == expected
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        for name in IDS:
            key = encode_id(name)
            told = json.loads(tar.extractfile(f"{key}.json").read())  # type: ignore[union-attr]
            assert (told["id"], told["frames"]) == (name, len(pictures(name)))
            found = [tar.extractfile(f"{key}.{i:06d}.jpg").read() for i in range(told["frames"])]  # type: ignore[union-attr]
            assert found == pictures(name)
    subprocess.run(["tar", "-tf", tmp_path / "0.tar"], check=True, capture_output=True)


def test_webdataset_groups_one_sample_a_video(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", IDS)
    found = list(webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False))
    assert [unquote(sample["__key__"]) for sample in found] == IDS
    for name, sample in zip(IDS, found, strict=True):
        assert [sample[f"{i:06d}.jpg"] for i in range(len(pictures(name)))] == pictures(name)
        assert json.loads(sample["json"])["artifact_key"] == f"key of {name}"


def test_frames_are_those_of_the_members(tmp_path: Path) -> None:
    index, shards = write(tmp_path / "0.tar", IDS), FrameShards(tmp_path)
    for name in IDS:
        last = len(pictures(name)) - 1
        asked = [last, 0, last // 2, last]
        for _ in range(2):  # from the file, then from the cache
            found = shards.read_frames(index[name], asked)
            for frame, number in zip(found, asked, strict=True):
                assert frame.dtype == np.uint8
                assert (frame == decode(pictures(name)[number])).all()
    assert shards.read_frames(index["plain"], []).shape == (0, HEIGHT, WIDTH, 3)


def test_red_is_the_first_channel(tmp_path: Path) -> None:
    red = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes BGR
    with atomic_file(tmp_path / "0.tar") as file:
        writer = ShardWriter(file, folder=tmp_path)
        sample = writer.add([cv2.imencode(".jpg", red)[1].tobytes()], metadata=metadata("red"))
        writer.finish()
    (frame,) = FrameShards(tmp_path).read_frames(facts(sample, tmp_path / "0.tar"), [0])
    assert frame.mean((0, 1)).round() == pytest.approx([254, 0, 0], abs=1)


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    index = write(tmp_path / "0.tar", IDS)
    data = bytearray((tmp_path / "0.tar").read_bytes())
    image = pictures("v_Apply.Eye-1")[3]
    place = data.index(image)
    data[place : place + len(image)] = bytes(len(image))  # frame 3 is gone
    (tmp_path / "0.tar").write_bytes(data)
    shards = FrameShards(tmp_path)
    assert len(shards.read_frames(index["v_Apply.Eye-1"], [0, 1, 2, 4, 5, 6])) == 6
    with pytest.raises(ValueError, match="the checksum of a frame is wrong"):
        shards.read_frames(index["v_Apply.Eye-1"], [3])


def test_bytes_depend_on_the_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "0.tar", IDS)
    monkeypatch.setattr(module, "_SPOOL_BYTES", 100)  # images wait on disk instead of in memory
    write(tmp_path / "1.tar", IDS)
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()


def test_samples_are_found_again(tmp_path: Path) -> None:
    index = write(tmp_path / "0.tar", IDS)
    found = list(samples(tmp_path / "0.tar"))
    assert [sample.id for sample in found] == IDS
    assert {sample.id: facts(sample, tmp_path / "0.tar") for sample in found} == index
    write(tmp_path / "empty.tar", [])
    assert list(samples(tmp_path / "empty.tar")) == []


def test_a_copy_and_a_new_name_give_the_bytes_of_a_fresh_shard(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", IDS)
    write(tmp_path / "fresh.tar", IDS[1:])
    old = {sample.id: sample for sample in samples(tmp_path / "0.tar")}
    with (tmp_path / "0.tar").open("rb") as source, atomic_file(tmp_path / "1.tar") as file:
        writer = ShardWriter(file, folder=tmp_path)
        for name in IDS[1:]:
            writer.copy(source.fileno(), old[name])
        writer.finish()
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "fresh.tar").read_bytes()
    with atomic_file(tmp_path / "2.tar") as file:
        writer = ShardWriter(file, folder=tmp_path)
        first = writer.add(pictures("plain"), metadata=metadata("plain"))
        again = writer.repack(file.fileno(), first, video_id="another." * 40)  # from the tar being written
        writer.finish()
    assert [sample.id for sample in samples(tmp_path / "2.tar")] == ["plain", "another." * 40]
    shards = FrameShards(tmp_path)
    for sample in (first, again):
        (frame,) = shards.read_frames(facts(sample, tmp_path / "2.tar"), [0])
        assert (frame == decode(pictures("plain")[0])).all()


def test_nothing_is_written_of_a_video_that_fails(tmp_path: Path) -> None:
    def failing() -> Any:
        yield picture(0)
        raise OSError("the disk is on fire")

    file = io.BytesIO()
    writer = ShardWriter(file, folder=tmp_path)
    with pytest.raises(OSError, match="on fire"):
        writer.add(failing(), metadata=metadata("x"))
    assert file.getvalue() == b""
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_is_older_than_the_shard_is_refused(tmp_path: Path) -> None:
    index, shards = write(tmp_path / "0.tar", IDS), FrameShards(tmp_path)
    shards.read_frames(index["plain"], [0])
    write(tmp_path / "0.tar", IDS[1:])  # everything has moved
    for name in IDS:
        with pytest.raises(ValueError, match="does not hold what the index says"):
            shards.read_frames(index[name], [0])
    with pytest.raises(ValueError, match="made otherwise"):
        shards.read_frames(index[IDS[0]], [0])  # at whose place another video is now


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"shard": "9.tar"}, "No such file"),
        ({"offset": 512}, "no sample begins"),
        ({"offset": 10**9}, "the file ends"),
        ({"key": "other"}, "made otherwise"),
        ({"frames": 2}, "made otherwise"),
        ({"width": 25}, "where 25x16 is expected"),
    ],
)
def test_facts_that_are_wrong_are_refused(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    index = write(tmp_path / "0.tar", IDS)
    with pytest.raises(ValueError, match=reason):
        FrameShards(tmp_path).read_frames(index["v_Apply.Eye-1"] | change, [0])


@pytest.mark.parametrize("asked", [-1, 7])
def test_a_frame_out_of_range_is_refused(asked: int, tmp_path: Path) -> None:
    index = write(tmp_path / "0.tar", IDS)
    with pytest.raises(ValueError, match=f"frame {asked} was asked for; the video has frames 0 to 6"):
        FrameShards(tmp_path).read_frames(index["v_Apply.Eye-1"], [0, asked])


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.97])
def test_a_shard_cut_short_is_not_a_shard(kept: float, tmp_path: Path) -> None:
    write(tmp_path / "0.tar", IDS)
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match="not a whole shard"):
        list(samples(tmp_path / "0.tar"))


def test_a_reader_is_sent_to_other_processes(tmp_path: Path) -> None:
    index, shards = write(tmp_path / "0.tar", IDS), FrameShards(tmp_path)
    expected = shards.read_frames(index["plain"], [0])[0]
    assert (pickle.loads(pickle.dumps(shards)).read_frames(index["plain"], [0])[0] == expected).all()
    child = os.fork()
    if child == 0:
        os._exit(0 if (shards.read_frames(index["plain"], [0])[0] == expected).all() else 1)
    assert os.waitpid(child, 0)[1] == 0


def own(name: str) -> dict[str, Any]:
    """Metadata with the address of what it says."""
    made = {**made_by("frames"), "parameters": {"qscale": 2}, "source_digest": encode_id(name)}
    return metadata(name) | made | {"artifact_key": artifact_key("frames", {"qscale": 2}, encode_id(name))}


def write_own(tar: Path) -> dict[str, Sample]:
    with atomic_file(tar) as file:
        writer = ShardWriter(file, folder=tar.parent)
        written = {name: writer.add(iter(pictures(name)), metadata=own(name)) for name in IDS}
        writer.finish()
    return written


def test_a_whole_shard_passes_the_check(tmp_path: Path) -> None:
    written = write_own(tmp_path / "0.tar")
    assert check_shard(tmp_path / "0.tar") == (list(written.values()), [])
    write(tmp_path / "other.tar", ["plain"])
    whole, wrong = check_shard(tmp_path / "other.tar")
    assert (whole, len(wrong)) == ([], 1)
    assert "does not say of itself what it is" in str(wrong[0])


def test_a_damaged_byte_anywhere_is_noticed_and_costs_one_video(tmp_path: Path) -> None:
    written = write_own(tmp_path / "0.tar")
    whole = (tmp_path / "0.tar").read_bytes()
    ends = max(sample.offset + sample.length for sample in written.values())
    positions = {*range(0, len(whole), 97), *range(600), *range(ends - 520, len(whole), 7)}
    for position in sorted(positions):
        flipped = whole[:position] + bytes([whole[position] ^ (1 << position % 8)]) + whole[position + 1 :]
        (tmp_path / "0.tar").write_bytes(flipped)
        kept, wrong = check_shard(tmp_path / "0.tar")
        (hit,) = [s for s in written.values() if s.offset <= position < s.offset + s.length] or [None]
        assert [sample.id for sample in kept] == [name for name in IDS if hit is None or name != hit.id]
        assert wrong
        if hit is not None:
            assert repr(hit.id)[:10] in str(wrong[0])


@pytest.mark.parametrize("part", ["JPEG", "JSON", "header"])
def test_a_reader_names_what_is_damaged(part: str, tmp_path: Path) -> None:
    written = write_own(tmp_path / "0.tar")
    sample = written["plain"]
    data = bytearray((tmp_path / "0.tar").read_bytes())
    image = data.index(pictures("plain")[0])
    data[{"JPEG": image + 100, "JSON": sample.offset + 530, "header": sample.offset + 3}[part]] ^= 8
    (tmp_path / "0.tar").write_bytes(data)
    shards = FrameShards(tmp_path)
    with pytest.raises(DamagedArtifact, match=f"frames {sample.artifact_key} in .*0.tar"):
        shards.read_frames(facts(sample, tmp_path / "0.tar"), [0])
    assert len(shards.read_frames(facts(written["v_Apply.Eye-1"], tmp_path / "0.tar"), [0, 3])) == 2


def test_nothing_is_repacked_of_a_damaged_sample(tmp_path: Path) -> None:
    sample = write_own(tmp_path / "0.tar")["plain"]
    data = bytearray((tmp_path / "0.tar").read_bytes())
    data[data.index(pictures("plain")[0]) + 100] ^= 8
    (tmp_path / "0.tar").write_bytes(data)
    out = io.BytesIO()
    with (tmp_path / "0.tar").open("rb") as source, pytest.raises(ValueError, match="frame 0"):
        ShardWriter(out, folder=tmp_path).repack(source.fileno(), sample, video_id="x")
    assert out.getvalue() == b""
