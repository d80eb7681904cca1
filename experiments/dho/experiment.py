"""DHO: labels and a vision-language teacher have a head each, mixed where it is used.

Kang et al. 2025 (arXiv:2505.07675): with few labels and many images without, one head
is pulled two ways by cross-entropy and by a zero-shot teacher. Two heads on the same
features are not, and how much of each to use is chosen after training.

``small`` takes digits with a teacher that confuses two classes, CIFAR-10 with a teacher
whose text embeddings are noisy, and linear heads on its own features; ``gpu`` is
CIFAR-10 with a teacher that sees every crop, ``paper`` ImageNet with CLIP.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.classification import image_batch
from experiments.common.configs import choose
from experiments.dho.config import PRESETS, TABLES, Config, Table
from experiments.dho.images import FewLabels, few_labels
from experiments.dho.students import HEADS, ROWS, Row, student_network, watched
from jaxkd import data, distill, methods, models, networks
from jaxkd.evaluation.classification import accuracy, example_labels, predictor
from jaxkd.evaluation.dual_head import search_mixture
from jaxkd.losses import cosine_logits, dual_head_log_probs
from jaxkd.networks.dual_head import CE_TAP, KD_TAP
from jaxkd.programs import with_best
from jaxkd.reporting.claims import Claim, contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.paper import paper_table
from jaxkd.reporting.quantities import cell
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Arm, History, Run, Task, Values, records
from jaxkd.types import Batch, Program, Variables, deployed

declare(
    cosine_course=Metric("cosine at the end"),
    head_cosine=Metric("cosine in the head"),
    label_head=Metric("label head %", higher_is_better=True),
    teacher_head=Metric("teacher's head %", higher_is_better=True),
    better_head=Metric("better head %", higher_is_better=True),
    fixed_mix=Metric("α = β = ½ %", higher_is_better=True),
    beta=Metric("β"),
)

WITHIN = "one standard error of an earlier trial's students"


def claims(setting: str) -> list[Claim]:
    """Return what the card claims of a table with students of features of their own."""
    return [
        contrast("dho", "sho_0.5", "last_accuracy", setting=setting),
        contrast(
            *("dho", "sho_0.5", "gradient_cosine", 0.3), setting=setting, lower=False
        ),
        contrast(
            cell("dho"),
            cell("dho", "better_head"),
            *("last_accuracy", 0.01, "non-inferiority"),
            setting=setting,
            because=WITHIN,
        ),
    ]


SMALL = PRESETS["small"].tables
CLAIMS = [
    *(claim for setting in SMALL[:3] for claim in claims(setting)),
    contrast("dho_f", "dho", "last_accuracy", setting="CIFAR-10"),
    contrast("dho", "sho_0.5", "last_accuracy", setting="linear probe"),
    contrast("dho_init", "dho", "last_accuracy", setting="linear probe"),
    contrast("dho_aligned", "dho_init", "last_accuracy", setting="linear probe"),
]

PAPER = paper_table(
    "last_accuracy",
    PRESETS["paper"].tables,
    {
        "cross_entropy": "0.7 1.1 1.8 3.4 8.2",
        "sho_0.5": "50.5 50.6 50.6 51.0 51.2",
        "dho": "51.8 52.4 52.6 53.3 54.5",
        "dho_f": "53.7 54.2 54.8 56.2 57.7",
    },
    where="Table 1, ResNet-18",
    checked=True,
)


def arm(config: Config, table: Table, name: str, images: FewLabels) -> Arm:
    """Return a row's training, and what measures its student.

    Args:
        config: has the temperature.
        table: has the student.
        name: of the row.
        images: to choose and test on, and live teachers.
    """
    row, epoch = ROWS[name], epoch_steps(table, images)
    student = student_network(table, row, images.test.classes, images.prototypes)
    method = methods.dho(row.lam, config.temperature)
    optimizer = table.optimizer.build(table.epochs * epoch, table.epochs)
    if table.live:
        program = distill(student, images.teachers[row.teacher], method, optimizer)
    else:
        program = distill(student, None, methods.cached(method), optimizer)
        program = watched(program, student, epoch)
    held, transform = images.validation, images.test_transform
    if held is not None:
        batch: Any = held.take(np.arange(len(held)))
        batch = transform(batch, None) if transform else batch

        def score(state: Any, batch: Batch) -> jax.Array:
            inputs = student.read(batch)
            found = student.apply(deployed(state), inputs, taps=HEADS)[0].features
            return search_mixture(found[CE_TAP], found[KD_TAP], batch["label"]).accuracy

        program = with_best(program, score, validation=batch, every=epoch)

    def heads(source: Any, variables: Variables) -> tuple[jax.Array, jax.Array]:
        both = (networks.with_logits(student, tap) for tap in HEADS)
        ce, kd = (predictor(of, source, transform=transform)(variables) for of in both)
        return jnp.asarray(ce), jnp.asarray(kd)

    def measure(state: Any, history: History) -> Values:
        best, labels = deployed(state), jnp.asarray(example_labels(images.test))
        if held is None:
            alpha, beta = table.mix[row.teacher == "few-shot"]
        else:
            known = jnp.asarray(example_labels(held))
            _, alpha, beta = map(float, search_mixture(*heads(held, best), known))
        tested = heads(images.test, best)

        def right(logits: jax.Array) -> float:
            return float(accuracy(logits, labels))

        found: dict[str, Any] = {
            "last_accuracy": right(dual_head_log_probs(*tested, alpha, beta))
        }
        for metric in ("gradient_cosine", "head_cosine"):
            if 0 < row.lam < 1 and f"train_{metric}" in history[0]:
                course = [e[f"train_{metric}"] for e in history[: table.epochs]]
                found[metric] = float(np.mean(course))
                if metric == "gradient_cosine":
                    found["cosine_course"] = course
        if not row.two_heads:
            return found
        each = dict(
            zip(("label_head", "teacher_head"), map(right, tested), strict=True)
        )
        fixed = right(dual_head_log_probs(*tested, 0.5, 0.5))
        mixture = {"better_head": max(each.values()), "fixed_mix": fixed}
        return {**found, **each, **mixture, "alpha": alpha, "beta": beta}

    return Arm(name, program, student, measure=measure)


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train all rows of all tables; labels and teachers are new with every seed."""
    found = []
    choose("row", config.rows, ROWS)
    for setting, table in choose("table", config.tables, TABLES).items():
        rows = {name: ROWS[name] for name in table.rows if name in config.rows}
        images = {
            seed: few_labels(table, run, setting, seed) for seed in seeds[: table.seeds]
        }
        for seed, of_seed in images.items():
            for teacher, right in of_seed.accuracy.items():
                values = {"last_accuracy": right}
                found += records(setting, f"{teacher} teacher", seed, values, 0.0)
        for name, row in rows.items():
            # Compiled once for all seeds, but where the program has a teacher in it.
            anew = row.initial or table.live
            for group in [[seed] for seed in images] if anew else [list(images)]:
                made = arm(config, table, name, images[group[0]])
                found += run.train(made, task(table, setting, row, images), group)
    return found


def task(table: Table, setting: str, row: Row, images: Mapping[int, FewLabels]) -> Task:
    """Return what a row is trained on.

    Args:
        table: says for how long.
        setting: the table's name.
        row: whose teacher's logits are in the batches.
        images: of each seed.
    """
    first = next(iter(images.values()))
    epoch = epoch_steps(table, first)
    # One more, for the last epoch's students are validated after it.
    steps = table.epochs * epoch + (first.validation is not None)

    def batches(seed: int):
        own = images[seed]
        source = own.pool
        if not table.live:
            logits = {"teacher_logits": own.answers[row.teacher]}
            source = data.Joined(source, logits)
        return data.semi_supervised_batches(
            source,
            own.labelled,
            np.arange(len(source)),
            (table.batch_size, table.batch_size),
            steps=steps,
            seed=seed,
            transform=own.transform,
            cycle=True,
        )

    return Task(
        setting,
        batches,
        steps,
        evaluate_every=epoch,
        checkpoint_every=max(table.epochs // 4, 1) * epoch,
        summary=lambda history: {},
    )


def epoch_steps(table: Table, images: FewLabels) -> int:
    """Return the steps of a pass over the pool."""
    return -(-len(images.pool) // table.batch_size)


def full_scale(config: Config) -> Mapping[str, tuple[Program, Batch]]:
    """Return the training on ImageNet: a ResNet-18 and CLIP's image tower beside it."""
    table, row = TABLES[config.tables[0]], ROWS["dho"]
    classes, count = (1000, 2 * table.batch_size)
    prototypes = jnp.ones((512, classes))
    teacher = networks.with_logits(
        models.clip(), "image_embeds", lambda x: cosine_logits(x, prototypes)
    )
    student = student_network(table, row, classes, None)
    optimizer = table.optimizer.build(table.epochs, table.epochs)
    method = methods.dho(row.lam, config.temperature)
    images = image_batch(count, 224)
    batch = images | {
        "teacher_pixel_values": images["image"],
        "labelled": jax.ShapeDtypeStruct((count,), jnp.bool_),
    }
    return {"resnet18": (distill(student, teacher, method, optimizer), batch)}


EXPERIMENT = Experiment(
    presets=PRESETS,
    run=run,
    claims=CLAIMS,
    paper=PAPER,
    full_scale=full_scale,
    seeds={"small": 5},
    varies=("labels", "teacher", "student", "order"),
)
