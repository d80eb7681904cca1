"""Draw how the enhanced head leads the student's own, and what each is worth in use.

python -m experiments.prockd.picture
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jaxkd.reporting.records import select
from jaxkd.reporting.results import read_results

RESULTS = Path(__file__).parent / "results"
TABLES = ("digits 5 to 9 from 0 to 4", "digits from CIFAR-10")
ROWS = ("prockd", "no_consistency", "features", "own_head")
HEADS = {"plain head": "last_accuracy", "enhanced head": "augmented_accuracy"}


def draw(path: Path) -> None:
    """Draw a column a table: the heads' KL in training above, accuracies below."""
    records = read_results(RESULTS / "small.json").records
    figure = Figure((11, 6.5), layout="constrained")
    axes = figure.subplots(2, len(TABLES), sharey="row")
    for above, below, table in zip(*axes, TABLES, strict=True):
        for i, row in enumerate(ROWS):
            curves = [r.curve for r in select(records, row, "head_kl", table)]
            epochs = np.linspace(0, 150, len(curves[0]) + 1)[1:]
            above.plot(epochs, np.mean(curves, axis=0), f"C{i}o-", label=row)
        above.set(title=table, xlabel="epoch", yscale="log")
        above.legend(fontsize="small")
        places = np.arange(len(ROWS))
        for head, (name, metric) in enumerate(HEADS.items()):
            found = [
                [100 * r.value for r in select(records, row, metric, table)]
                for row in ROWS
            ]
            x = places + 0.4 * (head - 0.5)
            below.bar(x, np.mean(found, axis=1), 0.38, alpha=0.6, label=name)
            below.plot(x, found, "k.", markersize=4)
        scratch = select(records, "scratch", "last_accuracy", table)
        level = 100 * np.mean([r.value for r in scratch])
        below.axhline(level, color="k", linewidth=0.8, label="scratch")
        below.set_xticks(places, ROWS)
        below.set_ylim(0, 115)
        below.legend(fontsize="small", loc="upper center", ncols=3)
    axes[0][0].set_ylabel("KL of the heads, training images")
    axes[1][0].set_ylabel("test accuracy, %")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(RESULTS / "small" / "heads.png")
