"""Work on many artifacts at once: in threads, or through dask, whose scheduler may be one that is running elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import dask
from dask import threaded

from pipeline.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH = 16
"""Items of one dask task: dask takes about a millisecond for a task of its own."""
BATCHES_A_THREAD = 8
"""Tasks that dask is given at a time; what waits is not in its memory."""
PATIENCE_SECONDS = 15
"""Longest wait for a scheduler."""


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], *, threads: int, label: str, unit: str
) -> list[Result]:
    """Results in the order of the items, with progress. The first error ends it; what has begun is finished."""
    pool = ThreadPoolExecutor(threads)
    try:
        return list(track(pool.map(function, items), total=len(items), label=label, unit=unit))
    finally:
        pool.shutdown(cancel_futures=True)


def through_dask(
    function: Callable[[Sequence[Item]], Result],
    items: Sequence[Item],
    *,
    threads: int,
    scheduler: str | None,
    label: str,
) -> Iterator[Result]:
    """Results of batches of items, in their order, with progress.

    Args:
        function: of a batch; it and the items are pickled if the scheduler is elsewhere.
        items: all of them.
        threads: of this process, without a scheduler.
        scheduler: address of a running one, as ``tcp://host:8786``; its workers need this package and the same paths.
        label: what is being done.

    Raises:
        ValueError: the scheduler does not answer, or distributed is not installed.
    """
    batches = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
    results = _local(function, batches, threads) if scheduler is None else _elsewhere(function, batches, scheduler)
    yield from track(results, total=len(batches), label=label, unit="part")


def _local(
    function: Callable[[Sequence[Item]], Result], batches: list[Sequence[Item]], threads: int
) -> Iterator[Result]:
    window = threads * BATCHES_A_THREAD
    for start in range(0, len(batches), window):
        tasks = [_task(function, batch) for batch in batches[start : start + window]]
        # the function and not its name, for which dask would import distributed where that is installed
        yield from dask.compute(*tasks, scheduler=threaded.get, num_workers=threads)


def _elsewhere(
    function: Callable[[Sequence[Item]], Result], batches: list[Sequence[Item]], address: str
) -> Iterator[Result]:
    try:
        from distributed import Client
    except ImportError:
        raise ValueError("--scheduler needs the library distributed; pip install 'wherewhen[cluster]'") from None
    try:
        client = Client(address, timeout=PATIENCE_SECONDS)
    except (OSError, ValueError) as error:
        raise ValueError(f"no dask scheduler answers at {address} ({error}); start one, or leave it out") from None
    with client:
        window = max(1, sum(client.nthreads().values())) * BATCHES_A_THREAD
        for start in range(0, len(batches), window):
            tasks = [_task(function, batch) for batch in batches[start : start + window]]
            yield from dask.compute(*tasks, scheduler=client)


def _task(function: Callable[[Sequence[Item]], Result], batch: Sequence[Item]) -> object:
    # not as an argument: dask would look into it for tasks
    return dask.delayed(partial(function, batch), pure=False, traverse=False)()
