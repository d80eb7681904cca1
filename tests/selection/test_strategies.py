"""Selections and covers: the authors' picks, brute force, laws and hard inputs."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from jaxkd import selection
from jaxkd.losses import dual_head_log_probs
from jaxkd.selection import Pool

KEY = jax.random.key(0)
P30 = jnp.full((30, 2), 0.5)


def rows(seed, count, features):
    x = np.random.default_rng(seed).normal(size=(count, features))
    return jnp.asarray(x, jnp.float32)


def probs(seed, count, classes=4):
    p = np.random.default_rng(seed).dirichlet(np.ones(classes), count)
    return jnp.asarray(p, jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sel0", "sel1", "sel2"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_authors_picks_in_their_order(load_golden, case, dtype, request):
    if dtype == "float64":
        request.getfixturevalue("x64")
    numbers = load_golden("44-pcoreset")
    g = {k[len(case) + 1 :]: v for k, v in numbers.items() if k.startswith(case)}
    pool, labelled = (
        jnp.exp(
            dual_head_log_probs(
                *(jnp.asarray(g[f"{where}_{head}"], dtype) for head in ("ce", "kd"))
            )
        )
        for where in ("pool", "labeled")
    )
    features = [jnp.asarray(g[f"{w}_feat"], dtype) for w in ("pool", "labeled")]
    known = Pool(pool, features[0], chosen_probs=labelled, chosen_features=features[1])
    q = int(g["n_query"])
    picked = {
        "pcoreset": selection.pcoreset_select(None, known, q),
        "coreset": selection.coreset_select(None, known, q),
        "uncertainty": selection.entropy_select(None, known, q),
    }
    for name, picks in picked.items():
        assert picks.tolist() == g[name].tolist(), name


def greedy(pool, centers, q):
    """Repeat the whole distance matrix for every pick."""
    pool = np.asarray(pool, "f8")
    picks, centers = [], list(np.asarray(centers, "f8"))
    for _ in range(min(q, len(pool))):
        nearest = cdist(pool, centers).min(1)
        nearest[picks] = -np.inf
        picks.append(int(nearest.argmax()))
        centers.append(pool[picks[-1]])
    return picks


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_greedy_is_the_repeated_search_and_within_twice_the_optimum(seed):
    pool, centers, q = rows(seed, 10, 3), rows(seed + 1, 2, 3), 3
    picks = np.asarray(selection.k_center_greedy(pool, centers, q))
    assert picks.tolist() == greedy(pool, centers, q)

    distances = cdist(pool, np.concatenate([centers, pool]))

    def radius(chosen):
        return distances[:, [0, 1, *(2 + i for i in chosen)]].min(1).max()

    best = min(radius(c) for c in combinations(range(10), q))
    assert radius(picks) <= 2 * best + 1e-6
    found = selection.cover_radius(pool, jnp.concatenate([centers, pool[picks]]))
    np.testing.assert_allclose(found, radius(picks), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("block", [1, 3, 8, 100])
def test_blocks_of_centres_change_nothing(block):
    pool, centers = rows(0, 20, 5), rows(1, 8, 5)
    found = selection.min_dist(pool, centers, block)
    np.testing.assert_allclose(found, cdist(pool, centers).min(1), rtol=1e-5)


@pytest.mark.slow
def test_one_centre_is_compared_with_pools_of_every_size():
    # XLA's CPU compiler (jax 0.11.2, 0.12.0) reads memory that nothing wrote in
    # ``jax.jit(lambda p, c: (p @ jnp.broadcast_to(c, (256, 8)).T).min(1))`` with p of
    # 16 to 50 rows, if that is all of a program: hence one for each size.
    pool, center = rows(0, 70, 8), rows(1, 1, 8)
    right = cdist(pool, center)[:, 0]
    for size in range(1, 71):
        found = selection.min_dist(pool[:size], center)
        np.testing.assert_allclose(found, right[:size], rtol=1e-4, err_msg=str(size))


def test_one_labelled_example_is_enough_to_pick_by():
    p, features = probs(0, 34, 9), rows(0, 34, 9)
    right = cdist(p[1:], p[:1])[:, 0]
    known = Pool(p[1:], features[1:], chosen_probs=p[:1], chosen_features=features[:1])
    assert selection.pcoreset_select(None, known, 1) == right.argmax()
    assert selection.coreset_select(None, known, 1) == (
        cdist(features[1:], features[:1], "cosine").argmax()
    )
    radius = selection.cover_radius(p[1:], p[:1])
    np.testing.assert_allclose(radius, right.max(), rtol=1e-4)


def test_points_on_centres_are_picked_once_and_last():
    pool = jnp.array([[0.0, 1], [0, 1], [0, 1], [1, 0]])
    assert selection.k_center_greedy(pool, pool[:1], 9).tolist() == [3, 0, 1, 2]
    assert selection.k_center_greedy(pool, pool[:0], 3).tolist() == [0, 3, 1]
    np.testing.assert_allclose(selection.min_dist(pool, pool[:1])[:3], 0, atol=1e-3)


def test_bf16_points_are_compared_in_float32():
    pool, centers = jnp.asarray(rows(0, 20, 5), jnp.bfloat16), rows(1, 2, 5)
    assert selection.k_center_greedy(pool, centers, 6).tolist() == greedy(
        pool, centers, 6
    )


def test_picks_under_jit_and_vmap():
    pools, centers = jnp.stack([rows(0, 9, 3), rows(1, 9, 3)]), rows(2, 2, 3)
    found = jax.jit(jax.vmap(lambda p: selection.k_center_greedy(p, centers, 4)))(pools)
    assert found.tolist() == [greedy(pool, centers, 4) for pool in pools]
    p, labelled = jnp.stack([probs(0, 9), probs(1, 9)]), probs(2, 2)

    def select(p):
        return selection.pcoreset_select(None, Pool(p, chosen_probs=labelled), 4)

    found = jax.jit(jax.vmap(select))(p)
    assert found.tolist() == [greedy(one, labelled, 4) for one in p]


def test_coreset_forgets_lengths():
    pool, labelled = rows(0, 15, 4), rows(1, 3, 4)
    lengths = 0.1 + jnp.abs(rows(2, 15, 1))
    one, other = (
        selection.coreset_select(None, Pool(features=x, chosen_features=y), 5)
        for x, y in ((pool * lengths, labelled), (pool, 3 * labelled))
    )
    assert one.tolist() == other.tolist()


def test_entropy_prefers_doubt_and_survives_certainty():
    p = jnp.array([[1.0, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])
    assert selection.entropy_select(None, Pool(p), 5).tolist() == [2, 1, 0]


def test_gains_are_shares_of_the_largest_doubt():
    p = jnp.array([[1.0, 0, 0], [0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(selection.margin_gain(p), [0, 0.8, 1], atol=1e-6)
    np.testing.assert_allclose(selection.entropy_gain(p)[::2], [0, 1], atol=1e-6)
    assert selection.margin_select(None, Pool(p), 2).tolist() == [2, 1]


@pytest.mark.slow
def test_cluster_margin_takes_small_clusters_first():
    # Three groups of 20, 6 and 4 points; all are as uncertain but the first ten.
    place = jnp.repeat(jnp.array([0.0, 10.0, 20.0]), jnp.array([20, 6, 4]))
    features = place[:, None] + rows(0, 30, 2) / 100
    margin = jnp.where(jnp.arange(30) < 10, 0.9, 0.1)
    p = jnp.stack([(1 + margin) / 2, (1 - margin) / 2], 1)
    pool = Pool(p, features)
    picks = np.asarray(selection.cluster_margin_select(KEY, pool, 5, ratio=4.0))
    assert picks.min() >= 10
    assert place[picks].tolist() == [20, 10, 0, 20, 10]
    every = selection.cluster_margin_select(KEY, pool, 99)
    assert sorted(every.tolist()) == list(range(30))


def test_random_picks_are_distinct_and_follow_the_key():
    picks = [
        selection.random_select(jax.random.key(k), Pool(P30), 10) for k in (0, 0, 1)
    ]
    assert len(set(picks[0].tolist())) == 10
    assert picks[0].tolist() == picks[1].tolist() != picks[2].tolist()
    assert sorted(selection.random_select(KEY, Pool(P30[:3]), 10).tolist()) == [0, 1, 2]


def balanced(key, probs, labels, q):
    return selection.class_balanced_select(key, Pool(probs, chosen_labels=labels), q)


def class_rows(*classes):
    return jnp.eye(4)[jnp.array(classes)]


def test_class_balance_gives_more_to_classes_with_few_labels():
    # Class 3 is not predicted; 1/(count + 1) of the others: 1/4, 1/2, 1.
    pool = class_rows(*[0] * 20, *[1] * 20, *[2] * 20)
    labels = jnp.array([0, 0, 0, 1, 3])
    picks = np.asarray(balanced(KEY, pool, labels, 14))
    assert np.bincount(pool[picks].argmax(1), minlength=4).tolist() == [2, 4, 8, 0]
    assert len(set(picks.tolist())) == 14
    # 1.14, 2.29 and 4.57 of 8: the one left goes to the largest share.
    eight = np.asarray(balanced(KEY, pool, labels, 8))
    assert np.bincount(pool[eight].argmax(1), minlength=4).tolist() == [1, 2, 5, 0]
    other = balanced(jax.random.key(1), pool, labels, 8)
    assert sorted(other.tolist()) != sorted(eight.tolist())


def test_class_balance_fills_up_at_random():
    pool = class_rows(0, 0, 0, 0, 1)
    picks = balanced(KEY, pool, jnp.array([0, 1]), 4)
    assert 4 in picks.tolist()
    assert len(set(picks.tolist())) == 4


def test_badge_draws_in_proportion_to_squared_distances():
    p, g = probs(0, 6, 3), rows(1, 6, 2)
    error = np.asarray(p) - np.eye(3)[np.argmax(p, 1)]
    gradients = (error[:, :, None] * np.asarray(g)[:, None, :]).reshape(6, -1)
    first = int(np.linalg.norm(gradients, axis=1).argmax())
    squared = cdist(gradients, gradients[[first]])[:, 0] ** 2
    keys = jax.random.split(KEY, 4000)
    picks = np.asarray(
        jax.jit(jax.vmap(lambda key: selection.badge_select(key, Pool(p, g), 3)))(keys)
    )
    assert set(picks[:, 0].tolist()) == {first}
    share = np.bincount(picks[:, 1], minlength=6) / len(keys)
    np.testing.assert_allclose(share, squared / squared.sum(), atol=0.025)
    # The third, given a second, by the distance to the nearer of the two.
    second = int(share.argmax())
    third = picks[picks[:, 1] == second, 2]
    nearest = np.minimum(squared, cdist(gradients, gradients[[second]])[:, 0] ** 2)
    nearest[[first, second]] = 0
    share = np.bincount(third, minlength=6) / len(third)
    np.testing.assert_allclose(share, nearest / nearest.sum(), atol=0.04)


def test_badge_picks_no_example_twice_even_where_all_are_alike():
    certain = class_rows(0, 1, 2, 3, 0)
    picks = selection.badge_select(KEY, Pool(certain, jnp.ones((5, 2))), 9)
    assert sorted(picks.tolist()) == [0, 1, 2, 3, 4]
    same = jnp.tile(probs(0, 1), (5, 1))
    picks = selection.badge_select(KEY, Pool(same, jnp.ones((5, 2))), 4)
    assert len(set(picks.tolist())) == 4


P, F = probs(0, 4), rows(0, 4, 3)


def pcoreset(probs, chosen):
    return selection.pcoreset_select(None, Pool(probs, chosen_probs=chosen), 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: selection.min_dist(F, F[:0]), "centers is empty"),
        (lambda: selection.min_dist(F, P), r"centers has shape \(4, 4\)"),
        (lambda: selection.cover_radius(F[:0], F), "pool is empty"),
        (lambda: selection.k_center_greedy(F, F, 0), "q must be at least 1, got 0"),
        (lambda: selection.k_center_greedy(F[:0], F[:0], 1), "pool is empty"),
        (lambda: pcoreset(2 * P, P), r"pool\.probs must hold prob"),
        (lambda: pcoreset(P, F), r"pool\.chosen_probs must hold prob"),
        (lambda: pcoreset(P, None), r"pool\.chosen_probs is None"),
        (lambda: selection.entropy_select(None, Pool(P), 0), "q must be at least 1"),
        (lambda: selection.entropy_select(None, Pool(P[:0]), 1), "the pool is empty"),
        (lambda: selection.random_select(KEY, Pool(), 1), "pool has no array"),
        (lambda: selection.badge_select(KEY, Pool(P, F[:2]), 1), "'features': 2"),
        (
            lambda: selection.margin_select(None, Pool(P[:, :1] / P[:, :1]), 1),
            "1 class",
        ),
    ],
)
def test_bad_input_is_named(call, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        call()
