"""The distillation step of `language_step` in jaxkd."""

from collections.abc import Callable

import jax
import optax
from language_step_cases import BATCH, LENGTH, STUDENT, TEACHER
from worker import serve

from jaxkd import distill, methods
from jaxkd.kernels.linear_distill import jensen_shannon
from jaxkd.models import llama


def build(name: str, kind: str) -> Callable[[int], None]:
    """Return ``steps -> None``, which trains for that many."""
    student, teacher = (
        llama(
            case.vocabulary,
            case.width,
            case.layers,
            case.heads,
            case.hidden,
            kv_heads=case.kv_heads,
        )
        for case in (STUDENT, TEACHER)
    )
    method = methods.linear_kd(jensen_shannon(0.5))
    program = distill(student, teacher, method, optax.adamw(1e-4))
    ids = jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 0, STUDENT.vocabulary)
    batch = {"input_ids": ids}
    state = jax.jit(program.init)(jax.random.key(0), batch)
    step = jax.jit(program.step, donate_argnums=0)

    def run(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return run


if __name__ == "__main__":
    serve(build)
