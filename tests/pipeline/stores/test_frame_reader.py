"""Reading frames: OpenCV's pixels, smaller ones by area, and the same from a folder, S3 or a web server."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pipeline.learning.loader import Clip, ScoringSnippets
from pipeline.learning.readers import Index, open_reader
from pipeline.media.decode import jpeg_frames
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.frame_reader import FrameShards
from pipeline.stores.frames import ShardWriter
from pipeline.stores.places import merged
from pipeline.stores.provenance import made_by
from pipeline.stores.shared import SharedStore
from pipeline.stores.sharing import Sharing
from tests.servers import Plain, Ranged, web_server

WIDTH, HEIGHT = 90, 62
FRAMES = 40


class Strict(Ranged):
    """Answers a range past the end as servers do, and remembers what it is asked for."""

    asked: ClassVar[list[tuple[int, int]]] = []

    def send_head(self) -> Any:
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        self.asked.append((first, last + 1))
        path = Path(self.translate_path(self.path))
        if path.is_file() and first >= path.stat().st_size:
            self.send_error(416)
            return None
        return super().send_head()


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory, make_clip: Callable[..., Path]) -> list[bytes]:
    """As the frames stage has them from ffmpeg."""
    clip = make_clip(tmp_path_factory.mktemp("clip") / "a.mp4", "testsrc2=size=360x248:rate=25", "-frames:v", "40")
    return list(jpeg_frames(clip, width=WIDTH, height=HEIGHT))


def pack(folder: Path, videos: dict[str, list[bytes]]) -> Index:
    """A shard and its index."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {}
    with (folder / "00000.tar").open("w+b") as file:
        writer = ShardWriter(file, folder=folder)
        for name, images in videos.items():
            made = {**made_by("frames"), "parameters": {}, "notes": "x" * 3000 * (name == "long")}
            sample = writer.add(images, metadata={"id": name, "artifact_key": f"key of {name}", **made})
            place = {"shard": "00000.tar", "offset": sample.offset, "length": sample.length}
            facts[name] = {
                "key": f"key of {name}", "frames": len(images), "width": WIDTH, "height": HEIGHT, **place,
            }  # fmt: skip
        writer.finish()
    return {"stage": "frames", "store": str(folder), "parameters": {}, "videos": facts, "quarantined": {}}


@pytest.fixture
def index(tmp_path: Path, jpegs: list[bytes]) -> Index:
    return pack(tmp_path / "frames", {"a": jpegs, "b": jpegs[7:], "long": jpegs[3:5]})


def opencv(image: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_pixels_are_those_of_opencv(index: Index, jpegs: list[bytes]) -> None:
    found = FrameShards(Path(index["store"])).read_frames(index["videos"]["a"], range(FRAMES))
    np.testing.assert_array_equal(found, [opencv(image) for image in jpegs])


@pytest.mark.parametrize("sampling", ["420", "422", "444"])
@pytest.mark.parametrize("progressive", [0, 1])
def test_jpegs_of_other_tools_are_decoded_as_by_opencv(sampling: str, progressive: int, tmp_path: Path) -> None:
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8), (WIDTH, HEIGHT))
    chroma = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}")
    options = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, chroma, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive]
    images = [cv2.imencode(".jpg", one, options)[1].tobytes() for one in (picture, picture[..., 0])]  # the latter grey
    index = pack(tmp_path, {"a": images})
    found = FrameShards(tmp_path).read_frames(index["videos"]["a"], [0, 1])
    np.testing.assert_array_equal(found, [opencv(image) for image in images])


@pytest.mark.parametrize("kept", [0.01, 0.5, 0.9, -2])
def test_a_jpeg_that_was_packed_cut_short_is_damage_and_no_grey_picture(
    kept: float, tmp_path: Path, jpegs: list[bytes]
) -> None:
    cut = jpegs[0][: int(kept * len(jpegs[0])) if kept > 0 else int(kept)]
    index = pack(tmp_path, {"a": [cut, b"", b"no picture", jpegs[1]]})
    shards = FrameShards(tmp_path)
    for number in range(3):
        for reduction in (1, 2):
            with pytest.raises(DamagedArtifact, match="no readable JPEG where"):
                shards.read_frames(index["videos"]["a"], [3, number], reduction=reduction)
    assert shards.read_frames(index["videos"]["a"], [3]).any()


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_reduced_frames_are_means_of_the_pixels(reduction: int, tmp_path: Path, rng: np.random.Generator) -> None:
    textures = rng.normal(0, 8, (3, HEIGHT, WIDTH, 1))
    colours = rng.integers(40, 216, (3, 8, 9, 3)).astype(float)
    pictures = [
        cv2.resize(colour, (WIDTH, HEIGHT)) + texture for colour, texture in zip(colours, textures, strict=True)
    ]
    images = [cv2.imencode(".jpg", picture.clip(0, 255).astype(np.uint8))[1].tobytes() for picture in pictures]
    shards, facts = FrameShards(tmp_path), pack(tmp_path, {"a": images})["videos"]["a"]
    small = shards.read_frames(facts, [2, 0, 2], reduction=reduction)
    assert small.shape == (3, -(-HEIGHT // reduction), -(-WIDTH // reduction), 3)
    np.testing.assert_array_equal(small[0], small[2])
    high, wide = HEIGHT // reduction, WIDTH // reduction  # without the edge, where not all pixels are there
    for found, whole in zip(small, shards.read_frames(facts, [2, 0, 2]), strict=True):
        pixels = np.ascontiguousarray(whole[: high * reduction, : wide * reduction])
        expected = cv2.resize(pixels, (wide, high), interpolation=cv2.INTER_AREA)
        assert np.abs(found[:high, :wide].astype(int) - expected).mean() < 1.5


@pytest.fixture(params=["folder", "file", "s3", "web", "web without ranges"])
def elsewhere(request: pytest.FixtureRequest, index: Index, tmp_path: Path) -> Iterator[str]:
    """Address of a copy of the shards; nothing is left where the index says."""
    copy = tmp_path / "copied" / "frames"
    copy.parent.mkdir()
    shutil.move(index["store"], copy)
    match request.param:
        case "folder":
            yield str(copy)
        case "file":
            yield f"file://{copy}"
        case "s3":
            url = str(request.getfixturevalue("s3_url"))
            upload(copy / "00000.tar", f"{url}/frames/00000.tar")
            yield f"{url}/frames/"
        case web:
            with web_server(copy.parent, Strict if web == "web" else Plain) as address:
                yield f"{address}/frames"


def upload(path: Path, url: str) -> None:
    import fsspec

    fsspec.filesystem("s3", skip_instance_cache=True).put_file(str(path), url)


def test_a_copy_elsewhere_gives_the_same_frames_on_both_sides_of_a_fork(
    elsewhere: str, index: Index, jpegs: list[bytes]
) -> None:
    shards = FrameShards(elsewhere)
    asked = [30, 2, 3, 30, 4, 39]
    for _ in range(2):
        assert shards.read_jpegs(index["videos"]["a"], asked) == [jpegs[number] for number in asked]
    assert shards.read_jpegs(index["videos"]["long"], [1]) == [jpegs[4]]  # whose JSON takes a second read
    again = pickle.loads(pickle.dumps(shards))
    assert again.read_jpegs(index["videos"]["b"], [0]) == [jpegs[7]]
    child = os.fork()
    if child == 0:
        import signal

        signal.alarm(30)
        os._exit(0 if shards.read_jpegs(index["videos"]["b"], [32]) == [jpegs[39]] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert shards.read_jpegs(index["videos"]["b"], [1]) == [jpegs[8]]


def test_loader_processes_read_from_elsewhere(elsewhere: str, index: Index, jpegs: list[bytes]) -> None:
    reader = open_reader(index, frames_from=elsewhere)
    reader.read("b", np.array([[0]]))  # a connection that the processes must not share
    clips = [Clip(name, 0, index["videos"][name]["frames"]) for name in ("a", "b", "long")]
    snippets = ScoringSnippets(clips=clips, reader=reader, snippet=1, segments=2, crops="whole", chunk=1)
    loaded: Any = DataLoader(snippets, batch_size=None, num_workers=2, timeout=60)
    first = {"a": 0, "b": 7, "long": 3}
    for item in loaded:
        for image, position in zip(item.images.numpy(), item.positions.tolist(), strict=True):
            expected = opencv(jpegs[first[clips[item.video].id] + position])
            np.testing.assert_array_equal(image.transpose(1, 2, 0), expected)


def test_a_copy_that_is_another_is_damage_of_which_no_note_is_left(
    elsewhere: str, index: Index, tmp_path: Path
) -> None:
    moved: Any = {**index, "videos": {"a": {**index["videos"]["a"], "offset": 512}}}
    beyond: Any = {**index, "videos": {"a": {**index["videos"]["a"], "offset": 1 << 40}}}
    absent: Any = {**index, "videos": {"a": {**index["videos"]["a"], "shard": "00001.tar"}}}
    for other in (moved, beyond, absent):
        reader = open_reader(other, sharing=Sharing(notes=tmp_path / "damaged"), frames_from=elsewhere)
        with pytest.raises(DamagedArtifact, match="^video 'a': frames key of a in .*; copy the shards there again$"):
            reader.read("a", np.array([[0]]))
    assert not (tmp_path / "damaged").exists()


def test_a_copy_that_changes_while_it_is_read_is_damage(index: Index, jpegs: list[bytes]) -> None:
    shards = FrameShards(Path(index["store"]))
    shards.read_jpegs(index["videos"]["b"], [0])
    pack(Path(index["store"]), {"a": jpegs[:3], "b": jpegs[7:]})
    with pytest.raises(DamagedArtifact, match="checksum of a frame is wrong"):
        shards.read_jpegs(index["videos"]["b"], [0])


def test_a_server_that_fails_or_is_not_there_is_named_in_one_sentence(index: Index, tmp_path: Path) -> None:
    with web_server(tmp_path) as address:
        broken = f"{address}/broken"
        with pytest.raises(OSError, match=f"^frames cannot be read from {broken} .*; see to it and run again$"):
            FrameShards(broken).read_jpegs(index["videos"]["a"], [0])
    with pytest.raises(OSError, match=f"^frames cannot be read from {address} .*; see to it and run again$") as caught:
        FrameShards(address).read_jpegs(index["videos"]["a"], [0])
    assert not isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("url", ["ftp://server/frames", "http:///frames", "s3://key:word@bucket/frames"])
def test_an_address_that_leads_nowhere_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="s3:// and http|names no bucket or server|holds a user or password"):
        FrameShards(url)


def test_requests_to_a_web_server(index: Index) -> None:
    facts = index["videos"]["b"]
    with web_server(Path(index["store"]), Strict) as address:
        shards = FrameShards(address)
        Strict.asked.clear()
        shards.read_jpegs(facts, [3, 4, 5, 20])
        assert len(Strict.asked) == 3  # the JSON, three neighbours, and one
        shards.read_jpegs(facts, [0, 32])
        assert len(Strict.asked) == 5
        assert sum(stop - start for start, stop in Strict.asked) < facts["length"] / 2
        with pytest.raises(DamagedArtifact, match="the file ends inside"):
            shards.read_jpegs(facts | {"offset": 1 << 40}, [0])


def test_a_shared_store_gives_several_ranges_as_one(tmp_path: Path) -> None:
    """``read`` is ``read_ranges`` of one, for flow too."""
    store = SharedStore(str(tmp_path / "shared"), writable=True)
    with store.incoming("flow", "ab" * 16, folder=tmp_path) as path:
        path.write_bytes(bytes(range(100)))
    with web_server(tmp_path, Ranged) as address:
        assert SharedStore(f"{address}/shared").read("flow", "ab" * 16, 10, 20) == bytes(range(10, 20))


@given(st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 3000)), max_size=12))
def test_spans_cover_every_range_and_are_far_apart(found: list[tuple[int, int]]) -> None:
    ranges = [(start, start + size) for start, size in found]
    spans = merged(ranges)
    for start, stop in ranges:
        assert start == stop or sum(low <= start and stop <= high for low, high in spans) == 1
    assert all(after[0] - before[1] > 4096 for before, after in itertools.pairwise(spans))
    edges = {edge for one in ranges for edge in one}
    assert all(low < high and {low, high} <= edges for low, high in spans)
