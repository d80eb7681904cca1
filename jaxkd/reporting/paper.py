"""A paper's own numbers: what they are, where they stand, and whether that was read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxkd.arguments import checked

RECALLED = "†"
"""Marks a paper's number that was not read in the paper or its code."""


@dataclass(frozen=True)
class PaperValue:
    """A number that a paper reports.

    Attributes:
        value: in the records' unit.
        where: the table, figure or file it stands in.
        checked: whether it was read there; otherwise it is recalled from memory.
    """

    value: float
    where: str
    checked: bool


Paper = Mapping[str, Mapping[str, PaperValue]]
"""A paper's numbers in the records' units: method -> metric -> value.

A key ``"setting/method"`` holds for that setting only and goes before ``"method"``.
"""


@checked()
def paper_table(
    metric: str,
    settings: Sequence[str],
    rows: Mapping[str, str],
    where: str,
    checked: bool,
) -> dict[str, dict[str, PaperValue]]:
    """Return a table of percentages as a `Paper`.

    Args:
        metric: a record's, a fraction.
        settings: the columns.
        rows: method -> a percentage for each setting, in one text; ``"-"`` where the
            paper has none.
        where: the table, figure or file it stands in.
        checked: whether it was read there.

    Raises:
        ValueError: a setting twice, a row that has not as many entries as there are
            settings, or one that is no number.
    """
    if len(set(settings)) < len(settings):
        raise ValueError(f"settings must be different, got {settings}")
    found = {}
    for method, row in rows.items():
        cells = row.split()
        if len(cells) != len(settings):
            raise ValueError(
                f"the row {method!r} has {len(cells)} entries, and there are "
                f"{len(settings)} settings: write '-' where the paper has none"
            )
        for setting, cell in zip(settings, cells, strict=True):
            if cell != "-":
                value = round(_number(cell, method) / 100, 6)
                found[f"{setting}/{method}"] = {
                    metric: PaperValue(value, where, checked)
                }
    return found


def _number(cell: str, method: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"the row {method!r} has {cell!r}, which is no number")
    return value
