"""What tests share: the real data beside the checkout, and state that a test may not leak."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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
