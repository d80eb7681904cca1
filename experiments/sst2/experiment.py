"""Text classification: a BERT teaches a smaller one, by logits and by hidden states.

Sanh et al. 2019 (DistilBERT, arXiv:1910.01108), Jiao et al. 2020 (TinyBERT,
arXiv:1909.10351) and Wang et al. 2020 (MiniLMv2, arXiv:2012.15828) make BERT smaller.
Their students begin from a pretraining that this experiment does not have.

``small`` begins from nothing: teacher and student learn SST-2's sentences alone.
``paper`` fine-tunes BERT-base and a pretrained student of 6 blocks.
"""

import optax

from experiments.common.classification import distilled
from experiments.common.text_classification import (
    BERT_BASE,
    TextConfig,
    text_arms,
    text_programs,
)
from jaxkd.kernels.linear_distill import jensen_shannon
from jaxkd.methods import (
    combine,
    cross_entropy,
    divergence_kd,
    hidden_kd,
    kd,
    relation_kd,
    sinkd,
)
from jaxkd.network import Network
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.types import Program

PRESETS = {"small": TextConfig(), "paper": BERT_BASE}
CLAIMS = [
    contrast("kd", "cross_entropy", "last_accuracy", setting="sst2"),
    *(
        contrast(
            method,
            "kd",
            "last_accuracy",
            0.01,
            "non-inferiority",
            setting="sst2",
            because="below the sampling error of 872 sentences, 1.4 points",
        )
        for method in ("hidden", "relations")
    ),
    contrast("kd", "cross_entropy", "teacher_kl", setting="sst2"),
]


def programs(
    config: TextConfig,
    student: Network,
    teacher: Network,
    optimizer: optax.GradientTransformation,
) -> dict[str, Program]:
    """Return the programs; all but the first have half the weight on the labels."""
    labels, soft = (0.5, cross_entropy()), (0.5, kd(2.0))
    last, teachers = f"block{_last(student)}", f"block{_last(teacher)}"
    terms = {
        "cross_entropy": cross_entropy(),
        "kd": combine(labels, soft),
        "jensen_shannon": combine(labels, (0.5, divergence_kd(jensen_shannon(0.5)))),
        "sinkd": combine(labels, soft, (0.0008, sinkd())),
        "hidden": combine(labels, soft, (0.5, hidden_kd(["final"], cosine=True))),
        "relations": combine(
            labels, soft, (0.5, relation_kd([last], [teachers], heads=2))
        ),
    }
    return dict(distilled(terms)(config, student, teacher, optimizer))


def _last(network: Network) -> int:
    return sum(tap.startswith("block") and "." not in tap for tap in network.taps) - 1


EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=text_arms(programs),
    claims=CLAIMS,
    full_scale=text_programs(programs, "hidden"),
)
