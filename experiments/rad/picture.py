"""Draw RAD's distribution, and where a teacher is wrong.

python -m experiments.rad.picture
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.rad.config import NETWORKS, PRESETS
from experiments.rad.experiment import learning, prepare, supervised
from jaxkd.reporting.run import Run
from jaxkd.selection import margin_gain, observe, rad_distribution

SHARES = (0.02, 0.1, 0.3, 0.6)
BINS = 10


def draw(path: Path) -> None:
    """Draw p by rank of the gain for several m, and the teacher's errors by gain."""
    config = PRESETS["small"]
    student, network = (
        NETWORKS[name].build(10) for name in (config.student, config.teacher)
    )
    with TemporaryDirectory() as folder:
        run, teacher = Run(Path(folder)), supervised(config, network)
        given = prepare(config, run, teacher, network, config.settings[0], 0)
        known = given.labelled
        task = learning(config, given.images, known, given.labels[known])
        program = supervised(config, student)
        state, _ = run.fit(program, task, 0, Path(folder) / "student", "student")
        seen = observe(student, [state.student], given.images.train)
    left = given.unlabelled
    gains = margin_gain(jax.nn.softmax(jnp.asarray(seen.logits[0][left])))
    wrong = given.answers[left].argmax(-1) != given.labels[left]
    order = np.argsort(-np.asarray(gains))
    figure = Figure((10, 4), layout="constrained")
    first, second = figure.subplots(1, 2)
    for share in SHARES:
        found = rad_distribution(gains, round(share * len(left)))
        label = f"m = {share:g} n: k* = {int(found.support)}"
        first.plot(np.asarray(found.p)[order], label=label)
    first.set(
        yscale="log",
        xlabel="examples, the most doubtful first",
        ylabel="chance to be asked for",
        title=f"RAD's distribution, n = {len(left)}",
    )
    first.legend(fontsize="small")
    parts = np.array_split(order, BINS)
    p = np.asarray(rad_distribution(gains, int(wrong.sum())).p)
    second.bar(
        np.arange(BINS) - 0.2,
        [100 * wrong[part].mean() for part in parts],
        0.4,
        color="0.6",
        label="the teacher is wrong (%)",
    )
    second.bar(
        np.arange(BINS) + 0.2,
        [100 * p[part].sum() for part in parts],
        0.4,
        color="C0",
        label="RAD asks (% of its questions)",
    )
    second.set(
        xlabel="tenths of the pool, the most doubtful first",
        xticks=np.arange(BINS),
        title=f"teacher of 40 labels, wrong on {100 * wrong.mean():.0f} %",
    )
    second.legend(fontsize="small")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    draw(Path(__file__).parent / "results" / "small" / "distribution.png")
