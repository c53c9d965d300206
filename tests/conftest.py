"""What tests share: the real data beside the checkout, and state that a test may not leak."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORKER = "PYTEST_XDIST_WORKER"
if WORKER in os.environ:  # the cores are shared with the other workers; torch reads it when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real clips, ground truth and awkward files, which are not part of the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder ../shared/data with real clips is not beside the checkout")
    return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], Any]:
    """Build something costly in one of the processes that share the tests: ``once("name", build)``.

    The first to ask calls ``build`` with the path of a folder to make; the others wait for it. All get what it gave,
    which has to be picklable, and none may change the folder.
    """
    base = tmp_path_factory.getbasetemp()
    common = base.parent if WORKER in os.environ else base

    def build_once(name: str, build: Callable[[Path], Any]) -> Any:
        folder, result = common / name, common / f"{name}.pickle"
        with (common / f"{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not result.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
                result.write_bytes(pickle.dumps(build(folder)))
        return pickle.loads(result.read_bytes())

    return build_once


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of an S3 server with the bucket ``team``."""
    from tests.servers import s3_server

    with s3_server() as address:
        yield address


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of its own on the S3 server, of which this process and its children know."""
    from tests.servers import BUCKET, S3_ENVIRONMENT

    for name, value in {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": s3_endpoint}.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def real_s3_url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of its own on the server that the environment names, of which this process and its children know.

    WHEREWHEN_S3_ENDPOINT is its address, ``http://host:port``; WHEREWHEN_S3_KEY and WHEREWHEN_S3_SECRET are its keys.
    """
    from tests.servers import S3_ENVIRONMENT, real_s3_bucket

    names = ("WHEREWHEN_S3_ENDPOINT", "WHEREWHEN_S3_KEY", "WHEREWHEN_S3_SECRET")
    if lacking := [name for name in names if name not in os.environ]:
        pytest.skip(f"no S3 server is named: {', '.join(lacking)} not set")
    address, key, secret = (os.environ[name] for name in names)
    own = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    for name, value in {**S3_ENVIRONMENT, **own}.items():
        monkeypatch.setenv(name, value)
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(real_s3_bucket(address))
        except OSError as error:
            pytest.skip(f"the S3 server does not answer: {error}")
        yield f"{url}/team"


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that starts alike in every test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def make_clip() -> Callable[..., Path]:
    """Encode a synthetic video with ffmpeg: ``make_clip(path, "testsrc2=size=64x48:rate=25", "-frames:v", "9")``."""
    from pipeline.media import ffmpeg

    def make(path: Path, source: str = "testsrc2=size=64x48:rate=25", *options: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [ffmpeg.binary(), "-nostdin", "-y", "-v", "error", "-f", "lavfi", "-i", source, *options]
        subprocess.run([*command, f"file:{path}"], check=True)
        return path

    return make
