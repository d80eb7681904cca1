"""A distillation step of language models: jaxkd against plain PyTorch, interleaved.

Llamas of random weights in float32: one of 35 million parameters teaches one of 9
million a vocabulary of 8,192, 4 windows of 256 tokens a step, by generalised
Jensen-Shannon divergence at 0.5 and AdamW. PyTorch computes TRL's GKD loss, from
logits; jaxkd the same number from hidden states and heads. Timed as in `peers`.

    python experiments/benchmarks/language_step.py --torch-python torch-env/bin/python

`torch_side` says how to make that environment; without it only jaxkd is timed.
"""

import sys
from pathlib import Path

import tyro
from peers import Worker, compare
from rich.console import Console
from rich.table import Table


def main(torch_python: Path | None = None, rounds: int = 9) -> None:
    """Time both and print the table.

    Args:
        torch_python: the Python of an environment with PyTorch; None for jaxkd alone.
        rounds: turns of each process.
    """
    commands: dict[str, tuple[str, ...]] = {
        "jaxkd": (sys.executable, "jax_language_step.py", "teach", "jaxkd")
    }
    if torch_python is not None:
        python = str(torch_python.absolute())
        for mode in ("eager", "compile"):
            commands[f"torch {mode}"] = (
                python,
                "torch_language_step.py",
                "teach",
                mode,
            )
    workers = {name: Worker(*command) for name, command in commands.items()}
    table = Table("process", "ms", "jaxkd's time / its", "peak MiB")
    for row in compare(workers, rounds, steps=2):
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
