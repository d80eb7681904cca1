"""Searches over architectures by a score: they run on the host and know no network.

An architecture is any value; what is drawn, mutated, scored and allowed are callbacks.
All randomness comes from one key, so the same key gives the same search.
"""

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxkd.arguments import checked, count, finite

ATTEMPTS = 1000
"""Draws in a row that a constraint may refuse before a search gives up."""


@checked(score=finite)
@dataclass(frozen=True)
class Evaluated[A]:
    """An architecture and its score.

    Attributes:
        architecture: as the callbacks know it.
        score: the higher, the better.
    """

    architecture: A
    score: float


@checked()
@dataclass(frozen=True)
class SearchResult[A]:
    """What a search has seen.

    Attributes:
        history: every evaluation, in order.
    """

    history: tuple[Evaluated[A], ...]

    @property
    def best(self) -> Evaluated[A]:
        """Return the first of those with the highest score."""
        return max(self.history, key=lambda evaluated: evaluated.score)

    def top(self, count: int) -> list[Evaluated[A]]:
        """Return the best evaluations, best first, for the choice among a few."""
        return sorted(self.history, key=lambda e: -e.score)[:count]


@checked()
def regularized_evolution[A](
    key: PRNGKeyArray,
    random_arch: Callable[[np.random.Generator], A],
    mutate: Callable[[np.random.Generator, A], A],
    score_fn: Callable[[A], float],
    *,
    population: int = 36,
    tournament: int = 8,
    budget: int = 1000,
    constraint: Callable[[A], bool] | None = None,
) -> SearchResult[A]:
    """Search by aging evolution: the best of a tournament has a child, the oldest dies.

    Real et al. 2019, arXiv:1802.01548, Algorithm 1; the defaults are DisWOT's on
    NAS-Bench-201 (Dong et al. 2023, arXiv:2303.15678). Its code lets one of the five
    worst of the tournament have the child, and bounds only the first population; here
    the parent is the best, and the constraint holds for children too.

    Args:
        key: of all draws.
        random_arch: ``rng -> architecture``, for the first population.
        mutate: ``(rng, architecture) ->`` a neighbour.
        score_fn: ``architecture -> score``, higher is better.
        population: how many live at a time.
        tournament: how many are drawn, with replacement, to compete.
        budget: evaluations in all, the first population's too.
        constraint: ``architecture ->`` whether it may be evaluated.

    Raises:
        ValueError: ``tournament`` is not 1 to ``population``, or ``budget`` is less
            than ``population``.
        RuntimeError: the constraint refused everything that was drawn.
    """
    if not 1 <= tournament <= population:
        raise ValueError(
            f"tournament must be 1 to population ({population}), got {tournament}"
        )
    if budget < population:
        raise ValueError(
            f"budget must be at least population ({population}), got {budget}: the "
            "first population is evaluated too"
        )
    rng = _generator(key)
    history: list[Evaluated[A]] = []
    alive: deque[Evaluated[A]] = deque(maxlen=population)
    while len(history) < budget:
        if len(history) < population:
            child = _allowed(lambda: random_arch(rng), constraint)
        else:
            drawn = [alive[i] for i in rng.integers(population, size=tournament)]
            parent = max(drawn, key=lambda evaluated: evaluated.score).architecture
            child = _allowed(lambda p=parent: mutate(rng, p), constraint)
        history.append(Evaluated(child, float(score_fn(child))))
        alive.append(history[-1])
    return SearchResult(tuple(history))


@checked(budget=count)
def random_search[A: Hashable](
    key: PRNGKeyArray,
    random_arch: Callable[[np.random.Generator], A],
    score_fn: Callable[[A], float],
    *,
    budget: int = 1000,
    constraint: Callable[[A], bool] | None = None,
) -> SearchResult[A]:
    """Search by drawing at random, no architecture twice: the baseline.

    Args:
        key: of all draws.
        random_arch: ``rng -> architecture``.
        score_fn: ``architecture -> score``, higher is better.
        budget: evaluations.
        constraint: ``architecture ->`` whether it may be evaluated.

    Raises:
        ValueError: ``budget`` is less than 1.
        RuntimeError: nothing new was drawn, or the constraint refused everything.
    """
    rng = _generator(key)
    seen: dict[A, float] = {}

    def new(architecture: A) -> bool:
        allowed = constraint is None or constraint(architecture)
        return allowed and architecture not in seen

    while len(seen) < budget:
        drawn = _allowed(lambda: random_arch(rng), new)
        seen[drawn] = float(score_fn(drawn))
    return SearchResult(tuple(Evaluated(*item) for item in seen.items()))


def _generator(key: PRNGKeyArray) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())


def _allowed[A](draw: Callable[[], A], constraint: Callable[[A], bool] | None) -> A:
    for _ in range(ATTEMPTS):
        drawn = draw()
        if constraint is None or constraint(drawn):
            return drawn
    raise RuntimeError(
        f"the constraint refused {ATTEMPTS} architectures in a row, the last of them "
        f"{drawn!r}: loosen it, or lower the budget where the space is small"
    )
