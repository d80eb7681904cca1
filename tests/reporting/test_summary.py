"""The summary counts every committed results file once."""

import io

from rich.console import Console

from jaxkd.reporting import summary
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.records import Record
from jaxkd.reporting.results import write_results
from tests.reporting.test_results import Config


def test_verdicts_are_counted_before_and_after_holm(tmp_path, monkeypatch):
    # Of x the differences have p = 0.019: below 5 %, and above half of it among two.
    found = [
        Record(method, seed, "x", value, 1.0)
        for method, values in (("a", [0.1, 0.2, 0.2]), ("b", [0.0, 0.0, 0.0]))
        for seed, value in enumerate(values)
    ]
    claims = [contrast("a", "b", "x", m, lower=False) for m in (0.0, 0.15, 0.16)]
    experiment = Experiment(presets={}, claims=claims, slug="e", folder=tmp_path)
    write_results(
        tmp_path / "results" / "small.json",
        experiment="e",
        preset="small",
        config=Config(),
        records=found,
        seconds=1.0,
        code=(None, False),
    )
    (tmp_path / "results" / "compiled.json").write_text("{}")
    monkeypatch.setattr(summary, "slugs", lambda: ["e"])
    monkeypatch.setattr(summary, "load_experiment", lambda slug: experiment)
    console = Console(width=100, record=True, file=io.StringIO())
    summary.print_summary(console)
    lines = [line.split() for line in console.export_text().splitlines()]
    counts = ["1", "(0)", "0", "2", "(3)", "0", "0", "3"]
    assert ["e,", "small", *counts] in lines
    assert ["all", *counts] in lines
