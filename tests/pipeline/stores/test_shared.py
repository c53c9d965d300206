"""A shared store in a folder, in S3 and behind a web server: whole objects or none, whoever writes, reads or dies."""

from __future__ import annotations

import importlib.util
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.dataset.keys import artifact_key
from pipeline.stores.archive import TAIL_BYTES
from pipeline.stores.damage import DamagedArtifact
from pipeline.stores.flow import FlowStore
from pipeline.stores.members import ArrayArchive
from pipeline.stores.provenance import made_by
from pipeline.stores.shared import SharedStore, kind_of
from tests.servers import Plain, Ranged, Unreliable, web_server

KEY, OTHER = "ab" * 16, "cd" * 16


REAL = pytest.param("real s3", marks=[pytest.mark.slow, pytest.mark.s3])


@pytest.fixture(params=["folder", "s3", REAL])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a store that can be written to."""
    if request.param == "folder":
        return str(tmp_path / "shared")
    return str(request.getfixturevalue("s3_url" if request.param == "s3" else "real_s3_url"))


@pytest.fixture
def store(url: str) -> SharedStore:
    return SharedStore(url, writable=True)


@pytest.fixture(params=["folder", "s3", "web", "web without ranges", REAL])
def readable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[bytes], SharedStore]]:
    """Publish the content of one object; gives the store, opened to be read."""
    folder = tmp_path / "shared"
    fixture = {"s3": "s3_url", "real s3": "real_s3_url"}.get(request.param)
    url = str(request.getfixturevalue(fixture) if fixture else folder)

    def filled(content: bytes) -> SharedStore:
        put(SharedStore(url, writable=True), KEY, content, tmp_path)
        return SharedStore(served)

    if request.param.startswith("web"):
        handler = Ranged if request.param == "web" else Plain
        with web_server(tmp_path, handler) as address:
            served = f"{address}/shared"
            yield filled
    else:
        served = url
        yield filled


def put(store: SharedStore, key: str, content: bytes, folder: Path) -> None:
    with store.incoming("flow", key, folder=folder) as path:
        path.write_bytes(content)


def everything(store: SharedStore, key: str = KEY) -> bytes:
    return store.read("flow", key, 0, 1 << 30)


def test_what_is_published_is_there_until_it_is_removed(store: SharedStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * 400
    assert not store.has("flow", KEY)
    put(store, KEY, content, tmp_path)
    put(store, OTHER, content[:7], tmp_path)
    assert store.has("flow", KEY)
    assert not store.has("frames", KEY)
    assert sorted(store.keys("flow")) == [(KEY, len(content)), (OTHER, 7)]
    assert list(store.keys("frames")) == []
    assert store.read("flow", KEY, 100, 1000) == content[100:1000]
    store.remove("flow", KEY)
    store.remove("flow", KEY)
    assert not store.has("flow", KEY)
    assert list(store.keys("flow")) == [(OTHER, 7)]


def test_an_object_that_is_there_stays(store: SharedStore, tmp_path: Path) -> None:
    put(store, KEY, b"first", tmp_path)
    put(store, KEY, b"second", tmp_path)
    assert everything(store) == b"first"
    with store.incoming("flow", OTHER, folder=tmp_path) as path:
        path.write_bytes(b"late")
        put(store, OTHER, b"early", tmp_path)  # another, meanwhile
    assert everything(store, OTHER) == b"early"


def test_a_block_that_fails_publishes_nothing(store: SharedStore, url: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), store.incoming("flow", KEY, folder=tmp_path) as path:
        path.write_bytes(b"half")
        raise RuntimeError
    assert not store.has("flow", KEY)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_every_kind_of_store_is_read(readable: Callable[[bytes], SharedStore], tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(300_000)
    store = readable(content)
    assert store.size("flow", KEY) == len(content)
    assert not store.has("flow", OTHER)
    for start, stop in ((0, 1), (5, 5), (299_990, 300_000), (1000, 200_000)):
        assert store.read("flow", KEY, start, stop) == content[start:stop]
    with store.local("flow", KEY, folder=tmp_path / "other") as path:
        assert path.read_bytes() == content
    with pytest.raises(FileNotFoundError):
        store.read("flow", OTHER, 0, 1)
    with pytest.raises(FileNotFoundError), store.local("flow", OTHER, folder=tmp_path / "other"):
        pass
    assert not [path for path in tmp_path.rglob(".tmp-*") if path.is_file()]
    with pytest.raises(ValueError, match="read only"):
        put(store, OTHER, b"", tmp_path)
    with pytest.raises(ValueError, match="read only"):
        store.remove("flow", KEY)


def test_a_store_is_used_on_both_sides_of_a_fork_and_a_pickle(readable: Callable[[bytes], SharedStore]) -> None:
    store = readable(b"content")
    assert everything(store) == b"content"
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a child that waits for a thread that it does not have
        os._exit(0 if everything(store) == b"content" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert everything(store) == everything(pickle.loads(pickle.dumps(store))) == b"content"


FORKING = """
import gc, os, sys
from pipeline.stores.shared import SharedStore
store, key = SharedStore(sys.argv[1]), sys.argv[2]
read = lambda: store.read("flow", key, 0, 100)
assert read() == b"content"
for used in (True, False):
    child = os.fork()
    if child == 0:
        if used:
            assert read() == b"content"
        del store
        gc.collect()
        sys.exit(0)  # by the end of the interpreter
    assert os.waitpid(child, 0)[1] == 0
    assert read() == b"content"  # on the connection that it has had before
"""


@pytest.mark.parametrize("kind", ["s3", "web"])
def test_a_child_that_ends_leaves_its_parents_connections_alone(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(request.getfixturevalue("s3_url")) if kind == "s3" else str(tmp_path / "shared")
    put(SharedStore(url, writable=True), KEY, b"content", tmp_path)
    with web_server(tmp_path) as address:
        command = [sys.executable, "-c", FORKING, url if kind == "s3" else f"{address}/shared", KEY]
        # a parent that no longer hears its server waits for a minute
        subprocess.run(command, cwd=Path(__file__).parents[3], timeout=40, check=True)


def test_a_broken_connection_is_tried_again(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    for name in ("store", "dead"):
        put(SharedStore(str(tmp_path / name), writable=True), KEY, content, tmp_path)
    Unreliable.asked.clear()
    with web_server(tmp_path, Unreliable) as address:
        store = SharedStore(f"{address}/store")
        assert store.size("flow", KEY) == len(content)
        assert store.read("flow", KEY, 1000, 2000) == content[1000:2000]
        assert not store.has("flow", OTHER)
        Unreliable.asked.clear()
        with store.local("flow", KEY, folder=tmp_path) as path:
            assert path.read_bytes() == content
        assert Unreliable.asked.total() == 3
        with pytest.raises(OSError, match="dead cannot be used"):
            SharedStore(f"{address}/dead").has("flow", KEY)


def test_requests_to_a_web_server(tmp_path: Path) -> None:
    store, requests = array_archive(tmp_path, count=120, size=(64, 96)), []

    class Counting(Ranged):
        def send_head(self) -> Any:
            requests.append((self.command, Path(self.path).suffix))
            return super().send_head()

    size = store.size("flow", ARRAY)
    assert size is not None
    assert size > 10 * TAIL_BYTES
    with web_server(tmp_path, Counting) as address:
        arrays = FlowStore(tmp_path / "empty", shared=SharedStore(f"{address}/shared"))
        opening, range_ = [("HEAD", ".zip"), ("GET", ".zip")], ("GET", ".zip")
        arrays.read(ARRAY, 0, 5)
        assert requests == [("GET", ".json"), *opening, range_]  # the first is the marker, once in a process
        requests.clear()
        arrays.read(ARRAY, 100, 105)
        assert requests == [range_]


def test_processes_that_make_one_store_at_the_same_moment(url: str, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pipeline.stores.shared import SharedStore\n"
        "url, key, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])\n"
        "stores = [SharedStore(f'{url}{index}', writable=True) for index in range(5)]\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
        "for store in stores:\n"
        "    with store.incoming('flow', key, folder=folder) as path:\n"
        "        path.write_bytes(b'x')\n"
    )
    names, pipes = [f"{number:032x}" for number in range(3)], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    commands = [[sys.executable, "-c", code, url, name, str(tmp_path)] for name in names]
    writers = [subprocess.Popen(command, cwd=Path(__file__).parents[3], **pipes) for command in commands]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait() for writer in writers] == [0] * 3
    for index in range(5):
        assert sorted(SharedStore(f"{url}{index}").keys("flow")) == [(name, 1) for name in names]
    assert not list(tmp_path.rglob(".tmp-*"))


def test_arrays_are_read_in_place(readable: Callable[[bytes], SharedStore], tmp_path: Path) -> None:
    parameters = {"bound": 20.0}
    key = artifact_key("flow", parameters, "0" * 32)
    own = {**made_by("flow"), "parameters": parameters, "source_digest": "0" * 32}
    fields = np.random.default_rng(0).integers(0, 256, (30, 2, 32, 48), np.uint8)
    local = FlowStore(tmp_path / "local")
    local.write(key, iter(fields), describe=lambda _: own, pairs=lambda: {"inliers": np.arange(30)})
    store = readable(b"")
    writable = SharedStore(str(tmp_path / "shared") if "127.0.0.1" in store.url else store.url, writable=True)
    with writable.incoming("flow", key, folder=tmp_path) as path:
        local.pack(key, path)
    here = FlowStore(tmp_path / "empty", parameters=parameters, shared=store)
    for start, stop in ((0, 1), (3, 8), (29, 30), (0, 30)):
        assert (here.read(key, start, stop) == fields[start:stop]).all()
    assert here.pairs(key)["inliers"].tolist() == list(range(30))
    assert here.verify(key) == local.verify(key)
    assert not (tmp_path / "empty").exists()
    with pytest.raises(DamagedArtifact, match=rf"there is no flow {OTHER} in .* or {store.url}"):
        here.read(OTHER, 0, 1)


def test_a_place_without_the_marker_is_no_store(url: str, tmp_path: Path) -> None:
    reader = SharedStore(url)
    for _ in range(2):
        with pytest.raises(OSError, match=r"is no shared store: it has no wherewhen\.json; mount it"):
            reader.has("flow", KEY)
    assert not SharedStore(url, writable=True).has("flow", KEY)  # makes it
    assert not reader.has("flow", KEY)


def test_only_the_last_folder_is_made(tmp_path: Path) -> None:
    store = SharedStore(str(tmp_path / "mount" / "team"), writable=True)
    with pytest.raises(OSError, match="mount"):
        store.has("flow", KEY)
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "wherewhen.json").write_text('{"format":2,"project":"wherewhen"}\n')
    with pytest.raises(OSError, match="not of this version"):
        SharedStore(str(tmp_path)).has("flow", KEY)


def test_a_server_that_fails_is_not_one_that_has_nothing(tmp_path: Path) -> None:
    SharedStore(str(tmp_path / "broken"), writable=True).has("flow", KEY)
    SharedStore(str(tmp_path / "store"), writable=True).has("flow", KEY)
    with web_server(tmp_path) as address:
        with pytest.raises(OSError, match="cannot be used .*503"):
            SharedStore(f"{address}/broken").has("flow", KEY)
        with pytest.raises(OSError, match="is no shared store"):
            SharedStore(f"{address}/elsewhere").has("flow", KEY)
        store = SharedStore(f"{address}/store")
        assert not store.has("flow", KEY)
        with pytest.raises(OSError, match="a web server does not list"):
            list(store.keys("flow"))
    with pytest.raises(OSError, match="cannot be used"):
        store.has("flow", KEY)  # it is gone
    with pytest.raises(OSError, match="cannot be used"), store.local("flow", KEY, folder=tmp_path):
        pass


def test_a_bucket_or_a_server_that_is_not_there_is_an_error(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="no-such-bucket"):
        SharedStore("s3://no-such-bucket/x", writable=True).has("flow", KEY)
    with pytest.raises(OSError, match="no-such-bucket"):
        SharedStore("s3://no-such-bucket/x").has("flow", KEY)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="cannot be used .*127.0.0.1:9"):
        SharedStore(s3_url).has("flow", KEY)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("ftp://host/x", "begins with ftp://; a folder, s3:// and http"),
        ("s3://user:password@bucket/x", "holds a user or password"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("file://host/x", "no folder of this machine"),
        ("file:x", "no folder of this machine"),
        ("file:///x?y", "has a . or #"),
        ("file:///x#y", "has a . or #"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SharedStore(url)


def test_a_web_server_is_not_written_to_and_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="cannot be written to, only read"):
        SharedStore("https://host/x", writable=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the library s3fs; pip install 'wherewhen\[s3\]'"):
        SharedStore("s3://bucket/x")


@pytest.mark.parametrize("key", ["../../x", "", "AB" * 16, "ab" * 15, "ab" * 17])
def test_what_is_no_key_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no artifact key"):
        SharedStore(str(tmp_path), writable=True).has("flow", key)


def test_other_stages_have_no_place() -> None:
    assert (kind_of("warped_flow"), kind_of("frames")) == ("flow", "frames")
    with pytest.raises(ValueError, match="are not shared"):
        kind_of("probe")


WRITER = """
import sys
from pathlib import Path
from pipeline.stores.shared import SharedStore
url, letter, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
store = SharedStore(url, writable=True)
content = letter.encode() * 1_000_000
print("ready", flush=True)
for number in range(int(sys.argv[4])):
    key = f"{number:032x}"
    if not store.has("flow", key):
        with store.incoming("flow", key, folder=folder) as path:
            path.write_bytes(content)
"""


def writer(url: str, letter: str, folder: Path, *, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, url, letter, str(folder), str(count)]
    root = Path(__file__).parents[3]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


def is_whole(content: bytes) -> bool:
    return content in (b"a" * 1_000_000, b"b" * 1_000_000)


def test_a_reader_sees_whole_objects_while_two_write_the_same_keys(
    store: SharedStore, url: str, tmp_path: Path
) -> None:
    count = 25
    both = [writer(url, letter, tmp_path, count=count) for letter in "ab"]
    reader, seen = SharedStore(url, writable=True), 0
    for process in both:
        assert process.stdout is not None
        process.stdout.readline()
    while any(process.poll() is None for process in both):
        for key, size in reader.keys("flow"):
            assert size == 1_000_000
            assert is_whole(everything(reader, key))
            seen += 1
    assert [process.wait() for process in both] == [0, 0]
    found = {key: everything(store, key) for key, _ in store.keys("flow")}
    assert len(found) == count
    assert all(map(is_whole, found.values()))
    assert seen > 0
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("moment", [0.002, 0.01, 0.03, 0.08])
def test_a_killed_writer_leaves_whole_objects_and_temporary_names(
    moment: float, store: SharedStore, url: str, tmp_path: Path
) -> None:
    process = writer(url, "a", tmp_path, count=3000)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(moment)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    for key, size in store.keys("flow"):
        assert size == 1_000_000
        assert is_whole(everything(store, key))
    if url == str(tmp_path / "shared"):
        files = [path for path in (tmp_path / "shared").rglob("*") if path.is_file()]
        published = {f"{key}.zip" for key, _ in store.keys("flow")}
        assert all(path.name in published | {"wherewhen.json"} or path.name.startswith(".tmp-") for path in files)
    again = writer(url, "b", tmp_path, count=5)
    again.communicate()
    assert again.returncode == 0
    assert len(list(store.keys("flow"))) >= 5


def modes(root: Path) -> set[int]:
    return {path.stat().st_mode & 0o7777 for path in [root, *root.rglob("*")] if path.is_dir()}


def test_who_may_write_in_the_root_may_write_below_it(tmp_path: Path) -> None:
    root = tmp_path / "shared"
    root.mkdir()
    root.chmod(0o2775)
    put(SharedStore(str(root), writable=True), KEY, b"x", tmp_path)
    assert (root / "flow" / KEY[:2] / f"{KEY}.zip").is_file()
    assert modes(root) == {0o2775}
    assert not list(root.rglob(".tmp-*"))


@pytest.mark.parametrize("mounted", [True, False], ids=["empty mount point", "nothing"])
def test_a_store_that_vanishes_is_not_one_that_has_nothing(mounted: bool, tmp_path: Path) -> None:
    root = tmp_path / "shared"
    store = SharedStore(str(root), writable=True)
    put(store, KEY, b"x", tmp_path)
    root.rename(tmp_path / "unmounted")
    if mounted:
        root.mkdir()
    with pytest.raises(OSError, match="has gone"):
        store.has("flow", KEY)
    with pytest.raises(OSError, match="has gone"):
        store.read("flow", KEY, 0, 1)
    with pytest.raises(OSError, match="has gone"):
        list(store.keys("flow"))
    with pytest.raises(OSError, match="has gone"):
        put(store, OTHER, b"y", tmp_path)
    assert root.exists() == mounted
    assert not list(root.glob("*"))


def test_a_stray_file_is_no_object(tmp_path: Path) -> None:
    store = SharedStore(str(tmp_path / "shared"), writable=True)
    put(store, KEY, b"x", tmp_path)
    (tmp_path / "shared/flow/.DS_Store").write_bytes(b"")
    (tmp_path / "shared/flow/xy").write_bytes(b"")
    assert list(store.keys("flow")) == [(KEY, 1)]


def test_a_file_address_may_have_escapes(tmp_path: Path) -> None:
    put(SharedStore(f"file://{tmp_path}/a%20b", writable=True), KEY, b"x", tmp_path)
    assert SharedStore(str(tmp_path / "a b")).has("flow", KEY)


ARRAY = artifact_key("flow", {}, "0" * 32)


def array_archive(folder: Path, *, count: int, size: tuple[int, int]) -> SharedStore:
    """A shared store with one array of noise."""
    fields = np.random.default_rng(0).integers(0, 256, (count, 2, *size), np.uint8)
    arrays = FlowStore(folder / "arrays")
    own = {**made_by("flow"), "parameters": {}, "source_digest": "0" * 32}
    arrays.write(ARRAY, iter(fields), describe=lambda count: own)
    store = SharedStore(str(folder / "shared"), writable=True)
    with store.incoming("flow", ARRAY, folder=folder) as path:
        arrays.pack(ARRAY, path)
    return store


def test_opening_in_place_costs_one_read_and_keeps_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = array_archive(tmp_path, count=8, size=(64, 128))
    assert (store.size("flow", ARRAY) or 0) > TAIL_BYTES
    reads: list[int] = []
    read = store.read

    def counted(kind: Any, key: str, start: int, stop: int) -> bytes:
        reads.append(stop - start)
        return read(kind, key, start, stop)

    monkeypatch.setattr(store, "read", counted)
    arrays = FlowStore(tmp_path / "empty", shared=store)
    arrays.attributes(ARRAY)
    assert reads == [TAIL_BYTES]
    arrays.read(ARRAY, 0, 1)  # its index was in what has been read
    assert len(reads) == 2
    opened = arrays._arrays[ARRAY].files
    assert isinstance(opened, ArrayArchive)
    assert opened._tail[1] == b""


def test_a_network_error_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = array_archive(tmp_path, count=8, size=(64, 128))
    read = store.read

    def failing(kind: Any, key: str, start: int, stop: int) -> bytes:
        if stop == store.size("flow", ARRAY) and start == stop - 8:
            return read(kind, key, start, stop)
        raise OSError("the network is down")

    monkeypatch.setattr("pipeline.stores.members.TAIL_BYTES", 8)  # so that the directory is not in what is read at once
    monkeypatch.setattr(store, "read", failing)
    with pytest.raises(OSError, match="the network is down"):
        FlowStore(tmp_path / "empty", shared=store).attributes(ARRAY)
