"""U-Nets on real images: a diffusion teacher, and its copy that learns one step."""

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.multihost_utils import process_allgather

import jaxkd
from experiments.boot.analytic import late_decay
from experiments.boot.config import Config
from experiments.common.training import Task, adam_cosine, train_on_labels
from jaxkd import data, methods, models, programs, training
from jaxkd.evaluation.classification import example_labels
from jaxkd.evaluation.generation import (
    ddim_sample,
    feature_extractor,
    frechet_distance,
)
from jaxkd.network import Network
from jaxkd.papers import boot as paper
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.images import plot_images
from jaxkd.reporting.records import Record
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
    size, _, channels_in = DATASETS[config.dataset][1]
    unet = models.unet(
        size,
        channels_in=channels_in,
        channels=config.channels,
        multipliers=config.multipliers,
        blocks=config.blocks,
        attention=config.attention,
        head_channels=config.head_channels,
        classes=CLASSES[config.dataset],
        groups=config.groups,
        dropout=dropout,
        remat=config.bfloat16,
    )
    return unet.computing_in(jnp.bfloat16) if config.bfloat16 else unet


def _optimizer(rate: float, steps: int, warmup: int) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(late_decay(rate, steps, warmup))
    )


def teacher_program(config: Config) -> Program:
    """Return the program that trains the teacher to denoise."""
    return programs.with_average(
        jaxkd.distill(
            network(config, config.dropout),
            None,
            methods.denoising("x", classes=CLASSES[config.dataset]),
            _optimizer(config.teacher_rate, config.teacher_steps, config.warmup),
        ),
        config.average,
    )


def student_program(config: Config, teacher: Network) -> Program:
    """Return the program that trains a copy of the teacher to sample in one step."""
    return programs.with_average(
        paper.boot(
            teacher,
            teacher,
            _optimizer(config.student_rate, config.student_steps, config.warmup),
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

    images = jax.ShapeDtypeStruct((config.teacher_batch, *shape), jnp.float32)
    label, count = integers(config.teacher_batch), integers(config.student_batch)
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


def _fit(
    config: Config, run: Run, folder: Path, program: Program, batches, steps, seed, name
) -> Variables:
    """Return the averaged variables after training, whole and on this host."""
    with training.Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
        state, _ = training.fit(
            program,
            batches,
            key=jax.random.key(seed),
            steps=steps,
            mesh=training.make_mesh(config.mesh),
            checkpoints=checkpoints,
            checkpoint_every=max(steps // 10, 1),
            progress=run.progress,
            name=name,
        )
    return process_allgather(state.average, tiled=True)


def train_teacher(config: Config, dataset: data.Dataset, run: Run) -> Variables:
    """Return the teacher's averaged variables."""
    per_epoch = data.steps_per_epoch(dataset.train, config.teacher_batch)
    batches = data.batches(
        dataset.train,
        config.teacher_batch,
        epochs=-(-config.teacher_steps // per_epoch),
        transform=_scale(dataset),
    )
    program, folder = teacher_program(config), run.folder / "teacher"
    steps, name = config.teacher_steps, f"{config.dataset} teacher"
    return _fit(config, run, folder, program, batches, steps, 0, name)


def _scale(dataset: data.Dataset) -> data.Transform | None:
    return data.Normalize(dataset.mean, dataset.std) if dataset.mean else None


def _labels_task(config: Config, dataset: data.Dataset) -> Task:
    return Task(
        "",
        dataset.train,
        dataset.test,
        epochs=config.classifier_epochs,
        batch_size=50 if config.dataset == "digits" else 1024,
        optimizer=adam_cosine(3e-3),
        transform=_scale(dataset),
        test_transform=_scale(dataset),
    )


def train_classifier(
    config: Config, dataset: data.Dataset, run: Run
) -> tuple[Network, Variables]:
    """Return the classifier whose features samples are compared by."""
    if config.dataset == "digits":
        classifier = models.cnn(1, (16, 32, 64))
    else:
        classifier = models.imagenet_resnet(50, CLASSES[config.dataset])
    task = _labels_task(config, dataset)
    return classifier, train_on_labels(run, task, classifier, "classifier")


class Judge:
    """Compares samples with the test images, by a classifier's features.

    Args:
        config: the run's.
        dataset: of the real images.
        classifier: the network and its variables.
    """

    def __init__(
        self, config: Config, dataset: data.Dataset, classifier: tuple[Network, Any]
    ):
        network, variables = classifier
        self.features = feature_extractor(network, variables)
        self.classify = jax.jit(lambda x: network.apply(variables, x)[0].logits)
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
    trained = train_teacher(config, dataset, run)
    teacher = jax.device_put(trained)
    judge = Judge(config, dataset, train_classifier(config, dataset, run))
    sample = samplers(config)
    reference = f"ddim{config.sampler_steps[-1]}"
    unet = network(config).with_variables(trained)
    program = student_program(config, unet)

    def start(seed: int):
        key = jax.random.key(1000 + seed)
        return jax.random.normal(key, (len(judge.labels), *shape))

    def from_teacher(seed: int, method: str) -> np.ndarray:
        return _in_chunks(sample[method], teacher, start(seed), judge.labels)

    def rows(method, seed, values, seconds) -> list[Record]:
        return [
            Record(method, seed, metric, value, seconds, config.dataset)
            for metric, value in values.items()
        ]

    def references(seed: int, folder: Path) -> list[Record]:
        records = rows("data", seed, judge.scores(judge.train), 0.0)
        # How long a sampler takes does not depend on the weights.
        speed = speeds(sample, teacher, shape, reference)
        target = from_teacher(seed, reference)
        np.save(folder / "reference.npy", target)
        for method in sample:
            if method != "boot":
                started = time.perf_counter()
                images = from_teacher(seed, method)
                values = judge.scores(images, judge.labels)
                values |= speed[method]
                if method != reference:
                    values["teacher_mse"] = float(np.mean((images - target) ** 2))
                seconds = time.perf_counter() - started
                records += rows(method, seed, values, seconds)
        return records + rows("boot", seed, speed["boot"], 0.0)

    def student(seed: int, folder: Path) -> list[Record]:
        started = time.perf_counter()
        source = data.Conditions(100 * config.student_batch, CLASSES[config.dataset])
        batches = data.batches(
            source,
            config.student_batch,
            epochs=-(-config.student_steps // 100),
            seed=seed,
        )
        name = f"{config.dataset} boot seed {seed}"
        steps = config.student_steps
        learnt = jax.device_put(
            _fit(config, run, folder, program, batches, steps, seed, name)
        )
        images = _in_chunks(sample["boot"], learnt, start(seed), judge.labels)
        values = judge.scores(images, judge.labels)
        samplers_part = run.folder / config.dataset / "samplers" / f"seed{seed}"
        target = np.load(samplers_part / "reference.npy")
        values["teacher_mse"] = float(np.mean((images - target) ** 2))
        records = rows("boot", seed, values, time.perf_counter() - started)
        if seed == seeds[0]:
            variables = {name: teacher for name in sample} | {"boot": learnt}
            draw_samples(config, sample, variables, run.folder / "samples.png")
        return records

    records = []
    for seed in seeds[: config.student_seeds]:
        for who, compute in (("samplers", references), ("boot", student)):
            records += run.part(
                f"{config.dataset}/{who}/seed{seed}",
                functools.partial(compute, seed),
            )
    return records


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
