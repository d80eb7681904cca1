"""Draw how the two losses' gradients agree over training, and what each head knows.

python -m experiments.dho.picture
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jaxkd.reporting.records import select
from jaxkd.reporting.results import read_results

RESULTS = Path(__file__).parent / "results"
TABLES = ("digits, 2 labels a class", "digits, 8 labels a class", "CIFAR-10")
BARS = {
    "sho_0.5": ("sho_0.5", "last_accuracy"),
    "label head": ("dho", "label_head"),
    "teacher's head": ("dho", "teacher_head"),
    "mixture": ("dho", "last_accuracy"),
}


def draw(path: Path) -> None:
    """Draw a column a table: cosines above, accuracies below."""
    records = read_results(RESULTS / "small.json").records
    figure = Figure((11, 6), layout="constrained")
    axes = figure.subplots(2, len(TABLES), sharey="row")
    for above, below, table in zip(*axes, TABLES, strict=True):
        for row, color in (("sho_0.5", "C3"), ("dho", "C0")):
            for record in select(records, row, "cosine_course", table):
                epochs = range(1, len(record.curve) + 1)
                above.plot(epochs, record.curve, color, alpha=0.6, label=row)
        above.axhline(0, color="k", linewidth=0.6)
        above.set(title=table, xlabel="epoch")
        handles, labels = above.get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        above.legend(unique.values(), unique.keys(), fontsize="small")
        found = {
            name: [100 * r.value for r in select(records, *cell, table)]
            for name, cell in BARS.items()
        }
        means = [np.mean(values) for values in found.values()]
        colors = ["C3", "C1", "C2", "C0"]
        below.bar(list(found), means, color=colors, alpha=0.7)
        for i, values in enumerate(found.values()):
            below.plot([i] * len(values), values, "k.", markersize=4)
        below.tick_params("x", labelrotation=20)
    axes[0][0].set_ylabel("cosine of the gradients in the features")
    axes[1][0].set_ylabel("test accuracy, %")
    axes[1][0].set_ylim(0, 100)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(RESULTS / "small" / "heads.png")
