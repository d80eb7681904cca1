"""Prefetched batches: placed ahead, and a state that knows only what was returned."""

import numpy as np
import pytest

from jaxkd import data

ARRAYS = {
    "image": np.arange(24, dtype=np.float32).reshape(12, 1, 1, 2),
    "label": np.arange(12, dtype=np.int32) % 3,
}
SOURCE = data.Source("toy", ARRAYS, 3)


def iterator():
    return iter(data.batches(SOURCE, 4, epochs=2, seed=1))


def indices(batches):
    return [batch["index"].tolist() for batch in batches]


@pytest.mark.parametrize("size", [1, 2, 3, 10])
def test_every_batch_is_placed_once_in_order_and_at_most_size_ahead(size):
    placed = []

    def place(batch):
        placed.append(batch["index"].tolist())
        return {**batch, "placed": len(placed)}

    ahead = []
    returned = []
    for batch in data.Prefetch(iterator(), place, size):
        returned.append(batch["index"].tolist())
        assert batch["placed"] == len(returned)
        ahead.append(len(placed) - len(returned))
    assert returned == placed == indices(iterator())
    assert ahead == [min(size - 1, 6 - n) for n in range(1, 7)]


def test_it_stays_at_its_end():
    prefetch = data.Prefetch(iterator(), lambda batch: batch)
    assert len(list(prefetch)) == 6
    with pytest.raises(StopIteration):
        next(prefetch)


@pytest.mark.parametrize("position", range(7))
def test_the_state_is_that_of_the_batch_returned_last(position):
    plain, prefetch = iterator(), data.Prefetch(iterator(), lambda batch: batch, 3)
    for _ in range(position):
        next(plain), next(prefetch)
    assert prefetch.get_state() == plain.get_state()
    fresh = data.Prefetch(iterator(), lambda batch: batch, 3)
    fresh.set_state(prefetch.get_state())
    assert fresh.get_state() == plain.get_state()
    rest = indices(plain)
    assert indices(fresh) == indices(prefetch) == rest
    assert len(rest) == 6 - position


def test_a_state_set_in_the_middle_drops_what_was_read_ahead():
    prefetch = data.Prefetch(iterator(), lambda batch: batch, 3)
    start = prefetch.get_state()
    first = [next(prefetch)["index"].tolist() for _ in range(3)]
    prefetch.set_state(start)
    assert indices(prefetch)[:3] == first


def test_a_failed_read_ahead_does_not_move_the_state():
    def place(batch):
        if batch["index"].tolist() == indices(iterator())[2]:
            raise ValueError("batch['image'] holds 1 values that are not finite")
        return batch

    plain, prefetch = iterator(), data.Prefetch(iterator(), place)
    next(plain), next(prefetch)
    with pytest.raises(ValueError, match="not finite"):
        next(prefetch)
    assert prefetch.get_state() == plain.get_state()


def test_no_batch_ahead_is_refused():
    with pytest.raises(ValueError, match="size must be at least 1 batch, got 0"):
        data.Prefetch(iterator(), lambda batch: batch, 0)
