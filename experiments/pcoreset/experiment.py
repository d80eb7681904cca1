"""PCoreSet and ActiveKD: active learning with a vision-language model as teacher.

In every round a student is trained anew on the labels that are known; with ActiveKD it
also learns the soft labels of a zero-shot or few-shot vision-language model for all
images, by a head of its own. Then labels are asked for: at random, or by entropy, by
coverage of the features (CoreSet), by gradients (BADGE), by predicted classes, or by
coverage of the student's probabilities (PCoreSet). Kang et al. 2025, arXiv:2506.00910.

``small`` takes digits, and a cosine classifier on a random projection stands for the
vision-language model. ``paper`` is one of the paper's ten data sets with a ResNet-18
and CLIP's embeddings, ``imagenet`` its ImageNet setting with a ResNet-50.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from experiments.common.classification import image_batch
from experiments.common.configs import choose
from experiments.pcoreset.config import CLASSES, PRESETS, Config
from experiments.pcoreset.images import load_images, teacher_accuracy
from experiments.pcoreset.rounds import Learner, activekd, student_network
from jaxkd.reporting.claims import Claim, contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.quantities import cell
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Run, records
from jaxkd.types import Batch, Program

declare(
    mean_accuracy=Metric("mean of rounds %", higher_is_better=True),
    **{f"round{i}_accuracy": Metric(f"round {i} %") for i in range(6)},
)

TEACHERS = ("zero-shot", "few-shot")
RULES = ("random", "entropy", "coreset", "badge", "class-balanced", "pcoreset")
METHODS = {
    f"{training} + {rule}": (training == "activekd", rule)
    for training, rules in (
        ("no distillation", ("random", "pcoreset")),
        ("activekd", RULES),
    )
    for rule in rules
}
"""The rows: whether a teacher helps, and the rule by which labels are asked for."""

OPTIMUM = "optimal cover"
"""The row that greedy covers of tiny pools are compared with."""

PLAIN, RANDOM, CORESET, PCORESET = (
    "no distillation + random",
    *(f"activekd + {rule}" for rule in ("random", "coreset", "pcoreset")),
)


def claims(teacher: str, rounds: int) -> list[Claim]:
    """Return what one teacher's table is to show.

    Args:
        teacher: the table's name.
        rounds: of the run, after the first labels'.
    """
    early = [f"round{i}_accuracy" for i in range(3)]
    late = [*(f"round{i}_accuracy" for i in range(2, rounds)), "last_accuracy"]
    return [
        *(
            contrast(RANDOM, PLAIN, metric, setting=teacher, lower=False)
            for metric in early
        ),
        *(
            contrast(PCORESET, RANDOM, metric, setting=teacher)
            for metric in ("last_accuracy", "mean_accuracy")
        ),
        *(
            contrast(
                PCORESET,
                CORESET,
                metric,
                0.01,
                "non-inferiority",
                setting=teacher,
                lower=False,
                because="below the sampling error of 500 test images, 1.6 points",
            )
            for metric in late
        ),
        contrast(PCORESET, RANDOM, "cover_radius", setting=teacher),
        contrast(
            PCORESET,
            2 * cell(OPTIMUM, fixed=True),
            "cover_ratio",
            setting=teacher,
            lower=True,
        ),
    ]


CLAIMS = [claim for teacher in TEACHERS for claim in claims(teacher, 6)]


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Play all rounds of all methods, and return the records.

    Raises:
        ValueError: an unknown method or teacher, or as many shares as teachers are not
            given.
    """
    rows = choose("method", config.methods, METHODS)
    choose("teacher", config.teachers, dict.fromkeys(TEACHERS))
    images = load_images(config)
    plain, found = Learner(config, images), []
    for teacher, share in zip(config.teachers, config.ce_shares, strict=True):
        # As it is before it knows labels.
        before = {"last_accuracy": teacher_accuracy(config, images, images.prototypes)}
        found += records(teacher, "teacher", 0, before, 0.0)
        found += records(teacher, OPTIMUM, 0, {"cover_ratio": 1.0}, 0.0)
        taught = Learner(config, images, teacher, share)
        for method, (distilled, rule) in rows.items():
            learner = taught if distilled else plain
            for seed in seeds:
                found += learner.learn(run, teacher, method, rule, seed)
    return found


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the student's training program and the shapes of its global batch."""
    classes, count = CLASSES[config.dataset], 2 * config.batch_size
    # Its weights are drawn. The steps depend on the round, and change no shape.
    network = student_network(replace(config, weights=""), classes)
    batch = image_batch(count, 224) | {
        "labelled": jax.ShapeDtypeStruct((count,), jnp.bool_),
        "teacher_logits": jax.ShapeDtypeStruct((count, classes), jnp.float32),
    }
    program = activekd(config, network, classes, 1000)
    return {f"{config.student} on {config.dataset}": (program, batch)}


EXPERIMENT = Experiment(
    presets=PRESETS,
    run=run,
    claims=CLAIMS,
    full_scale=full_scale,
    seeds={"small": 5},
    varies=("labels", "student", "order"),
)
