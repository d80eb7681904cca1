"""Tables of methods: mean ± standard error over seeds, beside the paper's numbers."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from jaxkd.reporting.metrics import METRICS, higher_is_better
from jaxkd.reporting.paper import RECALLED, Paper, PaperValue
from jaxkd.reporting.records import (
    Record,
    Summary,
    methods,
    select,
    settings,
    summarize,
)

TEACHER = "teacher"
"""The method's name under which a teacher is recorded; it does not compete."""

MISSING = "–"


@dataclass(frozen=True)
class Row:
    """One method of one setting.

    Attributes:
        setting: the table it belongs to.
        method: its name.
        summaries: by metric, those that were measured.
        paper: the paper's values by metric, those that are known.
        seeds: how many were run.
        seconds: mean wall time of a run.
    """

    setting: str
    method: str
    summaries: dict[str, Summary]
    paper: dict[str, PaperValue]
    seeds: int
    seconds: float


@dataclass(frozen=True)
class Grid:
    """One setting's table as text, ready to be drawn anywhere.

    Attributes:
        setting: its title; may be empty.
        header: names of the columns, the method's first.
        rows: cells, as many as the header has.
        best: places (row, column) of each metric's best.
    """

    setting: str
    header: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]] = field(default_factory=set)


def metric_name(metric: str) -> str:
    """Return a metric's column name; an unknown metric is its own."""
    return METRICS[metric].name if metric in METRICS else metric


def format_value(metric: str, value: float, extra: int = 0) -> str:
    """Return a value as text: percent with 1 digit, NLL with 3, others with 4 in all.

    Args:
        metric: says the unit.
        value: in the record's unit.
        extra: how many digits more.
    """
    if not math.isfinite(value):
        return str(value)
    if metric_name(metric).endswith("%"):
        return f"{100 * value:.{1 + extra}f}"
    if metric in METRICS:
        return f"{value:.{3 + extra}f}"
    return f"{value:.{4 + extra}g}"


def compact(metric: str, value: float, digits: int = 3) -> str:
    """Return a value as text with some significant digits, in the metric's unit."""
    unit = 100 if metric_name(metric).endswith("%") else 1
    return f"{unit * value + 0.0:.{digits}g}"  # + 0.0 makes 0 of −0


def format_summary(metric: str, summary: Summary) -> str:
    """Return ``"91.9 ± 0.5"``, or the mean alone where there is one seed."""
    mean = format_value(metric, summary.mean)
    if math.isnan(summary.error):
        return mean
    if metric in METRICS:
        return f"{mean} ± {format_value(metric, summary.error)}"
    return f"{mean} ± {summary.error:.2g}"


def measured(records: Sequence[Record]) -> tuple[list[str], list[str]]:
    """Return the metrics to compare methods by, and the others that were recorded.

    The first are those of `METRICS`, in its order, or all if there is none.
    """
    found = list(dict.fromkeys(r.metric for r in records))
    known = [metric for metric in METRICS if metric in found]
    others = [metric for metric in found if metric not in known]
    return (known, others) if known else (others, [])


def comparison(
    records: Sequence[Record], metrics: Sequence[str], paper: Paper | None = None
) -> list[Row]:
    """Return a row for each setting and method, in order of first appearance.

    Args:
        records: of one experiment.
        metrics: to summarise; a method with none of them has no row.
        paper: the paper's numbers.
    """
    rows, paper = [], paper or {}
    for setting in settings(records):
        for method in methods(records, setting):
            summaries = {
                metric: summarize([r.value for r in found])
                for metric in metrics
                if (found := select(records, method, metric, setting))
            }
            if not summaries:
                continue
            known = paper.get(f"{setting}/{method}", paper.get(method, {}))
            seconds = {
                r.seed: r.wall_time
                for r in records
                if (r.setting, r.method) == (setting, method)
            }
            rows.append(
                Row(
                    setting,
                    method,
                    summaries,
                    {m: known[m] for m in metrics if m in known},
                    len(seconds),
                    float(np.mean(list(seconds.values()))),
                )
            )
    return rows


def layout(
    rows: Sequence[Row], metrics: Sequence[str], intervals: bool = False
) -> list[Grid]:
    """Return one table of text a setting.

    A metric has a column if one of the setting's rows has a value, and another for the
    paper's if one has the paper's.

    Args:
        rows: from `comparison`.
        metrics: the columns.
        intervals: whether the first metric's 95 % confidence interval gets a column.
    """
    grids = []
    for setting in dict.fromkeys(row.setting for row in rows):
        mine = [row for row in rows if row.setting == setting]
        grid = Grid(setting, ["method"], [[row.method] for row in mine])
        for metric in metrics:
            if not any(metric in row.summaries for row in mine):
                continue
            if (best := _best(mine, metric)) is not None:
                grid.best.add((best, len(grid.header)))
            cells = [row.summaries.get(metric) for row in mine]
            _add_column(
                grid,
                metric_name(metric),
                [MISSING if c is None else format_summary(metric, c) for c in cells],
            )
            if intervals and metric == metrics[0]:
                _add_column(
                    grid, "95 % interval", [_interval(metric, c) for c in cells]
                )
            if any(metric in row.paper for row in mine):
                _add_column(
                    grid,
                    f"paper, {metric_name(metric)}",
                    [_paper_cell(metric, row.paper.get(metric)) for row in mine],
                )
        _add_column(grid, "seeds", [str(row.seeds) for row in mine])
        _add_column(grid, "seconds", [_seconds(row.seconds) for row in mine])
        grids.append(grid)
    return grids


def print_table(
    console: Console,
    records: Sequence[Record],
    metrics: Sequence[str],
    paper: Paper | None = None,
) -> None:
    """Print a table for each setting, the best student's cells in bold.

    Metrics for which the terminal is too narrow go to a table below.

    Args:
        console: where to print.
        records: of one experiment.
        metrics: the columns.
        paper: the paper's numbers.
    """
    rows = comparison(records, metrics, paper)
    for setting in dict.fromkeys(row.setting for row in rows):
        mine, left = [row for row in rows if row.setting == setting], list(metrics)
        while left:
            shown = len(left)
            while shown > 1 and not _fits(console, mine, left[:shown]):
                shown -= 1
            rest = ", continued" if len(left) < len(metrics) else ""
            console.print(rich_table(layout(mine, left[:shown])[0], rest))
            left = left[shown:]
    if rows:
        console.print(
            "± standard error over n seeds; s: mean seconds a run; bold: best student",
            style="dim",
        )
        if marks := legend(layout(rows, metrics)):
            console.print(marks, style="dim")


def markdown_table(
    records: Sequence[Record], metrics: Sequence[str], paper: Paper | None = None
) -> str:
    """Return the tables in Markdown, the best student's cells in bold.

    Args:
        records: of one experiment.
        metrics: the columns.
        paper: the paper's numbers.
    """
    lines = []
    grids = layout(comparison(records, metrics, paper), metrics, intervals=True)
    for grid in grids:
        if grid.setting:
            lines += [f"**{markdown_escape(grid.setting)}**", ""]
        lines += [markdown_grid(grid), ""]
    if marks := legend(grids):
        lines += [marks, ""]
    return "\n".join(lines)


def markdown_grid(grid: Grid) -> str:
    """Return a table in Markdown, the best student's cells in bold."""
    lines = [_markdown_row(grid.header), "|---|" + "---:|" * (len(grid.header) - 1)]
    for i, row in enumerate(grid.rows):
        cells = [markdown_escape(cell) for cell in row]
        marked = [f"**{c}**" if (i, j) in grid.best else c for j, c in enumerate(cells)]
        lines.append("| " + " | ".join(marked) + " |")
    return "\n".join(lines)


def _interval(metric: str, summary: Summary | None) -> str:
    if summary is None or summary.seeds < 2:
        return MISSING
    low, high = summary.interval()
    return f"{format_value(metric, low)} to {format_value(metric, high)}"


def _paper_cell(metric: str, paper: PaperValue | None) -> str:
    if paper is None:
        return MISSING
    return format_value(metric, paper.value) + ("" if paper.checked else RECALLED)


def legend(grids: Iterable[Grid]) -> str:
    """Return what the marks in some tables mean; empty where there are none."""
    cells = (cell for grid in grids for row in grid.rows for cell in row)
    if any(cell.endswith(RECALLED) for cell in cells):
        return f"{RECALLED} recalled, not read in the paper or its code"
    return ""


def _best(rows: Sequence[Row], metric: str) -> int | None:
    higher = higher_is_better(metric)
    if higher is None:
        return None
    sign = 1 if higher else -1
    scores = {
        i: sign * row.summaries[metric].mean
        for i, row in enumerate(rows)
        if row.method != TEACHER and metric in row.summaries
    }
    # Of one student there is no best.
    return max(scores, key=scores.__getitem__) if len(scores) > 1 else None


def _add_column(grid: Grid, name: str, cells: Sequence[str]) -> None:
    grid.header.append(name)
    for row, cell in zip(grid.rows, cells, strict=True):
        row.append(cell)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}"


def rich_table(grid: Grid, rest: str = "") -> Table:
    """Return a table for the terminal.

    Args:
        grid: its text.
        rest: what its title ends in.
    """
    table = Table(
        title=Text(grid.setting + rest, style="bold") if grid.setting else None,
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="cyan",
    )
    short = {"seeds": "n", "seconds": "s"}
    for j, name in enumerate(grid.header):
        table.add_column(
            Text(short.get(name, name)), justify="right" if j else "left", no_wrap=True
        )
    for i, row in enumerate(grid.rows):
        table.add_row(
            *(
                Text(cell, style="bold green" if (i, j) in grid.best else "")
                for j, cell in enumerate(row)
            )
        )
    return table


def _fits(console: Console, rows: Sequence[Row], metrics: Sequence[str]) -> bool:
    table = rich_table(layout(rows, metrics)[0])
    wide = console.options.update(width=10_000)
    return Measurement.get(console, wide, table).maximum <= console.width


def markdown_escape(text: str) -> str:
    """Return a text as one cell of a Markdown table."""
    for character in "\\`*[]<>|":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(markdown_escape(cell) for cell in cells) + " |"
