"""What a batch has freed is there for the next."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

BATCHES = """
import resource, sys
import numpy as np
from pipeline.learning.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def batch():
    images = [np.ones((3, 256, 340, 3), np.uint8) for _ in range(16)]
for _ in range(3):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    batch()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_a_process_that_keeps_freed_memory_gets_no_new_pages_for_a_batch() -> None:
    def faults(way: str) -> float:
        command = [sys.executable, "-c", BATCHES, way]
        found = subprocess.run(command, cwd=Path(__file__).parents[3], check=True, capture_output=True, text=True)
        return float(found.stdout)

    kept, handed_back = faults("keep"), faults("hand back")
    if handed_back < 100:
        pytest.skip("this system hands back nothing either")
    assert kept < handed_back / 10
