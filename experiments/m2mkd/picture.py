"""Draw which experts the images of each class go to, by how the student started.

python -m experiments.m2mkd.picture FOLDER, that of a run of ``small``; what is not
trained there is trained first.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.m2mkd.experiment import PRESETS, arms
from experiments.m2mkd.networks import loads
from jaxkd.losses import expert_load
from jaxkd.reporting.run import Run

ROWS = ("scratch", "m2mkd", "scratch_long")


def draw(folder: Path, path: Path) -> None:
    """Draw a matrix (class, expert) of each block, a column a student."""
    config = PRESETS["small"]
    images = config.load()
    student = config.builds[2](images.classes)
    taps = tuple(tap for tap in student.taps if tap.endswith(".router"))
    image, label = (images.test.take(np.arange(797))[k] for k in ("image", "label"))
    routed = loads(student, jnp.asarray(image), taps)
    figure = Figure((8.5, 7), layout="constrained")
    axes = figure.subplots(len(taps), len(ROWS), squeeze=False)
    run = Run(folder)
    for arm, task in arms(config, run, 0):
        if arm.program is None or arm.name not in ROWS:
            continue
        kept = folder / task.setting / arm.name / "seed0"
        state, _ = run.fit(arm.program, task, 0, kept, arm.name)
        column = axes[:, ROWS.index(arm.name)]
        found = routed(state.student)
        for axis, tap in zip(column, taps, strict=True):
            logits = found[tap]
            shares = [expert_load(logits[label == c]) for c in range(images.classes)]
            axis.imshow(np.asarray(shares), vmin=0, vmax=0.5, aspect="auto")
            axis.set(xlabel="expert", ylabel=f"class, in {tap}")
            axis.set_xticks(range(logits.shape[-1]))
        column[0].set_title(arm.name)
    figure.colorbar(axes[0, 0].images[0], ax=axes, label="share of a class's choices")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(__file__).parent / "results" / "small" / "experts.png")
