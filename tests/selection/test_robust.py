"""RAD: the closed form against a linear program, its laws, draws, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.rad.game import game_value
from jaxkd import selection
from jaxkd.selection import Asked, Pool

KEY = jax.random.key(0)


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_the_closed_form_is_the_linear_programs_optimum(penalty, x64):
    rng = np.random.default_rng(0)
    for case in range(8):
        gains = rng.random(14)
        gains = jnp.asarray(np.round(gains, 1) + 0.05 if case % 2 else gains)
        for mistakes in (0, 1, 5, 13):
            found = selection.rad_distribution(gains, mistakes, penalty=penalty)
            right = game_value(np.asarray(gains), mistakes, penalty)
            # Where a penalty leaves nothing to gain, p is the best of its form alone.
            if right > 0:
                assert float(found.value) == pytest.approx(right, abs=1e-8)
            assert float(found.p.sum()) == pytest.approx(1, abs=1e-12)


def test_laws_of_the_game():
    gains = jnp.asarray(np.random.default_rng(0).random(40), jnp.float32)
    before = None
    for mistakes in (0, 1, 3, 8, 20, 39):
        found = selection.rad_distribution(gains, mistakes)
        k, value = int(found.support), float(found.value)
        assert (found.p > 0).sum() == k > mistakes
        # All p·g of the support are equal: the adversary is indifferent.
        worth = (found.p * gains)[found.p > 0]
        np.testing.assert_allclose(worth, worth[0], rtol=1e-5)
        uniform = selection.worst_case_value(jnp.full(40, 1 / 40), gains, mistakes)
        assert value >= float(uniform) - 1e-6
        if before is not None:
            assert k >= before[0]
            assert value <= before[1]
        before = k, value


def test_without_mistakes_it_is_greedy_and_equal_gains_are_uniform():
    gains = jnp.array([0.2, 0.9, 0.5])
    found = selection.rad_distribution(gains, 0)
    assert found.p.tolist() == [0, 1, 0]
    assert float(found.value) == pytest.approx(0.9)
    greedy = selection.rad_distribution(gains, 0, min_support=2)
    np.testing.assert_allclose(greedy.p, [0, 5 / 14, 9 / 14], rtol=1e-6)
    for n in (5, 1000):
        same = selection.rad_distribution(jnp.full(n, 0.3), 2)
        np.testing.assert_allclose(same.p, 1 / n, rtol=1e-5)
        assert selection.rad_distribution(jnp.full(n, 0.3), 0).support == 1


def test_what_is_worth_nothing_has_no_chance_unless_it_must():
    gains = jnp.array([0.0, 0.5, 0.4, 1e-8])
    for mistakes in (0, 1):
        found = selection.rad_distribution(gains, mistakes)
        assert found.p[0] == found.p[3] == 0
    forced = selection.rad_distribution(gains, 2)
    np.testing.assert_allclose(forced.p.sum(), 1, rtol=1e-6)
    assert forced.p[3] > forced.p[1] > 0
    nothing = selection.rad_distribution(jnp.zeros(4), 1)
    np.testing.assert_allclose(nothing.p, 0.25)
    assert nothing.value == 0


def test_under_jit_mistakes_may_vary():
    gains = jnp.asarray(np.random.default_rng(0).random(20), jnp.float32)
    run = jax.jit(lambda m: selection.rad_distribution(gains, m).p)
    for mistakes in (0, 7):
        right = selection.rad_distribution(gains, mistakes).p
        np.testing.assert_allclose(run(mistakes), right, rtol=1e-6)


def test_draws_are_those_without_replacement():
    p = jnp.array([0.5, 0.3, 0.2, 0.0])
    keys = jax.random.split(KEY, 20_000)
    draw = jax.vmap(lambda key: selection.sample_without_replacement(key, p, 2))
    picks = np.asarray(draw(keys))
    assert (picks < 3).all()
    assert (picks[:, 0] != picks[:, 1]).all()
    first = np.bincount(picks[:, 0], minlength=4) / len(keys)
    np.testing.assert_allclose(first, p, atol=0.015)
    second = np.bincount(picks[picks[:, 0] == 0, 1], minlength=4)
    np.testing.assert_allclose(second / second.sum(), [0, 0.6, 0.4, 0], atol=0.02)


def test_selection_by_scores_or_the_students_margins():
    rng = np.random.default_rng(0)
    probs = jnp.asarray(rng.dirichlet(np.ones(3), 30), jnp.float32)
    by_probs = selection.rad_select(KEY, Pool(probs), 8, mistakes=5)
    gains = selection.margin_gain(probs)
    by_scores = selection.rad_select(KEY, Pool(scores=gains), 8, mistakes=5)
    assert len(set(by_probs.tolist())) == 8
    assert by_probs.tolist() == by_scores.tolist()
    assert sorted(selection.rad_select(KEY, Pool(probs), 99, mistakes=5)) == list(
        range(30)
    )


def test_mistakes_are_the_validation_error_of_the_pool():
    right = np.array([True, True, False, True])
    assert selection.estimate_mistakes(right, 100) == 25
    assert selection.estimate_mistakes(~right | ~right[::-1], 10) <= 9
    assert selection.estimate_mistakes(np.zeros(3, bool), 10) == 9


def test_a_teacher_is_asked_for_what_was_picked_and_nothing_else():
    calls = []

    def teacher(positions):
        calls.append(positions.tolist())
        return np.eye(3)[positions % 3]

    asked = Asked(np.zeros(0, int), np.zeros((0, 3)), np.array([8, 3, 5, 7]))
    pool = Pool(scores=jnp.array([0.1, 0.9, 0.2, 0.8]))
    asked = selection.ask_teacher(asked, selection.top_select, None, pool, 2, teacher)
    assert calls == [[3, 7]]
    assert asked.positions.tolist() == [3, 7]
    assert asked.unlabelled.tolist() == [8, 5]
    assert asked.targets.tolist() == [[1, 0, 0], [0, 1, 0]]
    with pytest.raises(ValueError, match="pool has 4 examples, but 2 are unlabelled"):
        selection.ask_teacher(asked, selection.top_select, None, pool, 1, teacher)
    with pytest.raises(ValueError, match="q is 3, but 2 unlabelled"):
        selection.ask_teacher(asked, selection.top_select, None, pool, 3, teacher)


G = jnp.array([0.3, 0.2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: selection.rad_distribution(G, 2), "mistakes must be 0 to 1"),
        (lambda: selection.rad_distribution(G, -1), "mistakes must be 0 to 1"),
        (lambda: selection.rad_distribution(-G, 0), "gains must be at least 0"),
        (lambda: selection.rad_distribution(G / 0 * 0, 0), "gains must be at least 0"),
        (lambda: selection.rad_distribution(G, 0, min_support=3), "there are 2 exam"),
        (
            lambda: selection.sample_without_replacement(KEY, jnp.array([0, 1.0]), 2),
            "q is 2, but 1 examples have a chance",
        ),
        (
            lambda: selection.estimate_mistakes(np.zeros(0, bool), 5),
            "teacher_right is empty",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
