"""A paper's own numbers: what they are, where they stand, and whether that was read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


Paper = Mapping[str, Mapping[str, PaperValue | float]]
"""A paper's numbers in the records' units: method -> metric -> value.

A key ``"setting/method"`` holds for that setting only and goes before ``"method"``. A
bare number counts as recalled.
"""


def as_paper_value(given: PaperValue | float) -> PaperValue:
    """Return a number as one that is recalled, and a `PaperValue` as it is."""
    return given if isinstance(given, PaperValue) else PaperValue(given, "", False)


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
        ValueError: a row has not as many entries as there are settings, or one is no
            number.
    """
    found = {}
    for method, row in rows.items():
        cells = row.split()
        if len(cells) != len(settings):
            raise ValueError(
                f"the row {method!r} has {len(cells)} entries, and there are "
                f"{len(settings)} settings: write '-' where the paper has none"
            )
        found |= {
            f"{setting}/{method}": {
                metric: PaperValue(round(float(cell) / 100, 6), where, checked)
            }
            for setting, cell in zip(settings, cells, strict=True)
            if cell != "-"
        }
    return found
