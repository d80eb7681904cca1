"""Talking Models: a student asks a pre-trained teacher, which thinks on and answers.

Zhao et al. 2023 (arXiv:2310.03188) let both networks exchange messages: the teacher's
upper layers interpret the student's lower state, and the student agrees with the
answer. They report a gain over training from scratch of 2.54 % on average of five
tasks, and of 1.99 % without the exchange.

``small`` is digits, of which the student learns another task than the teacher's;
``paper`` a ViT-B that teaches a ViT-Ti CIFAR-100.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

import jaxkd
from experiments.common.classification import Classification, image_batch
from experiments.common.configs import choose
from experiments.talking_models.config import PRESETS, Config
from experiments.talking_models.messages import Talked
from jaxkd import data
from jaxkd.interop import load_pretrained
from jaxkd.methods import combine, cross_entropy, fitnets, hidden_kd
from jaxkd.network import Network
from jaxkd.papers.talking_models import talking
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.run import Arm, History, Run, Task, Values
from jaxkd.types import Batch, Method, Program

declare(
    message_cka=Metric("CKA of messages"),
    message_cka_start=Metric("at the start"),
    interaction=Metric("interaction loss", higher_is_better=False),
    interaction_start=Metric("interaction loss at the start"),
    message_spread=Metric("spread of messages"),
)

CLAIMS = [
    contrast("td1", other, "last_accuracy", setting=setting)
    for setting in ("digits", "cifar100")
    for other in ("scratch", "no_interaction", "fitnets")
]
DISTILLED = ("no_interaction", "td1", "td2", "td1_fixed_answer", "only_interaction")
"""Rows with messages."""


def talk(config: Config, name: str) -> Method:
    """Return a row's exchange of messages."""
    of = config.talk
    spared = 0.0 if name == "only_interaction" else of.weight
    return talking(
        of.taps,
        of.teacher_taps,
        message=of.message,
        hidden=of.hidden,
        rounds=2 if name == "td2" else 1,
        interaction=0.0 if name == "no_interaction" else of.weight,
        messages=spared,
        states=spared,
        detach_received=name == "td1_fixed_answer",
    )


def methods(config: Config) -> dict[str, Method]:
    """Return the rows' methods; the labels count 1 in all of them."""
    high, teacher_high = config.talk.taps[1], config.talk.teacher_taps[1]
    # A vector an example, or tokens.
    vectors = config.student.name == "mlp"
    hint = fitnets(high, teacher_high) if vectors else hidden_kd([high], [teacher_high])
    others = {"fitnets": hint, **{name: talk(config, name) for name in DISTILLED}}
    weight = config.talk.weight
    return {
        "scratch": cross_entropy(),
        **{
            name: combine(
                (1.0, cross_entropy()), (weight if method is hint else 1.0, method)
            )
            for name, method in others.items()
        },
    }


def downstream(config: Config, images: Classification, seed: int) -> Classification:
    """Return the student's task: a few images of every group, moved a little."""

    def grouped(source: Any) -> Any:
        if not config.groups:
            return source
        label = source.arrays["label"] % config.groups
        arrays = {**source.arrays, "label": label}
        name = f"{source.name} modulo {config.groups}"
        return data.Source(name, arrays, config.groups)

    train = grouped(images.train)
    if config.labelled:
        train = train.subset(config.labelled, seed)
    transform = data.PadCrop(config.shift) if config.shift else images.transform
    return replace(images, train=train, test=grouped(images.test), transform=transform)


def taught(config: Config, images: Classification, run: Run, seed: int) -> Arm:
    """Return the teacher, trained on its own task or read from its folder."""
    if config.teacher_epochs:
        learnt = replace(
            images,
            epochs=config.teacher_epochs,
            optimizer=config.teacher_optimizer,
        )
        network = config.teacher.build(images.classes)
        return learnt.teacher(run, network, "teacher's task", seed)
    network, variables = load_pretrained(config.teacher_folder)
    return Arm("teacher", None, network.with_variables(variables))


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Yield the teacher on its own task, and the rows on the student's.

    Each seed has a teacher, and labelled images, of its own.
    """
    rows = choose("method", config.methods, methods(config))
    images = config.task.load(config.optimizer)
    teacher = taught(config, images, run, seed)
    if config.teacher_epochs:
        yield teacher, images.task("teacher's task")
    own = downstream(config, images, seed)
    task, network = own.task(config.setting), config.student.build(own.classes)
    for name, method in rows.items():
        needed = teacher.deployed if name != "scratch" else None
        program = own.distill(network, needed, method)
        arm = Arm(name, program, network)
        if name in DISTILLED:
            measured = measure(config, name, own, network, teacher.deployed, seed)
            arm = replace(arm, measure=measured(program))
        yield arm, task


def measure(
    config: Config,
    name: str,
    images: Classification,
    student: Network,
    teacher: Network,
    seed: int,
):
    """Return what measures messages on test images, at the start and at the end."""
    talked = Talked(config.talk, 2 if name == "td2" else 1, student, teacher)
    test = images.test.take(np.arange(min(len(images.test), 500)))
    if images.test_transform is not None:
        test = images.test_transform(test, None)

    def of(program: Program):
        def found(state: Any, history: History) -> Values:
            batch = next(iter(images.batches(seed, epochs=1)))
            start = talked.measure(
                jax.jit(program.init)(jax.random.key(seed), batch), test
            )
            return {
                **talked.measure(state, test),
                "message_cka_start": start["message_cka"],
                "interaction_start": start["interaction"],
            }

        return found

    return of


def full_scale(config: Config) -> Mapping[str, tuple[Program, Batch]]:
    """Return one round's training, and the shapes of its batch."""
    student, teacher = (net.build(100) for net in (config.student, config.teacher))
    epochs, size = config.task.epochs, config.task.batch_size
    optimizer = config.optimizer.build(epochs, epochs)
    program = jaxkd.distill(student, teacher, methods(config)["td1"], optimizer)
    side = config.student.arguments.get("image_size", 224)
    return {"vit_b-vit_ti": (program, image_batch(size, side))}


EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=arms,
    claims=CLAIMS,
    full_scale=full_scale,
    seeds={"small": 6},
    varies=("teacher", "split", "student", "order"),
)
