"""Draw where norm and direction, and each alone, put a student's features.

python -m experiments.ndkd.picture
"""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.common.networks import PAIRS
from experiments.ndkd.experiment import EXPERIMENT, aligned, objectives
from jaxkd.evaluation.classification import example_labels
from jaxkd.methods import cross_entropy
from jaxkd.training import fit

ROWS = ("kd", "kd++", "direction", "own")


def draw(path: Path) -> None:
    """Draw each test image's cosine to its class's mean, and its feature's norm."""
    config = EXPERIMENT.presets["small"]
    images = config.task.load(config.optimizer)
    student, network = PAIRS["mlp"].networks(images.classes)
    whole = replace(
        images, epochs=config.teacher_epochs, optimizer=config.teacher_optimizer
    )
    program = whole.distill(network, None, cross_entropy())
    state, _ = fit(program, whole.batches(0), key=jax.random.key(0))
    teacher = network.with_variables(state.student)
    some, labels = images.subset(100), jnp.asarray(example_labels(images.test))

    figure = Figure((11, 3.2), layout="constrained")
    panels = figure.subplots(1, len(ROWS), sharex=True, sharey=True)
    for axes, name in zip(panels, ROWS, strict=True):
        program = some.distill(student, teacher, objectives("mlp", config)[name])
        state, _ = fit(program, some.batches(0), key=jax.random.key(0))
        found = aligned(some, student, labels, state)
        colors = [f"C{label}" for label in np.asarray(labels)]
        axes.scatter(found["cosine"], found["norm"], s=4, c=colors)
        axes.set(title=name, xlabel="cosine to its class's mean", xlim=(-0.6, 1.05))
    panels[0].set_ylabel("norm of the feature")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(Path(__file__).parent / "results" / "small" / "features.png")
