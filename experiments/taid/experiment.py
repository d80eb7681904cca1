"""TAID: a target between the student and the teacher that moves to the teacher.

Shing et al. 2025 (arXiv:2501.16937) distil language models with a large gap in size. A
fixed target makes the student average the teacher's modes (forward KL) or fall into few
of them (reverse KL); theirs starts near the student and reaches the teacher at the end.
They report it above ten other methods on MT-Bench for three pairs.

``small`` writes Shakespeare character by character with a student 40 times smaller,
``paper`` has the shapes of Phi-3-mini and TinyLlama on 64 windows of 2,048 tokens.
"""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.common.configs import OptimizerConfig
from experiments.common.corpus import CorpusConfig
from experiments.common.language_models import (
    LanguageConfig,
    Row,
    labels_row,
    language_arms,
    language_programs,
    method_row,
    word_row,
)
from jaxkd import methods
from jaxkd.kernels import linear_distill as divergences
from jaxkd.losses import kd_loss, taid_target, weighted_mean
from jaxkd.losses.divergences import kl_divergence
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.paper import PaperValue
from jaxkd.reporting.run import History
from jaxkd.types import Method

declare(
    target_nearer=Metric("target nearer by", higher_is_better=True),
)

SETTING = "tiny_shakespeare"
CLAIMS = [
    contrast("taid_0.2", "cross_entropy", "teacher_kl", setting=SETTING),
    contrast("taid_0.4", "cross_entropy", "teacher_kl", setting=SETTING),
    contrast("taid_0.2", "reverse_kl", "teacher_kl", setting=SETTING),
    contrast("taid_0.2", "forward_kl", "teacher_kl", setting=SETTING),
    *(
        contrast(name, 0.0, "target_nearer", setting=SETTING)
        for name in ("taid_0.2", "taid_0.4")
    ),
    contrast("taid_0.2", "taid_linear", "teacher_kl", setting=SETTING),
]

# MT-Bench of Phi-3-mini to TinyLlama, from memory, not checked.
PAPER = {
    f"phi3/{name}": {"mt_bench": PaperValue(value, "MT-Bench", checked=False)}
    for name, value in {
        "cross_entropy": 2.00,
        "forward_kl": 2.71,
        "reverse_kl": 3.48,
        "total_variation": 3.27,
        "taid_linear": 3.44,
        "taid_0.4": 4.05,
    }.items()
}


def moving(
    config: LanguageConfig, t_start: float, alpha: float = 5e-4, heads: bool = False
) -> Method:
    """Return TAID; from logits its metrics say how near its target is.

    Args:
        config: its steps are those of the way.
        t_start: of the target.
        alpha: 0 for a linear way.
        heads: whether it goes without logits, and without those metrics.
    """
    method = methods.taid(config.steps, t_start=t_start, alpha=alpha, from_heads=heads)
    if heads:
        return method

    def loss(variables, student, teacher, batch, key, step):
        value, (state, metrics) = method.loss(
            variables, student, teacher, batch, key, step
        )
        target = taid_target(
            student.logits, teacher.logits, variables["state"]["schedule"].t
        )
        log_q = jax.nn.log_softmax(student.logits)
        gaps = {
            "target_gap": weighted_mean(kl_divergence(jnp.log(target), log_q)),
            "teacher_gap": weighted_mean(kd_loss(student.logits, teacher.logits, 1.0)),
        }
        return value, (state, {**metrics, **gaps})

    return method._replace(loss=loss)


def target_nearer(state: Any, history: History) -> dict[str, float]:
    """Return how much nearer than the teacher the target is after a fifth of the steps.

    In nats, of the last batch.
    """
    early = history[0]
    if "train_target_gap" not in early:
        return {}
    return {"target_nearer": early["train_teacher_gap"] - early["train_target_gap"]}


ROWS: dict[str, Row] = {
    "cross_entropy": labels_row,
    "forward_kl": word_row(divergences.forward_kl),
    "reverse_kl": word_row(divergences.reverse_kl),
    "total_variation": word_row(divergences.total_variation),
    "taid_0.2": method_row(lambda config: moving(config, 0.2)),
    "taid_0.4": method_row(lambda config: moving(config, 0.4)),
    "taid_linear": method_row(lambda config: moving(config, 0.2, alpha=0.0)),
    "taid_heads": method_row(lambda config: moving(config, 0.4, heads=True)),
}
"""``taid_heads`` is ``taid_0.4`` without logits in memory."""

PRESETS = {
    "small": LanguageConfig(
        corpus=CorpusConfig(test_windows=1024, batch_size=32),
        teacher="chars-192",
        student="chars-32",
        steps=400,
        optimizer=OptimizerConfig("adamw", 4e-3, 1e-4, warmup=20, clip=1.0),
        methods=tuple(row for row in ROWS if row != "taid_heads"),
    ),
    "paper": LanguageConfig(
        setting="phi3",
        corpus=CorpusConfig("ultrachat_phi3_tokens", 32_064, 2048, 0, batch_size=64),
        teacher="phi3-mini",
        student="tinyllama-1.1b",
        weights="phi3-mini",
        methods=("taid_heads",),
        # Five epochs of 200,000 conversations in batches of 64.
        steps=15_600,
        optimizer=OptimizerConfig("adamw", 1e-4, 0.01, clip=1.0),
        compute="bfloat16",
    ),
}

EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=language_arms(ROWS, target_nearer),
    claims=CLAIMS,
    paper=PAPER,
    full_scale=language_programs(ROWS),
    mesh="fsdp",
)
