"""Jobs on one shard as the workflow starts them, without the workflow: real processes, each told what it needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.config import FlowConfig, FramesConfig, StoreConfig
from tests.workflow.project import environment

PARAMS = {
    "frames": FramesConfig(size=(96, 72)).model_dump_json(by_alias=True),
    "flow": FlowConfig(size=(96, 72), nscales=2, warps=1, outer_iterations=2).model_dump_json(by_alias=True),
}
VIDEOS = 6


def job(
    stage: str, given: Path, work: Path, *, store: Path | None = None, sharing: StoreConfig | None = None
) -> list[str]:
    """The command of a stage on the shard ``7``.

    Args:
        stage: probe, frames or flow.
        given: the plan's list for probing, else the receipt of that.
        work: folder of the receipts, and of the store unless it is told.
        store: folder.
        sharing: the team's store.
    """
    command = [sys.executable, "-m", f"stages.{stage}", "--shard", str(given)]
    command += ["--store", str(store or work / stage), "--receipt", str(receipt(work, stage))]
    if stage in PARAMS:
        command += ["--params", PARAMS[stage], "--sharing", (sharing or StoreConfig()).model_dump_json()]
    return command


def receipt(work: Path, stage: str) -> Path:
    """Where a job leaves its receipt."""
    return work / f"receipts/{stage}/7.json"


def start(command: list[str], root: Path) -> subprocess.Popen[str]:
    """Begin a job."""
    return subprocess.Popen(command, cwd=root, env=environment(), stderr=subprocess.PIPE, text=True)


def run(command: list[str], root: Path) -> subprocess.CompletedProcess[str]:
    """A job from begin to end."""
    return subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True, check=False)


def content(folder: Path) -> dict[str, bytes]:
    """Every file by path, temporary ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
