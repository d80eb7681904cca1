"""Operations on long sequences against their plain versions: memory, work and time.

    python experiments/benchmarks/sequence_ops.py

Temporaries, FLOPs and bytes are of the gradient, compiled for one TPU v5e (needs
``libtpu``); FLOPs are of the XLA version, since kernels state none. Times are this
machine's, ours by the plain version's, the gradient in float32, interleaved.
"""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.kernels.attention import attention, bigbird_table, block_sparse_attention
from jaxkd.kernels.nystrom import nystrom_attention
from jaxkd.kernels.ssd import ssd
from jaxkd.losses.transport import sinkhorn_plan
from jaxkd.training.ahead import compile_for
from jaxkd.training.costs import program_costs

ROUNDS = 5


class Case(NamedTuple):
    """One operation at one size.

    Attributes:
        name: of the table's row.
        plain: what it is compared with.
        ours: what is measured; takes ``implementation``.
        shapes: of the arguments, on the TPU.
        small: of the arguments, on this machine.
    """

    name: str
    plain: Callable[..., Any]
    ours: Callable[..., Any]
    shapes: list[tuple[int, ...]]
    small: list[tuple[int, ...]]


def attentions(length: int) -> list[Case]:
    """Return attentions of 12 heads of width 64 against their dense forms."""
    options = {
        "causal": {"causal": True},
        "window 256 + 1 global": {"window": 256, "global_tokens": (0,)},
    }
    shapes, small = [(1, length, 12, 64)] * 3, [(1, length // 4, 4, 64)] * 3
    cases = [
        Case(
            f"{name}, {length}",
            functools.partial(attention, implementation="reference", **kwargs),
            functools.partial(attention, **kwargs),
            shapes,
            small,
        )
        for name, kwargs in options.items()
    ]

    def bigbird(
        q: jax.Array, k: jax.Array, v: jax.Array, implementation: str = "auto"
    ) -> jax.Array:
        table = bigbird_table(q.shape[1] // 64, 3, q.shape[2])
        return block_sparse_attention(q, k, v, table, implementation=implementation)

    def nystrom(
        q: jax.Array, k: jax.Array, v: jax.Array, implementation: str = "auto"
    ) -> jax.Array:
        return nystrom_attention(q, k, v, 64, implementation=implementation)

    full = functools.partial(attention, implementation="reference")
    # Splash attention reads every block of every head's pattern: minutes at 16,384.
    return [
        *cases,
        Case(f"Nyström, 64 landmarks, {length}", full, nystrom, shapes, small),
        Case(f"BigBird, {length}", full, bigbird, shapes, small),
    ]


def scans(length: int) -> list[Case]:
    """Return Mamba-2's scan against the recurrence, 24 heads of width 64, state 128."""

    def scan(
        x: jax.Array,
        decay: jax.Array,
        b: jax.Array,
        c: jax.Array,
        implementation: str = "auto",
    ) -> jax.Array:
        decay = -jax.nn.softplus(decay.astype(jnp.float32))
        return ssd(x, decay, b, c, implementation=implementation).out

    def shapes(length: int, heads: int) -> list[tuple[int, ...]]:
        state = (1, length, 1, 128)
        return [(1, length, heads, 64), (1, length, heads), state, state]

    plain = functools.partial(scan, implementation="reference")
    return [Case(f"SSD, {length}", plain, scan, shapes(length, 24), shapes(512, 4))]


def transports() -> list[Case]:
    """Return 20 iterations of Sinkhorn against a scan that keeps its matrices."""

    def plain(cost: jax.Array) -> jax.Array:
        scores = -cost.astype(jnp.float32) / 0.1

        def iterate(scales: tuple, _: None) -> tuple:
            row = -jax.nn.logsumexp(scores + scales[1][..., None, :], -1)
            column = -jax.nn.logsumexp(scores + row[..., None], -2)
            return (row, column), None

        start = jnp.zeros(scores.shape[:-1]), jnp.zeros(scores.shape[:-1])
        (row, column), _ = jax.lax.scan(iterate, start, length=20)
        return jnp.exp(scores + row[..., None] + column[..., None, :])

    def ours(cost: jax.Array, implementation: str = "auto") -> jax.Array:
        del implementation
        return sinkhorn_plan(cost, epsilon=0.1, iterations=20)

    return [
        Case("Sinkhorn, 64 x 256 x 256", plain, ours, [(64, 256, 256)], [(8, 256, 256)])
    ]


def gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the gradient of all arguments, of the mean square of the result."""

    def loss(*x: jax.Array) -> jax.Array:
        return jnp.mean(function(*x).astype(jnp.float32) ** 2)

    return lambda *x: jax.grad(loss, tuple(range(len(x))))(*x)


def compiled(function: Callable[..., Any], shapes: list) -> tuple[str, str, str]:
    """Return MiB of temporaries, GFLOP and GB of a gradient on a v5e."""
    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    try:
        program = compile_for("v5e:2x2", gradient(function), *arguments)
    except jax.errors.JaxRuntimeError as error:
        if "memory" not in str(error):
            raise
        return "does not fit", "", ""
    costs = program_costs(program.as_text() or "")
    memory: Any = program.memory_analysis()
    return (
        f"{memory.temp_size_in_bytes / 2**20:,.0f}",
        f"{costs.flops / 1e9:,.0f}",
        f"{costs.bytes_accessed / 1e9:,.2f}",
    )


def times(case: Case) -> str:
    """Return ours by plain on this machine: the median and the quartiles."""
    draw = np.random.default_rng(0)
    arrays = [jnp.asarray(draw.normal(size=s), jnp.float32) for s in case.small]
    steps = [jax.jit(gradient(f)) for f in (case.plain, case.ours)]
    seconds: list[list[float]] = [[], []]
    for turn in range(ROUNDS + 1):
        for step, found in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(step(*arrays))
            if turn:
                found.append(time.perf_counter() - start)
    low, middle, high = np.percentile(np.divide(seconds[1], seconds[0]), [25, 50, 75])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Print a row for each case."""
    print("| operation | MiB: plain, ours | GFLOP | GB | CPU time, ours / plain |")
    print("| --- | --- | --- | --- | --- |")
    cases = [*attentions(4096), *attentions(16384), *scans(4096), *transports()]
    for case in cases:
        plain = compiled(case.plain, case.shapes)
        ours = compiled(case.ours, case.shapes)
        flops = compiled(
            functools.partial(case.ours, implementation="xla"), case.shapes
        )
        cells = [f"{plain[0]}, {ours[0]}", f"{plain[1]}, {flops[1]}"]
        cells += [f"{plain[2]}, {ours[2]}", times(case)]
        print(f"| {case.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
