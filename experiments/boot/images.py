"""U-Nets on real images: a diffusion teacher, and its copy that learns one step."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.multihost_utils import process_allgather

import jaxkd
from experiments.boot.analytic import late_decay
from experiments.boot.config import Config, Training
from experiments.common.classification import Classification
from experiments.common.configs import OptimizerConfig
from jaxkd import data, methods, models, programs
from jaxkd.digests import verify_digests, write_digests
from jaxkd.evaluation.classification import example_labels
from jaxkd.evaluation.generation import (
    ddim_sample,
    feature_extractor,
    frechet_distance,
)
from jaxkd.network import Network
from jaxkd.papers import boot as paper
from jaxkd.reporting.images import plot_images
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Arm, History, Run, Task, Values, records
from jaxkd.types import Batch, Program, Variables

FIRST, LAST = 0.002, 0.99
AT_ONCE = 64
"""Images that a sampler makes in one call."""


def digits() -> data.Dataset:
    """Return scikit-learn's digits with values in [-1, 1]."""
    found = data.digits()

    def scaled(source: data.Source) -> data.Source:
        arrays = {**source.arrays, "image": 2 * source.arrays["image"] - 1}
        return data.Source(f"{source.name} in [-1, 1]", arrays, source.classes)

    return data.Dataset(scaled(found.train), scaled(found.test))


def imagenet64() -> data.Dataset:
    """Return ImageNet at 64x64, as tensorflow-datasets has it, for [-1, 1]."""
    half = (0.5, 0.5, 0.5)
    return data.tfds_dataset(
        "imagenet_resized/64x64", test="validation", mean=half, std=half
    )


DATASETS: dict[str, tuple[Callable[[], data.Dataset], tuple[int, int, int]]] = {
    "digits": (digits, (8, 8, 1)),
    "imagenet64": (imagenet64, (64, 64, 3)),
}
"""Data sets by name, and the shape of their images."""

CLASSES = {"digits": 10, "imagenet64": 1000}


def network(config: Config, dropout: float = 0.0) -> Network:
    """Return the teacher's U-Net, and without dropout the student's."""
    arguments = {**config.unet.arguments, "dropout": dropout}
    unet = replace(config.unet, arguments=arguments).build(CLASSES[config.dataset])
    return unet.computing_in(jnp.bfloat16) if config.bfloat16 else unet


def _optimizer(config: Config, stage: Training) -> optax.GradientTransformation:
    rate = late_decay(stage.rate, stage.steps, config.warmup)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def teacher_program(config: Config) -> Program:
    """Return the program that trains the teacher to denoise."""
    return programs.with_average(
        jaxkd.distill(
            network(config, config.dropout),
            None,
            methods.denoising("x", classes=CLASSES[config.dataset]),
            _optimizer(config, config.teacher),
        ),
        config.average,
    )


def student_program(config: Config, teacher: Network) -> Program:
    """Return the program that trains a copy of the teacher to sample in one step."""
    return programs.with_average(
        paper.boot(
            teacher,
            teacher,
            _optimizer(config, config.student),
            DATASETS[config.dataset][1],
            delta=config.delta,
            times=(FIRST, LAST),
            weighting=config.weighting,
            guidance=config.guidance,
            no_condition=CLASSES[config.dataset],
        ),
        config.average,
    )


def full_scale(config: Config) -> dict[str, tuple[Program, Batch]]:
    """Return the two programs, each with the shapes of its batch."""
    shape = DATASETS[config.dataset][1]

    def integers(size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size,), jnp.int32)

    images = jax.ShapeDtypeStruct((config.teacher.batch, *shape), jnp.float32)
    label, count = integers(config.teacher.batch), integers(config.student.batch)
    return {
        "teacher": (
            teacher_program(config),
            {"image": images, "label": label, "index": label},
        ),
        "student": (
            student_program(config, network(config)),
            {"condition": count, "index": count},
        ),
    }


def _whole(state: Any) -> Variables:
    """Return the averaged variables, whole on every host."""
    return process_allgather(state.average, tiled=True)


def _task(config: Config, stage: Training, source: data.Examples, transform) -> Task:
    epochs = -(-stage.steps // data.steps_per_epoch(source, stage.batch))

    def batches(seed: int):
        return data.batches(
            source, stage.batch, epochs=epochs, seed=seed, transform=transform
        )

    every = max(stage.steps // 10, 1)
    return Task(config.dataset, batches, stage.steps, checkpoint_every=every)


def train_teacher(config: Config, dataset: data.Dataset, run: Run) -> Network:
    """Return the teacher with its averaged variables."""
    arm = Arm("teacher", teacher_program(config), network(config), _whole)
    task = _task(config, config.teacher, dataset.train, _scale(dataset))
    return run.teacher(arm, task).deployed


def _scale(dataset: data.Dataset) -> data.Transform | None:
    return data.Normalize(dataset.mean, dataset.std) if dataset.mean else None


def train_classifier(config: Config, dataset: data.Dataset, run: Run) -> Network:
    """Return the classifier, with its variables, whose features are compared."""
    digits = config.dataset == "digits"
    classes = CLASSES[config.dataset]
    labelled = Classification(
        dataset.train,
        dataset.test,
        config.classifier_epochs,
        50 if digits else 1024,
        OptimizerConfig("adam", 3e-3),
        _scale(dataset),
        _scale(dataset),
    )
    small = models.cnn(1, (16, 32, 64))
    classifier = small if digits else models.imagenet_resnet(50, classes)
    return labelled.teacher(run, classifier, "classifier").deployed


class Judge:
    """Compares samples with the test images, by a classifier's features.

    Args:
        config: the run's.
        dataset: of the real images.
        classifier: with its variables.
    """

    def __init__(self, config: Config, dataset: data.Dataset, classifier: Network):
        variables = classifier.init(jax.random.key(0))
        self.features = feature_extractor(classifier, variables)
        self.classify = jax.jit(lambda x: classifier.apply(variables, x)[0].logits)
        count = min(config.samples or len(dataset.test), len(dataset.test))
        self.labels = jnp.asarray(example_labels(dataset.test)[:count])
        transform = _scale(dataset)

        def images(source: data.Examples) -> np.ndarray:
            batch = source.take(np.arange(min(count, len(source))))
            return (transform(batch, None) if transform else batch)["image"]

        self.real, self.train = images(dataset.test), images(dataset.train)
        self.real_features = self.features(self.real)

    def scores(self, images: Any, labels: Any = None) -> dict[str, float]:
        """Return the Fréchet distance, and how the classifier sees the samples."""
        images = np.asarray(images)
        distance = frechet_distance(self.features(images), self.real_features)
        found = {"frechet": distance}
        parts = np.split(images, range(500, len(images), 500))
        logits = np.concatenate([self.classify(jnp.asarray(part)) for part in parts])
        found["confidence"] = float(jax.nn.softmax(logits).max(-1).mean())
        if labels is not None:
            found["condition_accuracy"] = float(
                np.mean(logits.argmax(-1) == np.asarray(labels))
            )
        return found


def samplers(config: Config) -> dict[str, Callable]:
    """Return ``(teacher's or student's variables, noise, condition) -> images``."""
    unet, guide = network(config), config.guidance

    def sample(steps: int, variables: Variables, noise, condition):
        denoise = paper.denoiser(
            unet,
            variables,
            condition=condition,
            guidance=guide,
            no_condition=CLASSES[config.dataset],
        )
        return ddim_sample(denoise, noise, np.linspace(LAST, 0, steps + 1))

    def one_step(variables: Variables, noise, condition):
        learnt = paper.denoiser(unet, variables, condition=condition)
        return learnt(noise, jnp.full(len(noise), FIRST))

    found: dict[str, Callable] = {
        f"ddim{n}": jax.jit(functools.partial(sample, n)) for n in config.sampler_steps
    }
    return {**found, "boot": jax.jit(one_step)}


def _in_chunks(sample: Callable, variables: Variables, noise, condition) -> np.ndarray:
    """Return samples of all of the noise; the last chunk is filled up."""
    count = len(noise)
    rows = np.arange(-(-count // AT_ONCE) * AT_ONCE).reshape(-1, AT_ONCE) % count
    parts = [np.asarray(sample(variables, noise[r], condition[r])) for r in rows]
    return np.concatenate(parts)[:count]


def speeds(
    sample: dict[str, Callable], variables: Variables, shape, reference: str
) -> dict[str, dict[str, float]]:
    """Return each sampler's median time, measured in turns in one process."""
    noise = jax.random.normal(jax.random.key(3), (AT_ONCE, *shape))
    condition = jnp.zeros(AT_ONCE, jnp.int32)

    def seconds(function: Callable) -> float:
        started = time.perf_counter()
        jax.block_until_ready(function(variables, noise, condition))
        return time.perf_counter() - started

    # The first round compiles.
    rounds = [{n: seconds(f) for n, f in sample.items()} for _ in range(22)][1:]
    times = {name: float(np.median([r[name] for r in rounds])) for name in sample}
    return {
        name: {"speedup": times[reference] / t, "milliseconds": 1000 * t / AT_ONCE}
        for name, t in times.items()
    }


def run_images(config: Config, seeds: Sequence[int], run: Run) -> list[Record]:
    """Return the records of the teacher's samplers and of its students."""
    load, shape = DATASETS[config.dataset]
    dataset = load()
    unet = train_teacher(config, dataset, run)
    teacher = unet.init(jax.random.key(0))
    judge = Judge(config, dataset, train_classifier(config, dataset, run))
    sample = samplers(config)
    reference = f"ddim{config.sampler_steps[-1]}"
    program = student_program(config, unet)
    named = functools.partial(records, config.dataset)

    def draw(seed: int, method: str, variables: Variables) -> np.ndarray:
        key = jax.random.key(1000 + seed)
        noise = jax.random.normal(key, (len(judge.labels), *shape))
        return _in_chunks(sample[method], variables, noise, judge.labels)

    def references(seed: int, folder: Path) -> list[Record]:
        found = named("data", seed, judge.scores(judge.train), 0.0)
        # How long a sampler takes does not depend on the weights.
        speed = speeds(sample, teacher, shape, reference)
        target = draw(seed, reference, teacher)
        np.save(folder / "reference.npy", target)
        write_digests(folder, ["reference.npy"])
        for method in sample:
            if method != "boot":
                started = time.perf_counter()
                images = draw(seed, method, teacher)
                values = judge.scores(images, judge.labels) | speed[method]
                if method != reference:
                    values["teacher_mse"] = float(np.mean((images - target) ** 2))
                found += named(method, seed, values, time.perf_counter() - started)
        return found + named("boot", seed, speed["boot"], 0.0)

    def measure(seed: int, state: Any, history: History) -> Values:
        learnt = jax.device_put(_whole(state))
        images = draw(seed, "boot", learnt)
        folder = run.folder / config.dataset / f"samplers/seed{seed}"
        verify_digests(folder, ["reference.npy"])
        target = np.load(folder / "reference.npy")
        if seed == seeds[0]:
            variables = {name: teacher for name in sample} | {"boot": learnt}
            draw_samples(config, sample, variables, run.folder / "samples.png")
        error = float(np.mean((images - target) ** 2))
        return {**judge.scores(images, judge.labels), "teacher_mse": error}

    source = data.Conditions(100 * config.student.batch, CLASSES[config.dataset])
    task = _task(config, config.student, source, None)
    found = []
    for seed in seeds[: config.student_seeds]:
        compute = functools.partial(references, seed)
        found += run.part(f"{config.dataset}/samplers/seed{seed}", compute)
        further = functools.partial(measure, seed)
        arm = Arm("boot", program, network(config), _whole, further)
        found += run.train(arm, task, [seed])
    return found


def draw_samples(
    config: Config, sample: dict[str, Callable], variables: dict, path: Path
) -> Path:
    """Draw every sampler's images of the same noise, two of each of ten classes."""
    classes = CLASSES[config.dataset]
    noise = jax.random.normal(
        jax.random.key(11), (AT_ONCE, *DATASETS[config.dataset][1])
    )
    condition = jnp.arange(AT_ONCE) // 2 * (classes // 10) % classes
    pictures = {"noise": noise / 2} | {
        name: function(variables[name], noise, condition)
        for name, function in sample.items()
    }
    shown = {name: np.asarray(images[:20]) for name, images in pictures.items()}
    return plot_images(shown, path)
