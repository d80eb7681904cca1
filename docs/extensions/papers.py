"""Pages of the experiments: one a paper, an index of them all, and a gallery.

They are made at every build from what the experiments hold (README, results, plots), so
that the site cannot say anything else.
"""

import re
from collections import Counter
from pathlib import Path

from sphinx.application import Sphinx

from jaxkd.reporting import summary
from jaxkd.reporting.claims import Status
from jaxkd.reporting.experiment import Experiment, load_experiment, slugs
from jaxkd.reporting.plans import read_plans

FACTS = ("Paper", "Parity")
HEADER = ("paper", "what it is", "claims", "parity", "full scale")
INDEX = """# Papers

One page a paper, made from its experiment's README and results.

- **Claims**: how many hold / fail / are not established, by the records of all runs,
  and how many without seeds are observed as claimed. Each is judged by itself; its
  page says what Holm's correction for all of them changes.
- **Parity**: how far values are from the authors' code, or from an independent
  computation (closed forms, float64) where there is none.
- **Full scale**: compiled ahead of time for the slice named, not run; the share of a
  chip's memory that the largest program needs.

"""


def facts(readme: str) -> dict[str, str]:
    """Return the list at the head of an experiment's README, by name."""
    found = {}
    for name in FACTS:
        match = re.search(rf"- \*\*{name}\*\*: (.*?)(?=\n- \*\*|\n\n)", readme, re.S)
        if match:
            found[name] = " ".join(match[1].split())
    return found


def name(experiment: Experiment, paper: str) -> str:
    """Return the paper's short name with its link, and its number on arXiv."""
    short, colon, _ = experiment.title.partition(":")
    number = re.search(r"arXiv:([\d.]+\d)", paper)
    link = f"[{short if colon else experiment.slug}]({experiment.slug}.md)"
    return f"{link} {number[1]}" if number else link


def verdicts(experiment: Experiment) -> str:
    """Return how many claims hold / fail / are not established, of all that was run."""
    counts = Counter(
        verdict.status for _, found in summary.verdicts(experiment) for verdict in found
    )
    judged = (Status.HOLDS, Status.FAILS, Status.NOT_ESTABLISHED)
    text = " / ".join(str(counts[status]) for status in judged)
    seen = counts[Status.AS_CLAIMED] + counts[Status.AGAINST]
    if seen:
        text += f", {counts[Status.AS_CLAIMED]} of {seen} observed"
    return text if counts else "–"


def parity(experiment: Experiment, fact: str) -> str:
    """Return the smallest and largest difference that a README tells, and from what."""
    figures = sorted(re.findall(r"\b\d+e-\d+", fact), key=float)
    ends = list(dict.fromkeys([*figures[:1], *figures[-1:]]))
    golden = experiment.folder.parents[1] / "tests" / "golden"
    whom = "independent references"
    if "transformers" in fact:
        whom = "transformers"
    elif any(golden.glob(f"*-{experiment.slug}.npz")):
        whom = "the authors' code"
    return ", ".join(filter(None, [" to ".join(ends), whom])) if fact else "–"


def full_scale(experiment: Experiment) -> str:
    """Return whether the full-scale programs fit, and the slices of the compilation."""
    file = experiment.committed("compiled")
    if not file.is_file():
        return "–"
    plans = read_plans(file).values()
    share = max(plan.needed / plan.memory for plan in plans)
    where = " and ".join(dict.fromkeys(plan.topology for plan in plans))
    return f"{'fits' if share <= 1 else 'does not fit'} {where} ({100 * share:.2g} %)"


def row(experiment: Experiment) -> tuple[str, ...]:
    """Return an experiment's row of the index, under `HEADER`."""
    found = facts((experiment.folder / "README.md").read_text())
    _, _, line = experiment.title.partition(": ")
    return (
        name(experiment, found.get("Paper", "")),
        (line or experiment.title).rstrip("."),
        verdicts(experiment),
        parity(experiment, found.get("Parity", "")),
        full_scale(experiment),
    )


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
        rows.append(f"| {' | '.join(row(experiment))} |")
        if pictures:
            gallery += [f"## [{experiment.title}]({slug}.md)", *pictures]
    head = f"| {' | '.join(HEADER)} |"
    table = "\n".join([head, "| --- " * len(HEADER) + "|", *rows])
    contents = "\n".join(["```{toctree}", ":hidden:", "", *names, "gallery", "```"])
    (folder / "index.md").write_text(f"{INDEX}{table}\n\n{contents}\n")
    (folder / "gallery.md").write_text("\n\n".join(gallery) + "\n")


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}
