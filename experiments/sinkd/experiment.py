"""SinKD: optimal transport between a batch of students' and teachers' predictions.

Cui et al. 2024 (arXiv:2402.17110): where distributions overlap little, KL, reverse KL
and Jensen-Shannon guide a student badly; the Sinkhorn distance across the examples of a
batch adds what they miss. They report it above distillation by logits and by features
on GLUE and SuperGLUE.

``small`` takes 200 digits and a student of 8 hidden units; ``paper`` is SST-2 with BERT
and its hyper-parameters for it.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import optax

from experiments.baselines.networks import PAIRS
from experiments.common.pairs import PairsConfig, run_pairs
from experiments.common.text_classification import TextConfig, run_text, text_programs
from experiments.common.training import Measure, build
from jaxkd import data, distill
from jaxkd.evaluation.classification import predictor
from jaxkd.kernels import linear_distill as divergences
from jaxkd.losses import sinkd_loss
from jaxkd.methods import combine, cross_entropy, divergence_kd, sinkd
from jaxkd.network import Network
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Batch, Method, Program

SLICE = "v5e:2x4"

PRESETS: dict[str, Any] = {
    "small": PairsConfig(
        pairs=("mlp8",), train_examples=(200,), epochs=60, batch_size=16
    ),
    "paper": TextConfig(
        teacher="base",
        student="base-6",
        weights=("bert-base-uncased", "bert-6-uncased"),
        vocabulary=30_522,
        lengths=(128,),
        train_examples=67_349,
        epochs=2,
        teacher_epochs=2,
        batch_size=32,
        learning_rate=4e-5,
    ),
}

SETTING = "200 images"
CLAIMS = [
    contrast("kd", "cross_entropy", "last_accuracy", setting=SETTING),
    contrast("sinkd_0.03", "cross_entropy", "last_accuracy", setting=SETTING),
    contrast("sinkd_0.03", "kd", "sinkhorn", setting=SETTING),
]


def soft(divergence: divergences.Divergence, temperature: float) -> tuple:
    """Return the term of a divergence of tempered logits, without a factor T²."""
    return 1 / temperature**2, divergence_kd(divergence, temperature)


def terms(alpha: float, temperature: float) -> dict[str, Method]:
    """Return the objectives.

    Args:
        alpha: weight of the distillation; the labels have the rest.
        temperature: of the distillation.
    """

    def weighed(divergence: divergences.Divergence, share: float = 0.0) -> Method:
        factor, method = soft(divergence, temperature)
        parts = (1 - alpha, cross_entropy()), (alpha * factor, method)
        return combine(*parts, *([(0.8 * share, sinkd())] if share else []))

    kl = divergences.soft_cross_entropy
    return {
        "cross_entropy": cross_entropy(),
        "kd": weighed(kl),
        "reverse_kl": weighed(divergences.reverse_kl),
        "jensen_shannon": weighed(divergences.jensen_shannon(0.5)),
        "sinkd": weighed(kl, 0.001),
        "sinkd_0.03": weighed(kl, 0.03),
    }


def methods(
    student: Network,
    teacher: Network,
    optimizer: optax.GradientTransformation,
    alpha: float = 0.8,
    temperature: float = 3.0,
) -> dict[str, Program]:
    """Return the programs; ``sinkd`` has the published weight."""
    return {
        name: distill(student, teacher, method, optimizer)
        for name, method in terms(alpha, temperature).items()
    }


def sst2_methods(
    student: Network, teacher: Network, optimizer: optax.GradientTransformation
) -> dict[str, Program]:
    """Return the programs with the paper's weights for SST-2."""
    return methods(student, teacher, optimizer, alpha=0.9, temperature=2.0)


def run(config: Any, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train the teacher, and the students of all methods."""
    if isinstance(config, TextConfig):
        return run_text(config, sst2_methods, seeds, run)
    return run_pairs(config, methods, seeds, run, sinkhorn_distance(config))


def sinkhorn_distance(config: PairsConfig) -> Measure:
    """Return the measure of the test set's Sinkhorn distance, an example."""
    dataset, (pair,) = data.load(config.dataset), config.pairs
    predict_student, predict_teacher = (
        predictor(build(spec, dataset.train.classes), dataset.test)
        for spec in (PAIRS[pair].student, PAIRS[pair].teacher)
    )

    def measure(state: Any, history: list[dict]) -> dict[str, float]:
        z_s, z_t = predict_student(state.student), predict_teacher(state.teacher)
        total = sinkd_loss(jnp.asarray(z_s), jnp.asarray(z_t))
        return {"sinkhorn": float(total) / len(z_s)}

    return measure


def full_scale(config: TextConfig) -> dict[str, tuple[Program, Batch]]:
    """Return SinKD's program for SST-2, and the shapes of its batch."""
    return text_programs(config, sst2_methods, "sinkd")
