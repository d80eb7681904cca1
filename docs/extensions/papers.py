"""Pages of the experiments: one a paper, an index of them all, and a gallery.

They are made at every build from what the experiments hold (README, results, plots), so
that the site cannot say anything else.
"""

import re
from collections import Counter
from pathlib import Path

from sphinx.application import Sphinx

from jaxkd.reporting import summary
from jaxkd.reporting.experiment import Experiment, load_experiment, slugs
from jaxkd.reporting.plans import read_plans

FACTS = ("Paper", "Implemented", "Parity")
INDEX = """# Papers

One page a paper, made from its experiment's README and results. Claims are judged by
the records of the runs, each by itself; its page says what Holm's correction for all of
them changes. What fails is shown as failing. The full-scale presets have not
been run: they are compiled ahead of time for the slice named.

"""


def facts(readme: str) -> dict[str, str]:
    """Return the list at the head of an experiment's README, by name."""
    found = {}
    for name in FACTS:
        match = re.search(rf"- \*\*{name}\*\*: (.*?)(?=\n- \*\*|\n\n)", readme, re.S)
        if match:
            found[name] = " ".join(match[1].split())
    return found


def verdicts(experiment: Experiment) -> str:
    """Return how many claims hold, fail or are open, in each preset that was run."""
    parts = []
    for file, found in summary.verdicts(experiment):
        counts = Counter(verdict.status for verdict in found)
        text = ", ".join(f"{n} {status}" for status, n in counts.items())
        parts.append(f"{file.stem}: {text}" if text else file.stem)
    return "; ".join(parts)


def slices(experiment: Experiment) -> str:
    """Return the slices that the full-scale programs were compiled for."""
    file = experiment.folder / "results" / "compiled.json"
    if not file.is_file():
        return "–"
    plans = read_plans(file).values()
    return ", ".join(dict.fromkeys(plan.topology for plan in plans))


def plots(experiment: Experiment) -> list[Path]:
    """Return the pictures among an experiment's results."""
    return sorted((experiment.folder / "results").glob("**/*.png"))


def write_pages(app: Sphinx) -> None:
    """Write the pages into the source folder, where Sphinx reads them."""
    folder = Path(app.srcdir) / "papers"
    folder.mkdir(exist_ok=True)
    rows, gallery = [], ["# Gallery\n"]
    names = slugs()
    for slug in names:
        experiment = load_experiment(slug)
        place = f"../../experiments/{slug}"
        readme = (experiment.folder / "README.md").read_text()
        found = facts(readme)
        pictures = [
            f"![{p.stem} of {slug}]({place}/{p.relative_to(experiment.folder)})"
            for p in plots(experiment)
        ]
        page = [
            f"```{{include}} {place}/README.md\n:relative-images:\n```",
            "## Plots",
            *pictures,
        ]
        (folder / f"{slug}.md").write_text("\n\n".join(page) + "\n")
        cells = (
            f"[{slug}]({slug}.md)",
            *(found.get(name, "–") for name in FACTS),
            verdicts(experiment),
            slices(experiment),
        )
        rows.append(f"| {' | '.join(cells)} |")
        if pictures:
            gallery += [f"## [{experiment.title}]({slug}.md)", *pictures]
    titles = ("experiment", "paper", "implemented", "parity", "claims", "compiled for")
    head = f"| {' | '.join(titles)} |"
    table = "\n".join([head, "| --- " * 6 + "|", *rows])
    contents = "\n".join(["```{toctree}", ":hidden:", "", *names, "gallery", "```"])
    (folder / "index.md").write_text(f"{INDEX}{table}\n\n{contents}\n")
    (folder / "gallery.md").write_text("\n\n".join(gallery) + "\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}
