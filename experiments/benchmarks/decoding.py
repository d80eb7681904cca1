"""Reading prompts and continuing them: jaxkd against plain PyTorch, interleaved.

Llamas of random weights in float32, a batch of 8. ``prefill`` reads prompts of 256
tokens and gives each its next token; ``decode`` reads 16 and continues them by 64, all
greedily. Timed as in `peers`: processes take turns, and a ratio is the median over the
rounds of jaxkd's time by the peer's, with the quartiles.

    python experiments/benchmarks/decoding.py --torch-python torch-env/bin/python

`torch_side` says how to make that environment; without it only jaxkd is timed.
"""

import sys
from pathlib import Path

import tyro
from decoding_cases import CASES
from peers import Worker, compare
from rich.console import Console
from rich.table import Table


def main(
    torch_python: Path | None = None,
    rounds: int = 9,
    cases: tuple[str, ...] = tuple(CASES),
    kinds: tuple[str, ...] = ("prefill", "decode"),
) -> None:
    """Time both and print the table.

    Args:
        torch_python: the Python of an environment with PyTorch; None for jaxkd alone.
        rounds: turns of each process.
        cases: names of `decoding_cases`.
        kinds: of ``prefill`` and ``decode``.
    """
    table = Table("case", "kind", "process", "ms", "jaxkd's time / its", "peak MiB")
    for case in cases:
        for kind in kinds:
            commands: dict[str, tuple[str, ...]] = {
                "jaxkd": (sys.executable, "jax_decoding.py", case, kind)
            }
            if torch_python is not None:
                python = str(torch_python.absolute())
                for mode in ("eager", "compile"):
                    commands[f"torch {mode}"] = (
                        *(python, "torch_decoding.py", case, kind),
                        mode,
                    )
            workers = {name: Worker(*command) for name, command in commands.items()}
            for row in compare(workers, rounds, steps=2):
                table.add_row(case, kind, *row)
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
