"""The train steps of `peers` in jaxkd: ``jax_side.py CASE KIND``."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from worker import serve

import jaxkd
from jaxkd import models
from jaxkd.losses import hint_loss
from jaxkd.methods import combine, cross_entropy, fitnets, kd
from jaxkd.network import Network
from jaxkd.types import Method, Program

CASES = {"resnet": (128, 32, 100), "vit": (8, 224, 1000)}
"""Batch size, image size and classes."""


def networks(case: str) -> tuple[Network, Network]:
    """Return teacher and student."""
    if case == "resnet":
        return models.cifar_resnet(56), models.cifar_resnet(20)
    return models.vit("small"), models.vit("tiny")


def token_hint() -> Method:
    """Return the squared error of the last tokens, after a linear projector."""

    def build(student, teacher, rngs):
        sizes = (outputs.features["final"].shape[-1] for outputs in (student, teacher))
        return nnx.Linear(*sizes, rngs=rngs)

    def loss(project, student, teacher, batch, key):
        return hint_loss(project(student.features["final"]), teacher.features["final"])

    return jaxkd.from_module(
        build, loss, name="hint", student_taps=("final",), teacher_taps=("final",)
    )


def program(case: str, kind: str) -> Program:
    """Return supervised training (ce), KD (kd), or KD with a hint (feature)."""
    teacher, student = networks(case)
    optimizer = optax.sgd(0.05, momentum=0.9)
    if kind == "ce":
        return jaxkd.distill(student, None, cross_entropy(), optimizer)
    terms = [(0.1, cross_entropy()), (0.9, kd(4.0))]
    if kind == "feature":
        hint = fitnets("stage2") if case == "resnet" else token_hint()
        terms.append((1.0, hint))
    return jaxkd.distill(student, teacher, combine(*terms), optimizer)


def batch(case: str) -> dict[str, np.ndarray]:
    """Return a batch of noise."""
    size, side, classes = CASES[case]
    rng = np.random.default_rng(0)
    return {
        "image": rng.normal(size=(size, side, side, 3)).astype(np.float32),
        "label": rng.integers(0, classes, size, dtype=np.int32),
    }


def first_state(program: Program, examples: dict[str, np.ndarray]) -> Any:
    """Return a program's first state, compiled in seconds instead of minutes."""
    unoptimised = {"xla_backend_optimization_level": 0}
    init = jax.jit(program.init, compiler_options=unoptimised)
    return init(jax.random.key(0), examples)


def build(case: str, kind: str) -> Callable[[int], None]:
    """Return ``steps -> None``, which trains that many steps."""
    trained, examples = program(case, kind), batch(case)
    state = first_state(trained, examples)
    step = jax.jit(trained.step, donate_argnums=0).lower(state, examples).compile()

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, examples)
        jax.block_until_ready((state, metrics))

    return run


if __name__ == "__main__":
    serve(build)
