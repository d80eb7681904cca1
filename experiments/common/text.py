"""What experiments on text share: its windows, and training on them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxkd import data, training
from jaxkd.reporting.experiment import Run
from jaxkd.reporting.records import Record
from jaxkd.types import Program


def load_text(
    text: str, length: int, vocabulary: int = 0, test_windows: int = 0
) -> tuple[data.Examples, data.Examples]:
    """Return the windows to train and to evaluate on.

    Args:
        text: ``tiny_shakespeare``, or a folder of token files below JAXKD_DATA.
        length: tokens of a window.
        vocabulary: of the token files.
        test_windows: the first of the test text; 0 for all.

    Raises:
        FileNotFoundError: they are not there; the message says what to put where.
    """
    if text == "tiny_shakespeare":
        found = data.tiny_shakespeare(length)
    else:
        found = data.token_files(text, length, vocabulary)
    if not test_windows:
        return found.train, found.test
    tokens = found.test.tokens[: test_windows * length + 1]
    return found.train, replace(found.test, tokens=tokens)


def train_on_text(
    run: Run,
    program: Program,
    train: data.Examples,
    *,
    batch_size: int,
    steps: int,
    seed: int,
    folder: Path,
    name: str,
    mesh: str,
    evaluate: Callable[[Any], dict[str, float]] | None = None,
) -> tuple[Any, list[dict[str, int | float]]]:
    """Return a program's last state and its evaluations, five over the run.

    Args:
        run: has the progress bar.
        program: to train.
        train: windows.
        batch_size: windows a step.
        steps: of the whole run.
        seed: of the weights and the order of the windows.
        folder: keeps the checkpoints.
        name: on the bar.
        mesh: of several processes; one process takes one device.
        evaluate: ``state -> metrics``.
    """
    epochs = -(-steps // data.steps_per_epoch(train, batch_size))
    with training.Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
        return training.fit(
            program,
            data.batches(train, batch_size, epochs=epochs, seed=seed),
            key=jax.random.key(seed),
            steps=steps,
            mesh=training.make_mesh(mesh) if jax.process_count() > 1 else None,
            evaluate=evaluate,
            evaluate_every=max(steps // 5, 1) if evaluate else None,
            checkpoints=checkpoints,
            checkpoint_every=max(steps // 3, 1),
            progress=run.progress,
            name=name,
        )


def language_records(
    setting: str, method: str, seed: int, history: list[dict[str, Any]], seconds: float
) -> list[Record]:
    """Return the last evaluation of one language model, the loss with its course.

    Args:
        setting: the table's name.
        method: the row's.
        seed: of the run.
        history: evaluations.
        seconds: that it took.
    """
    return [
        Record(
            method,
            seed,
            metric,
            value,
            seconds,
            setting,
            tuple(entry[metric] for entry in history) if metric == "nll" else (),
        )
        for metric, value in history[-1].items()
        if metric != "step" and not metric.startswith("train_")
    ]
