"""The experiments' READMEs: complete, and their tables those of the results."""

import re
from pathlib import Path

import pytest

from jaxkd.reporting.experiment import experiments_folder, load_experiment, slugs
from jaxkd.reporting.plans import plan_markdown, read_plans
from jaxkd.reporting.report import markdown_report
from jaxkd.reporting.results import read_results

PAPERS = [slug for slug in slugs() if slug != "baselines"]
FILES = sorted(
    file
    for slug in slugs()
    for file in (experiments_folder() / slug / "results").glob("*.json")
)


@pytest.mark.parametrize("slug", PAPERS)
def test_what_every_readme_says(slug):
    text = (experiments_folder() / slug / "README.md").read_text()
    for fact in ("- **Paper**: ", "- **Implemented**: ", "- **Parity**: "):
        assert fact in text
    assert f"jaxkd run {slug} --preset small" in text
    assert f"jaxkd compile {slug}" in text


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parts[-3]}-{f.stem}")
def test_tables_are_those_of_the_results(file: Path):
    experiment = load_experiment(file.parts[-3])
    if file.stem == "compiled":
        table = plan_markdown(read_plans(file))
    else:
        found = read_results(file)
        table = markdown_report(found, experiment.claims, experiment.paper)
    text = (experiment.folder / "README.md").read_text()
    # A README may have headings of its own between the tables.
    rows = [line for line in table.splitlines() if re.match(r"\|.*\d", line)]
    missing = [row for row in rows if row not in text]
    assert not missing
