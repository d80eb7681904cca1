"""Teachers that need no training: the exact denoisers of mixtures of normals.

For data drawn from normals of one width around given centres, the best estimate of x_0
has a closed form, so the students' errors are BOOT's own and no teacher's.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from experiments.boot.config import Config
from jaxkd import data, programs
from jaxkd.evaluation.generation import (
    ddim_sample,
    ddim_trajectory,
    rbf_mmd,
    sliced_wasserstein,
)
from jaxkd.losses.diffusion import vp_schedule
from jaxkd.models.diffusion.conditioning import INPUTS, sinusoidal
from jaxkd.network import Network
from jaxkd.papers import boot as paper
from jaxkd.reporting.records import Record
from jaxkd.reporting.run import Arm, History, Run, Task, Values
from jaxkd.reporting.run import records as named_records

FIRST, LAST = 0.002, 0.99
BATCH, AVERAGE = 256, 0.999
REFERENCE = 200
"""Steps of the sampler that stands for the teacher."""

Boot = dict[str, Any]
"""Arguments of ``paper.boot``."""

ABLATIONS: dict[str, Boot] = {
    "boot": {},
    "weighting none": {"weighting": "none"},
    "weighting inv_c2": {"weighting": "inv_c2"},
    "no boundary loss": {"boundary": 0.0},
    "delta 0.1": {"delta": 0.1},
    "delta 0.25": {"delta": 0.25},
    "delta 0.25, order 2": {"delta": 0.25, "order": 2},
}


def mixture(centres: Float[np.ndarray, "centres dim"], width: float) -> Network:
    """Return the exact signal predictor of a mixture of normals.

    Args:
        centres: of the normals, equally likely.
        width: their standard deviation in every direction.
    """

    def signal(params: dict[str, Array], inputs: dict[str, Array]) -> Array:
        x, c = inputs["image"], params["centres"]
        level = vp_schedule(inputs["time"])
        alpha = level.alpha[:, None]
        variance = (alpha * width) ** 2 + level.sigma[:, None] ** 2
        # Of the squared distance to every centre, what depends on the centre.
        nearness = alpha * (x @ c.T) - 0.5 * alpha**2 * jnp.sum(c**2, axis=1)
        mean = jax.nn.softmax(nearness / variance) @ c
        return mean + alpha * width**2 / variance * (x - alpha * mean)

    return Network.from_apply(
        lambda key: {"centres": jnp.asarray(centres)}, signal, reads=INPUTS
    )


class TimedMLP(nnx.Module):
    """Residual blocks on a vector, each told the time."""

    def __init__(self, dim: int, width: int, blocks: int = 3, *, rngs: nnx.Rngs):
        self.width = width
        self.stem = nnx.Linear(dim, width, rngs=rngs)
        self.time = nnx.Linear(width, width, rngs=rngs)
        self.blocks = nnx.List(
            nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(2)])
            for _ in range(blocks)
        )
        self.head = nnx.Linear(width, dim, rngs=rngs)

    def __call__(self, inputs: dict[str, Array]) -> Array:
        """Return one value for each of the vector's."""
        x = self.stem(inputs["image"])
        time = jax.nn.silu(self.time(sinusoidal(inputs["time"], self.width)))
        for first, second in self.blocks:
            x = x + second(jax.nn.silu(first(jax.nn.silu(x) + time)))
        return self.head(jax.nn.silu(x))


@dataclass(frozen=True)
class Problem:
    """A data distribution, and the student that is to sample from it.

    Attributes:
        centres: of the mixture.
        spread: its standard deviation around each.
        width: of the student.
        rate: its learning rate.
        classify: samples ``->`` a classifier's probabilities, if there is one.
    """

    centres: Float[np.ndarray, "centres dim"]
    spread: float
    width: int
    rate: float
    classify: Callable[[Array], Array] | None = None

    @property
    def dim(self) -> int:
        """Return the values of one sample."""
        return self.centres.shape[1]

    def draw(self, samples: int, seed: int) -> Float[np.ndarray, "samples dim"]:
        """Return samples of the data."""
        rng = np.random.default_rng([seed, 1])
        centre = self.centres[rng.integers(len(self.centres), size=samples)]
        noise = rng.normal(size=centre.shape)
        return (centre + self.spread * noise).astype(np.float32)


def ring() -> Problem:
    """Return eight normals on the unit circle."""
    angle = 2 * np.pi * np.arange(8) / 8
    centres = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    return Problem(centres, spread=0.05, width=128, rate=3e-4)


def late_decay(peak: float, steps: int, warmup: int = 0) -> optax.Schedule:
    """Return a rate that is constant, and falls by a cosine in the last 30 %."""
    flat = round(0.7 * steps)
    parts = [
        optax.linear_schedule(0.0 if warmup else peak, peak, max(warmup, 1)),
        optax.constant_schedule(peak),
        optax.cosine_decay_schedule(peak, max(steps - flat, 1)),
    ]
    return optax.join_schedules(parts, [warmup, flat])


@functools.cache
def _sampler(steps: int) -> Callable:
    """Return the compiled ``(teacher, centres, noise) -> samples`` of DDIM."""
    times = np.linspace(LAST, 0, steps + 1)
    return jax.jit(
        lambda teacher, variables, noise: ddim_sample(
            paper.denoiser(teacher, variables), noise, times
        ),
        static_argnums=0,
    )


def compare(
    problem: Problem, samples: Array, reference: Array | None, seed: int
) -> dict[str, float]:
    """Return the samples' distances to data, and to the teacher's of the same noise."""
    real = jnp.asarray(problem.draw(len(samples), seed))
    found = {
        "sliced_wasserstein": sliced_wasserstein(samples, real, jax.random.key(7)),
        "mmd": rbf_mmd(samples, real),
    }
    if reference is not None:
        found["teacher_mse"] = jnp.mean((samples - reference) ** 2)
    if problem.classify is not None:
        found["confidence"] = problem.classify(samples).max(-1).mean()
    return {metric: float(value) for metric, value in found.items()}


def run_analytic(
    config: Config,
    setting: str,
    problem: Problem,
    steps: int,
    methods: dict[str, Boot],
    seeds: Sequence[int],
    run: Run,
) -> list[Record]:
    """Return a setting's records: data and samplers first, then each student's."""
    teacher = mixture(problem.centres, problem.spread)
    count = config.analytic_samples

    def start(seed: int) -> Array:
        return jax.random.normal(jax.random.key(1000 + seed), (count, problem.dim))

    def teach(noise: Array, steps: int) -> Array:
        return _sampler(steps)(teacher, teacher.init(jax.random.key(0)), noise)

    def references(seed: int, _: Path) -> list[Record]:
        noise = start(seed)
        target = teach(noise, REFERENCE)
        other = jnp.asarray(problem.draw(count, 1000 + seed))
        rows = {"data": (other, None)}
        rows |= {f"ddim{n}": (teach(noise, n), target) for n in (1, 2, 4)}
        rows[f"ddim{REFERENCE}"] = (target, None)
        return [
            record
            for method, (samples, against) in rows.items()
            for record in named_records(
                setting, method, seed, compare(problem, samples, against, seed), 0.0
            )
        ]

    def measure(seed: int, state: Any, history: History) -> Values:
        noise = start(seed)
        learnt = paper.denoiser(network, state.average)
        samples = learnt(noise, jnp.full(count, FIRST))
        found = compare(problem, samples, teach(noise, REFERENCE), seed)
        course = (*way(teacher, learnt, noise), found["teacher_mse"])
        return {**found, "teacher_mse": course}

    network = Network.from_nnx(
        lambda rngs: TimedMLP(problem.dim, problem.width, rngs=rngs), reads=INPUTS
    )
    source, epochs = data.Conditions(100 * BATCH), -(-steps // 100)
    task = Task(
        setting,
        lambda seed: data.batches(source, BATCH, epochs=epochs, seed=seed),
        steps,
    )
    records = []
    for seed in seeds:
        records += run.part(f"{setting}/samplers/seed{seed}", partial(references, seed))
    for method, arguments in methods.items():
        program = programs.with_average(
            paper.boot(
                network,
                teacher,
                optax.adam(late_decay(problem.rate, steps)),
                (problem.dim,),
                times=(FIRST, LAST),
                **arguments,
            ),
            AVERAGE,
        )
        for seed in seeds:
            arm = Arm(method, program, network, measure=partial(measure, seed))
            records += run.train(arm, task, [seed])
    return records


def way(teacher: Network, learnt: Any, noise: Array) -> tuple[float, ...]:
    """Return the student's squared error at nine times, from the last on."""
    noise, times = noise[:500], np.linspace(LAST, FIRST, 201)
    denoise = paper.denoiser(teacher, teacher.init(jax.random.key(0)))
    signals = ddim_trajectory(denoise, noise, times)[19:-1:20]
    return tuple(
        float(jnp.mean((learnt(noise, jnp.full(len(noise), t)) - signal) ** 2))
        for t, signal in zip(times[20:-1:20], signals, strict=True)
    )
