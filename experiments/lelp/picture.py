"""Draw what a teacher of two classes of digits knows of the ten inside them.

python -m experiments.lelp.picture
"""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.lelp.experiment import last_kernel
from experiments.lelp.settings import DIGITS, coarse
from jaxkd.evaluation.classification import example_labels
from jaxkd.evaluation.features import tapped
from jaxkd.losses import subclass_targets
from jaxkd.methods import cross_entropy
from jaxkd.papers.lelp import class_pca, null_space_projector, subclass_directions
from jaxkd.training import fit


def draw(path: Path) -> None:
    """Draw the features of 0 to 4, and each digit's share of its class's sub-classes.

    Left, the two directions of the largest variance that the last layer does not read;
    right, mean r_cj of each digit with and without the rotation.
    """
    loaded = DIGITS.load()
    fine = example_labels(loaded.train)
    images = replace(
        loaded,
        train=coarse(loaded.train, 2),
        epochs=DIGITS.teacher_epochs,
        optimizer=DIGITS.teacher_optimizer,
    )
    network = DIGITS.build(DIGITS.teacher, 2)
    program = images.distill(network, None, cross_entropy())
    state, _ = fit(program, images.batches(0), key=jax.random.key(0))
    outputs = tapped(network, state.student, images.train)
    h, labels = outputs.features["pooled"], np.asarray(fine // 5)
    kernel = np.asarray(last_kernel(state.student["params"]))

    figure = Figure((11, 3.6), layout="constrained")
    plane, *shares = figure.subplots(1, 3)
    projector = null_space_projector(kernel)
    means, directions, _ = class_pca(h, labels, 2, 2, projector)
    own = fine < 5
    points = (h[own] @ projector - means[0]) @ directions[0]
    for digit in range(5):
        chosen = points[fine[own] == digit]
        plane.plot(*chosen.T, ".", color=f"C{digit}", markersize=4, label=str(digit))
    plane.set(title="features of 0 to 4", xlabel="direction 1", ylabel="direction 2")
    plane.legend(fontsize="small", title="digit")
    for axes, rotate in zip(shares, (False, True), strict=True):
        found = subclass_directions(
            h, labels, 2, 5, jax.random.key(0), kernel=kernel, rotate=rotate
        )
        targets = subclass_targets(h, outputs.logits, found, DIGITS.beta)
        kinds = np.asarray(jax.nn.softmax(targets))[np.arange(len(h)), labels]
        mean = np.stack([kinds[fine == digit].mean(0) for digit in range(10)])
        image = axes.imshow(mean, vmin=0, vmax=1, cmap="viridis")
        axes.set(
            title="rotated" if rotate else "principal directions",
            xlabel="sub-class of the digit's class",
            ylabel="digit",
            yticks=range(10),
        )
    figure.colorbar(image, ax=shares, label="mean share")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(Path(__file__).parent / "results" / "small" / "subclasses.png")
