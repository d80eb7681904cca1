"""Claims of a paper as predicates over an experiment's records.

A claim is judged by means over seeds and their standard errors, and may come out as
failing or as not established: a report says so, with the numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from jaxkd.reporting.comparisons import (
    compared,
    count,
    difference_and_noise,
    two_summaries,
    usable_summary,
    within,
)
from jaxkd.reporting.records import Record, select, summarize
from jaxkd.reporting.records import methods as methods_run
from jaxkd.reporting.tables import format_summary, format_value, metric_name


class Status(StrEnum):
    """What the records say of a claim."""

    HOLDS = "HOLDS"
    FAILS = "FAILS"
    NOT_ESTABLISHED = "NOT ESTABLISHED"


@dataclass(frozen=True)
class Verdict:
    """The outcome of judging a claim.

    Attributes:
        status: HOLDS, FAILS or NOT ESTABLISHED.
        numbers: a sentence with the numbers that decided, or what is missing.
    """

    status: Status
    numbers: str


@dataclass(frozen=True)
class Claim:
    """Something an experiment's records are to show.

    Attributes:
        name: short, for the report's list.
        statement: a sentence that says when it holds.
        judge: ``records -> Verdict``.
        method: the one it is about; empty if it is about several.
        setting: that method's.
    """

    name: str
    statement: str
    judge: Callable[[Sequence[Record]], Verdict]
    method: str = ""
    setting: str = ""

    def applies(self, records: Sequence[Record]) -> bool:
        """Return whether the method, or else the setting, it is about was run."""
        run = methods_run(records, self.setting)
        return self.method in run if self.method else bool(run)


def exceeds(
    better: str,
    worse: str,
    metric: str,
    setting: str = "",
    errors: float = 2.0,
    margin: float = 0.0,
) -> Claim:
    """Claim that one method's metric is above another's by more than the noise.

    It holds if the difference of the means, less the margin, is above ``errors``
    combined standard errors, √(se₁² + se₂²), fails if it is below minus that, and
    otherwise, or without two seeds of each, is not established.

    Args:
        better: the method said to be above.
        worse: the method said to be below.
        metric: a record's metric.
        setting: a record's setting.
        errors: how many combined standard errors.
        margin: by how much it is said to be above, in the metric's unit.
    """

    def judge(records: Sequence[Record]) -> Verdict:
        found = two_summaries(records, better, worse, metric, setting)
        if isinstance(found, str):
            return Verdict(Status.NOT_ESTABLISHED, found)
        difference, noise = difference_and_noise(*found, errors)
        if difference - margin > noise:
            status = Status.HOLDS
        elif difference - margin < -noise:
            status = Status.FAILS
        else:
            status = Status.NOT_ESTABLISHED
        return Verdict(status, compared(better, worse, metric, *found, errors))

    return Claim(
        f"{better} above {worse}{_by(metric, margin)} in {metric_name(metric)}"
        f"{within(setting)}",
        f"{better} is above {worse} in {metric_name(metric)} by more than "
        f"{_and(metric, margin)}{errors:g} combined standard errors",
        judge,
        better,
        setting,
    )


def exceeds_in_pairs(
    better: str, worse: str, metric: str, setting: str = "", errors: float = 2.0
) -> Claim:
    """Claim that one method's metric is above another's, seed by seed.

    Students of one seed share their first weights and the order of their batches, and
    differ less than students of two. It holds if the mean of the seeds' differences is
    above ``errors`` of its standard errors, fails if it is below minus that, and
    otherwise, or without two seeds that both have, is not established.

    Args:
        better: the method said to be above.
        worse: the method said to be below.
        metric: a record's metric.
        setting: a record's setting.
        errors: how many standard errors.
    """

    def judge(records: Sequence[Record]) -> Verdict:
        found = two_summaries(records, better, worse, metric, setting)
        if isinstance(found, str):
            return Verdict(Status.NOT_ESTABLISHED, found)
        high, low = (
            {r.seed: r.value for r in select(records, method, metric, setting)}
            for method in (better, worse)
        )
        pairs = [high[seed] - low[seed] for seed in high if seed in low]
        if len(pairs) < 2:
            return Verdict(Status.NOT_ESTABLISHED, "fewer than 2 seeds have both")
        gap = summarize(pairs)
        status = Status.NOT_ESTABLISHED
        if abs(gap.mean) > errors * gap.error:
            status = Status.HOLDS if gap.mean > 0 else Status.FAILS
        mean, noise = (
            format_value(metric, x, extra=1) for x in (gap.mean, errors * gap.error)
        )
        return Verdict(
            status,
            f"{better} {format_summary(metric, found[0])}, {worse} "
            f"{format_summary(metric, found[1])}; mean of {len(pairs)} differences "
            f"{mean}, {errors:g} × its standard error {noise}, in "
            f"{metric_name(metric)}",
        )

    return Claim(
        f"{better} above {worse} in {metric_name(metric)}, seed by seed"
        f"{within(setting)}",
        f"{better} is above {worse} in {metric_name(metric)} by more than {errors:g} "
        "standard errors of the seeds' differences",
        judge,
        better,
        setting,
    )


def not_below(
    method: str,
    reference: str,
    metric: str,
    setting: str = "",
    errors: float = 1.0,
    margin: float = 0.0,
) -> Claim:
    """Claim that a method's metric is not below a reference's by more than the noise.

    It holds if the method's mean is at least the reference's minus the margin and
    ``errors`` combined standard errors, √(se₁² + se₂²), and fails otherwise; without
    two seeds of each it is not established.

    Args:
        method: the method said not to be below.
        reference: what it is compared with.
        metric: a record's metric.
        setting: a record's setting.
        errors: how many combined standard errors.
        margin: by how much it may be below besides, in the metric's unit.
    """

    def judge(records: Sequence[Record]) -> Verdict:
        found = two_summaries(records, method, reference, metric, setting)
        if isinstance(found, str):
            return Verdict(Status.NOT_ESTABLISHED, found)
        difference, noise = difference_and_noise(*found, errors)
        status = Status.HOLDS if difference >= -margin - noise else Status.FAILS
        return Verdict(status, compared(method, reference, metric, *found, errors))

    return Claim(
        f"{method} not below {reference}{_by(metric, margin)} in "
        f"{metric_name(metric)}{within(setting)}",
        f"{method} is not below {reference} in {metric_name(metric)} by more than "
        f"{_and(metric, margin)}{errors:g} combined standard errors",
        judge,
        method,
        setting,
    )


def at_most(
    method: str, reference: str, metric: str, share: float, setting: str = ""
) -> Claim:
    """Claim that a method's metric is at most a share of a reference's.

    It holds if the method's mean is at most ``share`` times the reference's, and fails
    otherwise; it is not established where records are missing.

    Args:
        method: the method said to be low.
        reference: what it is compared with.
        metric: a record's metric, above 0.
        share: such as 0.5 for "at most half".
        setting: a record's setting.

    Raises:
        ValueError: a share that is not above 0.
    """
    if share <= 0:
        raise ValueError(f"share must be above 0, got {share}: 0.5 is a half")

    def judge(records: Sequence[Record]) -> Verdict:
        low, high = (
            usable_summary(records, m, metric, setting) for m in (method, reference)
        )
        if isinstance(low, str) or isinstance(high, str):
            problems = [x for x in (low, high) if isinstance(x, str)]
            return Verdict(Status.NOT_ESTABLISHED, "; ".join(problems))
        holds = low.mean <= share * high.mean
        return Verdict(
            Status.HOLDS if holds else Status.FAILS,
            f"{method} {format_summary(metric, low)} ({count(low.seeds, 'seed')}), "
            f"{reference} {format_summary(metric, high)} "
            f"({count(high.seeds, 'seed')}); {low.mean / high.mean:.3g} of it, in "
            f"{metric_name(metric)}",
        )

    return Claim(
        f"{method} at most {share:g} of {reference} in {metric_name(metric)}"
        f"{within(setting)}",
        f"{method}'s {metric_name(metric)} is at most {share:g} times {reference}'s",
        judge,
        method,
        setting,
    )


def every_seed_above(
    method: str, metric: str, bound: float, setting: str = ""
) -> Claim:
    """Claim that a method's metric is above a number, whatever the seed.

    It holds if the lowest of the seeds' values is above ``bound``, and fails otherwise;
    it is not established where records are missing. One seed is enough.

    Args:
        method: the method said to be above.
        metric: a record's metric.
        bound: in the metric's unit.
        setting: a record's setting.
    """

    def judge(records: Sequence[Record]) -> Verdict:
        found = usable_summary(records, method, metric, setting)
        if isinstance(found, str):
            return Verdict(Status.NOT_ESTABLISHED, found)
        lowest = min(r.value for r in select(records, method, metric, setting))
        return Verdict(
            Status.HOLDS if lowest > bound else Status.FAILS,
            f"{method} {format_summary(metric, found)}, at the least "
            f"{format_value(metric, lowest)} ({count(found.seeds, 'seed')}), in "
            f"{metric_name(metric)}",
        )

    return Claim(
        f"{method} above {format_value(metric, bound)} in {metric_name(metric)}"
        f"{within(setting)}",
        f"{method}'s {metric_name(metric)} is above {format_value(metric, bound)} in "
        "every seed",
        judge,
        method,
        setting,
    )


def falls_by(
    metric_first: str,
    metric_last: str,
    share: float,
    methods: Sequence[str],
    setting: str = "",
) -> Claim:
    """Claim that a quantity falls by a share of itself, in each of some methods.

    It holds if every method's mean of ``metric_last`` is at most ``1 − share`` times
    its mean of ``metric_first``, fails if one's is above, and is otherwise not
    established where records are missing. One seed is enough: no error is compared.

    Args:
        metric_first: the metric before, such as a loss after the first epoch.
        metric_last: the metric after.
        share: in (0, 1]; 0.5 for a fall by half.
        methods: all must show it.
        setting: a record's setting.

    Raises:
        ValueError: ``share`` is outside (0, 1], or there is no method.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}: 0.5 is a fall by half")
    if not methods:
        raise ValueError("methods is empty: name the methods that must show the fall")

    def judge(records: Sequence[Record]) -> Verdict:
        left, problems, seeds = {}, [], []
        absent = [
            method
            for method in methods
            if not select(records, method, metric_first, setting)
            and not select(records, method, metric_last, setting)
        ]
        if absent:
            problems.append(f"no records of {', '.join(absent)}{within(setting)}")
        for method in methods:
            if method in absent:
                continue
            first = usable_summary(records, method, metric_first, setting)
            last = usable_summary(records, method, metric_last, setting)
            if isinstance(first, str) or isinstance(last, str):
                problems += [x for x in (first, last) if isinstance(x, str)]
            elif first.mean <= 0:
                problems.append(
                    f"{method} starts at {format_value(metric_first, first.mean)}, of "
                    "which a share means nothing"
                )
            else:
                left[method] = last.mean / first.mean
                seeds.append(min(first.seeds, last.seeds))
        high = [method for method, rest in left.items() if rest > 1 - share]
        sentences = []
        if left:
            worst = max(left, key=left.__getitem__)
            sentences.append(
                f"{len(left) - len(high)} of {len(left)} methods, "
                f"{count(min(seeds), 'seed')} each at least; most is left in {worst}: "
                f"{100 * left[worst]:.3g} % of {metric_first}"
            )
        if high:
            sentences.append(f"above {100 * (1 - share):g} %: {', '.join(high)}")
        if problems:
            sentences.append("; ".join(problems))
        status = Status.NOT_ESTABLISHED if problems else Status.HOLDS
        return Verdict(Status.FAILS if high else status, ". ".join(sentences))

    return Claim(
        f"{metric_last} falls{within(setting)}",
        f"{metric_last} is at least {100 * share:g} % below {metric_first} in "
        f"{', '.join(methods)}",
        judge,
        setting=setting,
    )


def _by(metric: str, margin: float) -> str:
    return f" by {format_value(metric, margin)}" if margin else ""


def _and(metric: str, margin: float) -> str:
    return f"{format_value(metric, margin)} and " if margin else ""
