"""The classic distillation methods, each with the weights of its paper.

One trained teacher a pair of networks, students of every method, several seeds, the
last epoch and the best. ``small`` and ``demo`` take few digits: perceptrons for losses
on logits and pooled features, where the claims on accuracy are made, and convolutional
networks of equal widths for losses on maps. ``cifar`` takes 1,000 images of CIFAR-10 at
half their resolution: ResNets, and a ResNet that teaches a vision transformer.
``paper`` is the benchmarks' protocol: CIFAR-100, 240 epochs, nine pairs.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from experiments.baselines.config import PRESETS, Config
from experiments.baselines.paper import PAPER
from experiments.baselines.recipes import Pair, Recipes, recipes
from experiments.common.classification import Classification, image_batch
from experiments.common.configs import choose
from experiments.common.networks import PAIRS, PAPER_PAIRS, PairSpec
from jaxkd.checks import unknown_name
from jaxkd.evaluation.classification import example_labels
from jaxkd.network import Network
from jaxkd.reporting.claims import all_of, contrast
from jaxkd.reporting.experiment import Experiment
from jaxkd.reporting.quantities import cell
from jaxkd.reporting.run import Arm, Run, Task
from jaxkd.types import Batch, Method, Program

WATCHED = {
    "mlp": ("rkd", "pkt", "cc", "crd"),
    "cnn": (
        *("rkd", "pkt", "cc", "crd", "sp", "fitnets", "at", "nst", "ft", "vid", "ab"),
        *("fsp", "ofd", "reviewkd", "simkd", "mgd", "cwd"),
    ),
}
"""Methods whose own loss should fall, by pair."""

CLAIMS = [
    contrast("kd", "cross_entropy", "last_accuracy", setting="mlp"),
    contrast("lskd", "kd", "last_accuracy", setting="mlp"),
    all_of(
        "every method's own loss falls by half (cnn)",
        [
            contrast(
                method,
                0.5 * cell(method, "first_loss"),
                "last_loss",
                setting="cnn",
                lower=True,
                name=method,
            )
            for method in WATCHED["cnn"]
        ],
    ),
    *(
        contrast(
            method,
            "cross_entropy",
            "last_accuracy",
            0.01,
            "non-inferiority",
            setting="cnn",
            because="below the sampling error of 397 test images, 1.6 points",
        )
        for method in WATCHED["cnn"]
    ),
    *(
        contrast(better, worse, "last_accuracy", setting=pair)
        for pair in (*PRESETS["cifar"].pairs, *PAPER_PAIRS)
        for better, worse in (
            ("kd", "cross_entropy"),
            ("dkd", "kd"),
            ("lskd", "kd"),
            ("dist", "kd"),
            ("crd", "kd"),
            ("reviewkd", "kd"),
        )
    ),
]


def arms(config: Config, run: Run, seed: int) -> Iterator[tuple[Arm, Task]]:
    """Yield every pair's teacher, and its students by all methods that apply."""
    images = config.task.load(config.optimizer)
    # All names are looked up before anything is trained.
    pairs = [
        lessons(config, run, name, spec, images)
        for name, spec in choose("pair", config.pairs, PAIRS).items()
    ]
    for name, mine, teacher, rows in pairs:
        yield teacher(), mine.task(name)
        task = mine.task(name, mine.logits(teacher().deployed))
        for method, make in rows.items():
            yield replace(make(), name=method), task


def lessons(
    config: Config, run: Run, name: str, spec: PairSpec, images: Classification
) -> tuple[str, Classification, Callable[[], Arm], Recipes]:
    """Return a pair's name, its students' images, its teacher, and its rows."""
    share = spec.learning_rate
    mine = replace(images, optimizer=config.optimizer.scaled(share))
    mine = mine.subset(config.train_examples)
    learnt = replace(
        images,
        epochs=config.teacher_epochs,
        optimizer=config.teacher_optimizer.scaled(share),
    )
    student, network = spec.networks(images.classes)
    # Pairs of the same teacher share it.
    sizes = (str(size).replace(" ", "") for size in spec.teacher.arguments.values())
    place = "-".join([spec.teacher.name, *sizes])

    @functools.cache
    def teacher() -> Arm:
        return learnt.teacher(run, network, place)

    def train(
        what: str,
        network: Network,
        method: Method,
        optimizer: optax.GradientTransformation | None = None,
        epochs: int = 0,
    ) -> Network:
        some = replace(mine, epochs=epochs or mine.epochs)
        optimizer = optimizer or some.optimizer.build(some.steps, some.epochs)
        program = jaxkd.distill(network, None, method, optimizer)
        return run.teacher(Arm(what, program, network), some.task(name)).deployed

    image = mine.test.take(np.arange(1))["image"]
    pair = Pair(
        spec,
        student,
        lambda: teacher().deployed,
        train,
        mine.optimizer.build(mine.steps, mine.epochs),
        example_labels(mine.train),
        jax.ShapeDtypeStruct(image.shape, jnp.float32),
        mine.steps_per_epoch,
        config.warmup_epochs,
        config.stage_one_epochs,
    )
    rows = recipes(pair)
    return name, mine, teacher, {row: rows[row] for row in wanted(config, name, rows)}


def wanted(config: Config, name: str, rows: Iterable[str]) -> list[str]:
    """Return the configuration's methods for a pair.

    Raises:
        ValueError: one that does not apply to the pair, or to no pair.
    """
    if not config.methods:
        return list(rows)
    found = []
    for given in config.methods:
        pair, _, method = given.rpartition("/")
        if pair not in ("", *config.pairs):
            raise ValueError(unknown_name("pair", pair, config.pairs))
        if pair in ("", name):
            if method not in rows:
                raise ValueError(unknown_name(f"{name} method", method, rows))
            found.append(method)
    return found


CIFAR = {"examples": 50_000, "classes": 100}


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return KD of every pair, and of one the rows that need the most beside it."""
    size, epochs = config.task.batch_size, config.task.epochs
    steps, batch = -(-CIFAR["examples"] // size), image_batch(size, 32)

    def rows(name: str) -> Recipes:
        spec = PAIRS[name]
        student, teacher = spec.networks(CIFAR["classes"])
        optimizer = config.optimizer.scaled(spec.learning_rate)
        return recipes(
            Pair(
                spec,
                student,
                lambda: teacher,
                lambda what, network, *_: network,
                optimizer.build(epochs * steps, epochs),
                np.arange(CIFAR["examples"]) % CIFAR["classes"],
                jax.ShapeDtypeStruct(batch["image"].shape, jnp.float32),
                steps,
                config.warmup_epochs,
                config.stage_one_epochs,
            )
        )

    named = [(pair, "kd") for pair in config.pairs]
    named += [("resnet32x4-resnet8x4", method) for method in ("crd", "reviewkd")]
    found = {}
    for pair, method in named:
        program = rows(pair)[method]().program
        assert program is not None
        found[f"{pair}, {method}"] = program, batch
    return found


EXPERIMENT = Experiment(
    presets=PRESETS,
    arms=arms,
    claims=CLAIMS,
    paper=PAPER,
    full_scale=full_scale,
    seeds={"small": 5},
)
