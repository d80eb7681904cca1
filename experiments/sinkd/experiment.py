"""SinKD: optimal transport between a batch of students' and teachers' predictions.

Cui et al. 2024 (arXiv:2402.17110): where distributions overlap little, KL, reverse KL
and Jensen-Shannon guide a student badly; the Sinkhorn distance across the examples of a
batch adds what they miss. They report it above distillation by logits and by features
on GLUE and SuperGLUE.

``small`` takes 200 digits and a student of 8 hidden units; ``paper`` is SST-2 with BERT
and its hyper-parameters for it.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.common.classification import Classification, ImagesConfig, distilled
from experiments.common.pairs import PairsConfig, pair_arms
from experiments.common.text_classification import (
    BERT_BASE,
    TextConfig,
    text_arms,
    text_programs,
)
from jaxkd.evaluation.classification import predictor
from jaxkd.kernels import linear_distill as divergences
from jaxkd.losses import sinkd_loss
from jaxkd.methods import combine, cross_entropy, divergence_kd, sinkd
from jaxkd.network import Network
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.run import Run
from jaxkd.types import Method

PRESETS: dict[str, Any] = {
    "small": PairsConfig(
        pairs=("mlp8",),
        train_examples=(200,),
        task=ImagesConfig(epochs=60, batch_size=16),
    ),
    "paper": replace(BERT_BASE, epochs=2, teacher_epochs=2),
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


def sinkhorn_distance(
    images: Classification, student: Network, teacher_logits: np.ndarray
) -> Any:
    """Return what measures the test set's Sinkhorn distance, an example."""
    predict = predictor(student, images.test)

    def measure(state: Any, history: Any) -> dict[str, float]:
        z_s = predict(state.student)
        total = sinkd_loss(jnp.asarray(z_s), jnp.asarray(teacher_logits))
        return {"sinkhorn": float(total) / len(z_s)}

    return measure


SST2 = distilled(terms(alpha=0.9, temperature=2.0))
"""With the paper's weights for SST-2; the small run has others."""
DIGITS = distilled(terms(alpha=0.8, temperature=3.0))


def arms(config: Any, run: Run, seed: int) -> Any:
    """Return the rows of digits, or of sentences."""
    if isinstance(config, TextConfig):
        return text_arms(SST2)(config, run, seed)
    return pair_arms(DIGITS, sinkhorn_distance)(config, run, seed)


EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=arms,
    claims=CLAIMS,
    full_scale=text_programs(SST2, "sinkd"),
    seeds={"small": 5},
)
