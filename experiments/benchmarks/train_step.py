"""What distillation costs: FLOPs, memory and time of train steps, as ratios.

FLOPs and temporaries are the compiler's. Times are taken in one interleaved run; the
median of the rounds' ratios to supervised training is printed with its quartiles.
"""

import time
from typing import Any

import jax
import numpy as np
import optax
import psutil
from rich.console import Console
from rich.table import Table

import jaxkd
from jaxkd import models
from jaxkd.methods import combine, cross_entropy, fitnets, kd

BATCH, ROUNDS, STEPS = 128, 15, 10


def programs() -> dict[str, jaxkd.Program]:
    """Return supervised, KD and feature-KD training of one pair of networks."""
    student = models.cnn(3, (16, 32, 64), 10, depth=1)
    teacher = models.cnn(3, (16, 32, 64), 10, depth=3)
    optimizer = optax.sgd(0.05, momentum=0.9)
    both = combine((0.1, cross_entropy()), (0.9, kd()))
    hinted = combine((0.1, cross_entropy()), (0.9, kd()), (100.0, fitnets("stage1")))
    return {
        "supervised": jaxkd.distill(student, None, cross_entropy(), optimizer),
        "kd": jaxkd.distill(student, teacher, both, optimizer),
        "kd + fitnets": jaxkd.distill(student, teacher, hinted, optimizer),
    }


def main() -> None:
    """Measure and print the table."""
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.normal(size=(BATCH, 32, 32, 3)).astype("f4"),
        "label": rng.integers(0, 10, BATCH, dtype=np.int32),
    }
    steps, states, compiled = {}, {}, {}
    for name, program in programs().items():
        states[name] = jax.jit(program.init)(jax.random.key(0), batch)
        lowered = jax.jit(program.step, donate_argnums=0).lower(states[name], batch)
        steps[name] = compiled[name] = lowered.compile()
    times = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            started = time.perf_counter()
            for _ in range(STEPS):
                states[name], metrics = step(states[name], batch)
            jax.block_until_ready(metrics)
            times[name].append((time.perf_counter() - started) / STEPS)

    table = Table("step", "GFLOP", "temporaries MiB", "ms", "time / supervised")
    for name in steps:
        ratios = np.array(times[name]) / np.array(times["supervised"])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        memory = compiled[name].memory_analysis().temp_size_in_bytes
        table.add_row(
            name,
            f"{compiled[name].cost_analysis()['flops'] / 1e9:.2f}",
            f"{memory / 2**20:.1f}",
            f"{1e3 * np.median(times[name]):.1f}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
        )
    console = Console()
    console.print(table)
    flops = {name: c.cost_analysis()["flops"] for name, c in compiled.items()}
    forward = teacher_flops(batch["image"])
    bound = flops["supervised"] + forward
    share = flops["kd"] / bound
    console.print(f"FLOPs of kd / (supervised + teacher forward): {share:.4f}")
    peak = psutil.Process().memory_info().rss / 2**20
    console.print(f"resident memory of the process: {peak:.0f} MiB")


def teacher_flops(images: np.ndarray) -> float:
    """Return the compiler's FLOPs of the teacher's forward pass."""
    teacher = models.cnn(3, (16, 32, 64), 10, depth=3)
    variables = jax.jit(teacher.init)(jax.random.key(0))
    forward = jax.jit(lambda v, x: teacher.apply(v, x)[0].logits)
    cost: Any = forward.lower(variables, images).compile().cost_analysis()
    return cost["flops"]


if __name__ == "__main__":
    main()
