"""Draw what trained autoencoders paint where patches are hidden.

python -m experiments.dmae.picture RUN-FOLDER
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.dmae.config import DIGITS
from experiments.dmae.experiment import Trainer, loaded, objective
from jaxkd.losses import patchify, unpatchify
from jaxkd.methods import mae
from jaxkd.programs.distill import prepared
from jaxkd.programs.update import Keys
from jaxkd.reporting.images import plot_images
from jaxkd.reporting.run import Run

NUMBER = 12


def draw(folder: Path, path: Path) -> None:
    """Draw test digits, what is seen of them, and what teacher and students paint.

    Args:
        folder: of a finished run of ``small``, whose first seed's networks are read.
        path: the picture.
    """
    images, labelled = loaded(DIGITS)
    trainer = Trainer(DIGITS, Run(folder), images, labelled, 0)
    image = jnp.asarray(images.test.take(np.arange(NUMBER))["image"])
    patch = DIGITS.student.patch
    batch = {"image": image}
    masked = prepared(mae(patch_size=patch), Keys(jax.random.key(0)), batch)
    patches, hidden = patchify(image, patch), masked["hidden"][..., None] > 0
    rows = {
        "image": image,
        "visible": unpatchify(jnp.where(hidden, 0.5, patches), patch),
    }
    for name, sizes, method, teacher in (
        ("teacher", DIGITS.teacher, objective(DIGITS, alpha=None), None),
        ("mae", DIGITS.student, objective(DIGITS, alpha=None), None),
        ("dmae", DIGITS.student, objective(DIGITS), trainer.taught(trainer.teacher())),
    ):
        network = trainer.pretrained(name, sizes, method, teacher).deployed
        outputs, _ = network.apply(
            network.init(jax.random.key(0)), network.read(masked), taps=("pixels",)
        )
        painted = jnp.where(hidden, outputs.logits, patches)
        rows[name] = unpatchify(painted, patch)
    plot_images({k: np.asarray(2 * x - 1) for k, x in rows.items()}, path, pixel=6)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(__file__).parent / "results" / "small" / "painted.png")
