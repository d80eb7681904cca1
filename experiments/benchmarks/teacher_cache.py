"""What a cache of the teacher saves a student's train step, and what it takes on disk.

A Llama teaches one a quarter as wide, on this machine: in the step by all its logits
and by its best tokens alone, and from a cache, whose reading counts. The steps take
turns; a ratio is the median over the rounds of a step's time by the cached one's, with
the quartiles. Tokens and weights are random. What a token takes on disk is measured on
logits drawn from a normal distribution of deviation 3: best tokens without any order,
which compress worst.

    python experiments/benchmarks/teacher_cache.py
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

from jaxkd import data, distill, methods, models, teachers
from jaxkd.losses import top_k_log_probs

LENGTH, K, VOCABULARY = 128, 32, 8192
TEACHER = models.llama(VOCABULARY, 512, 8, 8, 1408)
STUDENT = models.llama(VOCABULARY, 128, 4, 4, 352)


def size_on_disk(folder: Path, windows: Any, answer: Any, settings: dict) -> float:
    """Write a cache, and return its bytes a token."""
    targets = teachers.TeacherTargets("benchmark", settings, answer)
    size = teachers.write_teacher_cache(folder, windows, targets, shard_examples=1024)
    return size / (len(windows) * LENGTH)


def on_disk(console: Console, logits: np.ndarray) -> None:
    """Print what one token of a cache takes, over a thousand rows."""
    table = Table("kept", "dtype", "bytes a token", "of them in arrays")
    rows = 1024
    tokens = np.zeros(rows * LENGTH + 1, np.uint16)
    windows: Any = data.Windows("rows", tokens, LENGTH, VOCABULARY)
    for k, dtype in ((8, "float16"), (K, "float16"), (K, "float32"), (None, "float16")):
        if k is None:
            arrays = {"teacher_logits": np.asarray(logits[:4], dtype)}
            windows = replace(windows, tokens=tokens[: 32 * LENGTH + 1])
        else:
            ids, log_probs = top_k_log_probs(jnp.asarray(logits), k)
            arrays = {
                "teacher_ids": np.asarray(ids, np.uint16),
                "teacher_log_probs": np.asarray(log_probs, dtype),
            }

        def answer(batch: Any, arrays=arrays) -> dict[str, np.ndarray]:
            return {n: x[batch["index"] % len(x)] for n, x in arrays.items()}

        with tempfile.TemporaryDirectory() as folder:
            size = size_on_disk(Path(folder), windows, answer, {"k": k})
        bare = sum(array[0].nbytes for array in arrays.values()) / LENGTH
        table.add_row(
            "all logits" if k is None else f"{k} tokens",
            dtype,
            f"{size:.1f}",
            f"{bare:.1f}",
        )
    console.print(table)


def main(rounds: int = 15, batch_size: int = 4, batches: int = 8) -> None:
    """Print both tables.

    Args:
        rounds: turns of each step.
        batch_size: rows of 128 tokens.
        batches: that the cache of the steps holds.
    """
    console = Console()
    rng = np.random.default_rng(0)
    rows = batch_size * batches
    tokens = rng.integers(0, VOCABULARY, rows * LENGTH + 1).astype(np.uint16)
    windows: Any = data.Windows("random", tokens, LENGTH, VOCABULARY)
    variables = jax.jit(TEACHER.init)(jax.random.key(0))
    on_disk(console, rng.normal(0, 3, (8, LENGTH, VOCABULARY)).astype(np.float32))
    targets = teachers.network_targets(TEACHER, variables, k=K)
    with tempfile.TemporaryDirectory() as folder:
        teachers.write_teacher_cache(
            folder, windows, targets, batch_size=batch_size, shard_examples=rows
        )
        cached = teachers.CachedTeacher(windows, folder, targets.fingerprint)
        steps(console, windows, cached, variables, rounds, batch_size)


def steps(
    console: Console,
    windows: Any,
    cached: Any,
    variables: Any,
    rounds: int,
    batch_size: int,
) -> None:
    """Print the times of train steps that take turns."""
    teacher = TEACHER.with_variables(variables)
    variants = {
        "cached, best tokens": (None, methods.topk_kd(K), cached),
        "live, best tokens": (teacher, methods.topk_kd(K), windows),
        "live, all logits": (teacher, methods.kd(1.0), windows),
        "labels alone": (None, methods.cross_entropy(), windows),
    }
    running = {}
    for name, (live, method, source) in variants.items():
        program = distill(STUDENT, live, method, optax.adamw(1e-4))
        batch = source.take(np.arange(batch_size))
        state = jax.jit(program.init)(jax.random.key(0), batch)
        step = jax.jit(program.step, donate_argnums=0)
        state, _ = jax.block_until_ready(step(state, batch))
        running[name] = [state, step, source]
    seconds = {name: [] for name in running}
    for turn in range(rounds):
        rows = (turn * batch_size + np.arange(batch_size)) % len(windows)
        for name, entry in running.items():
            state, step, source = entry
            started = time.perf_counter()
            state, _ = jax.block_until_ready(step(state, source.take(rows)))
            seconds[name].append(time.perf_counter() - started)
            entry[0] = state
    ours = np.array(seconds["cached, best tokens"])
    table = Table("step", "ms", "its time / the cached one's")
    for name, found in seconds.items():
        low, middle, high = np.quantile(np.array(found) / ours, [0.25, 0.5, 0.75])
        table.add_row(
            name,
            f"{1e3 * np.median(found):.0f}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
        )
    console.print(table)
    read = []
    for turn in range(rounds):
        rows = (turn * batch_size + np.arange(batch_size)) % len(windows)
        started = time.perf_counter()
        cached.take(rows)
        read.append(time.perf_counter() - started)
    console.print(f"reading a batch with its cache: {1e3 * np.median(read):.2f} ms")


if __name__ == "__main__":
    tyro.cli(main)
