"""What a recipe's run shows of itself: a table, a page, and the model's card."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from jaxkd.arguments import checked
from jaxkd.recipes.recipe import to_yaml
from jaxkd.reporting.records import Record
from jaxkd.reporting.report import (
    commit_text,
    html_facts,
    html_figure,
    html_page,
    html_table,
)
from jaxkd.reporting.results import code_state, machine, versions
from jaxkd.reporting.tables import (
    Grid,
    comparison,
    layout,
    markdown_escape,
    markdown_grid,
    measured,
    metric_name,
    rich_table,
)


@checked()
@dataclass(frozen=True)
class Made:
    """What a run has made, for its pages.

    Attributes:
        kind: of recipe.
        recipe: of the run.
        about: teacher, student, data and method.
        metric: that said which student is the best.
        records: the numbers.
        answers: rows of texts to look at, by the columns' names.
        seconds: of the run.
    """

    kind: str
    recipe: Any
    about: Mapping[str, str]
    metric: str
    records: Sequence[Record]
    answers: Sequence[Mapping[str, str]]
    seconds: float

    @property
    def title(self) -> str:
        """Of the pages."""
        return f"{self.kind} distilled by {self.recipe.method}"


@checked()
def grid(records: Sequence[Record]) -> Grid:
    """Return the table of a run, a row a metric and a column a model."""
    metrics, _ = measured(records)
    (found,) = layout(comparison(records, metrics), metrics)
    columns = zip(found.header, *found.rows, strict=True)
    (_, *names), *rows = (column for column in columns if column[0] != "seeds")
    best = {(metric - 1, model + 1) for model, metric in found.best}
    return Grid("", ["", *names], [list(row) for row in rows], best)


@checked()
def print_rows(console: Console, records: Sequence[Record]) -> None:
    """Print the table of a run."""
    console.print(rich_table(grid(records)))


@checked()
def write_pages(folder: Path, made: Made) -> None:
    """Write ``report.html``, ``README.md``, ``recipe.yaml`` and plots to a folder."""
    from jaxkd.reporting.plots import plot_curves

    name = metric_name(made.metric)
    plot = plot_curves(made.records, folder / "curves.png", made.metric)
    caption = f"{name} on what was held out, at each evaluation."
    code = commit_text(*code_state())
    parts = [
        f"<h1>{escape(made.title)}</h1>",
        f'<p class="soft">{escape(_summary(made))}</p>',
        f"<h2>Results</h2>\n{html_table(grid(made.records))}",
        html_figure(plot, caption),
        f"<h2>What it is</h2>\n{html_facts(made.about)}",
    ]
    if made.answers:
        texts = html_table(_texts(made.answers))
        parts.append(f'<h2>Answers</h2>\n<div class="texts">{texts}</div>')
    facts = {**machine(), **versions(), "commit": code}
    parts += [
        f"<h2>Recipe</h2>\n<pre>{escape(to_yaml(made.kind, made.recipe))}</pre>",
        f"<h2>Made with</h2>\n{html_facts(facts)}",
    ]
    page = html_page(made.title, parts)
    (folder / "report.html").write_text(page, encoding="utf-8")
    (folder / "README.md").write_text(_card(made, code), encoding="utf-8")
    recipe = to_yaml(made.kind, made.recipe)
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")


def _summary(made: Made) -> str:
    today = datetime.now(UTC).date().isoformat()
    return f"Run of {today}, {made.seconds:,.0f} seconds in all."


def _texts(rows: Sequence[Mapping[str, str]]) -> Grid:
    return Grid("", list(rows[0]), [list(row.values()) for row in rows])


def _card(made: Made, code: str) -> str:
    """Return the card of the model: data, method, numbers, and what made it."""
    about = "\n".join(
        f"- **{name}**: {markdown_escape(text)}" for name, text in made.about.items()
    )
    said = versions()
    packages = ", ".join(f"{name} {version}" for name, version in said.items())
    tags = yaml.safe_dump({"tags": ["distillation", "jaxkd"]}, sort_keys=False)
    return f"""---
{tags}---

# {made.title}

{about}

## Numbers

On what was held out of the training:

{markdown_grid(grid(made.records))}

## How it was made

{_summary(made)} `jaxkd distill --config recipe.yaml --to NEW` makes it again, with
this `recipe.yaml`:

```yaml
{to_yaml(made.kind, made.recipe)}```

Commit: {code}. Versions: {packages}.
"""
