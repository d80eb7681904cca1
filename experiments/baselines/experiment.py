"""The classic distillation methods, each with the weights of its paper.

One trained teacher, students of every method on few real digit images, several seeds.
Two pairs: perceptrons for losses on logits and pooled features, where the claims on
accuracy are made, and convolutional networks of equal widths for losses on maps.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import optax

import jaxkd
from jaxkd import data, models, training
from jaxkd.checks import unknown_name
from jaxkd.evaluation.claims import exceeds, falls_by, not_below
from jaxkd.evaluation.classification import evaluator, predictor
from jaxkd.evaluation.records import Record
from jaxkd.experiment import Run
from jaxkd.interop import save_pretrained
from jaxkd.types import Network, Variables

sys.path.insert(0, str(Path(__file__).parent))

from recipes import Pair, Recipe, logit_recipes, stage_recipes

PAIRS = {
    "mlp": {
        "teacher": ("mlp", {"features": 64, "widths": (256, 256)}),
        "student": ("mlp", {"features": 64, "widths": (16,)}),
    },
    "cnn": {
        "teacher": ("cnn", {"channels": (8, 16, 32), "depth": 3}),
        "student": ("cnn", {"channels": (8, 16, 32), "depth": 1}),
    },
}
"""Model name and arguments of the networks; FSP needs pairs of equal widths."""


@dataclass(frozen=True)
class Config:
    """What is trained.

    Attributes:
        dataset: a name of ``jaxkd.data.DATASETS``, of 8x8 images in 10 classes.
        train_examples: that the students see; the teacher sees all.
        epochs: of a student.
        batch_size: of a student.
        learning_rate: of a student's Adam, decayed to 0 on a cosine.
        teacher_epochs: of the teacher.
        teacher_learning_rate: of the teacher's Adam, decayed likewise.
        mlp: methods to run on the perceptrons; empty for all that apply.
        cnn: methods to run on the convolutional pair; empty for all that apply.
    """

    dataset: str = "digits"
    train_examples: int = 100
    epochs: int = 200
    batch_size: int = 50
    learning_rate: float = 1e-2
    teacher_epochs: int = 60
    teacher_learning_rate: float = 1e-3
    mlp: tuple[str, ...] = ()
    cnn: tuple[str, ...] = ()


PRESETS = {
    "small": Config(),
    "demo": Config(
        mlp=("cross_entropy", "kd", "dkd", "dist", "lskd", "rkd", "crd"),
        cnn=("cross_entropy", "kd", "fitnets", "at", "reviewkd", "simkd"),
    ),
}

WATCHED = {
    "mlp": ("rkd", "pkt", "cc", "crd"),
    "cnn": ("rkd", "pkt", "cc", "crd", "sp", "fitnets", "at", "nst", "ft", "vid")
    + ("ab", "fsp", "ofd", "reviewkd", "simkd", "mgd", "cwd"),
}
"""Methods whose own loss should fall, by pair."""

CLAIMS = [
    exceeds("kd", "cross_entropy", "last_accuracy", setting="mlp", errors=2.0),
    exceeds("lskd", "kd", "last_accuracy", setting="mlp", errors=2.0),
    falls_by("first_loss", "last_loss", 0.5, WATCHED["cnn"], setting="cnn"),
    *(
        not_below(method, "cross_entropy", "last_accuracy", setting="cnn", errors=1.0)
        for method in WATCHED["cnn"]
    ),
]


def run(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Train the teachers and all students, and return the records."""
    dataset = data.load(config.dataset)
    records = []
    for setting in PAIRS:
        records += run_pair(setting, config, dataset, seeds, run)
    return records


def run_pair(
    setting: str, config: Config, dataset: data.Dataset, seeds: Sequence[int], run: Run
) -> list[Record]:
    """Return one pair's records."""
    source = dataset.train.subset(config.train_examples)
    steps = data.steps_per_epoch(source, config.batch_size)
    networks = {who: models.create(name, **kwargs) for who, (name, kwargs) in PAIRS[setting].items()}
    records: list[Record] = []

    def trained(who: str, on: data.Source, epochs: int, rate: float) -> Variables:
        """Return a network trained on labels alone, with its accuracy recorded."""
        network, folder = networks[who], run.folder / setting / f"{who}-on-labels"
        folder.mkdir(parents=True, exist_ok=True)
        size = config.batch_size
        decay = optax.cosine_decay_schedule(rate, epochs * data.steps_per_epoch(on, size))
        program = jaxkd.distill(
            network, None, jaxkd.methods.cross_entropy(), optax.adam(decay)
        )
        with training.Checkpoints(folder / "checkpoints") as checkpoints:
            state, _ = training.fit(
                program,
                data.batches(on, size, epochs=epochs, seed=0),
                key=jax.random.key(0),
                steps=epochs * data.steps_per_epoch(on, size),
                checkpoints=checkpoints,
                progress=run.progress,
                name=f"{setting} {who}",
            )
        return state.student

    started = time.perf_counter()
    variables = trained(
        "teacher", dataset.train, config.teacher_epochs, config.teacher_learning_rate
    )
    teacher_time = time.perf_counter() - started
    peer = trained("student", source, config.epochs, config.learning_rate)
    teacher_logits = predictor(networks["teacher"], dataset.test)(variables)
    scores = evaluator(networks["teacher"], dataset.test)(variables)
    for name, value in scores.items():
        metrics = ["last_accuracy", "best_accuracy"] if name == "accuracy" else [name]
        records += [
            Record("teacher", 0, metric, value, teacher_time, setting)
            for metric in metrics
        ]
    channels = PAIRS[setting]["student"][1].get("channels", ())
    pair = Pair(
        student=networks["student"],
        teacher=networks["teacher"].with_variables(variables),
        teacher_variables=variables,
        peer=networks["student"].with_variables(peer),
        source=source,
        steps_per_epoch=steps,
        stages=tuple(f"stage{i}" for i in range(len(channels))),
        branched=models.one_cnn(channels=channels) if channels else None,
    )
    recipes = logit_recipes(pair)
    if pair.stages:
        recipes |= stage_recipes(pair, seed=0)
    for method in getattr(config, setting) or recipes:
        if method not in recipes:
            raise ValueError(unknown_name(f"{setting} method", method, recipes))
        records += run_method(
            setting, method, recipes[method](), config, pair, dataset, teacher_logits, seeds, run
        )
    return records


def run_method(
    setting: str,
    method: str,
    recipe: Recipe,
    config: Config,
    pair: Pair,
    dataset: data.Dataset,
    teacher_logits,
    seeds: Sequence[int],
    run: Run,
) -> list[Record]:
    """Return one method's records: a student a seed, compiled once for all."""
    total = config.epochs * pair.steps_per_epoch
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, total))
    program = jaxkd.distill(recipe.student, recipe.teacher, recipe.method, optimizer)
    evaluate = evaluator(recipe.deployed, dataset.test, teacher_logits)

    def train(seed: int, folder: Path) -> list[Record]:
        started = time.perf_counter()
        with training.Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
            state, history = training.fit(
                program,
                data.batches(
                    pair.source, config.batch_size, epochs=config.epochs, seed=seed
                ),
                key=jax.random.key(seed),
                steps=total,
                evaluate=lambda state: evaluate(state.student),
                evaluate_every=pair.steps_per_epoch,
                checkpoints=checkpoints,
                checkpoint_every=50 * pair.steps_per_epoch,
                progress=run.progress,
                name=f"{setting} {method} seed {seed}",
            )
        seconds = time.perf_counter() - started
        if recipe.student is pair.student:
            shape = pair.source.arrays["image"].shape[1:]
            save_pretrained(folder / "student", *PAIRS[setting]["student"], state.student, shape)
        return to_records(history, recipe, method, seed, seconds, setting)

    records = []
    for seed in seeds:
        records += run.part(f"{setting}/{method}/seed{seed}", lambda folder, seed=seed: train(seed, folder))
    return records


def to_records(
    history: list[dict], recipe: Recipe, method: str, seed: int, seconds: float, setting: str
) -> list[Record]:
    """Return the numbers of one student: last and best epoch, calibration, fidelity."""
    curve = tuple(entry["accuracy"] for entry in history)
    values = {
        "last_accuracy": curve[-1],
        "best_accuracy": max(curve),
        "nll": history[-1]["nll"],
        "ece": history[-1]["ece"],
        "agreement": history[-1]["agreement"],
    }
    if recipe.watched:
        values["first_loss"] = history[0][f"train_{recipe.watched}"]
        values["last_loss"] = history[-1][f"train_{recipe.watched}"]
    return [
        Record(
            method, seed, metric, value, seconds, setting,
            curve if metric == "last_accuracy" else (),
        )
        for metric, value in values.items()
    ]
