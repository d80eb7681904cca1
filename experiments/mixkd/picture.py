"""Draw accuracy by temperature and mixed share, and what Mixup does to class relations.

python -m experiments.mixkd.picture
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.mixkd.experiment import EXPERIMENT, GRID, teachers
from experiments.mixkd.settings import TABLES
from jaxkd.evaluation.class_means import feature_means
from jaxkd.network import Network
from jaxkd.reporting.records import select, summarize
from jaxkd.reporting.results import read_results
from jaxkd.reporting.run import Run

RESULTS = Path(__file__).parent / "results"


def grid() -> np.ndarray:
    """Return the mean accuracy in percent, temperatures by shares."""
    found = read_results(RESULTS / "small.json").records
    config = EXPERIMENT.presets["small"]
    means = [
        summarize([r.value for r in select(found, name, "last_accuracy", GRID)]).mean
        for name in config.grid()
    ]
    return 100 * np.reshape(means, (len(config.temperatures), len(config.shares)))


def relations(network: Network) -> np.ndarray:
    """Return the cosines between the classes' mean features, less their common mean."""
    table = TABLES["digits"]
    images = table.task.load(table.optimizer)
    variables = network.init(jax.random.key(0))
    means = feature_means(network, variables, images.test)
    means = means - means.mean(0)
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    return means @ means.T


def draw(path: Path) -> None:
    """Draw the grid, and the class relations of a teacher without and with Mixup."""
    config, accuracy = EXPERIMENT.presets["small"], grid()
    figure = Figure((11, 3.4), layout="constrained")
    left, *others = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
    left.imshow(accuracy, aspect="auto", origin="lower")
    for (i, j), value in np.ndenumerate(accuracy):
        left.text(j, i, f"{value:.1f}", ha="center", va="center", color="w")
    left.set_xticks(range(len(config.shares)), [f"{s:.0%}" for s in config.shares])
    left.set_yticks(
        range(len(config.temperatures)), [f"{t:g}" for t in config.temperatures]
    )
    left.set(title="student's accuracy, %", xlabel="mixed", ylabel="temperature")
    titles = "teacher's class relations", "of a teacher trained with Mixup"
    with tempfile.TemporaryDirectory() as folder:
        arms = teachers("digits", Run(Path(folder)), 0).values()
        for ax, arm, title in zip(others, arms, titles, strict=True):
            drawn = ax.imshow(relations(arm.deployed), cmap="RdBu_r", vmin=-1, vmax=1)
            ax.set(title=title, xlabel="digit", ylabel="digit")
            ax.set_xticks(range(10))
            ax.set_yticks(range(10))
    figure.colorbar(drawn, ax=others, label="cosine of the mean features")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(RESULTS / "small" / "temperature_and_share.png")
