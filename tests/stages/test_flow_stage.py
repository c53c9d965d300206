"""The flow stages keep to the one core that the workflow counts on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import cv2
import pytest

from stages import flow, warped_flow


@pytest.fixture
def threads() -> Iterator[int]:
    """OpenCV with several threads."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    yield cv2.getNumThreads()
    cv2.setNumThreads(before)


@pytest.mark.parametrize("stage", [flow, warped_flow], ids=["flow", "warped_flow"])
def test_opencv_gets_one_thread(stage: ModuleType, threads: int, tmp_path: Path) -> None:
    """Also where the work fails at once, for want of the receipt to go by."""
    assert threads == 3
    absent, store = str(tmp_path / "absent.json"), str(tmp_path / "store")
    with pytest.raises(SystemExit):
        stage.main(["--shard", absent, "--store", store, "--params", "{}", "--receipt", str(tmp_path / "out.json")])
    assert cv2.getNumThreads() == 1
