"""OFA-KD: one-for-all distillation between different families of networks.

Hao et al. 2023 (arXiv:2310.19444) find that features of convolutional networks,
transformers and MLPs are unlike at the same depth, so that hints fail between them.
They give each stage of the student a branch that ends in logits, which learn the
teacher's with the target class enhanced.

``small`` compares features by CKA and distils a CNN into an MLP on digits, and a ResNet
into a transformer and a ResMLP on 5,000 images of CIFAR-10 at half their resolution.
``paper`` is the table on CIFAR-100 at 224 pixels, ``imagenet`` that on ImageNet.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from experiments.common.classification import Classification, image_batch
from experiments.common.configs import choose
from experiments.ofakd.settings import (
    CIFAR100,
    CNN,
    DIGITS,
    HIDDEN,
    IMAGENET,
    MLP,
    OTHER_CNN,
    PAPER,
    SETTINGS,
    SMALL,
    Setting,
)
from jaxkd.evaluation.classification import labelled_inputs
from jaxkd.evaluation.similarity import tapped_cka
from jaxkd.interop import load_pretrained
from jaxkd.methods import combine, cross_entropy, exit_logits, fitnets, kd, ofakd
from jaxkd.network import Network
from jaxkd.programs import with_average
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import (
    Arm,
    Clock,
    History,
    Run,
    Task,
    Values,
    records,
    run_arms,
)
from jaxkd.types import Batch, Program

declare(
    **{f"exit{i}_accuracy": Metric(f"exit {i} %") for i in range(1, 5)},
    **{f"cka_stage{i}": Metric(f"CKA stage {i} %") for i in range(1, 5)},
)


@dataclass(frozen=True)
class Config:
    """What is run.

    Attributes:
        settings: names of `SETTINGS`.
        cka: whether features of networks of one and of two families are compared.
        epochs: of students and teachers, in place of their recipes'; 0 for those.
        teachers: folder of the trained teachers that a run does not train, each in a
            folder of its model's, size's and data set's names, such as
            ``swin-tiny-imagenet2012``, as ``jaxkd.interop.save_pretrained`` writes it.
        half: whether networks compute in bfloat16.
    """

    settings: tuple[str, ...]
    cka: bool = False
    epochs: int = 0
    teachers: str = "teachers"
    half: bool = False


PRESETS = {
    "small": Config(tuple(SMALL), cka=True),
    "paper": Config(tuple(CIFAR100), half=True),
    "imagenet": Config(tuple(IMAGENET), half=True),
}

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
        for setting in (*CIFAR100, *IMAGENET)
        for method in ("cross_entropy", "kd", "fitnets")
    ),
]


def programs(
    config: Config,
    setting: Setting,
    student: Network,
    teacher: Network,
    optimizer: optax.GradientTransformation,
) -> dict[str, Program]:
    """Return the setting's programs by method."""
    labels = cross_entropy(setting.label_smoothing)
    methods = {
        "cross_entropy": labels,
        "kd": combine((1.0, labels), (1.0, kd(1.0))),
        "fitnets": combine((1.0, labels), (100.0, fitnets("pooled"))),
        "ofakd": combine(
            (1.0, labels), (1.0, ofakd(setting.taps, gamma=setting.gamma))
        ),
    }
    if config.half:
        student = student.computing_in(jnp.bfloat16)
        teacher = teacher.astype(jnp.bfloat16)
    found = {}
    for name in setting.methods:
        source = None if name == "cross_entropy" else teacher
        program = jaxkd.distill(student, source, methods[name], optimizer)
        averaged = (
            with_average(program, setting.average) if setting.average else program
        )
        found[name] = averaged
    return found


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Yield every setting's teacher and students."""
    for name, setting in choose("setting", config.settings, SETTINGS).items():
        images = setting.load(config.epochs)
        student = setting.student.build(images.classes)
        teacher = taught(config, setting, images, run, seed)
        mine = images.subset(setting.train_examples)
        yield teacher, mine.task(name)
        task = mine.task(name, mine.logits(teacher.deployed))
        task = replace(task, seeds=setting.seeds)
        optimizer = mine.optimizer.build(mine.steps, mine.epochs)
        found = programs(config, setting, student, teacher.deployed, optimizer)
        for method, program in found.items():
            arm = Arm(method, program, student)
            if method == "ofakd":
                exits = exit_accuracies(setting, student, teacher.deployed, mine)
                arm = replace(arm, measure=exits)
            yield arm, task


def taught(
    config: Config, setting: Setting, images: Classification, run: Run, seed: int
) -> Arm:
    """Return the teacher, trained here or read from its folder.

    Raises:
        FileNotFoundError: it is to be read, and is not there.
    """
    network = setting.teacher.build(images.classes)
    if setting.teacher_epochs:
        learnt = replace(
            images,
            epochs=config.epochs or setting.teacher_epochs,
            optimizer=setting.teacher_optimizer or setting.optimizer,
        )
        # Settings of the same data share their teacher.
        return learnt.teacher(run, network, setting.task.dataset, seed)
    folder = Path(config.teachers) / setting.teacher_name
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing: put the trained teacher there, written by "
            f"jaxkd.interop.save_pretrained({str(folder)!r}, network, variables), or "
            "set teachers to the folder that holds it"
        )
    variables = load_pretrained(folder)[1]
    return Arm("teacher", None, network.with_variables(variables))


def exit_accuracies(
    setting: Setting, student: Network, teacher: Network, images: Classification
):
    """Return what measures the test accuracy of every exit branch, in evaluation."""
    taps = tuple(dict.fromkeys((*setting.taps, "pooled")))

    def measure(state: Any, history: History) -> Values:
        state = state.program if setting.average else state
        exits = {kind: tree["1"] for kind, tree in state.method.items()}

        @jax.jit
        def predict(image):
            of_student, _ = student.apply(state.student, image, taps=taps)
            of_teacher, _ = teacher.apply(state.teacher, image, taps=("pooled",))
            logits = exit_logits(exits, of_student, of_teacher, setting.taps)
            return jnp.stack([z.argmax(-1) for z in logits])

        test, right = images.test, np.zeros(len(setting.taps))
        for image, label in labelled_inputs(student, test, 500, images.test_transform):
            assert label is not None
            right += (np.asarray(predict(image))[:, : len(label)] == label).sum(1)
        return {f"exit{i}_accuracy": n / len(test) for i, n in enumerate(right, 1)}

    return measure


def compare_features(config: Config, run: Run, seed: int, folder: Path) -> list[Record]:
    """Return CKA of a CNN with another CNN and with an MLP, stage by stage.

    All three are trained on the labels of the digits; CKA is of the test images.
    """
    images = DIGITS.load(config.epochs)
    stages = tuple(f"stage{i}" for i in range(4))

    def train(name: str, network: Network):
        arm = images.teacher(run, network, f"cka/{name}", seed)
        return arm.deployed, arm.deployed.init(jax.random.key(seed))

    found = []
    with Clock(folder) as clock:
        cnn = train("cnn", CNN.build(images.classes))
        for name, other, taps in (
            ("homogeneous", OTHER_CNN, stages),
            ("heterogeneous", MLP, HIDDEN),
        ):
            trained = train(name, other.build(images.classes))
            alike = np.diag(tapped_cka(trained, cnn, images.test, taps, stages))
            values = {f"cka_stage{i}": float(x) for i, x in enumerate(alike, 1)}
            found += records("cka", name, seed, values, clock.seconds)
    return found


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Compare features, then train the teachers and all students."""
    choose("setting", config.settings, SETTINGS)
    found = []
    for seed in seeds[: CKA_SEEDS if config.cka else 0]:
        compare = partial(compare_features, config, run, seed)
        found += run.part(f"cka/seed{seed}", compare)
    return found + run_arms(arms, config, seeds, run)


def full_scale(config: Config) -> Mapping[str, tuple[Program, Batch]]:
    """Return each setting's one-for-all program and the shapes of its batch."""
    found = {}
    for name in config.settings:
        setting = SETTINGS[name]
        classes, size = 1000 if name in IMAGENET else 100, setting.task.batch_size
        student, teacher = (
            net.build(classes) for net in (setting.student, setting.teacher)
        )
        epochs = setting.task.epochs
        optimizer = setting.optimizer.build(epochs, epochs)
        batch = image_batch(size, 224)
        if setting.transform:  # Mixed labels are probabilities.
            batch |= {"label": jax.ShapeDtypeStruct((size, classes), jnp.float32)}
        rows = programs(config, setting, student, teacher, optimizer)
        found[name] = rows["ofakd"], batch
    return found


EXPERIMENT = Experiment(
    presets=PRESETS,
    run=run,
    claims=CLAIMS,
    paper=PAPER,
    full_scale=full_scale,
    seeds={"small": 5},
)
