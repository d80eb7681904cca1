"""BOOT: a diffusion model's student that samples in one step, trained without data.

Gu et al. 2023 (arXiv:2306.05544). ``small`` has three teachers. Two are exact: eight
normals on a circle (``ring``, with ``ring ablations``), and normals around
scikit-learn's 1,797 digits (``digits mixture``). The third is a class-conditional U-Net
trained here on 1,000 digits (``digits``), whose student starts as its copy; samples are
compared with test images by the Fréchet distance between features of a classifier
trained in the same run, and by the time they take.

``paper`` is the class-conditional ImageNet 64x64 setting with an ADM-sized U-Net.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.boot.analytic import ABLATIONS, Problem, ring, run_analytic
from experiments.boot.config import PRESETS, Config
from experiments.boot.images import digits, full_scale, run_images, train_classifier
from experiments.common.configs import choose
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.quantities import cell
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Run

declare(
    teacher_mse=Metric("MSE to teacher", higher_is_better=False),
    condition_accuracy=Metric("condition %", higher_is_better=True),
)

SAMPLES, TO_TEACHER = "sliced_wasserstein", "teacher_mse"

CLAIMS = [
    *(
        contrast("boot", "ddim4", metric, setting="ring")
        for metric in (SAMPLES, TO_TEACHER)
    ),
    *(
        contrast("boot", 0.5 * cell("ddim1"), metric, setting="digits mixture")
        for metric in (SAMPLES, TO_TEACHER)
    ),
    contrast("boot", "ddim2", SAMPLES, setting="digits mixture"),
    contrast("boot", "ddim1", "confidence", setting="digits mixture"),
    *(
        contrast("delta 0.25, order 2", "delta 0.25", metric, setting="ring ablations")
        for metric in (SAMPLES, TO_TEACHER)
    ),
    *(contrast("boot", f"ddim{n}", "frechet", setting="digits") for n in (1, 2, 4)),
    contrast("boot", "ddim4", "speedup", setting="digits"),
    *(contrast("boot", f"ddim{n}", "frechet", setting="imagenet64") for n in (1, 10)),
]


def digits_mixture(config: Config, run: Run) -> Problem:
    """Return normals around the digits, and a classifier of them."""
    dataset = digits()
    network = train_classifier(config, dataset, run)
    variables = network.init(jax.random.key(0))
    images = [source.arrays["image"] for source in (dataset.train, dataset.test)]
    centres = np.concatenate(images).reshape(-1, 64)

    @jax.jit
    def classify(samples: jax.Array) -> jax.Array:
        logits = network.apply(variables, samples.reshape(-1, 8, 8, 1))[0].logits
        return jax.nn.softmax(jnp.asarray(logits))

    return Problem(centres, spread=0.15, width=384, rate=1e-3, classify=classify)


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train the students of every setting, and return the records.

    Raises:
        ValueError: an unknown setting.
    """
    analytic = functools.partial(run_analytic, config, seeds=seeds, run=run)
    boot = {"boot": {}}
    settings = {
        "ring": lambda: analytic("ring", ring(), config.ring_steps, boot),
        "ablations": lambda: analytic(
            "ring ablations", ring(), config.ablation_steps, ABLATIONS
        ),
        "mixture": lambda: analytic(
            "digits mixture", digits_mixture(config, run), config.mixture_steps, boot
        ),
        "images": lambda: run_images(config, seeds, run),
    }
    chosen = choose("setting", config.settings, settings)
    return [record for compute in chosen.values() for record in compute()]


EXPERIMENT = Experiment(
    presets=PRESETS,
    run=run,
    claims=CLAIMS,
    full_scale=full_scale,
    topology="v5p:4x4x8",
    mesh="fsdp",
    seeds={"small": 5},
)
