"""The lock on a work folder: one holder at a time, and none after a kill."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from pipeline.lock import hold

HOLDER = (
    "import sys, time; from pathlib import Path; from pipeline.lock import hold\n"
    "hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)\n"
)


FORKING = (
    "import os, sys, time; from pathlib import Path; from pipeline.lock import hold\n"
    "hold(Path(sys.argv[1])); child = os.fork()\n"
    "if child: print(child, flush=True)\n"
    "time.sleep(60)\n"
)


def started(program: str, path: Path) -> tuple[subprocess.Popen[bytes], bytes]:
    """A process that runs it, and what it says first."""
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, process.stdout.readline()


def test_second_holder_is_told_who_holds_it_until_the_first_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "work" / ".lock"
    process, told = started(HOLDER, path)
    assert told == b"held\n"
    with pytest.raises(ValueError, match=f"another run holds .*process {process.pid} on"):
        hold(path)
    process.kill()
    process.wait()
    hold(path)


def test_a_forked_child_that_lives_on_holds_nothing(tmp_path: Path) -> None:
    """As a loader's process does for some seconds after a kill."""
    path = tmp_path / "work" / ".lock"
    process, told = started(FORKING, path)
    child = psutil.Process(int(told))
    with pytest.raises(ValueError, match="another run holds"):
        hold(path)
    process.kill()
    process.wait()
    try:
        assert child.is_running()
        hold(path)
    finally:
        child.kill()
