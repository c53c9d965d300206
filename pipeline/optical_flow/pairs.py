"""Which frames of a video make pairs."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def check_step(step: int) -> None:
    """Raise ValueError for a step between frames that is not a whole number of 1 or more."""
    if isinstance(step, bool) or not isinstance(step, int) or step < 1:
        raise ValueError(f"the step is {step!r}; it must be a whole number of 1 or more frames")


def spaced_pairs(frames: Iterable[Item], *, step: int = 1, reverse: bool = False) -> Iterator[tuple[Item, Item]]:
    """Every frame with the one `step` later, or the later one first: T frames give T - step pairs, overlapping.

    No more than `step` + 1 frames are held. Raises ValueError for a step below 1.
    """
    check_step(step)
    window: deque[Item] = deque(maxlen=step + 1)
    for frame in frames:
        window.append(frame)
        if len(window) > step:
            yield (window[-1], window[0]) if reverse else (window[0], window[-1])
