"""How many claims hold, by all experiments' committed results: ``jaxkd claims``."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jaxkd.reporting.claims import Status, Verdict, judge_all
from jaxkd.reporting.experiment import Experiment, load_experiment, slugs
from jaxkd.reporting.results import read_results


def verdicts(experiment: Experiment) -> Iterator[tuple[Path, list[Verdict]]]:
    """Yield each committed results file with its claims' verdicts."""
    for file in sorted((experiment.folder / "results").glob("*.json")):
        if file.stem != "compiled":
            judged = judge_all(experiment.claims, read_results(file).records)
            yield file, [verdict for _, verdict in judged]


def print_summary(console: Console) -> None:
    """Print the verdicts' counts of each results file, and of all.

    Where Holm's correction changes a count, the corrected one follows it.
    """
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("results")
    for name in (*map(_short, Status), "claims"):
        table.add_column(name, no_wrap=True)
    everything: list[Verdict] = []
    for slug in slugs():
        for file, found in verdicts(load_experiment(slug)):
            table.add_row(f"{slug}, {file.stem}", *_counts(found))
            everything += found
    table.add_row("[bold]all", *_counts(everything))
    console.print(table)
    console.print(
        "(n): after Holm's correction; open: not established; seen, unseen: observed "
        "without seeds, as claimed or against",
        style="dim",
    )


def _short(status: Status) -> str:
    names = {
        Status.NOT_ESTABLISHED: "open",
        Status.AS_CLAIMED: "seen",
        Status.AGAINST: "unseen",
    }
    return names.get(status, status.name.lower())


def _counts(found: list[Verdict]) -> list[str]:
    alone = Counter(verdict.status for verdict in found)
    together = Counter(verdict.corrected or verdict.status for verdict in found)
    cells = [
        str(alone[s]) if alone[s] == together[s] else f"{alone[s]} ({together[s]})"
        for s in Status
    ]
    return [*cells, str(len(found))]
