"""The linear distillation head beside the plain one, and beside Liger-Kernel's.

The first table is the TPU compiler's, for one chip: value and gradients by the
student's hidden states and head, 8,192 tokens, a vocabulary of 128,256, widths 2,048
and 4,096, bfloat16. A loop's body counts once in its FLOPs and bytes, so those are of a
chunk of tokens compiled alone, its vocabulary in one block, times the chunks; the bytes
leave out that from the second chunk on the head's gradient is read too.

The second is of CPUs: 4,096 tokens, a vocabulary of 32,000, widths 512 and 1,024,
float32. Processes take turns; a ratio is the median over the rounds of jaxkd's time by
the peer's, with the quartiles, and memory as in `peers`.

    python experiments/benchmarks/linear_distill.py --torch-python torch-env/bin/python

`linear_sides` says how to make that environment.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from peers import Worker
from rich.console import Console
from rich.table import Table

from jaxkd.kernels.linear_distill import (
    Divergence,
    forward_kl,
    jensen_shannon,
    linear_distill,
    total_variation,
)
from jaxkd.training.ahead import compile_for

XLA: Any = sys.modules["jaxkd.kernels.linear_distill.xla"]
TOKENS, VOCABULARY, STUDENT, TEACHER = 8192, 128_256, 2048, 4096
DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": forward_kl,
    "jensen_shannon": jensen_shannon(),
    "total_variation": total_variation,
}


def compiled(topology: str, divergence: Divergence, version: str, tokens: int) -> Any:
    """Return value and gradients as compiled for a chip."""
    shapes = [(tokens, STUDENT), (STUDENT, VOCABULARY)]
    shapes += [(tokens, TEACHER), (TEACHER, VOCABULARY)]
    arrays = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes]

    def loss(*arrays):
        found = linear_distill(*arrays, divergence=divergence, implementation=version)
        return found.loss

    return compile_for(topology, jax.value_and_grad(loss, (0, 1)), *arrays)


def by_the_compiler(console: Console, topology: str) -> None:
    """Print temporaries, FLOPs and bytes beside those of the plain version."""
    chunk = XLA.chunk_of(XLA.LOGITS, VOCABULARY)
    table = Table("divergence", "version", "temporaries MiB", "TFLOP", "GB")
    for name, divergence in DIVERGENCES.items():
        for version in ("reference", "xla", "pallas"):
            whole = compiled(topology, divergence, version, TOKENS)
            part, times = whole, 1
            if version == "xla":
                columns, XLA.COLUMNS = XLA.COLUMNS, VOCABULARY
                part, times = (
                    compiled(topology, divergence, version, chunk),
                    TOKENS / chunk,
                )
                XLA.COLUMNS = columns
            cost = part.cost_analysis()
            table.add_row(
                *(name, version),
                f"{whole.memory_analysis().temp_size_in_bytes / 2**20:.0f}",
                f"{times * cost['flops'] / 1e12:.2f}",
                f"{times * cost['bytes accessed'] / 1e9:.0f}",
            )
    console.print(table)
    products = 2 * TOKENS * VOCABULARY * (3 * STUDENT + TEACHER)
    console.print(f"matrix products without recomputation: {products / 1e12:.2f} TFLOP")


def beside_liger(console: Console, torch_python: Path | None, rounds: int) -> None:
    """Print times and memory of both on this machine."""
    sides = {"jaxkd": (sys.executable, "linear_sides.py", "jaxkd", "jit")}
    if torch_python is not None:
        for mode in ("eager", "compile"):
            python = str(torch_python.absolute())
            sides[f"liger {mode}"] = (python, "linear_sides.py", "liger", mode)
    workers = {name: Worker(*command) for name, command in sides.items()}
    for _ in range(rounds):
        for worker in workers.values():
            worker.turn(1)
    table = Table("process", "ms", "jaxkd's time / its", "peak MiB")
    ours = np.array(workers["jaxkd"].seconds)
    for name, worker in workers.items():
        ratios = ours / np.array(worker.seconds)
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        table.add_row(
            *(name, f"{1e3 * np.median(worker.seconds):.0f}"),
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{worker.peak:.0f}",
        )
        worker.process.kill()
    console.print(table)


def main(
    torch_python: Path | None = None, rounds: int = 5, topology: str = "v5e:2x2"
) -> None:
    """Print both tables.

    Args:
        torch_python: of an environment with PyTorch and Liger; None for jaxkd alone.
        rounds: turns of each process.
        topology: of the first table.
    """
    console = Console()
    by_the_compiler(console, topology)
    beside_liger(console, torch_python, rounds)


if __name__ == "__main__":
    tyro.cli(main)
