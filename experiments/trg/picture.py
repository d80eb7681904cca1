"""Draw how tokens relate in an image and over a batch, for teacher and students.

python -m experiments.trg.picture FOLDER, that of a run of ``small``; what is not
trained there is trained first.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.trg.experiment import PRESETS, SETTINGS, arms
from experiments.trg.measures import tapped
from jaxkd.data import example_labels
from jaxkd.losses import (
    contextual_similarity,
    gather_tokens,
    knn_adjacency,
    sample_token_indices,
    tokenize_feature_map,
)
from jaxkd.losses.basics import l2_normalize
from jaxkd.reporting.run import Run

SETTING, ROWS = "balanced teacher", ("teacher", "cross_entropy", "kd", "trg_strong")
EACH, SAMPLES, NEIGHBORS = 4, 4, 8


def features(run: Run) -> dict[str, jax.Array]:
    """Return each row's tokens of the test images."""
    test, found = SETTINGS[SETTING].load()[1].test, {}
    for arm, task in arms(PRESETS["small"], run, 0):
        if task.setting != SETTING or arm.name not in ROWS:
            continue
        variables = arm.deployed.init(jax.random.key(0))
        if arm.program is not None:
            folder = run.folder / SETTING / arm.name / "seed0"
            variables = run.fit(arm.program, task, 0, folder, arm.name)[0].student
        found[arm.name] = tapped(arm.deployed, "stage1", test, len(test))(variables)
    return {name: tokenize_feature_map(found[name]) for name in ROWS}


def draw(folder: Path, path: Path) -> None:
    """Draw both relations, a column a network."""
    tokens = features(Run(folder))
    test = SETTINGS[SETTING].load()[1].test
    labels = example_labels(test)
    rows = np.concatenate([np.flatnonzero(labels == c)[:EACH] for c in range(10)])
    places = tokens["teacher"].shape[1]
    indices = sample_token_indices(jax.random.key(0), len(rows), places, SAMPLES)
    figure = Figure((10.5, 5.2), layout="constrained")
    axes = figure.subplots(2, len(ROWS))
    for column, (name, own) in zip(axes.T, tokens.items(), strict=True):
        column[0].imshow(contextual_similarity(own[rows[8:9]])[0], vmin=0, vmax=0.5)
        nodes = l2_normalize(gather_tokens(own[rows], indices))
        column[1].imshow(knn_adjacency(nodes, NEIGHBORS)[0], cmap="magma_r")
        column[0].set_title(name)
        borders = np.arange(10) * EACH * SAMPLES - 0.5
        column[1].set_xticks(borders, range(10))
        column[1].set_yticks(borders, range(10))
    axes[0, 0].set_ylabel("tokens of a digit 2")
    axes[1, 0].set_ylabel("tokens of 40 digits by class")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(__file__).parent / "results" / "small" / "tokens.png")
