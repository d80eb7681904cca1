"""What a claim's verdict says of two methods: their means, errors and difference."""

import math
from collections.abc import Sequence

from jaxkd.reporting.records import Record, Summary, select, summarize
from jaxkd.reporting.tables import format_summary, format_value, metric_name


def within(setting: str) -> str:
    """Return how a setting is named after a claim; nothing without one."""
    return f" ({setting})" if setting else ""


def count(n: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def usable_summary(
    records: Sequence[Record], method: str, metric: str, setting: str
) -> Summary | str:
    """Return the summary over seeds, or the reason why there is none."""
    values = [r.value for r in select(records, method, metric, setting)]
    if not values:
        return f"no records of {method}'s {metric}{within(setting)}"
    if not all(map(math.isfinite, values)):
        return f"{method}'s {metric}{within(setting)} is not finite in every seed"
    return summarize(values)


def two_summaries(
    records: Sequence[Record], first: str, second: str, metric: str, setting: str
) -> tuple[Summary, Summary] | str:
    """Return both summaries with errors, or the reason why they cannot be compared."""
    found = [
        usable_summary(records, method, metric, setting) for method in (first, second)
    ]
    problems = [x for x in found if isinstance(x, str)]
    problems += [
        f"{method} has one seed, so no standard error: run at least 2"
        for method, x in zip((first, second), found, strict=True)
        if isinstance(x, Summary) and x.seeds == 1
    ]
    if problems:
        return "; ".join(problems)
    a, b = found
    assert isinstance(a, Summary)
    assert isinstance(b, Summary)
    return a, b


def difference_and_noise(a: Summary, b: Summary, errors: float) -> tuple[float, float]:
    """Return the difference of two means, and so many combined standard errors."""
    return a.mean - b.mean, errors * math.hypot(a.error, b.error)


def compared(
    first: str, second: str, metric: str, a: Summary, b: Summary, errors: float
) -> str:
    """Return a sentence with both means, their difference and its noise."""
    difference, noise = (
        format_value(metric, x, extra=1) for x in difference_and_noise(a, b, errors)
    )
    return (
        f"{first} {format_summary(metric, a)} ({count(a.seeds, 'seed')}), "
        f"{second} {format_summary(metric, b)} ({count(b.seeds, 'seed')}); "
        f"difference {difference}, {errors:g} × combined standard error {noise}, "
        f"in {metric_name(metric)}"
    )
