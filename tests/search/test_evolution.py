"""Searches: what they find, keep, count and refuse; ranks and spaces."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.search import (
    ChoiceSpace,
    random_search,
    rank_consistency,
    rank_sum,
    regularized_evolution,
)

SPACE = ChoiceSpace((0, 1, 2, 3, 4), 6)


def evolve(score=sum, seed=0, **arguments):
    given = {"population": 10, "tournament": 4, "budget": 150, **arguments}
    return regularized_evolution(
        jax.random.key(seed), SPACE.random, SPACE.mutate, score, **given
    )


def test_evolution_climbs_where_random_search_does_not():
    evolved = [evolve(seed=seed).best.score for seed in range(10)]
    drawn = [
        random_search(jax.random.key(seed), SPACE.random, sum, budget=150).best.score
        for seed in range(10)
    ]
    assert np.mean(evolved) > 23
    assert np.mean(evolved) > np.mean(drawn) + 1


def test_the_key_decides_and_nothing_else():
    assert evolve(seed=3) == evolve(seed=3)
    assert evolve(seed=3) != evolve(seed=4)


def test_the_budget_is_the_number_of_scores():
    scored = []

    def score(architecture):
        scored.append(architecture)
        return sum(architecture)

    result = evolve(score, budget=37)
    assert [e.architecture for e in result.history] == scored
    assert len(scored) == 37
    assert result.best.score == max(e.score for e in result.history)
    top = [e.score for e in result.top(3)]
    assert top == sorted((e.score for e in result.history), reverse=True)[:3]


def test_children_are_neighbours_of_a_parent_that_is_alive():
    history = [e.architecture for e in evolve(budget=60).history]
    for i in range(10, 60):
        distances = [
            sum(a != b for a, b in zip(history[i], parent, strict=True))
            for parent in history[i - 10 : i]
        ]
        assert min(distances) <= 1


def test_the_oldest_dies_even_if_it_is_the_best():
    """A score that falls with time: without ageing the first would stay parent."""
    parents = []

    def mutate(rng, parent):
        parents.append(parent)
        return parent + 1000

    counter = iter(range(10**6))
    result = regularized_evolution(
        jax.random.key(0),
        lambda rng: next(counter),
        mutate,
        lambda architecture: -len(parents),
        population=5,
        tournament=5,
        budget=30,
    )
    assert result.best.architecture < 5
    assert min(parents[-5:]) >= 1000


def test_a_tournament_of_one_is_a_random_walk_and_a_large_one_greedy():
    def gain(tournament):
        return np.mean(
            [evolve(seed=s, tournament=tournament).best.score for s in range(5)]
        )

    assert gain(10) > gain(1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(6, 20))
def test_the_constraint_holds_for_all(seed, limit):
    result = evolve(seed=seed, budget=40, constraint=lambda a: sum(a) <= limit)
    assert all(e.score <= limit for e in result.history)
    # The space allows the limit, and the search gets near it.
    assert result.best.score >= min(limit, 24) - 6


def test_random_search_draws_no_architecture_twice():
    small = ChoiceSpace((1, 3), 3)
    result = random_search(jax.random.key(0), small.random, sum, budget=8)
    assert sorted(e.architecture for e in result.history) == small.architectures()
    assert result.best.architecture == (3, 3, 3)
    with pytest.raises(RuntimeError, match="lower the budget where the space is small"):
        random_search(jax.random.key(0), small.random, sum, budget=9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tournament": 11}, r"tournament must be 1 to population \(10\), got 11"),
        ({"tournament": 0}, "got 0"),
        ({"budget": 9}, r"budget must be at least population \(10\), got 9"),
    ],
)
def test_impossible_searches_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        evolve(**arguments)
    with pytest.raises(RuntimeError, match="refused 1000 architectures in a row"):
        evolve(constraint=lambda architecture: False)
    with pytest.raises(ValueError, match="budget must be at least 1"):
        random_search(jax.random.key(0), SPACE.random, sum, budget=0)


def test_the_depth_space_is_the_papers():
    found = ChoiceSpace((1, 3, 5, 7), 3).architectures()
    assert len(found) == len(set(found)) == 64
    assert found[0] == (1, 1, 1)
    assert found[1] == (1, 1, 3)
    assert len(SPACE.architectures()) == 15_625


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31))
def test_a_mutation_changes_one_position(seed):
    rng = np.random.default_rng(seed)
    before = SPACE.random(rng)
    after = SPACE.mutate(rng, before)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
    assert set(after) <= set(SPACE.choices)


def test_a_space_needs_choices():
    with pytest.raises(ValueError, match="at least 2 choices"):
        ChoiceSpace((1, 1), 3)
    with pytest.raises(ValueError, match="1 position"):
        ChoiceSpace((1, 2), 0)


def test_rank_consistency_of_known_orders():
    found = rank_consistency([1, 2, 3, 4], [10, 20, 30, 45])
    assert found["kendall"] == found["spearman"] == 1
    assert 0.9 < found["pearson"] < 1
    # One of six pairs is the wrong way round.
    one = rank_consistency([1, 2, 4, 3], [1, 2, 3, 4])
    assert math.isclose(one["kendall"], 4 / 6)
    assert math.isclose(one["spearman"], 0.8)
    worst = rank_consistency([4, 3, 2, 1], [1, 2, 3, 4])
    assert all(math.isclose(value, -1) for value in worst.values())
    assert all(map(math.isnan, rank_consistency([1, 1], [1, 2]).values()))


def test_the_published_accuracies_agree_as_published(load_golden):
    golden = load_golden("20-diswot")
    found = rank_consistency(golden["s1_acc_vanilla"], golden["s1_acc_kd"])
    assert round(found["kendall"], 3) == 0.836
    assert round(found["spearman"], 3) == 0.957
    space = ChoiceSpace((1, 3, 5, 7), 3).architectures()
    assert [tuple(d) for d in golden["s1_depths"].tolist()] == space


def test_rank_sum_weighs_scores_alike():
    large, small = [1e6, 3e6, 2e6], [3e-6, 1e-6, 2e-6]
    assert rank_sum(large, small).tolist() == [4, 4, 4]
    assert rank_sum(large, large).tolist() == [2, 6, 4]
    assert rank_sum([1, 1, 0]).tolist() == [2.5, 2.5, 1]


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="holds 3 values and accuracies 2"):
        rank_consistency([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="at least 2 architectures"):
        rank_consistency([1], [1])
    with pytest.raises(ValueError, match=r"scores hold \[2, 3\] values"):
        rank_sum([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match=r"scores hold \[\] values"):
        rank_sum()


def test_positions_are_those_of_the_enumeration():
    architectures = SPACE.architectures()
    for position in (0, 1, 7, 4321, 15_624):
        assert SPACE.position(architectures[position]) == position
