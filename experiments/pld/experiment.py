"""PLD: one ranking of the classes, the label first, in place of two losses.

Bassam, Zhu, Bian 2025 (arXiv:2506.12542) train a student to rank the classes as the
teacher does behind the true one, every place weighted by the teacher's probability.
They report it above KD and DIST, with no weight of a cross-entropy term to tune.

``small`` takes 100 and 200 digits and perceptrons, ``paper`` the CIFAR-100 table: four
pairs, 250 epochs of AdamW.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import optax

from experiments.common.pairs import PairsConfig, pair_programs, run_pairs
from jaxkd import distill
from jaxkd.losses import plackett_luce_loss, teacher_ranking
from jaxkd.methods import combine, cross_entropy, dist, from_loss, kd, pld
from jaxkd.network import Network
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Batch, Method, Program

PAPER_PAIRS = (
    "wrn40_2-wrn40_1",
    "resnet56-resnet20",
    "resnet32x4-resnet8x4",
    "resnet50-mobilenet_v2",
)
PRESETS = {
    "small": PairsConfig(),
    "paper": PairsConfig(
        dataset="tfds/cifar100",
        pairs=PAPER_PAIRS,
        train_examples=(0,),
        epochs=250,
        batch_size=128,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.5,
        teacher_epochs=250,
        teacher_learning_rate=1e-3,
    ),
}
SLICE = "v5e:2x4"

TABLE_1 = {
    "cross_entropy": "70.26 67.57 71.56 64.42",
    "kd": "72.44 69.45 72.11 66.61",
    "dist": "72.74 69.66 73.21 66.98",
    "pld": "73.50 70.28 73.97 68.16",
}
PAPER = {
    f"{pair}/{method}": {"last_accuracy": round(float(value) / 100, 4)}
    for method, row in TABLE_1.items()
    for pair, value in zip(PAPER_PAIRS, row.split(), strict=True)
}

SMALL_SETTINGS = ("100 images", "200 images")
CLAIMS = [
    *(
        claim
        for setting in (*SMALL_SETTINGS, *PAPER_PAIRS)
        for claim in (
            contrast("pld", "cross_entropy", "last_accuracy", setting=setting),
            contrast(
                "pld",
                "kd",
                "last_accuracy",
                0.005,
                "non-inferiority",
                setting=setting,
                because="one standard error of an earlier trial",
            ),
            contrast("pld", "listmle", "last_accuracy", setting=setting),
        )
    ),
    # An over-confident teacher leaves all weight on the first place.
    *(
        contrast(
            "pld_t1",
            "cross_entropy",
            "last_accuracy",
            0.01,
            "equivalence",
            setting=setting,
            because="a third of PLD's gain at its own temperature in an earlier trial",
        )
        for setting in SMALL_SETTINGS
    ),
]


def listmle() -> Method:
    """Return PLD with equal weights of all places, its ablation."""

    def loss(student, teacher, batch):
        ranking = teacher_ranking(teacher.logits, batch["label"])
        equal = jnp.full(ranking.shape, 1 / ranking.shape[-1])
        return plackett_luce_loss(student.logits, ranking, equal)

    return from_loss(loss, name="listmle")


def methods(
    student: Network, teacher: Network, optimizer: optax.GradientTransformation
) -> dict[str, Program]:
    """Return the programs, with the paper's weights on CIFAR-100; PLD stands alone."""
    terms = {
        "cross_entropy": cross_entropy(),
        "kd": combine((0.1, cross_entropy()), (0.9, kd(4.0))),
        "dist": combine((1.0, cross_entropy()), (1.0, dist(2.0, 2.0, 4.0))),
        "pld_t1": pld(1.0),
        "pld": pld(4.0),
        "listmle": listmle(),
    }
    return {
        name: distill(student, teacher, method, optimizer)
        for name, method in terms.items()
    }


def run(config: PairsConfig, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train a teacher of each pair, and the students of all methods."""
    return run_pairs(config, methods, seeds, run)


def full_scale(config: PairsConfig) -> dict[str, tuple[Program, Batch]]:
    """Return PLD's program of each pair, with the shapes of its batch."""
    return pair_programs(config, methods, "pld")
