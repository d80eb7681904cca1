"""Mixtures: deterministic, by weights, every example before any comes again."""

import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd import data


def source(examples, offset=0, name="toy"):
    arrays = {"label": np.zeros(examples, np.int32), "x": offset + np.arange(examples)}
    return data.Source(name, arrays, 1)


SOURCES = {"a": source(5, 0), "b": source(40, 100), "c": source(3, 200)}


def take(iterator, number):
    return [next(iterator) for _ in range(number)]


def drawn(batches):
    """Return (domain, index) of every example in turn."""
    return [
        (int(d), int(i))
        for batch in batches
        for d, i in zip(batch["domain"], batch["index"], strict=True)
    ]


def test_examples_are_those_of_their_source():
    for batch in take(iter(data.mixture_batches(SOURCES, 8, seed=3)), 20):
        for row, (domain, index) in enumerate(drawn([batch])):
            assert batch["x"][row] == [0, 100, 200][domain] + index
        assert batch["domain"].dtype == np.int32


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.integers(1, 7),
    st.integers(0, 99),
    st.data(),
)
def test_every_example_comes_before_any_comes_again(sizes, batch_size, seed, draw):
    sources = {str(i): source(size) for i, size in enumerate(sizes)}
    weights = draw.draw(
        st.lists(st.floats(0.1, 1), min_size=len(sizes), max_size=len(sizes))
    )
    mixture = data.mixture_batches(sources, batch_size, weights=weights, seed=seed)
    found = drawn(take(iter(mixture), 25))
    for domain, size in enumerate(sizes):
        mine = [index for d, index in found if d == domain]
        for start in range(0, len(mine), size):
            epoch = mine[start : start + size]
            assert len(set(epoch)) == len(epoch)


def test_sources_of_one_size_have_their_own_orders():
    alike = {"a": source(40), "b": source(40)}
    found = drawn(take(iter(data.mixture_batches(alike, 20)), 10))
    a, b = ([i for d, i in found if d == domain][:40] for domain in (0, 1))
    assert sorted(a) == sorted(b) == list(range(40))
    assert a != b


def test_domains_come_as_often_as_their_weights():
    weights = np.array([0.5, 0.3, 0.2])
    mixture = data.mixture_batches(SOURCES, 50, weights=2 * weights, seed=0)
    counts = np.bincount([d for d, _ in drawn(take(iter(mixture), 200))], minlength=3)
    error = np.sqrt(weights * (1 - weights) / 10_000)
    assert (np.abs(counts / 10_000 - weights) < 3 * error).all()
    # Without weights, as if all examples were in one source.
    np.testing.assert_allclose(data.mixture_weights(SOURCES), np.array([5, 40, 3]) / 48)
    never = data.mixture_batches(SOURCES, 50, weights=[0.5, 0.0, 0.5])
    assert {d for d, _ in drawn(take(iter(never), 20))} == {0, 2}


def test_the_seed_decides():
    read = lambda seed: drawn(  # noqa: E731
        take(iter(data.mixture_batches(SOURCES, 8, seed=seed)), 5)
    )
    assert read(1) == read(1)
    assert read(1) != read(2)


@pytest.mark.parametrize("position", [0, 1, 7])
def test_iterators_resume_exactly(position):
    whole = take(iter(data.mixture_batches(SOURCES, 8, seed=1)), 12)
    iterator = iter(data.mixture_batches(SOURCES, 8, seed=1))
    take(iterator, position)
    state = json.loads(json.dumps(iterator.get_state()))
    take(iterator, 3)
    fresh = iter(data.mixture_batches(SOURCES, 8, seed=1))
    fresh.set_state(state)
    assert drawn(take(fresh, 12 - position)) == drawn(whole[position:])


def test_weights_change_on_the_way_and_examples_go_on():
    first = iter(data.mixture_batches(SOURCES, 8, weights=[0.0, 1.0, 0.0], seed=1))
    before = drawn(take(first, 3))
    second = iter(data.mixture_batches(SOURCES, 8, weights=[1.0, 3.0, 0.0], seed=1))
    second.set_state(first.get_state())
    after = [example for example in drawn(take(second, 2)) if example[0] == 1]
    assert len(set(before + after)) == len(before) + len(after) > 24


def test_another_mixtures_place_is_refused():
    state = iter(data.mixture_batches(SOURCES, 8, seed=1)).get_state()
    for other in (
        data.mixture_batches(SOURCES, 8, seed=2),
        data.mixture_batches(SOURCES, 4, seed=1),
        data.mixture_batches({**SOURCES, "c": source(4, 200)}, 8, seed=1),
    ):
        with pytest.raises(ValueError, match=r"state is of Mixture\(a \(5 examples"):
            iter(other).set_state(state)


def test_the_processes_parts_join_to_the_whole_batch(monkeypatch):
    whole = take(iter(data.mixture_batches(SOURCES, 8)), 6)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    parts = []
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        parts.append(take(iter(data.mixture_batches(SOURCES, 8)), 6))
    for batch, *shares in zip(whole, *parts, strict=True):
        for name, array in batch.items():
            joined = np.concatenate([share[name] for share in shares])
            np.testing.assert_array_equal(joined, array)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 1.0], "for each of a, b, c"),
        ([1.0, -1.0, 1.0], "at least 0"),
        ([0.0, 0.0, 0.0], "not 0 for all"),
        ([1.0, float("nan"), 1.0], "finite number"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        data.mixture_batches(SOURCES, 8, weights=weights)


def test_bad_mixtures_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="needs sources with examples"):
        data.mixture_batches({}, 8)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        data.mixture_batches(SOURCES, 0)
    windows = data.Windows("text", np.arange(30), 4, 30)
    with pytest.raises(ValueError, match="a mixture needs them alike"):
        next(iter(data.mixture_batches({"a": source(5), "b": windows}, 20)))
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(ValueError, match="a multiple of the 3 processes, got 8"):
        data.mixture_batches(SOURCES, 8)
