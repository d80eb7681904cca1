"""DHKD: a head of its own for the teacher's logits, beside the one for the labels.

Yang et al. 2024 (arXiv:2411.08937) match every logit by itself, which a softmax does
not. On one classifier that loss and cross-entropy work against each other; two heads on
one backbone, of which the second is dropped, do not.

``small`` takes 100 and 200 digits and perceptrons, and follows the cosine between the
two gradients in the classifier and in the backbone; ``paper`` is the CIFAR-100 recipe.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from experiments.common.classification import ImagesConfig
from experiments.common.configs import CIFAR_SGD
from experiments.common.pairs import PairsConfig, pair_arms, pair_programs
from jaxkd import distill
from jaxkd.losses import binary_kl_norm_loss
from jaxkd.methods import combine, cross_entropy, dhkd, from_loss, kd
from jaxkd.network import Network
from jaxkd.programs import distill_aligned, distill_merged, gradient_cosine
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import History, Run, Values, run_arms
from jaxkd.types import Method, Metrics, Program


@dataclass(frozen=True)
class Config(PairsConfig):
    """What is trained.

    Attributes:
        hidden: width of the deep auxiliary head.
    """

    hidden: int = 32


PAPER_PAIRS = (
    "resnet56-resnet20",
    "resnet32x4-resnet8x4",
    "resnet32x4-shufflenet_v2",
)
PRESETS = {
    "small": Config(),
    "paper": Config(
        pairs=PAPER_PAIRS,
        train_examples=(0,),
        task=ImagesConfig("tfds/cifar100", epochs=240, batch_size=64),
        optimizer=CIFAR_SGD,
        teacher_epochs=240,
        teacher_optimizer=CIFAR_SGD,
        hidden=200,
    ),
}

PARTS = ("backbone", "classifier")
CLAIMS = [
    claim
    for setting in ("100 images", "200 images", *PAPER_PAIRS)
    for claim in (
        contrast("dhkd", "one_head", "last_accuracy", setting=setting),
        contrast("dhkd_clipped", "one_head_clipped", "last_accuracy", setting=setting),
        contrast(
            "one_head backbone",
            "one_head classifier",
            "gradient_cosine",
            setting=f"gradients, {setting}",
            lower=False,
        ),
    )
]


CLIP = 1e-8
"""The authors' code clips probabilities to this: no gradient from farther away."""


def logits_loss(clip_eps: float | None = None) -> Method:
    """Return the normalised binary divergence on the student's own logits."""
    return from_loss(
        lambda student, teacher, batch: binary_kl_norm_loss(
            student.logits, teacher.logits, 2.0, clip_eps
        ),
        name="logits_loss",
    )


def programs(
    config: Config,
    student: Network,
    teacher: Network,
    optimizer: optax.GradientTransformation,
) -> dict[str, Program]:
    """Return the programs, every loss with weight 1 but in KD."""
    labels = (1.0, cross_entropy())
    deep = (1.0, dhkd(2.0, config.hidden))

    def summed(method: Method) -> Program:
        return distill(student, teacher, method, optimizer)

    def watched(*terms: tuple[float, Method]) -> Program:
        return distill_merged(student, teacher, terms, optimizer, sum_and_compare)

    return {
        "cross_entropy": summed(cross_entropy()),
        "kd": summed(combine((0.1, cross_entropy()), (0.9, kd(4.0)))),
        "logits_loss": summed(logits_loss()),
        "one_head": watched(labels, (1.0, logits_loss())),
        "dhkd_linear": watched(labels, (1.0, dhkd(2.0, hidden=None))),
        "dhkd": watched(labels, deep),
        "dhkd_aligned": distill_aligned(student, teacher, labels, deep, optimizer),
        "one_head_clipped": watched(labels, (1.0, logits_loss(CLIP))),
        "dhkd_clipped": watched(labels, (1.0, dhkd(2.0, config.hidden, clip_eps=CLIP))),
    }


def sum_and_compare(gradients: list[PyTree]) -> tuple[PyTree, Metrics]:
    """Return the sum of two gradients, and their cosine in each part of the student."""
    first, second = gradients
    cosines = {
        part: gradient_cosine(parts(first)[part], parts(second)[part]) for part in PARTS
    }
    return jax.tree.map(jnp.add, first, second), cosines


def parts(gradient: PyTree) -> dict[str, PyTree]:
    """Return a student's gradient in its last layer, and in all before it."""
    own = gradient["student"]
    last = "fc" if "fc" in own else "head"
    rest = {name: layer for name, layer in own.items() if name != last}
    return {"classifier": own[last], "backbone": rest}


def mean_cosines(state: Any, history: History) -> Values:
    """Return each part's cosine, averaged over the second half of the evaluations."""
    late = history[len(history) // 2 :]
    return {
        part: float(np.mean([entry[f"train_{part}"] for entry in late]))
        for part in PARTS
        if f"train_{part}" in late[0]
    }


def gradients_apart(record: Record) -> Record:
    """Return a record; a cosine's as a row of a table of its own."""
    if record.metric not in PARTS:
        return record
    return replace(
        record,
        method=f"{record.method} {record.metric}",
        metric="gradient_cosine",
        setting=f"gradients, {record.setting}",
    )


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train a teacher of each pair, and the students of all methods."""
    arms = pair_arms(programs, measure=lambda *_: mean_cosines)
    return [gradients_apart(record) for record in run_arms(arms, config, seeds, run)]


EXPERIMENT = Experiment(
    presets=PRESETS,
    run=run,
    claims=CLAIMS,
    full_scale=pair_programs(programs, "dhkd_aligned"),
    seeds={"small": 5},
)
