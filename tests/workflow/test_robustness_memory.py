"""The jobs that decode need no more memory for two hours than for a minute. Slow: ``pytest -m slow -k memory``."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import FlowConfig, FramesConfig
from pipeline.dataset.receipts import Receipt
from tests.workflow.project import environment

FPS = 25
MINUTE, TWO_HOURS = 60 * FPS, 7200 * FPS
ALLOWED_MB = 100
PARAMS = {
    "frames": FramesConfig(size=(32, 24)).model_dump_json(by_alias=True),
    "flow": FlowConfig(
        size=(32, 24), nscales=1, warps=1, outer_iterations=1, inner_iterations=1
    ).model_dump_json(by_alias=True),
}  # fmt: skip


def peaks_mb(clip: Path, work: Path, root: Path, *, frames: int) -> dict[str, float]:
    """Largest resident memory of each stage's job on a video, and of the ffmpeg that it starts."""
    work.mkdir()
    digest = hashlib.blake2b(clip.read_bytes(), digest_size=16).hexdigest()
    video = {"id": "a", "path": str(clip), "digest": digest, "bytes": clip.stat().st_size}
    (work / "7.json").write_text(json.dumps([video]))
    peaks = {}
    for stage in ("probe", "frames", "flow"):
        given = work / ("7.json" if stage == "probe" else "receipts/probe/7.json")
        receipt = work / f"receipts/{stage}/7.json"
        command = [sys.executable, "-m", f"stages.{stage}", "--shard", str(given), "--store", str(work / stage)]
        command += ["--receipt", str(receipt), *(["--params", PARAMS[stage]] if stage in PARAMS else [])]
        process = subprocess.Popen(command, cwd=root, env=environment(), stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        expected = frames - 1 if stage == "flow" else frames
        assert Receipt.read(receipt).usable()["a"]["frames"] == expected
        peaks[stage] = usage.ru_maxrss / 1024
    return peaks


@pytest.mark.slow
def test_memory_is_flat_in_the_length_of_the_video(make_clip: Callable[..., Path], root: Path, tmp_path: Path) -> None:
    peaks = {}
    for number, length in enumerate((MINUTE, MINUTE, TWO_HOURS)):  # the first may have to compile the solver
        clip = make_clip(
            tmp_path / f"{length}.avi", f"testsrc2=size=32x24:rate={FPS}", "-frames:v", str(length), "-c:v", "mpeg4"
        )
        peaks[length] = peaks_mb(clip, tmp_path / f"work-{number}", root, frames=length)
    print(f"peak MB: a minute {peaks[MINUTE]}, two hours {peaks[TWO_HOURS]}")
    for stage, peak in peaks[TWO_HOURS].items():
        assert peak <= peaks[MINUTE][stage] + ALLOWED_MB, stage
