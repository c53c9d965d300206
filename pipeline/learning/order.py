"""The order in which an epoch goes through its videos: computed from seed and epoch, so every process knows all of it.

No process can have more of it than another, and an epoch can be gone on with at any step without reading what came
before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def epoch_order(
    count: int, *, seed: int, epoch: int, shards: Sequence[int] | None = None, buffer: int = 1
) -> NDArray[np.int64]:
    """The order of one epoch: any, or one that reads shards nearly from end to end.

    With ``shards`` it is what webdataset's ``shuffle`` makes of shards in random order, the videos of each in the order
    of their numbers: a buffer is filled from this stream, and each video comes at random from the buffer, where the
    next of the stream takes its place. So the video of step t lies in the stream before place t + ``buffer``: reading
    is never further ahead than that. A buffer of 1 is the stream itself, one of ``count`` gives every order alike.

    Args:
        count: number of videos.
        seed, epoch: what the order depends on beside the other arguments.
        shards: number of the shard of each video; None for any order.
        buffer: videos to draw from, at least 1.

    Returns:
        (count,) a permutation of range(count).

    Raises:
        ValueError: ``shards`` are of another number of videos, or ``buffer`` is below 1.
    """
    rng = np.random.default_rng(derived_seed(seed, epoch))
    if shards is None:
        return rng.permutation(count)
    if len(shards) != count:
        raise ValueError(f"shards are given of {len(shards)} videos, but there are {count}; give one for each")
    if buffer < 1:
        raise ValueError(f"buffer is {buffer}; a shuffle buffer holds at least 1 video")
    _, shard_of = np.unique(np.asarray(shards, np.int64), return_inverse=True)
    places = rng.permutation(shard_of.max(initial=-1) + 1)  # of the shards in the stream
    stream = np.argsort(places[shard_of], kind="stable").tolist()
    picks = rng.integers(np.minimum(buffer, count - np.arange(count)))
    for step, pick in enumerate(picks.tolist()):  # the buffer is the part of the stream from ``step`` on
        stream[step], stream[step + pick] = stream[step + pick], stream[step]
    return np.array(stream, np.int64)


def derived_seed(*parts: int | str) -> int:
    """A seed of 64 bits for the draws that ``parts`` name; the same in every process."""
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
