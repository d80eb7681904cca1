"""Divisions of a data set: everything once, and as uneven as they say."""

import numpy as np
import pytest

from jaxkd.data import build_proxy, partition

LABELS = np.random.default_rng(0).permutation(np.arange(1000) % 10)


@pytest.mark.parametrize("kind", ["strong", "weak", "dirichlet", "iid"])
def test_every_example_goes_to_one_client_and_seeds_repeat(kind):
    parts = partition(LABELS, 10, kind, seed=3)
    assert len(parts) == 10
    assert sorted(np.concatenate(parts)) == list(range(1000))
    again = partition(LABELS, 10, kind, seed=3)
    other = partition(LABELS, 10, kind, seed=4)
    assert all(map(np.array_equal, parts, again))
    assert not all(map(np.array_equal, parts, other))


@pytest.mark.parametrize(
    ("kind", "clients", "held"), [("strong", 10, 1), ("strong", 20, 1), ("weak", 10, 3)]
)
def test_clients_hold_some_classes_evenly(kind, clients, held):
    parts = partition(LABELS, clients, kind, classes_per_client=3)
    classes = [np.unique(LABELS[part]) for part in parts]
    assert {len(c) for c in classes} == {held}
    holders = np.bincount(np.concatenate(classes), minlength=10)
    assert (holders == clients * held // 10).all()
    assert max(map(len, parts)) - min(map(len, parts)) <= held


def test_iid_clients_hold_all_classes():
    parts = partition(LABELS, 10, "iid")
    assert {len(part) for part in parts} == {100}
    assert all(len(np.unique(LABELS[part])) == 10 for part in parts)


def test_dirichlet_is_the_more_uneven_the_smaller_its_concentration():
    def spread(concentration):
        parts = partition(LABELS, 10, "dirichlet", concentration=concentration)
        counts = [np.bincount(LABELS[part], minlength=10) for part in parts]
        return np.std(counts)

    assert spread(0.5) > 2 * spread(100.0)


@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_divisions_are_refused():
    with pytest.raises(ValueError, match="unknown kind of partition 'week': did you"):
        partition(LABELS, 10, "week")
    for labels in (np.eye(3, dtype=int), np.array([0.0, 1.0])):
        with pytest.raises(ValueError, match=r"labels are .*: give class indices"):
            partition(labels, 2, "iid")
    with pytest.raises(ValueError, match="clients must be at least 1, got 0"):
        partition(LABELS, 0, "iid")
    with pytest.raises(ValueError, match="4 clients of 1 classes each cannot hold"):
        partition(LABELS, 4, "strong")
    with pytest.raises(ValueError, match="10 clients of 11 classes each cannot hold"):
        partition(LABELS, 10, "weak", classes_per_client=11)
    with pytest.raises(ValueError, match="concentration must be above 0, got 0"):
        partition(LABELS, 10, "dirichlet", concentration=0.0)
    with pytest.raises(ValueError, match="client 3 of 5 gets none of 3 examples"):
        partition(LABELS[:3], 5, "iid")


def test_proxies_are_a_share_of_every_clients_examples():
    parts = partition(LABELS, 10, "weak")
    proxies, owner = build_proxy(parts, 0.2, seed=1)
    assert len(np.unique(proxies)) == len(proxies) == len(owner)
    for client, part in enumerate(parts):
        mine = proxies[owner == client]
        assert np.isin(mine, part).all()
        assert len(mine) == round(0.2 * len(part))
    # A client's choice does not depend on the others.
    alone, _ = build_proxy(parts[:1], 0.2, seed=1)
    np.testing.assert_array_equal(alone, proxies[owner == 0])
    # However small its data, a client gives one.
    assert build_proxy([np.array([7])], 0.1)[0].tolist() == [7]
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got 0"):
        build_proxy(parts, 0.0)
