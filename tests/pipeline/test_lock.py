"""The lock on a work folder: one holder at a time, and none after a kill."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.lock import hold

HOLDER = (
    "import sys, time; from pathlib import Path; from pipeline.lock import hold\n"
    "hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)\n"
)


def test_second_holder_is_told_who_holds_it_until_the_first_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "work" / ".lock"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=f"another run holds .*process {process.pid} on"):
        hold(path)
    process.kill()
    process.wait()
    hold(path)
