"""Train steps of jaxkd against plain PyTorch, eager and compiled, interleaved.

ResNet-56 teaches ResNet-20 (batch 128, 32x32), and DeiT-S teaches DeiT-Ti (batch 8,
224x224), in float32. Each step lives in a process of its own; they take turns, a few
steps at a time, and the others wait. A ratio is the median over the rounds of jaxkd's
time by the peer's, with the quartiles. Memory is the process's peak over the timed
steps, beyond what its imports took; what compiling left behind is given back before.

    python experiments/benchmarks/peers.py --torch-python torch-env/bin/python

`torch_side` says how to make that environment; without it only jaxkd is timed.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
STEPS = {"resnet": 2, "vit": 3}
"""Steps in a turn."""


class Worker:
    """A process that trains when it is told to."""

    def __init__(self, *command: str):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE
        )
        self.seconds: list[float] = []
        self.peak = 0.0
        self._line()

    def _line(self) -> str:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise RuntimeError(f"{self.process.args} ended without an answer")
        return line

    def turn(self, steps: int) -> None:
        """Train some steps and note what they took."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = json.loads(self._line())
        self.seconds.append(answer["seconds"])
        self.peak = answer["peak_mib"]


def compare(workers: dict[str, Worker], rounds: int, steps: int) -> list[list[str]]:
    """Let the workers take turns, end them, and return a row for each.

    Args:
        workers: by name, of which one is ``jaxkd``.
        rounds: turns of each.
        steps: in a turn.

    Returns:
        Name, median milliseconds of a step, median and quartiles of jaxkd's time by
        its, and the peak of its memory in MiB.
    """
    for _ in range(rounds):
        for worker in workers.values():
            worker.turn(steps)
    ours, rows = np.array(workers["jaxkd"].seconds), []
    for name, worker in workers.items():
        low, middle, high = np.quantile(
            ours / np.array(worker.seconds), [0.25, 0.5, 0.75]
        )
        ratio = "" if name == "jaxkd" else f"{middle:.2f} ({low:.2f} to {high:.2f})"
        median = f"{1e3 * np.median(worker.seconds):.0f}"
        rows.append([name, median, ratio, f"{worker.peak:.0f}"])
        worker.process.kill()
    return rows


def main(
    torch_python: Path | None = None,
    rounds: int = 9,
    cases: tuple[str, ...] = ("resnet", "vit"),
    kinds: tuple[str, ...] = ("ce", "kd", "feature"),
) -> None:
    """Time the steps and print the table.

    Args:
        torch_python: the Python of an environment with PyTorch; None for jaxkd alone.
        rounds: turns of each process.
        cases: of ``resnet`` and ``vit``.
        kinds: of ``ce``, ``kd`` and ``feature``.
    """
    table = Table("case", "step", "process", "ms", "jaxkd's time / its", "peak MiB")
    for case in cases:
        for kind in kinds:
            commands: dict[str, tuple[str, ...]] = {
                "jaxkd": (sys.executable, "jax_side.py", case, kind)
            }
            if torch_python is not None:
                # The path as it is: an environment's python is a link.
                python = str(torch_python.absolute())
                for mode in ("eager", "compile"):
                    commands[f"torch {mode}"] = (
                        *(python, "torch_side.py", case, kind),
                        mode,
                    )
            workers = {name: Worker(*command) for name, command in commands.items()}
            for row in compare(workers, rounds, STEPS[case]):
                table.add_row(case, kind, *row)
    console = Console()
    console.print(table)
    if torch_python is None:
        console.print("no --torch-python: see torch_side.py for how to make one")


if __name__ == "__main__":
    tyro.cli(main)
