"""What claims compare: a quantity that has one value a seed in an experiment's records.

A claim's side is an arm's name, a number, or a `Quantity`: a `cell` of a table that
names its own metric or setting, an arithmetic expression of cells, such as
``0.5 * cell("kd") - cell("dkd")``, or a function of all records by `derived`.
"""

import math
import numbers
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from operator import sub, truediv

from jaxkd.arguments import checked
from jaxkd.reporting.records import Record, select
from jaxkd.reporting.tables import compact, metric_name

Values = Mapping[Hashable, float] | float
"""A value for each seed, or one that is the same for all."""


class NotComparable(Exception):
    """The records lack what a comparison needs; the message says what."""


@dataclass(frozen=True)
class Quantity:
    """A quantity with one value a seed, which may be scaled, subtracted and divided.

    Attributes:
        name: as claims print it.
        read: ``(records, metric, setting) -> values``; metric and setting are those of
            the claim. It raises `NotComparable` where records are missing.
        arm: the arm that it is about; empty if it is about several.
        setting: that arm's; empty for the claim's.
    """

    name: str
    read: Callable[[Sequence[Record], str, str], Values]
    arm: str = ""
    setting: str = ""

    def __rmul__(self, factor: float | int) -> "Quantity":
        """Return the quantity times a number."""
        if not isinstance(factor, numbers.Real):
            return NotImplemented

        def read(records: Sequence[Record], metric: str, setting: str) -> Values:
            values = self.read(records, metric, setting)
            if not isinstance(values, Mapping):
                return factor * values
            return {seed: factor * value for seed, value in values.items()}

        return Quantity(f"{factor:g} × {self.name}", read, self.arm, self.setting)

    def __sub__(self, other: "Quantity") -> "Quantity":
        """Return the difference of two quantities, seed by seed."""
        if not isinstance(other, Quantity):
            return NotImplemented
        return self._with(other, "−", sub)

    def __truediv__(self, other: "Quantity") -> "Quantity":
        """Return the ratio of two quantities, seed by seed."""
        if not isinstance(other, Quantity):
            return NotImplemented
        return self._with(other, "/", truediv)

    def _with(
        self, other: "Quantity", sign: str, of: Callable[[float, float], float]
    ) -> "Quantity":
        def read(records: Sequence[Record], metric: str, setting: str) -> Values:
            pairs = paired(self, other, records, metric, setting)
            try:
                return {seed: of(*pair) for seed, pair in pairs.items()}
            except ZeroDivisionError:
                raise NotComparable(f"{other.name} is 0 in a seed") from None

        name = f"({self.name} {sign} {other.name})"
        return Quantity(name, read, self.arm, self.setting)


Side = str | float | int | Quantity


@checked()
def cell(
    arm: str, metric: str = "", setting: str = "", *, fixed: bool = False
) -> Quantity:
    """Return an arm's metric in a setting.

    Args:
        arm: a record's method.
        metric: a record's; empty for the claim's.
        setting: a record's; empty for the claim's.
        fixed: whether nothing in it varies with the seed, so that one record stands for
            all seeds: an untrained network, an optimum.
    """

    def read(records: Sequence[Record], m: str, s: str) -> Values:
        values = values_of(records, arm, metric or m, setting or s)
        if not fixed:
            return values
        if len(set(values.values())) > 1:
            raise NotComparable(f"{arm} is said to be fixed, but varies with the seed")
        return next(iter(values.values()))

    name = f"{arm}'s {metric_name(metric)}" if metric else arm
    return Quantity(name + within(setting), read, arm, setting)


@checked()
def derived(
    name: str,
    function: Callable[[Sequence[Record]], Values],
    arm: str = "",
    setting: str = "",
) -> Quantity:
    """Return a quantity that a function finds in all records, such as a fitted slope.

    Args:
        name: as claims print it.
        function: ``records -> {seed: value}``; it may read cells by `values_of`, and
            raises `NotComparable` where it cannot be computed.
        arm: the claim applies where this arm was run; empty for any.
        setting: that arm's.
    """
    return Quantity(name, lambda records, *_: function(records), arm, setting)


def values_of(
    records: Sequence[Record], arm: str, metric: str, setting: str = ""
) -> dict[Hashable, float]:
    """Return an arm's value of a metric in each seed, for functions of `derived`.

    Raises:
        NotComparable: there is none, a seed has two, or one is not finite.
    """
    found = select(records, arm, metric, setting)
    values: dict[Hashable, float] = {r.seed: r.value for r in found}
    where = f"{arm}'s {metric}{within(setting)}"
    if not values:
        raise NotComparable(f"no records of {where}")
    if len(values) < len(found):
        raise NotComparable(f"{where} is there twice in a seed")
    if not all(map(math.isfinite, values.values())):
        raise NotComparable(f"{where} is not finite in every seed")
    return values


def quantity(side: Side, metric: str) -> Quantity:
    """Return a claim's side as a quantity; a number is named in the metric's unit."""
    if isinstance(side, Quantity):
        return side
    if isinstance(side, str):
        return cell(side)
    number = float(side)
    return Quantity(compact(metric, number, 6), lambda *_: number)


def paired(
    a: Quantity, b: Quantity, records: Sequence[Record], metric: str, setting: str
) -> dict[Hashable, tuple[float, float]]:
    """Return both values of each seed; a value that is fixed stands beside all.

    Raises:
        NotComparable: a side has no records, a seed lacks one of them, a value is not
            finite, or neither side has seeds.
        ValueError: what a side reads is no number, nor one a seed.
    """
    first, second = (x.read(records, metric, setting) for x in (a, b))
    for side, values in ((a, first), (b, second)):
        if isinstance(values, Mapping) and not values:
            raise NotComparable(f"no records of {side.name}")
        for value in values.values() if isinstance(values, Mapping) else [values]:
            try:
                finite = math.isfinite(value)
            except TypeError:
                raise ValueError(
                    f"{side.name} is {value!r:.80}: its function must return a number, "
                    "or a dict of one a seed"
                ) from None
            if not finite:
                raise NotComparable(f"{side.name} is not finite in every seed")
    if not isinstance(first, Mapping):
        if not isinstance(second, Mapping):
            return {0: (first, second)}
        return {seed: (first, value) for seed, value in second.items()}
    if not isinstance(second, Mapping):
        return {seed: (value, second) for seed, value in first.items()}
    lacking = [
        f"{_listed(seeds)} without {name}"
        for name, seeds in (
            (a.name, [seed for seed in second if seed not in first]),
            (b.name, [seed for seed in first if seed not in second]),
        )
        if seeds
    ]
    if lacking:
        raise NotComparable(f"pairs are incomplete: {'; '.join(lacking)}")
    return {seed: (value, second[seed]) for seed, value in first.items()}


def within(setting: str) -> str:
    """Return how a setting is named after a claim; nothing without one."""
    return f" ({setting})" if setting else ""


def _listed(seeds: Sequence[Hashable]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
