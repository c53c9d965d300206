"""Where the time of a training step goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch

PARTS = ("data_wait", "cut", "forward", "backward", "update")
"""Of a step: waiting for the loader, cutting views out of its batch, the model and its loss, their gradients with what
of their exchange between processes does not happen meanwhile, and the optimizer."""
Item = TypeVar("Item")


class Clock:
    """Adds up seconds by part of the step.

    On a CUDA device the parts are measured there, by events: the program runs ahead of the device, so its own clock
    would say nothing of it. What counts as waiting then is the time in which the device has nothing to do; copying a
    batch to it belongs to cutting.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._marks: list[tuple[str | None, Any]] = []
        self._seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._last: Any = None
        self.restart()

    def restart(self) -> None:
        """What has passed since the last mark belongs to no part."""
        self._mark(None)

    def mark(self, part: str) -> None:
        """What has passed since the last mark belongs to ``part``."""
        self._mark(part)

    def take(self) -> dict[str, float]:
        """Seconds of each of ``PARTS`` since this was last asked. Waits for the device."""
        if self._on_cuda:
            torch.cuda.synchronize()
            for part, event in self._marks:
                if part is not None:
                    self._seconds[part] += self._last.elapsed_time(event) / 1000
                self._last = event
            self._marks.clear()
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return taken

    def _mark(self, part: str | None) -> None:
        if self._on_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
            self._last = self._last or event
            return
        now = time.perf_counter()
        if part is not None:
            self._seconds[part] += now - self._last
        self._last = now


def clocked(batches: Iterable[Any], clock: Clock | None, *, then: Callable[[Any], Item]) -> Iterator[Item]:
    """What ``then`` makes of each batch; waiting for it and making it are parts of the step."""
    for batch in batches:
        if clock is not None:
            clock.mark("data_wait")
        made = then(batch)
        if clock is not None:
            clock.mark("cut")
        yield made
