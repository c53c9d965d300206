"""Jobs that hold GPUs are real processes here; only the GPUs are missing."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from pipeline.learning.gpus import visible

CLAIM = "import os, sys; from pipeline.learning.gpus import claim\nclaim(int(sys.argv[1]))\n"
SAY = "print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\n"
HOLD = CLAIM + SAY + "sys.stdin.read()\n"


class Jobs:
    """Processes that claim GPUs in a temporary folder of their own."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.root = folder, root
        self.running: list[subprocess.Popen[str]] = []

    def start(self, count: int, *, named: str | None, code: str = HOLD) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
        environment |= {"TMPDIR": str(self.folder)} | ({} if named is None else {"CUDA_VISIBLE_DEVICES": named})
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", code, str(count)]
        job = subprocess.Popen(
            command, cwd=self.root, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True, process_group=0
        )
        self.running.append(job)
        return job

    def hold(self, count: int, *, named: str | None, code: str = HOLD) -> tuple[subprocess.Popen[str], str]:
        """A job that has claimed, and the GPUs that it was given."""
        job = self.start(count, named=named, code=code)
        return job, line(job.stdout)


@pytest.fixture
def jobs(tmp_path: Path, root: Path) -> Iterator[Jobs]:
    jobs = Jobs(tmp_path, root)
    yield jobs
    for job in jobs.running:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)  # with what it has left behind
        job.communicate()


def line(pipe: IO[str] | None) -> str:
    """The next line that a job says, which must come soon."""
    assert pipe is not None
    assert select.select([pipe], [], [], 60)[0], "the job says nothing"
    return pipe.readline().strip()


def end(job: subprocess.Popen[str]) -> None:
    job.kill()
    job.wait()


@pytest.mark.parametrize(
    ("named", "present", "expected"),
    [
        (None, 3, ["0", "1", "2"]),
        (None, 0, []),
        ("", 3, []),
        ("2,0", 3, ["2", "0"]),
        (" 1 , 3 ", 8, ["1", "3"]),
        ("0,-1,1", 2, ["0"]),
        ("0,,1", 2, ["0"]),
        ("1,1", 2, ["1"]),
        ("GPU-8f0c-11,GPU-9d", 2, ["GPU-8f0c-11", "GPU-9d"]),
        ("MIG-GPU-8f0c/7/0", 2, ["MIG-GPU-8f0c/7/0"]),
        ("none", 2, []),
    ],
)
def test_gpus_are_seen_as_cuda_sees_them(named: str | None, present: int, expected: list[str]) -> None:
    assert visible(named, present=present) == expected


@pytest.mark.parametrize("names", [["0", "1", "2"], ["GPU-a", "GPU-b", "MIG-GPU-c/1/0"]])
def test_jobs_at_once_get_different_gpus(jobs: Jobs, names: list[str]) -> None:
    given = [jobs.hold(1, named=",".join(names))[1] for _ in names]
    assert sorted(given) == sorted(names)


def test_a_job_waits_says_so_once_and_takes_what_a_killed_one_held(jobs: Jobs) -> None:
    first, one = jobs.hold(1, named="4,7")
    _, other = jobs.hold(1, named="4,7")
    assert {one, other} == {"4", "7"}
    third = jobs.start(1, named="4,7")
    assert "waiting for a GPU" in line(third.stderr)
    time.sleep(1.2)  # through a second attempt
    assert third.poll() is None
    end(first)
    assert line(third.stdout) == one
    assert third.communicate()[1] == ""


def test_jobs_that_each_need_both_gpus_take_turns(jobs: Jobs) -> None:
    code = CLAIM + SAY + "import time; time.sleep(0.05)\n"
    several = [jobs.start(2, named="0,1,2", code=code) for _ in range(4)]
    for job in several:
        assert job.communicate(timeout=60)[0].strip() in ("0,1", "0,2", "1,2")


def test_too_few_free_gpus_are_left_to_others(jobs: Jobs) -> None:
    _, one = jobs.hold(1, named="0,1")
    both = jobs.start(2, named="0,1,")
    assert line(both.stdout) == "0,1", "whoever named exactly two meant them for it"
    three = jobs.start(3, named="0,1,2,3")
    assert line(three.stdout) == "1,2,3"
    waits = jobs.start(2, named=f"{one},5,1")
    assert "waiting for 2 GPUs" in line(waits.stderr)
    assert jobs.hold(1, named="0,5")[1] == "5", "the job that waits for two does not hold the one that is free"


def test_what_a_scheduler_names_is_not_locked(jobs: Jobs) -> None:
    assert [jobs.hold(1, named="3")[1] for _ in range(2)] == ["3", "3"]
    assert not list(jobs.folder.iterdir())


@pytest.mark.parametrize(("named", "there"), [("", 0), ("0,1", 2)])
def test_more_gpus_than_there_are_is_an_error(jobs: Jobs, named: str, there: int) -> None:
    job = jobs.start(3, named=named)
    said = job.communicate(timeout=60)[1].strip().splitlines()[-1]
    assert said == (
        f"ValueError: 3 GPUs are asked for, but in CUDA_VISIBLE_DEVICES={named} there are {there}; "
        "set compute.devices to fewer"
    )


def test_a_lock_outlives_exec(jobs: Jobs) -> None:
    again = SAY.replace("print", "import os, sys; print", 1) + "sys.stdin.read()\n"
    code = CLAIM + f"os.execv(sys.executable, [sys.executable, '-c', {again!r}])\n"
    first, given = jobs.hold(1, named="0,1", code=code)
    assert jobs.hold(1, named="0,1")[1] != given
    third = jobs.start(1, named="0,1")
    assert "waiting" in line(third.stderr)
    end(first)
    assert line(third.stdout) == given


@pytest.mark.parametrize("by_exec", [False, True])
def test_a_dead_jobs_children_hold_no_gpu(jobs: Jobs, by_exec: bool) -> None:
    """A loader's process, which is forked, and a program that it started, such as torchrun's workers, live on."""
    children = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
    )
    forked = "" if by_exec else "if os.fork() == 0: time.sleep(60)\n"
    lives_on = children + forked + SAY + "sys.stdin.read()\n"
    start = f"os.execv(sys.executable, [sys.executable, '-c', {lives_on!r}])\n" if by_exec else lives_on
    job, given = jobs.hold(1, named="0,1", code=CLAIM + start)
    jobs.hold(1, named="0,1")
    end(job)
    os.killpg(job.pid, 0)  # its children are there
    assert jobs.hold(1, named="0,1")[1] == given
