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
import numpy as np

from experiments.pcoreset.config import (
    ACTIVEKD,
    CLASSES,
    METHODS,
    NO_DISTILLATION,
    PRESETS,
    Config,
    named,
)
from experiments.pcoreset.rounds import Learner
from experiments.pcoreset.students import (
    Student,
    base_network,
    distilling,
    make_student,
)
from experiments.pcoreset.tasks import EmbeddedImages, load_task, teacher_logits
from jaxkd.checks import unknown_name
from jaxkd.reporting.claims import Claim, contrast
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.quantities import cell
from jaxkd.reporting.records import Record
from jaxkd.types import Batch, Program

SLICE = "v5e:2x4"
OPTIMUM = "optimal cover"
"""The row that greedy covers of tiny pools are compared with."""

PCORESET, CORESET, RANDOM = (
    named(ACTIVEKD, selection) for selection in ("pcoreset", "coreset", "random")
)


def claims(teacher: str, rounds: int) -> list[Claim]:
    """Return what one teacher's table is to show.

    Args:
        teacher: the table's name.
        rounds: of the run, after the first labels'.
    """
    plain = named(NO_DISTILLATION, "random")
    early = [f"round{i}_accuracy" for i in range(3)]
    late = [*(f"round{i}_accuracy" for i in range(2, rounds)), "last_accuracy"]
    return [
        *(
            contrast(RANDOM, plain, metric, setting=teacher, lower=False)
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


CLAIMS = [c for t in PRESETS["small"].teachers for c in claims(t, 6)]


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Play all rounds of all methods, and return the records.

    Raises:
        ValueError: an unknown method or teacher, or as many shares as teachers are not
            given.
    """
    for method in config.methods:
        if method not in METHODS:
            raise ValueError(unknown_name("method", method, METHODS))
    for teacher in config.teachers:
        if teacher not in ("zero-shot", "few-shot"):
            raise ValueError(
                unknown_name("teacher", teacher, ["zero-shot", "few-shot"])
            )
    task = load_task(config)
    plain = make_student(config, task, distilled=False, ce_share=1.0)
    records = []
    for teacher, share in zip(config.teachers, config.ce_shares, strict=True):
        distilled = make_student(config, task, distilled=True, ce_share=share)
        records += teacher_records(config, task, teacher)
        for method in config.methods:
            student = distilled if method.startswith(ACTIVEKD) else plain
            records += method_records(
                config, task, teacher, method, student, seeds, run
            )
    return records


def method_records(
    config: Config,
    task: EmbeddedImages,
    teacher: str,
    method: str,
    student: Student,
    seeds: Sequence[int],
    run: Run,
) -> list[Record]:
    """Return one row's records, a run a seed."""
    _, _, selection = method.partition(" + ")
    # Students without a teacher are the same in every table, and trained once.
    place = teacher if student.distilled else "labels"
    found = [
        record
        for seed in seeds
        for record in run.part(
            f"{place}/{method}/seed{seed}".replace(" + ", "-").replace(" ", "_"),
            lambda folder, seed=seed: Learner(
                config,
                task,
                teacher,
                method,
                teacher,
                selection,
                student,
                seed,
                folder,
                run.progress,
            ).run(),
        )
    ]
    return [replace(record, setting=teacher) for record in found]


def teacher_records(config: Config, task: EmbeddedImages, teacher: str) -> list[Record]:
    """Return the teacher's accuracy without labels, and the optimum's cover ratio."""
    answers = teacher_logits(config, task.test_features, task.prototypes).argmax(-1)
    accuracy = float(np.mean(answers == task.test_labels))
    values = {"last_accuracy": ("teacher", accuracy), "cover_ratio": (OPTIMUM, 1.0)}
    return [
        Record(method, 0, metric, value, 0.0, teacher)
        for metric, (method, value) in values.items()
    ]


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the student's training program and the shapes of its global batch."""
    classes = CLASSES[config.dataset]
    # The schedule's length, which depends on the round, changes no shape.
    program = distilling(config, base_network(config, classes), 1000, classes)
    count = 2 * config.batch_size
    shapes = {
        "image": ((count, 224, 224, 3), jnp.float32),
        "label": ((count,), jnp.int32),
        "index": ((count,), jnp.int32),
        "labelled": ((count,), jnp.bool_),
        "teacher_logits": ((count, classes), jnp.float32),
    }
    batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    return {f"{config.student} on {config.dataset}": (program, batch)}
