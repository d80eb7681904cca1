"""KD++: features that are long, and point to their class's mean in the teacher.

Wang et al. 2023 (arXiv:2305.17007) find that a student need not match its teacher's
feature of every example: the means of the teacher's features by class are a classifier
already. One loss turns each feature towards its class's mean and lengthens it, beside
any other distillation: KD++, DKD++, DIST++ and ReviewKD++.

``small`` has 100 digits and perceptrons, ``maps`` small CNNs, whose stages ReviewKD
compares; ``cifar`` 5,000 images of CIFAR-10 at half their resolution; ``paper`` is the
CIFAR-100 table.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.common.classification import (
    Classification,
    ImagesConfig,
    Programs,
    distilled,
)
from experiments.common.configs import CIFAR_SGD, OptimizerConfig, choose
from experiments.common.networks import PAIRS
from experiments.common.pairs import PairsConfig, pair_arms, pair_programs
from jaxkd.adapters import abstract_module, merge_module
from jaxkd.evaluation.classification import example_labels
from jaxkd.evaluation.features import tapped
from jaxkd.losses import class_means, feature_alignment
from jaxkd.methods import combine, cross_entropy, dist, dkd, kd, nd, reviewkd
from jaxkd.methods.base import Schedule
from jaxkd.methods.nd import NDTransform
from jaxkd.network import Network
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.paper import paper_table
from jaxkd.reporting.quantities import cell
from jaxkd.reporting.run import Arm, History, Run, Task, Values
from jaxkd.types import Batch, Method, Program

declare(
    mean_cosine=Metric("cosine to class mean"),
    mean_norm=Metric("norm"),
    classified_norm=Metric("norm as classified"),
)


@dataclass(frozen=True)
class Nesterov(OptimizerConfig):
    """SGD with Nesterov's momentum, as the authors train."""

    def build(self, steps: int, epochs: int = 1) -> optax.GradientTransformation:
        """Return the optimizer of a run."""
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(self.rate(steps, epochs), momentum=0.9, nesterov=True),
        )


@dataclass(frozen=True)
class Config(PairsConfig):
    """What is trained.

    Attributes:
        warmup_epochs: in which the distillation's weight rises from 0, not ND's; 0 for
            none.
        steps_per_epoch: of the students' training, by which that is counted.
    """

    warmup_epochs: int = 0
    steps_per_epoch: int = 1


@dataclass(frozen=True)
class Weights:
    """A pair's weights, of each distillation with ND's last.

    Attributes:
        kd: of KD and ND.
        dkd: DKD's α and β, and ND.
        dist: of DIST and ND.
        reviewkd: of ReviewKD and ND.
    """

    kd: tuple[float, float] = (1.0, 2.0)
    dkd: tuple[float, float, float] = (1.0, 8.0, 2.0)
    dist: tuple[float, float] = (2.0, 2.0)
    reviewkd: tuple[float, float] = (1.0, 2.0)


WEIGHTS = {
    "mlp": Weights(),
    "cnn": Weights(),
    "resnet20-resnet8": Weights(dkd=(1.0, 2.0, 2.0)),
    "resnet56-resnet20": Weights((1.0, 2.0), (2.5, 4.0, 3.5), (2.0, 1.0), (1.2, 1.0)),
    "wrn40_2-wrn40_1": Weights((1.0, 1.5), (1.0, 6.0, 1.0), (2.5, 3.0), (5.0, 4.0)),
    "resnet32x4-resnet8x4": Weights(
        (3.5, 2.0), (2.0, 8.0, 0.5), (1.5, 4.0), (8.0, 1.0)
    ),
    "resnet50-mobilenet_v2": Weights(
        (3.0, 0.5), (0.5, 8.0, 1.0), (7.0, 1.0), (6.0, 2.0)
    ),
    "resnet32x4-shufflenet_v1": Weights(
        (2.5, 1.5), (0.5, 8.0, 4.0), (2.5, 3.0), (7.0, 1.0)
    ),
    "resnet32x4-shufflenet_v2": Weights(
        (4.0, 0.5), (0.5, 6.0, 0.5), (3.0, 4.0), (8.0, 1.5)
    ),
}
"""By pair; of the paper's six as its code has them."""

PAPER_PAIRS = tuple(list(WEIGHTS)[3:])
COSINE = replace(CIFAR_SGD, schedule="cosine", milestones=())
AUTHORS = Nesterov("sgd", 0.1, 5e-4, "steps", milestones=(150, 180, 210))
PRESETS = {
    "small": Config(train_examples=(100,)),
    "maps": Config(
        pairs=("cnn",),
        methods=("kd", "kd++", "reviewkd", "reviewkd++"),
        train_examples=(100,),
    ),
    "cifar": Config(
        pairs=("resnet20-resnet8",),
        methods=("kd", "kd++", "dkd", "dkd++"),
        train_examples=(5000,),
        task=ImagesConfig(
            "cifar10",
            test_examples=2000,
            shrink=2,
            epochs=5,
            batch_size=64,
            evaluate_every=5,
        ),
        optimizer=COSINE,
        teacher_epochs=5,
        teacher_optimizer=COSINE,
        warmup_epochs=1,
        steps_per_epoch=78,
    ),
    # All of CIFAR-10 at its own resolution, for one GPU.
    "gpu": Config(
        pairs=("resnet56-resnet20",),
        train_examples=(0,),
        task=ImagesConfig("cifar10", epochs=30, batch_size=128),
        optimizer=COSINE,
        teacher_epochs=30,
        teacher_optimizer=COSINE,
        warmup_epochs=3,
        steps_per_epoch=390,
    ),
    "paper": Config(
        pairs=PAPER_PAIRS,
        train_examples=(0,),
        task=ImagesConfig("tfds/cifar100", epochs=240, batch_size=128),
        optimizer=AUTHORS,
        teacher_epochs=240,
        teacher_optimizer=AUTHORS,
        warmup_epochs=20,
        steps_per_epoch=390,
    ),
}

PAPER = paper_table(
    "best_accuracy",
    PAPER_PAIRS,
    {
        "teacher": "72.34 75.61 79.42 79.34 79.42 79.42",
        "cross_entropy": "69.06 71.98 72.50 64.60 70.50 71.82",
        "kd": "70.66 73.54 73.33 67.65 74.07 74.45",
        "kd++": "72.53 74.59 75.54 70.10 75.45 76.42",
        "dkd": "71.97 74.81 75.44 70.35 76.45 77.07",
        "dkd++": "72.16 75.02 76.28 70.82 77.11 77.49",
        "dist": "71.78 74.42 75.79 69.17 75.23 76.08",
        "dist++": "72.52 75.00 76.13 69.80 75.60 76.64",
        "reviewkd": "71.89 75.09 75.63 69.89 77.45 77.78",
        "reviewkd++": "72.05 75.66 76.07 70.45 77.68 77.93",
    },
    where="a table of the authors' repository",
    checked=False,
)

BASES = ("kd", "dkd", "dist", "reviewkd")
CLAIMS = [
    *(
        claim
        for setting in ("mlp, 100 images", "cnn, 100 images")
        for claim in (
            contrast("kd++", 0.8, "mean_cosine", setting=setting, lower=False),
            contrast(
                *("kd++", 2 * cell("kd"), "mean_norm"), setting=setting, lower=False
            ),
            contrast(
                *("kd++", "kd", "last_accuracy", 0.005, "non-inferiority"),
                setting=setting,
                because="a standard error of an earlier trial",
            ),
        )
    ),
    contrast("reviewkd++", "reviewkd", "last_accuracy", setting="cnn, 100 images"),
    # The paper's own: each distillation gains.
    *(
        contrast(f"{base}++", base, "last_accuracy", setting=setting)
        for setting in ("resnet20-resnet8, 5000 images", *PAPER_PAIRS)
        for base in (BASES[:2] if "images" in setting else BASES)
    ),
]


def warmed(config: Config, weight: float) -> float | Schedule:
    """Return a weight that is 0 in the first epoch and rises with the next ones."""
    if not config.warmup_epochs:
        return weight

    def schedule(step: Any) -> Any:
        epoch = step // config.steps_per_epoch
        return weight * jnp.minimum(epoch / config.warmup_epochs, 1.0)

    return schedule


def objectives(pair: str, config: Config) -> dict[str, Method]:
    """Return a pair's rows; where ND counts 0, its transform is there to be measured.

    ``direction``, ``norm`` and ``own`` have other terms in ND's place, beside KD.
    """
    weights, labels = WEIGHTS[pair], (1.0, cross_entropy())
    alpha, beta, _ = weights.dkd
    soft = (warmed(config, weights.kd[0]), kd(4.0))
    terms = {
        "kd": (soft, weights.kd[1]),
        "dkd": ((warmed(config, 1.0), dkd(4.0, alpha, beta)), weights.dkd[2]),
        "dist": (
            (warmed(config, weights.dist[0]), dist(1.0, 1.0, 4.0)),
            weights.dist[1],
        ),
    }
    if PAIRS[pair].stages:
        review = reviewkd(PAIRS[pair].stages, mid=64)
        weight, nds = weights.reviewkd
        terms["reviewkd"] = ((warmed(config, weight), review), nds)
    found = {"cross_entropy": combine(labels, (0.0, nd()))}
    for base, (term, weight) in terms.items():
        found[base] = combine(labels, term, (0.0, nd()))
        found[f"{base}++"] = combine(labels, term, (weight, nd()))
    weight = weights.kd[1]
    return found | {
        "direction": combine(labels, soft, (weight, nd(kind="direction"))),
        # Its gradient is 2 an example, ND's at most 1 over the teacher's norm.
        "norm": combine(labels, soft, (0.01 * weight, nd(kind="norm"))),
        "own": combine(labels, soft, (weight, nd(kind="own"))),
    }


def programs_of(pair: str) -> Programs:
    """Return what makes a pair's programs."""

    def programs(config, student, teacher, optimizer):
        methods = objectives(pair, config)
        return distilled(methods)(config, student, teacher, optimizer)

    return programs


def aligned(
    images: Classification, student: Network, labels: jax.Array, state: Any
) -> dict[str, jax.Array]:
    """Return each test image's cosine to its class's mean, and its feature's norm.

    Features are seen through ND's transform, in evaluation mode, where there is one;
    the means are of the teacher's features of all batches. ``classified`` is the norm
    of those that the student's classifier reads.
    """
    found = tapped(student, state.student, images.test, transform=images.test_transform)
    last = max(state.method["params"], key=int)
    params, stats = (state.method[kind][last] for kind in ("params", "state"))
    means = class_means(stats["sums"], stats["counts"])
    features = classified = jnp.asarray(found.features["pooled"])
    if "transform" in params:
        sizes = features.shape[1], means.shape[1]
        module = merge_module(
            abstract_module(lambda: NDTransform(*sizes, 0.5, rngs=nnx.Rngs(0))),
            params["transform"],
            stats["transform"],
        )
        module.eval()
        features = module(features)
    norms = jnp.linalg.norm(classified, axis=-1)
    return {**feature_alignment(features, means, labels), "classified": norms}


def alignment(images: Classification, student: Network, logits: np.ndarray):
    """Return what measures `aligned` of a trained student, on average."""
    labels = jnp.asarray(example_labels(images.test))

    def measure(state: Any, history: History) -> Values:
        found = aligned(images, student, labels, state)
        mean = {name: float(x.mean()) for name, x in found.items()}
        return {
            "mean_cosine": mean["cosine"],
            "mean_norm": mean["norm"],
            "classified_norm": mean["classified"],
        }

    return measure


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Yield each pair's teacher and students, with the pair in the table's name."""
    for pair in choose("pair", config.pairs, WEIGHTS):
        of_pair = pair_arms(programs_of(pair), alignment)
        for arm, task in of_pair(replace(config, pairs=(pair,)), run, seed):
            name = task.setting
            setting = name if name == pair else f"{pair}, {name}"
            yield arm, replace(task, setting=setting)


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return KD++'s program of each pair, with the shapes of its batch."""
    found = {}
    for pair in config.pairs:
        of_pair = pair_programs(programs_of(pair), "kd++")
        found |= of_pair(replace(config, pairs=(pair,)))
    return found


EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=arms,
    claims=CLAIMS,
    paper=PAPER,
    full_scale=full_scale,
    seeds={"small": 5, "maps": 5},
)
