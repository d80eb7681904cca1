"""What the DDK experiment measures of domains' weights and perplexities."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkd import methods
from jaxkd.reporting.records import Record

SYNTHETIC = tuple(f"synthetic ratios, sd {sd}" for sd in (1, 2))
"""Tables of weights that follow from made-up ratios, by the noise's deviation."""


def ratios(student: Mapping[str, float], teacher: Mapping[str, float]) -> np.ndarray:
    """Return the student's perplexity over the teacher's, of each domain."""
    return np.array([student[name] / teacher[name] for name in teacher])


def ratio_metrics(
    student: Mapping[str, float], teacher: Mapping[str, float]
) -> dict[str, float]:
    """Return the worst ratio, their mean, and that of each domain."""
    ratio = ratios(student, teacher)
    names = (name.removeprefix("perplexity/") for name in teacher)
    each = {f"ratio {name}": value for name, value in zip(names, ratio, strict=True)}
    return {"worst_ratio": ratio.max(), "mean_ratio": ratio.mean(), **each}


def weight_metrics(weights: np.ndarray, hardest: int, alpha: float) -> dict[str, float]:
    """Return what claims say of the weights (intervals, domains) after the first.

    ``weight_change``, the mean absolute change between intervals; ``weight_slack``, how
    far they stay within the bounds of smooth updating; and ``hardest_share``, what the
    domain of the largest ratio at the start gets first.
    """
    floor = (1 - alpha) / weights.shape[1]
    return {
        "weight_change": float(np.abs(np.diff(weights, axis=0)).mean()),
        "weight_slack": float(
            min(
                weights.min() - floor,
                floor + alpha - weights.max(),
                -np.abs(weights.sum(1) - 1).max(),
            )
        ),
        "hardest_share": float(weights[0, hardest]),
    }


def synthetic_records(alpha: float, seeds: Sequence[int]) -> list[Record]:
    """Return how much the weights of noisy ratios change, smoothed and not.

    Five domains with ratios of 1.1 to 2.2, and normal noise, over 60 intervals.
    """
    records = []
    for sd, name in zip((1, 2), SYNTHETIC, strict=True):
        for seed in seeds:
            rng = np.random.default_rng([seed, sd])
            noisy = np.linspace(1.1, 2.2, 5) + rng.normal(0, sd, (60, 5))
            # Of perplexities, no ratio is below 0.
            noisy = jnp.asarray(np.maximum(noisy, 0.01))
            for method in ("ddk_unsmoothed", "ddk"):
                change = _changes(noisy, alpha, smooth=method == "ddk")
                records.append(Record(method, seed, "weight_change", change, 0.0, name))
    return records


def _changes(
    noisy: Float[Array, "intervals domains"], alpha: float, *, smooth: bool
) -> float:
    ones = jnp.ones(noisy.shape[1])

    def step(factor: Array, ratio: Array) -> tuple[Array, Array]:
        if smooth:
            factor = methods.discrepancy_update(factor, ratio, ones, alpha)
        else:
            factor = methods.discrepancy_init(ratio, ones)
        return factor, factor

    start = methods.discrepancy_init(noisy[0], ones)
    weights = jax.lax.scan(step, start, noisy[1:])[1]
    return float(np.abs(np.diff(weights, axis=0)).mean())


def gains(records: Sequence[Record]) -> list[Record]:
    """Return by how much a method's worst ratio is below KD's of the same seed."""
    worst = {
        (r.setting, r.method, r.seed): r for r in records if r.metric == "worst_ratio"
    }
    return [
        dataclasses.replace(
            r,
            metric="worst_gain",
            value=worst[r.setting, "kd", r.seed].value - r.value,
        )
        for r in worst.values()
        if r.method != "kd" and (r.setting, "kd", r.seed) in worst
    ]
