"""The order of an epoch: a permutation that everyone can compute, of shards nearly from end to end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.learning.order import derived_seed, epoch_order

SHARDS = [3, 3, 0, 1, 3, 1, 0, 0, 1, 3, 7]


def stream_of(order: list[int], shards: list[int]) -> list[int]:
    """The videos shard by shard, the shards in the order in which ``order`` has them, of a buffer of one."""
    return [video for shard in dict.fromkeys(shards[video] for video in order) for video in in_shard(shard, shards)]


def in_shard(wanted: int, shards: list[int]) -> list[int]:
    return [video for video, shard in enumerate(shards) if shard == wanted]


@given(st.lists(st.integers(0, 5), max_size=60), st.integers(1, 80), st.integers(0, 2**40), st.integers(0, 1000))
def test_every_order_is_a_permutation_near_to_a_stream_of_shards(
    shards: list[int], buffer: int, seed: int, epoch: int
) -> None:
    count = len(shards)
    stream = epoch_order(count, seed=seed, epoch=epoch, shards=shards).tolist()
    assert stream == stream_of(stream, shards)
    order = epoch_order(count, seed=seed, epoch=epoch, shards=shards, buffer=buffer)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))
    places = {video: place for place, video in enumerate(stream)}
    for step, video in enumerate(order.tolist()):
        assert places[video] < step + buffer
    left = set(stream)
    for step, video in enumerate(order.tolist()):  # and from what a buffer would hold at this step
        assert video in left & set(stream[: step + buffer])
        left.remove(video)
    np.testing.assert_array_equal(order, epoch_order(count, seed=seed, epoch=epoch, shards=shards, buffer=buffer))


def test_without_shards_it_is_what_it_always_was() -> None:
    """The generator's own permutation, seeded by seed and epoch."""
    for seed, epoch in ((0, 0), (1, 0), (0, 7)):
        expected = np.random.default_rng(derived_seed(seed, epoch)).permutation(20)
        np.testing.assert_array_equal(epoch_order(20, seed=seed, epoch=epoch), expected)
    assert epoch_order(6, seed=0, epoch=0).tolist() == [0, 1, 5, 3, 2, 4]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    settings = {"shards": SHARDS, "buffer": 3}
    orders = {
        tuple(epoch_order(11, seed=seed, epoch=epoch, **settings))  # type: ignore[arg-type]
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(orders) == 16


def test_a_buffer_of_all_gives_every_order_alike() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for epoch in range(2400):
        order = tuple(epoch_order(4, seed=0, epoch=epoch, shards=[0, 0, 1, 1], buffer=4).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((found - 100) ** 2 / 100 for found in counts.values()) < 52  # chi-square of 23, 0.05%


def test_every_shard_may_come_first() -> None:
    first = {SHARDS[epoch_order(11, seed=0, epoch=epoch, shards=SHARDS)[0]] for epoch in range(60)}
    assert first == set(SHARDS)


def test_what_cannot_be_ordered_is_refused() -> None:
    with pytest.raises(ValueError, match="shards are given of 2 videos, but there are 3"):
        epoch_order(3, seed=0, epoch=0, shards=[0, 1])
    with pytest.raises(ValueError, match="buffer is 0; a shuffle buffer holds at least 1 video"):
        epoch_order(2, seed=0, epoch=0, shards=[0, 1], buffer=0)
