"""What full-scale steps need of a chip, as the compiler found it: files and tables."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from jaxkd.digests import check_json, write_json
from jaxkd.files import check_plain
from jaxkd.training.ahead import StepPlan
from jaxkd.untrusted import json_file

HEADER = (
    "program",
    "slice",
    "arguments",
    "temporaries",
    "of HBM",
    "TFLOP",
    "GB HBM",
    "GB sent",
    "≥ ms",
    "bound by",
)
"""A chip's share of one step: its memory, its work, and the time that it takes at least
with what it waits for then."""


def plan_rows(plans: Mapping[str, StepPlan]) -> list[tuple[str, ...]]:
    """Return a row of text, under `HEADER`, of each program's step."""
    return [
        (
            name,
            f"{plan.topology}, {_axes(plan)}",
            f"{plan.arguments / 2**20:,.1f} MiB",
            f"{plan.temporaries / 2**20:,.1f} MiB",
            f"{100 * plan.needed / plan.memory:.1f} %",
            f"{plan.flops / 1e12:.3g}",
            f"{plan.bytes_accessed / 1e9:.3g}",
            f"{sum(plan.collectives.values()) / 1e9:.3g}",
            f"{1000 * max(plan.bounds.values()):.3g}",
            max(plan.bounds, key=plan.bounds.__getitem__),
        )
        for name, plan in plans.items()
    ]


def _axes(plan: StepPlan) -> str:
    return " x ".join(f"{axis} {n}" for axis, n in plan.mesh.items() if n > 1) or "one"


def plan_markdown(plans: Mapping[str, StepPlan]) -> str:
    """Return the table in Markdown."""
    rule = ("---",) * 2 + ("---:",) * (len(HEADER) - 3) + ("---",)
    lines = [HEADER, rule, *plan_rows(plans)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def print_plans(console: Console, plans: Mapping[str, StepPlan]) -> None:
    """Print the table, and what each program sends by the kind of collective.

    Where the terminal is too narrow for it, each program's figures are a table below
    the last one's.
    """
    rows = plan_rows(plans)
    table = Table(*HEADER, box=None)
    for row in rows:
        table.add_row(*row)
    wide = console.options.update(width=10_000)
    if Measurement.get(console, wide, table).maximum <= console.width:
        console.print(table)
    else:
        for row in rows:
            figures = Table(show_header=False, box=None)
            for name, cell in zip(HEADER, row, strict=True):
                figures.add_row(name, cell)
            console.print(figures, "")
    for name, plan in plans.items():
        sent = [f"{n / 1e9:.3g} by {kind}" for kind, n in plan.collectives.items()]
        console.print(
            f"{name}: code {plan.code / 2**20:.1f} MiB, GB sent: "
            f"{', '.join(sent) or 0}",
            soft_wrap=True,
        )


def write_plans(path: Path, plans: Mapping[str, StepPlan]) -> None:
    """Write plans as JSON; the folder is made if it is missing."""
    saved = {name: dataclasses.asdict(plan) for name, plan in plans.items()}
    write_json(path, saved, indent=1)


def read_plans(path: Path) -> dict[str, StepPlan]:
    """Return the plans of a file that `write_plans` wrote.

    Raises:
        ValueError: the file is damaged or of another version.
    """
    try:
        saved = check_json(json_file(path))
        check_plain(saved, "it")
        plans = {name: StepPlan(**plan) for name, plan in saved.items()}
        plan_rows(plans)  # Fails where a value is of another kind.
        return plans
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as e:
        raise ValueError(
            f"{path} is damaged or of another version ({e}): write it again with "
            "`jaxkd compile`"
        ) from None
