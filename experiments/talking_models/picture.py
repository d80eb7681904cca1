"""Draw both networks' messages about the same images, with and without the exchange.

python -m experiments.talking_models.picture RUN-FOLDER
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.talking_models.config import PRESETS
from experiments.talking_models.experiment import downstream, methods, taught
from experiments.talking_models.messages import Talked
from jaxkd.evaluation.similarity import linear_cka
from jaxkd.reporting.run import Run

ROWS = ("only_interaction", "no_interaction", "td1")


def draw(folder: Path, path: Path) -> None:
    """Draw messages in the plane of the teacher's two largest directions.

    Args:
        folder: of a finished run of ``small``, whose first seed's networks are read.
        path: the picture.
    """
    config, run = PRESETS["small"], Run(folder)
    images = config.task.load(config.optimizer)
    teacher = taught(config, images, run, 0).deployed
    own = downstream(config, images, 0)
    student, test = config.student.build(own.classes), own.test.take(np.arange(300))
    figure = Figure((10, 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(ROWS)), ROWS, strict=True):
        program = own.distill(student, teacher, methods(config)[name])
        kept = folder / config.setting / name / "seed0"
        state, _ = run.fit(program, own.task(config.setting), 0, kept, name)
        talked = Talked(config.talk, 1, student, teacher)
        asked, told, _ = talked.said(state, {"image": jnp.asarray(test["image"])})
        centre = told.mean(0)
        plane = np.linalg.svd(np.asarray(told - centre), full_matrices=False)[2][:2].T
        for messages, marker, who in ((told, "o", "teacher"), (asked, "x", "student")):
            x, y = (np.asarray(messages - centre) @ plane).T
            colours = test["label"].astype(float)
            shape = {"marker": marker, "cmap": "brg", "alpha": 0.6}
            axes.scatter(x, y, 14, colours, label=who, **shape)
        cka = float(linear_cka(asked, told))
        axes.set(title=f"{name}, CKA {cka:.2f}", xticks=[], yticks=[])
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(
        Path(sys.argv[1]), Path(__file__).parent / "results" / "small" / "messages.png"
    )
