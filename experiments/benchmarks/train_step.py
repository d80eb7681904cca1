"""What distillation costs beside supervised training, as ratios.

ResNet-56 teaches ResNet-20 on batches of 128. FLOPs and temporaries are the compiler's.
Times are taken in one interleaved run; the median of the rounds' ratios to supervised
training is printed with its quartiles.
"""

import time

import jax
import numpy as np
import psutil
from jax_side import batch, first_state, networks, program
from rich.console import Console
from rich.table import Table

from jaxkd.evaluation.cost import forward_cost, step_cost

ROUNDS, STEPS = 7, 1
KINDS = {"ce": "supervised", "kd": "kd", "feature": "kd + fitnets"}


def main() -> None:
    """Measure and print the table."""
    examples = batch("resnet")
    steps, states, costs = {}, {}, {}
    for kind in KINDS:
        trained = program("resnet", kind)
        costs[kind] = step_cost(trained, examples)
        states[kind] = first_state(trained, examples)
        step = jax.jit(trained.step, donate_argnums=0)
        steps[kind] = step.lower(states[kind], examples).compile()
    times = {kind: [] for kind in KINDS}
    for _ in range(ROUNDS):
        for kind, step in steps.items():
            started = time.perf_counter()
            for _ in range(STEPS):
                states[kind], metrics = step(states[kind], examples)
            jax.block_until_ready(metrics)
            times[kind].append((time.perf_counter() - started) / STEPS)

    table = Table("step", "GFLOP", "temporaries MiB", "ms", "time / supervised")
    for kind, name in KINDS.items():
        ratios = np.array(times[kind]) / np.array(times["ce"])
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        table.add_row(
            name,
            f"{costs[kind].flops / 1e9:.2f}",
            f"{costs[kind].temporaries / 2**20:.1f}",
            f"{1e3 * np.median(times[kind]):.0f}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
        )
    console = Console()
    console.print(table)
    shape = examples["image"].shape
    teacher, student = (forward_cost(net, shape).flops for net in networks("resnet"))
    share = costs["kd"].flops / (teacher + 3 * student)
    console.print(f"FLOPs of kd / (teacher forward + 3 x student forward): {share:.4f}")
    peak = psutil.Process().memory_info().rss / 2**20
    console.print(f"resident memory of the process: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
