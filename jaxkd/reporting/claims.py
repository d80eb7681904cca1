"""Claims of a paper, and what an experiment's records say of them.

`contrast` judges every comparison of what varies with the seed, `observed` every check
of what does not; `all_of` joins several into one. A claim may come out as failing or as
not established: a report says so, with the numbers.
"""

import operator
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from jaxkd.arguments import checked, finite
from jaxkd.checks import unknown_name
from jaxkd.reporting.metrics import higher_is_better
from jaxkd.reporting.quantities import (
    NotComparable,
    Quantity,
    Side,
    paired,
    quantity,
    within,
)
from jaxkd.reporting.records import Record, summarize
from jaxkd.reporting.records import methods as methods_run
from jaxkd.reporting.statistics import (
    LEVEL,
    check_margin,
    holm,
    paired_test,
)
from jaxkd.reporting.tables import compact, format_summary, metric_name


class Status(StrEnum):
    """What the records say of a claim."""

    HOLDS = "HOLDS"
    FAILS = "FAILS"
    NOT_ESTABLISHED = "NOT ESTABLISHED"
    AS_CLAIMED = "OBSERVED (as claimed)"
    AGAINST = "OBSERVED (against)"


@dataclass(frozen=True)
class Verdict:
    """The outcome of judging a claim.

    Attributes:
        status: of this claim, taken alone.
        numbers: a sentence with the numbers that decided, or what is missing.
        p_values: against the claim's opposite and against the claim; None where no test
            was made.
        corrected: the status after Holm's correction for all claims that were judged
            with this one by `judge_all`; None where no test was made.
    """

    status: Status
    numbers: str
    p_values: tuple[float, float] | None = None
    corrected: Status | None = None

    @property
    def differs(self) -> bool:
        """Whether Holm's correction changes the status."""
        return self.corrected not in (None, self.status)

    def __str__(self) -> str:
        """Return the status, and beside it the corrected one where it differs."""
        after = f" (after Holm: {self.corrected})" if self.differs else ""
        return f"{self.status}{after}"


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


@checked(a=finite, b=finite, margin=finite)
def contrast(
    a: Side,
    b: Side,
    metric: str,
    margin: float = 0.0,
    kind: str = "superiority",
    *,
    setting: str = "",
    lower: bool | None = None,
    because: str = "",
    name: str = "",
) -> Claim:
    """Claim that ``a`` is better than ``b``, not worse, or the same, by a margin.

    Both are paired by seed, as students of one seed share their first weights and the
    order of their batches. The claim holds if the one-sided 95 % bound of the mean
    difference, by Student's t, clears the margin, and fails if the opposite bound does
    (`jaxkd.reporting.statistics.paired_test`). Otherwise it is not established, nor is
    it with fewer than 2 pairs, or where one seed has only one of the two.

    Args:
        a: what the claim is about: an arm's name, or a `Quantity`.
        b: what it is compared with: the same, or a number.
        metric: a record's; it gives the unit, and which end is good.
        margin: in the metric's unit. It is how far ``a`` is to be better in a
            superiority, and the largest difference that does not matter in the others.
        kind: ``"superiority"``, ``"non-inferiority"`` or ``"equivalence"``.
        setting: a record's.
        lower: whether ``a`` is to be lower; None for the metric's good end.
        because: why a larger difference than the margin would matter, in a clause;
            non-inferiority and equivalence need it.
        name: instead of the one made of these.

    Raises:
        ValueError: the margin does not fit the kind, it has no reason, both sides are
            the same, or the metric has no good end and ``lower`` is None.
    """
    check_margin(margin, kind)
    if kind != "superiority" and not because.strip():
        raise ValueError(
            f"because is empty: say in a clause why {margin:g} is the margin of "
            f"{kind} in {metric}"
        )
    if lower is None and kind != "equivalence":
        higher = higher_is_better(metric)
        if higher is None:
            raise ValueError(
                f"{metric} has no better end in jaxkd.reporting.metrics: say whether "
                "a is to be the lower one by lower=True or lower=False"
            )
        lower = not higher
    sign = -1 if lower else 1
    first, second = quantity(a, metric), quantity(b, metric)
    if first.name == second.name:
        raise ValueError(f"a and b are both {first.name}: compare it with another")

    def judge(records: Sequence[Record]) -> Verdict:
        try:
            pairs = paired(first, second, records, metric, setting)
        except NotComparable as problem:
            return Verdict(Status.NOT_ESTABLISHED, str(problem))
        text = _sides(first, second, pairs, metric, _mean)
        if len(pairs) < 2:
            return Verdict(Status.NOT_ESTABLISHED, f"{text}; one pair, 2 are needed")
        found = paired_test([sign * (x - y) for x, y in pairs.values()], margin, kind)
        bounds = sorted(sign * bound for bound in (found.lower, found.upper))
        low, high, mean = (compact(metric, x) for x in (*bounds, sign * found.mean))
        status = _status(found.p_holds, found.p_fails)
        p = found.p_fails if status is Status.FAILS else found.p_holds
        return Verdict(
            status,
            f"{text}; difference {mean} in {len(pairs)} pairs, 95 % bounds {low} and "
            f"{high}, p {p:.2g}",
            (found.p_holds, found.p_fails),
        )

    amount = compact(metric, margin, 6)
    good, bad = ("below", "above") if lower else ("above", "below")
    relation = {
        "superiority": f"more than {amount} {good}" if margin else good,
        "non-inferiority": f"less than {amount} {bad}",
        "equivalence": f"within {amount} of",
    }[kind]
    short = f"{first.name} {relation} {second.name} in {metric_name(metric)}"
    reason = f"; the margin: {because}" if because else ""
    return Claim(
        name or short + within(setting),
        f"{kind}: {short}, on average over seeds{reason}",
        judge,
        first.arm,
        first.setting or setting,
    )


@checked(a=finite, b=finite)
def observed(
    a: Side,
    relation: str,
    b: Side,
    metric: str,
    *,
    setting: str = "",
    name: str = "",
) -> Claim:
    """Claim a relation of numbers that do not vary with the seed, such as bytes.

    No error is known, so that it is only observed: as claimed if the relation is that
    of every pair, and else against.

    Args:
        a: what the claim is about: an arm's name, or a `Quantity`.
        relation: ``"<"``, ``"<="``, ``">"`` or ``">="``.
        b: what it is compared with: the same, or a number.
        metric: a record's; it gives the unit.
        setting: a record's.
        name: instead of the one made of these.

    Raises:
        ValueError: an unknown relation.
    """
    if relation not in RELATIONS:
        raise ValueError(unknown_name("relation", relation, RELATIONS))
    first, second = quantity(a, metric), quantity(b, metric)

    def judge(records: Sequence[Record]) -> Verdict:
        try:
            pairs = paired(first, second, records, metric, setting)
        except NotComparable as problem:
            return Verdict(Status.NOT_ESTABLISHED, str(problem))
        true = sum(RELATIONS[relation](x, y) for x, y in pairs.values())
        return Verdict(
            Status.AS_CLAIMED if true == len(pairs) else Status.AGAINST,
            f"{_sides(first, second, pairs, metric, _range)}: in {true} of "
            f"{len(pairs)}",
        )

    name = name or f"{first.name} {relation} {second.name} in {metric_name(metric)}"
    return Claim(
        name + within(setting),
        f"{first.name} {relation} {second.name} in {metric_name(metric)}, in every "
        "record",
        judge,
        first.arm,
        first.setting or setting,
    )


RELATIONS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@checked()
def all_of(name: str, claims: Sequence[Claim]) -> Claim:
    """Claim several things at once, such as a fall from each of some arms to the next.

    It holds if each of them holds, which needs no correction, and fails if one of them
    fails after Bonferroni's correction for their number.

    Args:
        name: of the whole.
        claims: all contrasts, or all observed.

    Raises:
        ValueError: no claims.
    """
    if not claims:
        raise ValueError(f"claims is empty: say what {name!r} consists of")

    def judge(records: Sequence[Record]) -> Verdict:
        parts = [(claim, claim.judge(records)) for claim in claims]
        good = [v for _, v in parts if v.status in (Status.HOLDS, Status.AS_CLAIMED)]
        text = f"{len(good)} of {len(parts)}: " + "; ".join(
            f"{claim.name} {verdict.status}, {verdict.numbers}"
            for claim, verdict in parts
            if len(parts) < 4 or verdict not in good
        )
        statuses = {verdict.status for _, verdict in parts}
        tests = [v.p_values for _, v in parts if v.p_values is not None]
        if len(tests) == len(parts):
            p_holds = max(p for p, _ in tests)
            p_fails = min(1.0, len(tests) * min(p for _, p in tests))
            return Verdict(_status(p_holds, p_fails), text, (p_holds, p_fails))
        if statuses <= {Status.AS_CLAIMED, Status.AGAINST}:
            return Verdict(max(statuses, key=list(Status).index), text)
        return Verdict(Status.NOT_ESTABLISHED, text)

    return Claim(
        name,
        "; ".join(claim.statement for claim in claims),
        judge,
        setting=claims[0].setting,
    )


def judge_all(
    claims: Sequence[Claim], records: Sequence[Record]
) -> list[tuple[Claim, Verdict]]:
    """Judge an experiment's claims that apply to its records, with Holm's correction.

    The chance that any claim is said to hold which does not is below 5 % for corrected
    verdicts, and so is the chance that any is said to fail which does not.

    Args:
        claims: the experiment's; those on methods not run are left out.
        records: of one results file.
    """
    judged = [(c, c.judge(records)) for c in claims if c.applies(records)]
    tests = [v.p_values for _, v in judged if v.p_values is not None]
    corrected = iter(
        zip(holm([p for p, _ in tests]), holm([p for _, p in tests]), strict=True)
    )
    return [
        (c, v)
        if v.p_values is None
        else (c, replace(v, corrected=_status(*next(corrected))))
        for c, v in judged
    ]


def _status(p_holds: float, p_fails: float) -> Status:
    if p_holds < LEVEL:
        return Status.HOLDS
    return Status.FAILS if p_fails < LEVEL else Status.NOT_ESTABLISHED


def _sides(
    first: Quantity,
    second: Quantity,
    pairs: Mapping[Hashable, tuple[float, float]],
    metric: str,
    describe: Callable[[str, Sequence[float]], str],
) -> str:
    """Describe both sides' values; a number that the claim's name has is left out."""
    columns = zip((first, second), zip(*pairs.values(), strict=True), strict=True)
    return ", ".join(
        f"{side.name} {describe(metric, values)}"
        for side, values in columns
        if side.name != compact(metric, values[0], 6)
    )


def _range(metric: str, values: Sequence[float]) -> str:
    low, high = (compact(metric, x) for x in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _mean(metric: str, values: Sequence[float]) -> str:
    if min(values) == max(values):
        return compact(metric, values[0])
    return format_summary(metric, summarize(values))
