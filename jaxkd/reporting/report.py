"""An experiment's report: tables, claims and plots, on the terminal and as one page."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from jaxkd.reporting.claims import Claim, Status, Verdict, judge_all
from jaxkd.reporting.paper import Paper
from jaxkd.reporting.records import Record
from jaxkd.reporting.results import Results
from jaxkd.reporting.tables import (
    Grid,
    comparison,
    layout,
    legend,
    markdown_escape,
    markdown_table,
    measured,
    metric_name,
    print_table,
)

COLORS = {
    Status.HOLDS: "green",
    Status.FAILS: "red",
    Status.NOT_ESTABLISHED: "yellow",
    Status.AS_CLAIMED: "cyan",
    Status.AGAINST: "magenta",
}
WIDTH = max(map(len, Status)) + 1

JUDGED = (
    "Claims are judged by differences paired by seed: one-sided 95 % bounds by "
    "Student's t, and p against the opposite of the verdict. Holm's correction is for "
    "all claims of the run. What does not vary with the seed is only observed."
)
"""How verdicts are to be read."""

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1f2328; --soft: #59616b;
  --line: #d8dce1; --fill: #f5f6f8; --best: #0b6e4f;
  --holds: #0b6e4f; --fails: #b42318; --open: #8a5a00; --seen: #0a6080; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e6e8eb;
  --soft: #9aa3ad; --line: #343a42; --fill: #1d2126; --best: #5fd3a6;
  --holds: #5fd3a6; --fails: #ff8a7a; --open: #f0c05a; --seen: #6cc5e8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 60rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { margin: 0 0 .25rem; font-size: 1.8rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.25rem; }
h3 { margin: 1.5rem 0 .5rem; font-size: 1rem; }
.soft { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child, .facts td { text-align: left; }
.facts td { white-space: normal; overflow-wrap: anywhere; }
.facts th { vertical-align: top; }
.texts td { text-align: left; white-space: pre-wrap; vertical-align: top; }
td.best { color: var(--best); font-weight: 700; }
ul.claims { list-style: none; margin: 0; padding: 0; }
ul.claims li { margin: 0 0 .6rem; padding: .7rem .9rem; background: var(--fill);
  border-left: 4px solid var(--open); border-radius: 4px; }
ul.claims p { margin: .2rem 0 0; font-size: .9rem; }
.badge { color: var(--open); font-size: .8rem; font-weight: 700; }
ul.claims .holds { border-color: var(--holds); }
ul.claims .fails, ul.claims .against { border-color: var(--fails); }
ul.claims .as_claimed { border-color: var(--seen); }
.holds .badge { color: var(--holds); }
.fails .badge, .against .badge { color: var(--fails); }
.as_claimed .badge { color: var(--seen); }
figure { margin: 0 0 1.5rem; }
figure img { display: block; width: 100%; height: auto; padding: .5rem;
  background: #fff; border: 1px solid var(--line); border-radius: 6px; }
figcaption { margin-top: .4rem; font-size: .85rem; color: var(--soft); }
"""


def print_report(
    console: Console,
    results: Results,
    claims: Sequence[Claim],
    paper: Paper | None = None,
    varies: Sequence[str] = (),
) -> None:
    """Print an experiment's tables, and its claims with their verdicts.

    Args:
        console: where to print.
        results: the experiment's.
        claims: to judge by its records.
        paper: the paper's numbers.
        varies: what differs between seeds, such as the split or the teacher.
    """
    metrics, others = measured(results.records)
    console.print()
    print_table(console, results.records, metrics, paper)
    if others:
        names = Text(f"also measured, on the page: {', '.join(others)}", style="dim")
        console.print(names)
    if varies:
        console.print(Text(_varying(varies), style="dim"))
    if claims:
        console.print(Text("\nclaims", style="bold"))
    judged = judge_all(claims, results.records)
    for claim, verdict in judged:
        line = Text.assemble(
            (f"{verdict.status:<{WIDTH}}", f"bold {COLORS[verdict.status]}"), claim.name
        )
        console.print(Padding(line, (0, 0, 0, 2)))
        note = f"after Holm {verdict.corrected}; " if verdict.differs else ""
        text = Text(note + verdict.numbers, style="dim")
        console.print(Padding(text, (0, 0, 0, WIDTH + 2)))
    if len(judged) < len(claims):
        left = len(claims) - len(judged)
        console.print(Text(f"  {left} claims are about methods not run", style="dim"))
    if judged:
        console.print(Text(JUDGED, style="dim"))


def markdown_report(
    results: Results,
    claims: Sequence[Claim],
    paper: Paper | None = None,
    varies: Sequence[str] = (),
) -> str:
    """Return an experiment's tables and claims in Markdown, as its README holds them.

    Args:
        results: the experiment's.
        claims: to judge by its records; those on methods not run are left out.
        paper: the paper's numbers.
        varies: what differs between seeds, such as the split or the teacher.
    """
    metrics, _ = measured(results.records)
    lines = [markdown_table(results.records, metrics, paper)]
    if varies:
        lines += [_varying(varies), ""]
    judged = judge_all(claims, results.records)
    if judged:
        lines += ["| claim | verdict | numbers |", "| --- | --- | --- |"]
    for claim, verdict in judged:
        cells = (claim.name, str(verdict), verdict.numbers)
        lines.append(f"| {' | '.join(map(markdown_escape, cells))} |")
    return "\n".join(lines)


def report_folder(results_file: str | Path) -> Path:
    """Return the folder of a results file's report: beside it, and of its name.

    Results files of one folder have different names, so that no two share a report.
    """
    return Path(results_file).with_suffix("")


def write_report(
    results: Results,
    claims: Sequence[Claim],
    folder: str | Path,
    paper: Paper | None = None,
    varies: Sequence[str] = (),
) -> list[Path]:
    """Write an experiment's plots, and a page that holds everything in one file.

    Args:
        results: the experiment's.
        claims: to judge by its records; those on methods not run are left out.
        folder: where ``report.html``, ``comparison.png`` and, where records have
            curves of accuracy, ``curves.png`` go; made if it is missing. Nothing is
            written elsewhere (`report_folder` names one).
        paper: the paper's numbers.
        varies: what differs between seeds, such as the split or the teacher.

    Returns:
        The files' paths, the page first.

    Raises:
        ValueError: the results hold no records.
    """
    if not results.records:
        raise ValueError(
            f"the results of {results.experiment} hold no records: run it again with "
            f"`jaxkd run {results.experiment} --preset {results.preset}`"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plots = _plots(results.records, folder)
    page = folder / "report.html"
    page.write_text(_page(results, claims, paper, varies, plots), encoding="utf-8")
    return [page, *plots]


def _plots(records: Sequence[Record], folder: Path) -> dict[Path, str]:
    """Draw what there is to draw; return each file with its description."""
    # Here, so that a report on the terminal does not wait for matplotlib.
    from jaxkd.reporting.plots import curves, plot_comparison, plot_curves

    metric = measured(records)[0][0]
    drawn = {
        plot_comparison(
            records, folder / "comparison.png", metric
        ): "Mean and standard "
        f"error of {metric_name(metric)} over seeds for each method, sorted; the "
        "numbers are in the tables."
    }
    if curves(records):
        path = plot_curves(records, folder / "curves.png")
        drawn[path] = "Test accuracy of each method over training, mean over seeds."
    return drawn


def _page(
    results: Results,
    claims: Sequence[Claim],
    paper: Paper | None,
    varies: Sequence[str],
    plots: Mapping[Path, str],
) -> str:
    title = f"{results.experiment}, preset {results.preset}"
    metrics, others = measured(results.records)
    rows = layout(comparison(results.records, metrics, paper), metrics, intervals=True)
    verdicts = judge_all(claims, results.records)
    notes = (_varying(varies) if varies else "", legend(rows))
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_summary(results, verdicts))}</p>',
        "<h2>Results</h2>",
        *map(html_table, rows),
        '<p class="soft">± is the standard error over seeds; the interval is by '
        "Student's t. The best student of each column is in bold. Seconds are the mean "
        "wall time of a run.</p>",
        *(f'<p class="soft">{escape(note)}</p>' for note in notes if note),
    ]
    if verdicts:
        items = "".join(_claim(claim, verdict) for claim, verdict in verdicts)
        parts.append(
            f'<h2>Claims</h2>\n<p class="soft">{escape(JUDGED)}</p>\n'
            f'<ul class="claims">{items}</ul>'
        )
    parts += [
        "<h2>Plots</h2>",
        *(html_figure(path, text) for path, text in plots.items()),
    ]
    if others:
        also = layout(comparison(results.records, others, paper), others)
        parts += ["<h2>Also measured</h2>", *map(html_table, also)]
    facts = {
        **results.machine,
        **results.versions,
        "commit": commit_text(results.commit, results.dirty),
    }
    parts += [
        f"<h2>Configuration</h2>\n{html_facts(results.config)}",
        f"<h2>Made with</h2>\n{html_facts(facts)}",
    ]
    return html_page(title, parts)


def html_page(title: str, parts: Iterable[str]) -> str:
    """Return a page that holds everything in one file.

    Args:
        title: of the page, as text.
        parts: of its body, as HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _summary(results: Results, verdicts: Iterable[tuple[Claim, Verdict]]) -> str:
    found = [verdict.status for _, verdict in verdicts]
    counts = [f"{found.count(s)} {s}" for s in Status if s in found]
    judged = f" Claims: {', '.join(counts)}." if counts else ""
    return f"Run of {results.date}, {results.seconds:,.0f} seconds in all.{judged}"


def _varying(varies: Sequence[str]) -> str:
    return f"What varies between seeds: {', '.join(varies)}."


def commit_text(commit: str | None, dirty: bool) -> str:
    """Return in words what `code_state` found."""
    if commit is None:
        return "none: not in a repository"
    return commit + (" and changes on top of it" if dirty else "")


def html_table(grid: Grid) -> str:
    """Return a table as a part of a page."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in grid.header)
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td class="best">{escape(cell)}</td>'
            if (i, j) in grid.best
            else f"<td>{escape(cell)}</td>"
            for j, cell in enumerate(row)
        )
        + "</tr>"
        for i, row in enumerate(grid.rows)
    )
    title = f"<h3>{escape(grid.setting)}</h3>\n" if grid.setting else ""
    return (
        f'{title}<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _claim(claim: Claim, verdict: Verdict) -> str:
    kind = verdict.status.name.lower()
    return (
        f'\n<li class="{kind}"><span class="badge">{escape(str(verdict))}</span> '
        f"<strong>{escape(claim.name)}</strong><p>{escape(claim.statement)}</p>"
        f'<p class="soft">{escape(verdict.numbers)}</p></li>'
    )


def html_figure(path: Path, text: str) -> str:
    """Return a picture, which the page then holds, with what it shows."""
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(text)}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
    )


def html_facts(facts: Mapping[str, Any]) -> str:
    """Return names and what they stand for as a part of a page."""
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(_fact(value))}</td></tr>'
        for name, value in facts.items()
    )
    return f'<table class="facts">\n{rows}\n</table>'


def _fact(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "–"
    return "–" if value is None else str(value)
