"""The game of robust active distillation as a linear program, to compare with."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.optimize import linprog

from jaxkd.selection import rad_distribution


def game_value(
    gains: Float[np.ndarray, "examples"], mistakes: int, penalty: float = 0.0
) -> float:
    """Return the game's value by a linear program of p, t and u.

    Maximise Σ p·g − (1 + w)·(m·t + Σ u) over p in the simplex, u ≥ 0, u ≥ p·g − t: the
    bracket is then the sum of the m largest p·g.

    Args:
        gains: g.
        mistakes: m.
        penalty: w, what a wrong label costs, times its gain.
    """
    n, cost = len(gains), 1 + penalty
    found = linprog(
        np.concatenate([-gains, [cost * mistakes], np.full(n, cost)]),
        np.concatenate([np.diag(gains), -np.ones((n, 1)), -np.eye(n)], axis=1),
        np.zeros(n),
        np.concatenate([np.ones(n), np.zeros(n + 1)])[None],
        [1.0],
        [(0, None)] * n + [(None, None)] + [(0, None)] * n,
        options={
            "primal_feasibility_tolerance": 1e-10,
            "dual_feasibility_tolerance": 1e-10,
        },
    )
    return -found.fun


def largest_gap(seed: int, games: int = 20, size: int = 30) -> float:
    """Return the largest difference of the closed form and the program, in float64.

    Args:
        seed: of the gains and the mistakes.
        games: random ones.
        size: examples in each.
    """
    rng, gaps = np.random.default_rng(seed), []
    with jax.enable_x64(True):
        for _ in range(games):
            gains, mistakes = rng.random(size), int(rng.integers(size))
            found = rad_distribution(jnp.asarray(gains), mistakes)
            gaps.append(abs(float(found.value) - game_value(gains, mistakes)))
    return max(gaps)
