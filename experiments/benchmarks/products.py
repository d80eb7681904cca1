"""Tables of products with compressed weights: the compiler's figures, and times."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jaxkd.training.ahead import compile_for

ROUNDS = 15


class Case(NamedTuple):
    """A product and the weights that it takes."""

    name: str
    product: Callable[..., jax.Array]
    weights: Any


def compiled_table(
    title: str, cases: Sequence[Case], tokens: int, grad: bool = False
) -> Table:
    """Return the weights' bytes, and what the v5e's compiler says of each case."""
    table = Table("weights", "MiB", "temporaries MiB", "MiB accessed", title=title)
    for case in cases:
        inputs = _inputs(case.weights)
        x = jax.ShapeDtypeStruct((tokens, inputs), jnp.bfloat16)
        function = _gradient(case.product) if grad else case.product
        compiled = compile_for("v5e:2x2", function, x, case.weights)
        memory: Any = compiled.memory_analysis()
        cost: Any = compiled.cost_analysis()
        figures = (
            memory.argument_size_in_bytes - x.size * 2,
            memory.temp_size_in_bytes,
            cost["bytes accessed"],
        )
        table.add_row(case.name, *(f"{figure / 2**20:.1f}" for figure in figures))
    return table


def timed_table(title: str, cases: Sequence[Case], tokens: int) -> Table:
    """Return the time of each case by the first's: median and quartiles."""
    steps, times = {}, {case.name: [] for case in cases}
    for case in cases:
        x = jax.random.normal(jax.random.key(1), (tokens, _inputs(case.weights)))
        step = jax.jit(case.product)
        jax.block_until_ready(step(x, case.weights))
        steps[case.name] = (step, x, case.weights)
    for _ in range(ROUNDS):
        for name, (step, x, weights) in steps.items():
            started = time.perf_counter()
            for _ in range(5):
                out = step(x, weights)
            jax.block_until_ready(out)
            times[name].append(time.perf_counter() - started)
    table = Table("weights", "ms", "time / dense", title=title)
    for name, taken in times.items():
        ratios = np.array(taken) / np.array(times[cases[0].name])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        table.add_row(
            name,
            f"{200 * np.median(taken):.1f}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
        )
    return table


def _gradient(product: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return jax.grad(lambda x, w: (product(x, w).astype(jnp.float32) ** 2).sum())


def _inputs(weights: Any) -> int:
    if hasattr(weights, "inputs"):
        return weights.inputs
    return getattr(weights, "codes", weights).shape[-2]
