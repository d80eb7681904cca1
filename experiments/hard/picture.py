"""Draw what each augmentation makes of digits, and how far it can go.

python -m experiments.hard.picture
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.hard.experiment import program
from experiments.hard.settings import SETTINGS, Row
from jaxkd import distill, training
from jaxkd.losses import disagreement
from jaxkd.methods import cross_entropy
from jaxkd.papers import hard

SHOWN, EXAMPLES = 8, 200
SETTING = SETTINGS["digits"]
TRAINED = Row(trained=True)
LEARNED = {
    "HARD-Affine": (hard.affine(0.5), TRAINED),
    "elastic": (hard.elastic(0.35), TRAINED),
    "colour": (hard.within(hard.colour(0.5, 0.4), 0.0, 1.0), TRAINED),
    "HARD-Mix": (hard.mix(), Row(trained=True, consistency=0.0)),
}


def draw(path: Path) -> None:
    """Draw a row of digits, and a row of each augmentation after a student's training.

    Above each digit stands T²·KL of teacher and student, who both saw it last.
    """
    images = SETTING.load()
    student, teacher = SETTING.networks(images.classes)
    optimizer = images.optimizer.build(images.steps)
    state, _ = training.fit(
        distill(teacher, None, cross_entropy(), optimizer),
        images.batches(0),
        key=jax.random.key(0),
    )
    teacher = teacher.with_variables(state.student)
    clean = jnp.asarray(images.test.take(np.arange(EXAMPLES))["image"])
    rows = {"test digits": clean}
    found = {}
    for name, (augmenter, row) in LEARNED.items():
        made = program(SETTING, row, optimizer, (student, teacher), augmenter)
        state, _ = training.fit(made, images.batches(0), key=jax.random.key(0))
        changed = augmenter.apply(state.augmenter, clean, jax.random.key(1))
        rows[name], found[name] = changed.images, state.student
    figure = Figure((SHOWN + 1.5, len(rows) * 1.25), layout="constrained")
    taught = state.distillation.teacher
    for axes, (name, x) in zip(
        figure.subplots(len(rows), SHOWN), rows.items(), strict=True
    ):
        learnt = found.get(name, found["HARD-Affine"])
        apart = disagreement(
            teacher.apply(taught, x)[0].logits, student.apply(learnt, x)[0].logits
        )
        hardest = (
            np.argsort(-np.asarray(apart))[:SHOWN] if name in found else range(SHOWN)
        )
        for ax, i in zip(axes, hardest, strict=True):
            ax.imshow(x[i, ..., 0], cmap="gray", vmin=0, vmax=1)
            ax.set_title(f"{apart[i]:.1f}", fontsize="small")
            ax.set(xticks=[], yticks=[])
        axes[0].set_ylabel(name, fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(Path(__file__).parent / "results" / "small" / "augmented.png")
