"""Draw what a teacher adds by fraction and by rule, and the digits that rules keep.

python -m experiments.data_pruning.picture runs/… draws from the results and a run.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.data_pruning.config import PRESETS
from experiments.data_pruning.experiment import load, table
from experiments.data_pruning.scoring import RULES
from jaxkd.reporting.images import plot_images
from jaxkd.reporting.records import Record, select
from jaxkd.reporting.results import read_results
from jaxkd.selection import Pool

FOLDER = Path(__file__).parent / "results"
CONFIG = PRESETS["small"]
SHOWN = ("el2n", "el2n easy", "aum", "moderate", "herding")


def mean(records: list[Record], row: str, setting: str) -> float:
    """Return a row's mean accuracy over seeds, in percent."""
    found = select(records, row, "last_accuracy", setting)
    return 100 * float(np.mean([record.value for record in found]))


def gains(records: list[Record], path: Path) -> None:
    """Draw accuracy by fraction on the left, and by rule at f = 0.1 on the right."""
    figure = Figure((10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for alpha, color in zip(CONFIG.alphas, "kbcgr", strict=True):
        values = [
            mean(records, f"alpha {alpha:g}", table(CONFIG, "random", f))
            for f in CONFIG.fractions
        ]
        left.plot(CONFIG.fractions, values, f"{color}o-", label=f"α = {alpha:g}")
    left.set(xscale="log", xlabel="f, kept at random", ylabel="test accuracy (%)")
    left.legend(fontsize="small")
    setting, places = table(CONFIG, "rules", 0.1), np.arange(len(RULES))
    for end, shift, color in (("", -0.2, "0.7"), (" + KD", 0.2, "C0")):
        values = [mean(records, f"{rule}{end}", setting) for rule in RULES]
        label = "with a teacher of all the data" if end else "labels alone"
        right.barh(places + shift, values, 0.4, color=color, label=label)
    right.set_yticks(places, list(RULES))
    right.invert_yaxis()
    right.set(xlabel="test accuracy (%) of rules at f = 0.1", xlim=(50, 100))
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    figure.savefig(path, dpi=110)


def kept(scores: Path, path: Path) -> None:
    """Draw the first twelve digits that some rules keep, of seed 0."""
    train = load(CONFIG, 0).train
    with np.load(scores) as file:
        found = dict(file)
    rows = {}
    for rule in SHOWN:
        score, choose = RULES[rule]
        pool = Pool(
            features=found["features"],
            labels=found["labels"],
            scores=found.get(score),
        )
        picks = np.asarray(choose(None, pool, 12))
        rows[rule] = 1 - 2 * train.take(picks)["image"]
    plot_images(rows, path, pixel=5)


if __name__ == "__main__":
    results = read_results(FOLDER / "small.json")
    gains(list(results.records), FOLDER / "small" / "gains.png")
    kept(Path(sys.argv[1]) / "scores" / "seed0.npz", FOLDER / "small" / "kept.png")
