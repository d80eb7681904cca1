"""Draw the influence of right and wrong labels, and the examples that harm most.

python -m experiments.kdaif.picture
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common.classification import corrupted
from experiments.kdaif.experiment import EXPERIMENT, divided, own_seed
from experiments.kdaif.weights import influence, objective, weights_of
from jaxkd.papers.kdaif import Models
from jaxkd.reporting.run import Arm, Run


def draw(path: Path) -> None:
    """Draw the histogram with the weights by the score, and twelve digits."""
    config = EXPERIMENT.presets["small"]
    images, validation = divided(config, 0)
    clean: Any = images.train
    noisy = corrupted(clean, config.corrupted, own_seed(0))
    images, arrays = replace(images, train=noisy), noisy.arrays
    student, network = (
        net.build(images.classes) for net in (config.student, config.teacher)
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        learnt = replace(images, epochs=config.teacher_epochs)
        teacher = learnt.teacher(run, network, "noisy", 0).deployed
        program = images.distill(student, teacher, objective(config))
        arm = run.teacher(Arm("student", program, student), images.task("noisy"), 0)
    scores = np.asarray(
        influence(config, images, validation, Models(arm.deployed, teacher))
    )
    wrong = arrays["label"] != arrays["true_label"]
    x = np.clip(scores / scores.std(), -4, 4)

    figure: Any = Figure((11, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1)).ravel()
    axes = left.subplots()
    bins = np.linspace(-4, 4, 41)
    axes.hist([x[~wrong], x[wrong]], bins, stacked=True, label=["right", "wrong"])
    axes.set(xlabel="influence / deviation: helps < 0 < harms", ylabel="examples")
    axes.legend(title="label", loc="upper left")
    other, order = axes.twinx(), np.argsort(scores)
    for name in ("sigmoid", "released"):
        weights = weights_of(name, scores, wrong)[order]
        other.plot(x[order], weights, "--", label=f"weight, {name}")
    other.set_ylim(0, 4)
    other.legend(loc="upper right")
    right.suptitle("the most harmful: label given (true)")
    grid = right.subplots(2, 6)
    for ax, i in zip(grid.ravel(), order[::-1], strict=False):
        ax.imshow(arrays["image"][i, ..., 0], cmap="gray_r")
        ax.set_title(f"{arrays['label'][i]} ({arrays['true_label'][i]})", fontsize=10)
        ax.set_axis_off()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(Path(__file__).parent / "results" / "small" / "influence.png")
