"""Which GPUs of this machine a job takes: none that another job of the same user holds.

Whoever starts jobs says how many may run at once, but not on which GPU: without this, all would take the first. A GPU
is held by an flock on a file of its own, which dies with its process, also after ``kill -9``. Schedulers that give out
GPUs themselves, such as Slurm, are left to it.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

NAMED = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 1.0

_held: list[int] = []  # descriptors; an open one holds its lock


def claim(count: int) -> None:
    """Take ``count`` GPUs for this process until it ends, and set CUDA_VISIBLE_DEVICES to them; wait until there are.

    Call it before CUDA is initialised. What CUDA_VISIBLE_DEVICES names is not locked if it is exactly ``count`` GPUs,
    which whoever set it meant for this job, and a machine's only GPU may be shared. The locks outlive ``os.execv``;
    children do not inherit them.

    Raises:
        ValueError: fewer than ``count`` GPUs are visible.
        OSError: the temporary folder cannot be written to.
    """
    assert count > 0, "a job without a GPU claims none"
    named, gpus = os.environ.get(NAMED), visible_here()
    if len(gpus) < count:
        where = "on this machine" if named is None else f"in {NAMED}={named}"
        raise ValueError(f"{count} GPUs are asked for, but {where} there are {len(gpus)}; set compute.devices to fewer")
    if len(gpus) > count or (named is None and count > 1):
        gpus = _wait(gpus, count=count, folder=Path(tempfile.gettempdir()))
    os.environ[NAMED] = ",".join(gpus)


def visible_here() -> list[str]:
    """The GPUs that CUDA will see in this process, which may not have initialised it."""
    named = os.environ.get(NAMED)
    return visible(named, present=0 if named is not None else _present())


def visible(named: str | None, *, present: int) -> list[str]:
    """The GPUs that CUDA will see, as it counts or names them.

    Args:
        named: value of CUDA_VISIBLE_DEVICES: indices or UUIDs; CUDA stops at the first that is none. None: not set.
        present: number of GPUs that there are, all of which are visible if it is not set.
    """
    if named is None:
        return [str(index) for index in range(present)]
    found: list[str] = []
    for name in (part.strip() for part in named.split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-[\w/-]+", name):
            break
        found += [name] if name not in found else []
    return found


def take(gpus: Sequence[str], *, count: int, folder: Path) -> list[str]:
    """Lock the first ``count`` of ``gpus`` that are free and return them; lock and return none if there are fewer.

    Args:
        gpus: as CUDA_VISIBLE_DEVICES names them. One GPU under two names counts as two.
        folder: of the lock files, common to all jobs of this user on this machine.
    """
    taking = _open(folder, "taking")  # one job at a time, so that two never take half each of what both need
    try:
        fcntl.flock(taking, fcntl.LOCK_EX)
        locks: dict[str, int] = {}
        for gpu in gpus:
            lock = _open(folder, gpu)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            locks[gpu] = lock
            if len(locks) == count:
                break
        if len(locks) < count:
            for lock in locks.values():
                os.close(lock)
            return []
    finally:
        os.close(taking)
    for lock in locks.values():
        os.set_inheritable(lock, True)  # through os.execv; the module subprocess closes it in its children
    _held.extend(locks.values())
    return list(locks)


def _wait(gpus: Sequence[str], *, count: int, folder: Path) -> list[str]:
    """``take`` until there are enough, and say once that this takes time."""
    told = False
    while not (taken := take(gpus, count=count, folder=folder)):
        if not told:
            wanted = "a GPU" if count == 1 else f"{count} GPUs"
            print(f"waiting for {wanted}: other jobs hold too many of {','.join(gpus)}", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS)
    return taken


def _present() -> int:
    """Number of GPUs, without initialising CUDA, after which CUDA_VISIBLE_DEVICES is no longer heard."""
    if files := list(Path("/dev").glob("nvidia[0-9]*")):
        return len(files)
    import torch  # where GPUs have no such files, as in Windows' Linux; late, because it takes seconds

    return torch.cuda.device_count()


def _open(folder: Path, name: str) -> int:
    file = folder / f"wherewhen-gpu-{os.getuid()}-{name.replace('/', '_')}.lock"
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _forget() -> None:
    """In a forked child, as a loader's: it must not hold on to a GPU whose job is dead."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)
