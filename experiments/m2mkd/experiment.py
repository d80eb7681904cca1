"""m2mKD: modules of a student learn from modules of a teacher, inside a meta model.

Lo et al. 2024 (arXiv:2402.16918). A small meta model has one block for every module.
The teacher's modules are trained in the meta model's place of theirs (incubation, Ni et
al. 2022). Then each module of a modular student, here mixtures of experts, replaces the
same block and learns from the hybrid with the teacher's. The modules initialise the
student, which is trained end to end. They report up to 5.6 points on Tiny-ImageNet.

``small`` splits residual perceptrons on digits into two modules; ``paper`` is the
V-MoE-Base on ImageNet that ViT-L teaches in four.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.classification import Classification, ImagesConfig, image_batch
from experiments.common.configs import OptimizerConfig, choose
from experiments.m2mkd.networks import (
    Build,
    digits_networks,
    imagenet_networks,
    loads,
)
from jaxkd import Network, data, distill, networks
from jaxkd.losses import expert_load
from jaxkd.methods import cross_entropy, m2mkd
from jaxkd.papers.m2mkd import (
    assemble_modules,
    hybrids,
    load_modules,
    split_depths,
    split_modules,
    stitched,
    variables_of,
)
from jaxkd.reporting.claims import contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.metrics import Metric, declare
from jaxkd.reporting.run import Arm, History, Run, Task, Values
from jaxkd.types import Batch, Method, Program, Variables


@dataclass(frozen=True)
class Config:
    """What is trained, and for how long.

    Attributes:
        task: the images, and how long the student is trained end to end.
        optimizer: of all phases.
        imagenet: whether the networks are the paper's, else those of the digits.
        modules: K.
        student_examples: that modules and student learn from; 0 for all.
        meta_epochs: of the meta model.
        incubation_epochs: of the teacher's modules.
        finetune_epochs: of the teacher put together.
        module_epochs: of the student's modules.
        methods: the rows beside the meta model, the teacher and its hybrids.
        mixed: whether training images are mixed, as the paper's are.
        label_smoothing: of all phases.
        half: whether networks compute in bfloat16.
    """

    task: ImagesConfig
    optimizer: OptimizerConfig
    imagenet: bool = False
    modules: int = 2
    student_examples: int = 300
    meta_epochs: int = 30
    incubation_epochs: int = 20
    finetune_epochs: int = 10
    module_epochs: int = 30
    methods: tuple[str, ...] = ()
    mixed: bool = False
    label_smoothing: float = 0.0
    half: bool = False

    @property
    def builds(self) -> tuple[Build, Build, Build]:
        """Meta model, teacher and student."""
        return (imagenet_networks if self.imagenet else digits_networks)(self.modules)

    def load(self) -> Classification:
        """Return all images."""
        images = self.task.load(self.optimizer)
        if not self.mixed:
            return images
        mix = data.EitherOf(
            data.Mixup(0.8, images.classes), data.CutMix(1.0, images.classes)
        )
        steps = [t for t in (images.transform, mix) if t is not None]
        return replace(images, transform=data.Compose(tuple(steps)))


METHODS = (
    *("scratch", "scratch_long", "ce_modules", "m2mkd", "m2mkd_batchmean"),
    "other_teacher",
)
PRESETS = {
    "small": Config(
        ImagesConfig("digits", epochs=15, batch_size=100, evaluate_every=5),
        OptimizerConfig("adamw", 2e-3, 1e-4),
        methods=METHODS,
    ),
    "paper": Config(
        ImagesConfig(
            "tfds/imagenet2012",
            augment=False,
            epochs=100,
            batch_size=1024,
            evaluate_every=1,
        ),
        OptimizerConfig("adamw", 1e-3, 0.05, warmup=0.2, final=0.01),
        imagenet=True,
        modules=4,
        student_examples=0,
        meta_epochs=300,
        incubation_epochs=100,
        finetune_epochs=100,
        module_epochs=100,
        methods=("scratch", "m2mkd"),
        mixed=True,
        label_smoothing=0.1,
        half=True,
    ),
}

declare(least_load=Metric("least load of an expert %", higher_is_better=True))
CLAIMS = [
    *(
        contrast(name, "scratch", "last_accuracy", setting="student")
        for name in ("m2mkd", "m2mkd_batchmean")
    ),
    *(
        contrast(
            *(f"hybrid {i}", "meta", "last_accuracy", 0.05, "non-inferiority"),
            setting="teacher",
            because="farther from it a module does not do the meta model's part",
        )
        for i in range(2)
    ),
    # A teacher that was not incubated in this meta model says nothing in it.
    contrast("ce_modules", "other_teacher", "last_accuracy", setting="student"),
]


@dataclass(frozen=True)
class Phases:
    """The phases of one seed; each is trained once in a run.

    Attributes:
        config: of the run.
        run: keeps what is trained.
        seed: of all phases.
        images: all of them.
    """

    config: Config
    run: Run
    seed: int
    images: Classification

    def train(
        self,
        name: str,
        network: Network,
        method: Method,
        epochs: int,
        teacher: Network | None = None,
        few: bool = False,
    ) -> Arm:
        """Return a trained network as an arm, to be tested or learnt from."""
        examples = self.config.student_examples if few else 0
        images = replace(self.images.subset(examples), epochs=epochs)
        if self.config.half:
            network = network.computing_in(jnp.bfloat16)
            teacher = teacher and teacher.astype(jnp.bfloat16)
        arm = Arm(name, images.distill(network, teacher, method), network)
        return self.run.teacher(arm, task_of(images, "phases"), self.seed)

    def variables(self, arm: Arm) -> Variables:
        """Return what an arm was trained to."""
        return arm.deployed.init(jax.random.key(0))


def task_of(
    images: Classification, setting: str, teacher: np.ndarray | None = None
) -> Task:
    """Return a task; of a phase of seconds nothing is kept but its end."""
    task = images.task(setting, teacher)
    return replace(task, checkpoint_every=None) if images.steps < 1000 else task


def parts_of(variables: Variables, stages: int) -> list[Variables]:
    """Return the modules' variables out of those of hybrids."""
    return [
        {part: variables[part][str(i)] for part in ("params", "stats")}
        for i in range(stages)
    ]


def students_modules(config: Config, student: Network, inputs: Any) -> list[Network]:
    """Return the student's modules with their stitches."""
    blocks = sum(name.startswith("block") for name in student.cuts)
    modules = split_modules(student, split_depths(blocks, config.modules), inputs)
    width, outside = (768, 1024) if config.imagenet else (32, 48)
    last = config.modules - 1
    return [
        stitched(module, width, outside, first=i == 0, last=i == last)
        for i, module in enumerate(modules)
    ]


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Yield meta model, teacher and hybrids, then students by how they start."""
    methods = choose("method", config.methods, dict.fromkeys(METHODS))
    phases = Phases(config, run, seed, config.load())
    images, stages = phases.images, range(config.modules)
    meta, teacher, student = (build(images.classes) for build in config.builds)
    shape = (1, *images.image_shape)
    inputs = jax.ShapeDtypeStruct(shape, jnp.float32)
    smoothing = config.label_smoothing
    labels = cross_entropy(smoothing)
    pairs_of = partial(m2mkd, stages, label_smoothing=smoothing)
    alone = pairs_of(alpha=0.0)

    trained = phases.train("meta", meta, labels, config.meta_epochs)
    meta_stages = split_modules(meta, [1] * config.modules, inputs)
    frozen = [variables_of(stage, phases.variables(trained)) for stage in meta_stages]

    def in_meta(modules: Sequence[Network]) -> Network:
        return hybrids(meta_stages, dict(enumerate(modules)), frozen)

    blocks = sum(name.startswith("block") for name in teacher.cuts)
    depths = split_depths(blocks, config.modules)
    parts = split_modules(teacher, depths, inputs)
    epochs = config.incubation_epochs
    incubated = phases.train("incubation", in_meta(parts), alone, epochs)
    whole = assemble_modules(
        teacher, parts, parts_of(phases.variables(incubated), config.modules)
    )
    start = teacher.with_variables(whole)
    tuned = phases.train("teacher", start, labels, config.finetune_epochs)

    def taught_by(variables: Variables) -> Network:
        own = [part.with_variables(variables_of(part, variables)) for part in parts]
        return in_meta(own)

    of_teacher = taught_by(phases.variables(tuned))
    task = task_of(images, "teacher")
    yield trained, task
    yield tuned, task
    for i in stages:
        hybrid = networks.with_logits(of_teacher, f"{i}.logits")
        yield Arm(f"hybrid {i}", None, hybrid), task

    if "other_teacher" in methods:
        length = config.incubation_epochs + config.finetune_epochs
        other = phases.train("other", teacher, labels, length)
        others = taught_by(phases.variables(other))
    else:
        others = of_teacher
    distilled = {
        "ce_modules": (None, alone),
        "m2mkd": (of_teacher, pairs_of()),
        "m2mkd_batchmean": (of_teacher, pairs_of(reduction="batchmean")),
        "other_teacher": (others, pairs_of(reduction="batchmean")),
    }
    mine = images.subset(config.student_examples)
    whole_budget = replace(
        mine, epochs=mine.epochs + config.modules * config.module_epochs
    )
    task = task_of(mine, "student", images.logits(tuned.deployed))
    for name in methods:
        begun, seconds, long = student, 0.0, name == "scratch_long"
        if name in distilled:
            source, method = distilled[name]
            own = in_meta(students_modules(config, student, inputs))
            pairs = phases.train(
                f"modules by {name}", own, method, config.module_epochs, source, True
            )
            modules = parts_of(phases.variables(pairs), config.modules)
            fresh = student.init(jax.random.key(seed))
            begun = student.with_variables(load_modules(fresh, modules)[0])
            seconds = pairs.seconds
        budget = whole_budget if long else mine
        if config.half:
            begun = begun.computing_in(jnp.bfloat16)
        program = budget.distill(begun, None, labels)
        arm = Arm(name, program, student, measure=experts_used(student, mine))
        arm = replace(arm, seconds=seconds)
        longer = replace(task_of(whole_budget, "student"), evaluate=task.evaluate)
        yield arm, longer if long else task


def experts_used(student: Network, images: Classification):
    """Return what measures the least share of test images that an expert gets."""
    taps = tuple(tap for tap in student.taps if tap.endswith(".router"))
    batch = images.test.take(np.arange(min(len(images.test), 256)))
    if images.test_transform is not None:
        batch = images.test_transform(batch, None)
    routed = loads(student, jnp.asarray(batch["image"]), taps)

    def measure(state: Any, history: History) -> Values:
        shares = [
            expert_load(x.reshape(-1, x.shape[-1])).min()
            for x in routed(state.student).values()
        ]
        return {"least_load": float(min(shares))}

    return measure


def full_scale(config: Config) -> Mapping[str, tuple[Program, Batch]]:
    """Return the program of the second pair of modules, and its batch's shapes."""
    size = 224 if config.imagenet else 8
    inputs = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    meta, teacher, student = (build(1000) for build in config.builds)
    stages = split_modules(meta, [1] * config.modules, inputs)
    blocks = sum(name.startswith("block") for name in teacher.cuts)
    taught = split_modules(teacher, split_depths(blocks, config.modules), inputs)
    mine = students_modules(config, student, inputs)

    def pair(module: Network) -> Network:
        # Whatever the weights are: this program is compiled, not run.
        return hybrids(stages, {1: module}, None)

    batch = image_batch(config.task.batch_size, size)
    batch["label"] = jax.ShapeDtypeStruct((config.task.batch_size, 1000), jnp.float32)
    optimizer = config.optimizer.build(1000, 100)
    program = distill(
        pair(mine[1]).computing_in(jnp.bfloat16),
        pair(taught[1]).astype(jnp.bfloat16),
        m2mkd([1], label_smoothing=config.label_smoothing),
        optimizer,
    )
    return {"vit_l-vmoe_b, module 1": (program, batch)}


EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=arms,
    claims=CLAIMS,
    full_scale=full_scale,
    seeds={"small": 5},
    varies=("teacher", "student", "order"),
)
