"""Selections of a share of a labelled data set: brute force, balance, hard inputs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import selection
from jaxkd.selection import Pool, keep_fraction

KEY = jax.random.key(0)
SCORES = jnp.array([3.0, 1, 3, jnp.nan, 0, jnp.inf])
LABELS = np.array([0, 0, 1, 1, 1, 2])


def test_scores_rank_with_ties_by_position_and_what_is_unknown_last():
    def top(q, **options):
        return selection.top_select(None, Pool(scores=SCORES), q, **options).tolist()

    assert top(9) == [5, 0, 2, 1, 4, 3]
    assert top(3, keep="lowest") == [4, 1, 0]


def test_balance_takes_as_many_of_each_class_as_last():
    pool = Pool(labels=LABELS, scores=SCORES)
    picks = selection.top_select(None, pool, 4, balanced=True)
    assert picks.tolist() == [5, 0, 2, 1]
    counts = np.bincount(LABELS[selection.random_select(KEY, pool, 5, balanced=True)])
    assert counts.tolist() == [2, 2, 1]


@pytest.mark.parametrize(("share", "kept"), [(0.29, 29), (1.0, 100), (0.019, 1)])
def test_a_fraction_is_what_is_kept(share, kept):
    pool = Pool(scores=jnp.arange(100.0)[::-1])
    found = keep_fraction(selection.top_select, None, pool, share)
    assert found.tolist() == list(range(kept))


def test_ccs_drops_the_hardest_and_takes_ranges_alike():
    # Ranges of 20, 6 and 4 examples, and 4 harder ones, one of them infinitely.
    groups = [jnp.full(n, v) for n, v in ((20, 0.0), (6, 1.0), (4, 2.0), (3, 9.0))]
    scores = jnp.concatenate([*groups, jnp.array([jnp.inf])])
    ccs = partial(selection.ccs_select, prune_hard=4 / 34 + 1e-6, bins=3)
    picks = np.asarray(ccs(KEY, Pool(scores=scores), 15))
    ranges = np.digitize(picks, [20, 26, 30])
    assert np.bincount(ranges, minlength=4).tolist() == [6, 5, 4, 0] or (
        np.bincount(ranges, minlength=4).tolist() == [5, 6, 4, 0]
    )
    other = ccs(jax.random.key(1), Pool(scores=scores), 15)
    assert sorted(other.tolist()) != sorted(picks.tolist())
    # Of margins the low ones are the hard ones.
    low = ccs(KEY, Pool(scores=-scores), 15, hard="lowest")
    assert np.sort(np.digitize(low, [20, 26, 30])).tolist() == np.sort(ranges).tolist()
    with pytest.raises(ValueError, match=r"q is 31, but prune_hard .* leaves 30 of 34"):
        ccs(KEY, Pool(scores=scores), 31)


def test_ccs_of_equal_scores_is_random():
    picks = selection.ccs_select(KEY, Pool(scores=jnp.ones(30)), 20)
    assert len(set(picks.tolist())) == 20


def herd(features, count):
    """Return one class's picks by trying every example."""
    picks = []
    for _ in range(count):
        left = [i for i in range(len(features)) if i not in picks]
        off = [
            np.linalg.norm(features.mean(0) - features[[*picks, i]].mean(0))
            for i in left
        ]
        picks.append(left[int(np.argmin(off))])
    return picks


def test_herding_keeps_the_mean_of_every_class_in_turn():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(18, 3)).astype("f4")
    labels = np.array([0, 1] * 7 + [3] * 4)  # class 2 has none
    pool = Pool(features=features, labels=labels)
    picks = np.asarray(selection.herding_select(None, pool, 16))
    assert labels[picks].tolist() == [0, 1, 3] * 4 + [0, 1] * 2
    for value in (0, 1, 3):
        rows = np.flatnonzero(labels == value)
        mine = picks[labels[picks] == value]
        assert mine.tolist() == rows[herd(features[rows], len(mine))].tolist()
    assert len(selection.herding_select(None, pool, 99)) == 18


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: keep_fraction(selection.top_select, None, Pool(scores=SCORES), 0.1),
            "0.1 of 6 examples keeps none",
        ),
        (
            lambda: keep_fraction(selection.top_select, None, Pool(scores=SCORES), 1.5),
            "fraction must be in",
        ),
        (lambda: selection.top_select(None, Pool(), 1), "pool.scores is None"),
        (
            lambda: selection.top_select(None, Pool(scores=SCORES), 1, balanced=True),
            "pool.labels is None",
        ),
        (
            lambda: selection.random_select(KEY, Pool(labels=LABELS, scores=[1]), 1),
            "unequal length",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
