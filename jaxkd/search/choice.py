"""One variant for each layer, the best within limits: by integer program, or simpler.

Bercovich et al. 2025 (Puzzle), arXiv:2411.19146. Scores are damages that add up; limits
are ``{cost: (least, most)}`` of the costs' sums over layers. A throughput that is to be
reached is a limit of the time: batch · length / throughput.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

from jaxkd.arguments import checked, count, own_check, positive, positive_share
from jaxkd.search.evolution import random_search

Costs = Mapping[str, np.ndarray]
Limits = Mapping[str, tuple[float | int, float | int]]

ROUNDING = 1e-12
"""Share of a limit by which a sum may miss it: float64's rounding, not a byte of TB."""


class BlockChoice(NamedTuple):
    """A variant for each layer.

    Attributes:
        variants: indices, one a layer.
        score: their sum of scores.
        totals: their sums of costs.
    """

    variants: tuple[int, ...]
    score: float
    totals: dict[str, float]


@checked(limits=own_check, alpha=positive_share, seconds=positive)
def choose_blocks(
    scores: Float[np.ndarray, "layers variants"],
    costs: Costs,
    limits: Limits,
    *,
    previous: Sequence[Sequence[int]] = (),
    alpha: float = 0.8,
    seconds: float = 60.0,
) -> BlockChoice | None:
    """Choose the variants of least score within limits, by a mixed-integer program.

    min Σ score·x, x binary, one variant a layer, least ≤ Σ cost·x ≤ most, and for
    diversity Σ x·y ≤ α·layers with each previous choice y.

    Args:
        scores: damages; a variant at NaN or ∞ is not chosen.
        costs: by name, of the scores' shape, or (variants,) where layers are alike.
        limits: by a cost's name, the least and the most of its sum.
        previous: choices to differ from.
        alpha: the share of layers in which it may agree with each.
        seconds: that the solver (HiGHS) may take.

    Returns:
        The choice; None where nothing is within the limits.

    Raises:
        ValueError: costs, limits or previous choices do not fit, or are not numbers.
        RuntimeError: the solver found no optimum in time.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    costs = _check(scores, costs, limits)
    layers, variants = scores.shape
    allowed = np.isfinite(scores)
    if not allowed.any(1).all():
        return None
    rows = [np.kron(np.eye(layers), np.ones(variants))]
    bounds = [(np.ones(layers), np.ones(layers))]
    for name, (least, most) in _widened(limits).items():
        # The solver's tolerances are absolute.
        scale = np.abs(costs[name]).max() or 1.0
        rows.append(costs[name].reshape(1, -1) / scale)
        bounds.append((np.array([least / scale]), np.array([most / scale])))

    def differ(other: Sequence[int], agreeing: float | int) -> None:
        rows.append(_one_hot(other, scores.shape).reshape(1, -1))
        bounds.append((np.array([-np.inf]), np.array([agreeing])))

    for other in previous:
        _check_choice(other, scores.shape)
        differ(other, np.floor(alpha * layers + ROUNDING))
    objective = np.where(allowed, scores, 0).ravel().astype(np.float64)
    objective = objective / (np.abs(objective).max() or 1.0)
    # SciPy's annotations know bounds of one variable only.
    most_of_each: Any = allowed.ravel().astype(float)
    while True:
        sides: Any = [np.concatenate(side) for side in zip(*bounds, strict=True)]
        result = milp(
            objective,
            integrality=np.ones(objective.size),
            bounds=Bounds(0, most_of_each),
            constraints=LinearConstraint(np.concatenate(rows), *sides),
            options={"mip_rel_gap": 0.0, "time_limit": seconds},
        )
        if result.status == 2:
            return None
        if result.status != 0:
            raise RuntimeError(
                f"the solver found no optimum in {seconds} seconds ({result.message}): "
                "raise seconds, or loosen limits"
            )
        found = result.x.reshape(scores.shape).argmax(1).tolist()
        choice = _choice(found, scores, costs)
        if _within(choice, limits):
            return choice
        # The solver's tolerance let a sum pass that is outside: leave this one out.
        differ(found, layers - 1)


@checked(limits=own_check)
def greedy_blocks(
    scores: Float[np.ndarray, "layers variants"], costs: Costs, limits: Limits
) -> BlockChoice | None:
    """Choose layer by layer, each within its part of the limits: Puzzle's baseline.

    Each layer may cost an equal part of what is allowed at most. Layers go by ascending
    mean score; each takes the best variant that fits, and leaves the rest to the next.

    Args:
        scores: as in `choose_blocks`.
        costs: likewise.
        limits: likewise.

    Returns:
        The choice; None where it went astray.

    Raises:
        ValueError: as in `choose_blocks`.
    """
    costs = _check(scores, costs, limits)
    layers = len(scores)
    allowed = np.isfinite(scores)
    if not allowed.any(1).all():
        return None
    share = {name: most / layers for name, (_, most) in _widened(limits).items()}
    left = dict.fromkeys(limits, 0.0)
    found = [0] * layers
    for i in np.argsort(np.nanmean(np.where(allowed, scores, np.nan), axis=1)):
        budget = {name: left[name] + share[name] for name in limits}
        fits = allowed[i].copy()
        for name, most in budget.items():
            fits &= costs[name][i] <= most
        if not fits.any():
            return None
        found[i] = int(np.where(fits, scores[i], np.inf).argmin())
        left = {name: budget[name] - costs[name][i, found[i]] for name in limits}
    choice = _choice(found, scores, costs)
    return choice if _within(choice, limits) else None


@checked(limits=own_check)
def largest_blocks(
    scores: Float[np.ndarray, "layers variants"],
    costs: Costs,
    limits: Limits,
    size: str = "parameters",
) -> BlockChoice | None:
    """Choose the most parameters within limits, whatever the scores: a baseline.

    Args:
        scores: as in `choose_blocks`; they say only which variants exist.
        costs: likewise.
        limits: likewise.
        size: the cost that is to be large.

    Returns:
        The choice; None where nothing is within the limits.

    Raises:
        ValueError: as in `choose_blocks`, or ``size`` is no cost.
    """
    if size not in costs:
        raise ValueError(f"size must be one of costs ({', '.join(costs)}), got {size}")
    costs = _check(scores, costs, limits)
    found = choose_blocks(
        np.where(np.isfinite(scores), -costs[size], np.inf), costs, limits
    )
    return found and _choice(found.variants, scores, costs)


@checked(limits=own_check, draws=count)
def random_blocks(
    key: PRNGKeyArray,
    scores: Float[np.ndarray, "layers variants"],
    costs: Costs,
    limits: Limits,
    *,
    draws: int = 1,
) -> list[BlockChoice]:
    """Draw choices uniformly among those within the limits, no two alike: a baseline.

    Args:
        key: of the draws.
        scores: as in `choose_blocks`.
        costs: likewise.
        limits: likewise.
        draws: how many.

    Raises:
        ValueError: as in `choose_blocks`.
        RuntimeError: next to nothing is within the limits.
    """
    costs = _check(scores, costs, limits)
    layers, variants = scores.shape

    def within(found: tuple[int, ...]) -> bool:
        choice = _choice(found, scores, costs)
        return bool(np.isfinite(choice.score)) and _within(choice, limits)

    result = random_search(
        key,
        lambda rng: tuple(rng.integers(variants, size=layers).tolist()),
        lambda found: -_choice(found, scores, costs).score,
        budget=draws,
        constraint=within,
    )
    return [_choice(drawn.architecture, scores, costs) for drawn in result.history]


@checked()
def pareto_front(
    scores: Float[np.ndarray, "choices"], costs: Float[np.ndarray, "choices"]
) -> Int[np.ndarray, "front"]:
    """Return the choices that no other beats in score or cost without losing the other.

    Args:
        scores: lower is better.
        costs: lower is better.

    Returns:
        Their indices by ascending cost; of equal ones the first.

    Raises:
        ValueError: the lengths differ, or something is NaN.
    """
    if np.shape(scores) != np.shape(costs):
        raise ValueError(
            f"scores has shape {np.shape(scores)} but costs {np.shape(costs)}: give "
            "one of each for a choice"
        )
    if np.isnan(scores).any() or np.isnan(costs).any():
        raise ValueError("scores and costs must not be NaN: leave such choices out")
    order = np.lexsort((scores, costs))
    best = np.minimum.accumulate(np.append(np.inf, scores[order]))
    # The first of all stays, even where its score is infinite.
    return order[(scores[order] < best[:-1]) | (np.arange(order.size) == 0)]


def _check(scores: np.ndarray, costs: Costs, limits: Limits) -> dict[str, np.ndarray]:
    """Refuse what does not fit, and return the costs over all layers."""
    if scores.ndim != 2 or not scores.size or np.isneginf(scores).any():
        raise ValueError(
            f"scores must be (layers, variants) and above -inf, got {scores.shape}"
        )
    full = {}
    for name, cost in costs.items():
        cost = np.asarray(cost, np.float64)
        if cost.shape not in (scores.shape, scores.shape[1:]):
            raise ValueError(
                f"costs[{name!r}] has shape {cost.shape} but scores {scores.shape}: "
                "give one a layer and variant, or one a variant"
            )
        if not np.isfinite(cost).all():
            raise ValueError(
                f"costs[{name!r}] must be finite: give a variant that does not exist "
                "an infinite score, and any cost"
            )
        full[name] = np.broadcast_to(cost, scores.shape)
    for name, limit in limits.items():
        if name not in full:
            raise ValueError(
                f"limits names {name!r}, which is none of costs ({', '.join(costs)})"
            )
        if len(limit) != 2 or not -np.inf <= limit[0] <= limit[1] <= np.inf:
            raise ValueError(
                f"limits[{name!r}] must be the least and the most, got {limit}; "
                "-math.inf and math.inf limit nothing"
            )
    return full


def _check_choice(choice: Sequence[int], shape: tuple[int, ...]) -> None:
    layers, variants = shape
    if len(choice) != layers or not all(0 <= j < variants for j in choice):
        raise ValueError(
            f"previous must hold one variant below {variants} for each of {layers} "
            f"layers, got {tuple(choice)}"
        )


def _one_hot(choice: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    return np.eye(shape[1])[list(choice)]


def _choice(
    found: Sequence[int], scores: np.ndarray, costs: Mapping[str, np.ndarray]
) -> BlockChoice:
    at = np.arange(len(scores)), np.array(found)
    totals = {name: float(cost[at].sum()) for name, cost in costs.items()}
    return BlockChoice(tuple(found), float(scores[at].sum(dtype=np.float64)), totals)


def _widened(limits: Limits) -> dict[str, tuple[float, float]]:
    return {
        name: (least - ROUNDING * abs(least), most + ROUNDING * abs(most))
        for name, (least, most) in limits.items()
    }


def _within(choice: BlockChoice, limits: Limits) -> bool:
    return all(
        least <= choice.totals[name] <= most
        for name, (least, most) in _widened(limits).items()
    )
