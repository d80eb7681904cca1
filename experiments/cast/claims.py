"""The claims, stated before any result."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from experiments.cast.config import PRESETS, decayed, trained_for
from jaxkd.evaluation.scaling import fit_scaling_law
from jaxkd.reporting.claims import (
    Claim,
    Status,
    Verdict,
    at_most,
    every_seed_above,
    exceeds,
)
from jaxkd.reporting.records import Record, select, summarize
from jaxkd.reporting.tables import format_summary, format_value, metric_name

SMALL, FULL = "tiny_shakespeare", "llama2-7b"


def every_seed_below(method: str, metric: str, bound: float, setting: str) -> Claim:
    """Claim that a method's metric is below a number, whatever the seed."""

    def judge(records: Sequence[Record]) -> Verdict:
        values = [r.value for r in select(records, method, metric, setting)]
        if not values:
            return Verdict(Status.NOT_ESTABLISHED, f"no records of {method}'s {metric}")
        highest = format_value(metric, max(values), extra=2)
        return Verdict(
            Status.HOLDS if max(values) < bound else Status.FAILS,
            f"{method} at the most {highest} in {metric_name(metric)} "
            f"({len(values)} seeds)",
        )

    return Claim(
        f"{method} below {format_value(metric, bound)} in {metric_name(metric)} "
        f"({setting})",
        f"{method}'s {metric_name(metric)} is below {format_value(metric, bound)} in "
        "every seed",
        judge,
        method,
        setting,
    )


def falls_along(methods: Sequence[str], metric: str, setting: str) -> Claim:
    """Claim that the mean of a metric falls from each of some methods to the next."""

    def judge(records: Sequence[Record]) -> Verdict:
        values = [
            [r.value for r in select(records, method, metric, setting)]
            for method in methods
        ]
        if not all(values):
            return Verdict(
                Status.NOT_ESTABLISHED, f"no records of {metric} of them all"
            )
        found = [summarize(v) for v in values]
        means = [summary.mean for summary in found]
        falls = all(before > after for before, after in pairwise(means))
        return Verdict(
            Status.HOLDS if falls else Status.FAILS,
            ", ".join(
                f"{method} {format_summary(metric, summary)}"
                for method, summary in zip(methods, found, strict=True)
            ),
        )

    return Claim(
        f"{metric_name(metric)} falls along {', '.join(methods)} ({setting})",
        f"the mean {metric_name(metric)} falls from each to the next of "
        f"{', '.join(methods)}",
        judge,
        methods[-1],
        setting,
    )


def law_predicts(budgets: Mapping[str, int], held_out: str, within: float) -> Claim:
    """Claim that a scaling law fitted to some budgets predicts the loss of another.

    Args:
        budgets: tokens by method.
        held_out: the method that the law is not fitted to.
        within: relative error of its mean loss, at most.
    """
    name = f"the scaling law predicts {held_out} within {100 * within:g} % ({SMALL})"

    def judge(records: Sequence[Record]) -> Verdict:
        losses = {
            method: [r.value for r in select(records, method, "nll", SMALL)]
            for method in budgets
        }
        missing = [method for method, values in losses.items() if not values]
        if missing:
            return Verdict(
                Status.NOT_ESTABLISHED, f"no records of {', '.join(missing)}"
            )
        means = {method: float(np.mean(values)) for method, values in losses.items()}
        fitted = [method for method in budgets if method != held_out]
        law = fit_scaling_law(
            [float(budgets[method]) for method in fitted],
            [means[method] for method in fitted],
        )
        tokens = [float(budgets[held_out])]
        error = law.relative_error(tokens, [means[held_out]])
        return Verdict(
            Status.HOLDS if error <= within else Status.FAILS,
            f"{law.floor:.3f} + {law.scale:.3g} × D^(−{law.exponent:.3f}) predicts "
            f"{law(tokens)[0]:.3f} at {tokens[0]:,.0f} tokens, measured "
            f"{means[held_out]:.3f}: {100 * error:.2f} % off",
        )

    return Claim(name, name, judge, held_out, SMALL)


def small_budgets() -> dict[str, int]:
    """Return the tokens that each of CAST's rows of ``small`` learns from."""
    config = PRESETS["small"]
    steps = {"cast": config.steps, **{trained_for(s): s for s in config.budgets}}
    return {
        method: count * config.batch_size * config.length
        for method, count in steps.items()
    }


SWEEP = (decayed(1e-4), decayed(3e-4), "cast")
CLAIMS = [
    exceeds("fixed_mask", "cast", "nll", SMALL, errors=1.0),
    at_most("cast", "one_shot", "nll", 1.0, SMALL),
    every_seed_below("cast", "pruning_gap", 0.01, SMALL),
    every_seed_below("cast", "magnitude_ratio", 0.01, SMALL),
    every_seed_above("dense", "pruning_gap", 0.1, SMALL),
    falls_along(SWEEP, "magnitude_ratio", SMALL),
    falls_along(SWEEP, "pruning_gap", SMALL),
    every_seed_above("cast", "exact_groups", 0.9999, SMALL),
    every_seed_below("cast", "fold_error", 1e-6, SMALL),
    law_predicts(small_budgets(), trained_for(2400), within=0.01),
    every_seed_below("cast", "int8_cost", 0.01, SMALL),
    exceeds("fixed_mask", "cast", "nll", FULL, errors=1.0),
]
