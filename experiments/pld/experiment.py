"""PLD: one ranking of the classes, the label first, in place of two losses.

Bassam, Zhu, Bian 2025 (arXiv:2506.12542) train a student to rank the classes as the
teacher does behind the true one, every place weighted by the teacher's probability.
They report it above KD and DIST, with no weight of a cross-entropy term to tune.

``small`` takes 100 and 200 digits and perceptrons, ``paper`` the CIFAR-100 table: four
pairs, 250 epochs of AdamW.
"""

import jax.numpy as jnp

from experiments.common.classification import ImagesConfig, distilled
from experiments.common.configs import OptimizerConfig
from experiments.common.pairs import PairsConfig, pair_arms, pair_programs
from jaxkd.losses import plackett_luce_loss, teacher_ranking
from jaxkd.methods import combine, cross_entropy, dist, from_loss, kd, pld
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.paper import paper_table
from jaxkd.types import Method

PAPER_PAIRS = (
    "wrn40_2-wrn40_1",
    "resnet56-resnet20",
    "resnet32x4-resnet8x4",
    "resnet50-mobilenet_v2",
)
ADAMW = OptimizerConfig("adamw", 1e-3, weight_decay=0.5)
PRESETS = {
    "small": PairsConfig(),
    "paper": PairsConfig(
        pairs=PAPER_PAIRS,
        train_examples=(0,),
        task=ImagesConfig("tfds/cifar100", epochs=250, batch_size=128),
        optimizer=ADAMW,
        teacher_epochs=250,
        teacher_optimizer=ADAMW,
    ),
}

PAPER = paper_table(
    "last_accuracy",
    PAPER_PAIRS,
    {
        "cross_entropy": "70.26 67.57 71.56 64.42",
        "kd": "72.44 69.45 72.11 66.61",
        "dist": "72.74 69.66 73.21 66.98",
        "pld": "73.50 70.28 73.97 68.16",
    },
    where="Table 1",
    checked=True,
)

SMALL_SETTINGS = ("100 images", "200 images")
CLAIMS = [
    *(
        claim
        for setting in (*SMALL_SETTINGS, *PAPER_PAIRS)
        for claim in (
            contrast("pld", "cross_entropy", "last_accuracy", setting=setting),
            contrast(
                *("pld", "kd", "last_accuracy", 0.005, "non-inferiority"),
                setting=setting,
                because="one standard error of an earlier trial",
            ),
            contrast("pld", "listmle", "last_accuracy", setting=setting),
        )
    ),
    # An over-confident teacher leaves all weight on the first place.
    *(
        contrast(
            *("pld_t1", "cross_entropy", "last_accuracy", 0.01, "equivalence"),
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


METHODS = {
    "cross_entropy": cross_entropy(),
    "kd": combine((0.1, cross_entropy()), (0.9, kd(4.0))),
    "dist": combine((1.0, cross_entropy()), (1.0, dist(2.0, 2.0, 4.0))),
    "pld_t1": pld(1.0),
    "pld": pld(4.0),
    "listmle": listmle(),
}
"""The rows, with the paper's weights on CIFAR-100; PLD stands alone."""

EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=pair_arms(distilled(METHODS)),
    claims=CLAIMS,
    paper=PAPER,
    full_scale=pair_programs(distilled(METHODS), "pld"),
    seeds={"small": 5},
)
