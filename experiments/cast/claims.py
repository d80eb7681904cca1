"""The claims, stated before any result."""

from collections.abc import Sequence
from itertools import pairwise

from experiments.cast.config import decayed
from jaxkd.evaluation.claims import (
    Claim,
    Status,
    Verdict,
    at_most,
    every_seed_above,
    exceeds,
)
from jaxkd.evaluation.records import Record, select, summarize
from jaxkd.evaluation.tables import format_summary, format_value, metric_name

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
    exceeds("fixed_mask", "cast", "nll", FULL, errors=1.0),
]
