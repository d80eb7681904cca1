"""OFA-KD: one-for-all distillation between different families of networks.

Hao et al. 2023 (arXiv:2310.19444) find that features of convolutional networks,
transformers and MLPs are unlike at the same depth, so that hints fail between them.
They give each stage of the student a branch that ends in logits, which learn the
teacher's with the target class enhanced.

``small`` compares features by CKA and distils a CNN into an MLP on digits, and a ResNet
into a transformer and a ResMLP on 5,000 images of CIFAR-10 at half their resolution.
``paper`` is the table on CIFAR-100 at 224 pixels, ``imagenet`` that on ImageNet.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from experiments.common.training import (
    NetworkSpec,
    Task,
    build,
    image_batch,
    teacher_records,
    train_on_labels,
    train_students,
)
from experiments.ofakd.config import (
    CNN,
    DIGITS,
    HIDDEN,
    MLP,
    OTHER_CNN,
    PRESETS,
    SETTINGS,
    Config,
    Setting,
)
from experiments.ofakd.config import PAPER as PAPER  # the report's column
from experiments.ofakd.recipes import load_dataset, make_optimizer, make_task
from jaxkd import data, training
from jaxkd.checks import unknown_name
from jaxkd.evaluation.classification import labelled_inputs, predictor
from jaxkd.evaluation.similarity import tapped_cka
from jaxkd.interop import load_pretrained
from jaxkd.methods import combine, cross_entropy, exit_logits, fitnets, kd, ofakd
from jaxkd.network import Network
from jaxkd.programs import with_average
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Batch, Method, Program, Variables

SLICE = "v5e:2x4"

CKA_SEEDS = 3
"""At most so many trios of networks are compared."""

CLAIMS = [
    *(
        contrast(
            "homogeneous",
            "heterogeneous",
            f"cka_stage{i}",
            setting="cka",
            lower=False,
        )
        for i in range(1, 5)
    ),
    contrast(
        "ofakd",
        "kd",
        "last_accuracy",
        0.01,
        "non-inferiority",
        setting="digits-500",
        because="two standard errors of an earlier trial",
    ),
    *(
        contrast("ofakd", "kd", "last_accuracy", setting=setting)
        for setting in ("resnet20-vit", "resnet20-resmlp")
    ),
    *(
        contrast("ofakd", method, "best_accuracy", setting=setting)
        for setting in (*PRESETS["paper"].settings, *PRESETS["imagenet"].settings)
        for method in ("cross_entropy", "kd", "fitnets")
    ),
]


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Compare features, then train the teachers and all students."""
    for name in config.settings:
        if name not in SETTINGS:
            raise ValueError(unknown_name("setting", name, SETTINGS))
    records = compare_features(config, seeds, run) if config.cka else []
    for name in config.settings:
        records += run_setting(config, name, seeds, run)
    return records


def run_setting(
    config: Config, name: str, seeds: Sequence[int], run: Run
) -> list[Record]:
    """Return one setting's records: the teacher's, then every method's."""
    setting = SETTINGS[name]
    dataset = load_dataset(setting)
    task = make_task(config, name, dataset, setting.recipe)
    if setting.train_examples:
        task = replace(task, train=dataset.train.subset(setting.train_examples))
    classes = dataset.train.classes
    student, teacher = build(setting.student, classes), build(setting.teacher, classes)
    started = time.perf_counter()
    variables = teacher_variables(config, setting, dataset, teacher, run)
    seconds = time.perf_counter() - started
    logits = predictor(teacher, task.test, transform=task.test_transform)(variables)
    records = teacher_records(task, logits, seconds)
    taught = teacher.with_variables(variables)
    optimizer = make_optimizer(setting.recipe, task.epochs)(task.steps)
    for method, program in programs(
        config, setting, student, taught, optimizer
    ).items():
        averaged = setting.recipe.average > 0

        def measure(state: Any, _: Any, method=method, averaged=averaged):
            if method != "ofakd":
                return {}
            return exit_accuracies(
                state.program if averaged else state, setting, student, teacher, task
            )

        records += train_students(
            run,
            task,
            method,
            program,
            student,
            seeds[: setting.seeds or len(seeds)],
            teacher_logits=logits,
            variables=(lambda s: s.average) if averaged else (lambda s: s.student),
            measure=measure,
        )
    return records


def programs(
    config: Config,
    setting: Setting,
    student: Network,
    teacher: Network,
    optimizer: optax.GradientTransformation,
) -> dict[str, Program]:
    """Return the setting's programs by method."""
    labels = cross_entropy(setting.recipe.label_smoothing)
    terms: dict[str, tuple[tuple[float, Method], ...]] = {
        "cross_entropy": (),
        "kd": ((1.0, kd(1.0)),),
        "fitnets": ((100.0, fitnets("pooled")),),
        "ofakd": ((1.0, ofakd(setting.taps, gamma=setting.gamma)),),
    }
    if config.half:
        student = student.computing_in(jnp.bfloat16)
        teacher = teacher.astype(jnp.bfloat16)
    found = {
        name: jaxkd.distill(
            student,
            teacher if terms[name] else None,
            combine((1.0, labels), *terms[name]),
            optimizer,
        )
        for name in setting.methods
    }
    if setting.recipe.average:
        found = {
            name: with_average(program, setting.recipe.average)
            for name, program in found.items()
        }
    return found


def exit_accuracies(
    state: Any, setting: Setting, student: Network, teacher: Network, task: Task
) -> dict[str, float]:
    """Return the test accuracy of every exit branch, in evaluation.

    Args:
        state: the last one of the one-for-all program.
        setting: says what is tapped.
        student: the network trained.
        teacher: the network learnt from.
        task: whose test examples to take.
    """
    exits = {kind: tree["1"] for kind, tree in state.method.items()}
    taps = tuple(dict.fromkeys((*setting.taps, "pooled")))

    @jax.jit
    def predict(image):
        of_student, _ = student.apply(state.student, image, taps=taps)
        of_teacher, _ = teacher.apply(state.teacher, image, taps=("pooled",))
        logits = exit_logits(exits, of_student, of_teacher, setting.taps)
        return jnp.stack([z.argmax(-1) for z in logits])

    right = np.zeros(len(setting.taps))
    for image, label in labelled_inputs(student, task.test, 500, task.test_transform):
        assert label is not None
        right += (np.asarray(predict(image))[:, : len(label)] == label).sum(1)
    return {
        f"exit{i}_accuracy": value / len(task.test)
        for i, value in enumerate(right, start=1)
    }


def compare_features(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Return CKA of a CNN with another CNN and with an MLP, stage by stage.

    All three are trained on the labels of the digits; CKA is of the test images.
    """
    dataset = data.load("digits")
    task = make_task(config, "cka", dataset, DIGITS)

    def compute(seed: int) -> list[Record]:
        started = time.perf_counter()

        def train(spec: NetworkSpec) -> tuple[Network, Variables]:
            network = build(spec, dataset.train.classes)
            state, _ = training.fit(
                task.distill(network, None, cross_entropy()),
                task.batches(seed),
                key=jax.random.key(seed),
                steps=task.steps,
                progress=run.progress,
                name=f"cka {spec[0]} seed {seed}",
            )
            return network, state.student

        cnn, others = train(CNN), {"homogeneous": OTHER_CNN, "heterogeneous": MLP}
        stages = tuple(f"stage{i}" for i in range(4))
        records = []
        for name, spec in others.items():
            taps = HIDDEN if spec is MLP else stages
            alike = tapped_cka(train(spec), cnn, dataset.test, taps, stages)
            seconds = time.perf_counter() - started
            records += [
                Record(name, seed, f"cka_stage{i}", float(value), seconds, "cka")
                for i, value in enumerate(np.diag(alike), start=1)
            ]
        return records

    return [
        record
        for seed in seeds[:CKA_SEEDS]
        for record in run.part(f"cka/seed{seed}", lambda _, seed=seed: compute(seed))
    ]


def teacher_variables(
    config: Config,
    setting: Setting,
    dataset: data.Dataset,
    teacher: Network,
    run: Run,
) -> Variables:
    """Return the teacher's variables, trained here or read from its folder.

    Raises:
        FileNotFoundError: it is to be read, and is not there.
    """
    model, arguments = setting.teacher
    if setting.teacher_recipe is not None:
        task = make_task(config, "", dataset, setting.teacher_recipe)
        # Settings of the same teacher share it.
        return train_on_labels(run, task, teacher, f"teacher-{model}")
    name = f"{model}-{arguments['size']}-{Path(setting.dataset).name}"
    folder = Path(config.teachers) / name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing: put the trained teacher there, written by "
            f"jaxkd.interop.save_pretrained({str(folder)!r}, network, variables), or "
            "set teachers to the folder that holds it"
        )
    return load_pretrained(folder)[1]


def full_scale(config: Config) -> Mapping[str, tuple[Program, Batch]]:
    """Return each setting's one-for-all program and the shapes of its batch."""
    found = {}
    for name in config.settings:
        setting = SETTINGS[name]
        classes = 1000 if "imagenet" in setting.dataset else 100
        student, teacher = (
            build(spec, classes) for spec in (setting.student, setting.teacher)
        )
        recipe = setting.recipe
        optimizer = make_optimizer(recipe, recipe.epochs)(recipe.epochs)
        batch = image_batch(recipe.batch_size, 224)
        if recipe.mixup:
            mixed = (recipe.batch_size, classes)
            batch |= {"label": jax.ShapeDtypeStruct(mixed, jnp.float32)}
        found[name] = (
            programs(config, setting, student, teacher, optimizer)["ofakd"],
            batch,
        )
    return found
