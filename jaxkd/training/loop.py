"""One loop for every program: it knows its init and its step, and nothing else."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from jaxkd.checks import check_batch
from jaxkd.training.checkpoint import Checkpoints
from jaxkd.training.progress import ProgressBar
from jaxkd.training.sharding import data_mesh, shard_batch, shard_state
from jaxkd.types import Program


@functools.lru_cache(maxsize=16)
def _compiled(program: Program) -> tuple[Callable, Callable]:
    """Return jitted init and step, compiled once for all runs of a program.

    The step takes its state's memory for the new state (donation).
    """
    return jax.jit(program.init), jax.jit(program.step, donate_argnums=0)


def fit(
    program: Program,
    batches: grain.IterDataset,
    *,
    key: PRNGKeyArray,
    steps: int | None = None,
    mesh: Mesh | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int | None = None,
    log_every: int = 50,
    progress: ProgressBar | None = None,
    name: str = "training",
) -> tuple[Any, list[dict[str, int | float]]]:
    """Train a program, and return its last state and the evaluations.

    With checkpoints in the folder, the run goes on from the newest: state, place in the
    data and history are those of a run that was never interrupted.

    Args:
        program: what to train.
        batches: a grain data set, such as `jaxkd.data.batches` makes.
        key: all the run's randomness comes from it.
        steps: to train for; None until the batches end.
        mesh: with an axis ``data``; None for one device.
        evaluate: ``state -> metrics``, run every ``evaluate_every`` steps and at the
            end.
        evaluate_every: steps; None for the end only.
        checkpoints: where to save; the end is always saved.
        checkpoint_every: steps; None for the end only.
        log_every: steps between looks at the metrics, which wait for the device.
        progress: a bar to draw on.
        name: of the run on the bar.

    Returns:
        The state, and one dict an evaluation: ``step``, the last step's training
        metrics as ``train_…``, and what ``evaluate`` returned.

    Raises:
        ValueError: no batches; a batch that is empty or not finite; a checkpoint of
            another configuration.
        FloatingPointError: a training metric is not finite. It names step, metric and
            the last checkpoint, and nothing is saved after that step.
    """
    mesh = mesh or data_mesh(1)
    init, step_once = _compiled(program)
    iterator = iter(batches)
    first = next(iter(batches), None)
    if first is None:
        raise ValueError("batches is empty: there is nothing to train on")
    check_batch(first)
    state = shard_state(init(key, shard_batch(first, mesh)), mesh)
    done, history = 0, []
    if checkpoints is not None and (found := checkpoints.restore(state)):
        done, state, position, history = found
        iterator.set_state(position)
    if progress is not None:
        progress.start(name, steps, done)

    pending: list[tuple[int, Any]] = []
    metrics: dict[str, float] = {}

    def look() -> None:
        """Fetch the metrics since the last look; refuse one that is not finite."""
        for at, values in pending:
            for metric, value in jax.device_get(values).items():
                if not np.isfinite(value):
                    raise FloatingPointError(
                        _not_finite(at, metric, value, checkpoints)
                    )
                metrics[metric] = float(value)
        pending.clear()
        if progress is not None and metrics:
            progress.update(done, metrics["loss"])

    def conclude() -> None:
        look()
        entry = {f"train_{metric}": value for metric, value in metrics.items()}
        if evaluate is not None:
            entry |= {metric: float(v) for metric, v in evaluate(state).items()}
        history.append({"step": done, **entry})

    def save() -> None:
        look()
        if checkpoints is not None:
            checkpoints.save(done, state, iterator.get_state(), history)

    while steps is None or done < steps:
        batch = next(iterator, None)
        if batch is None:
            break
        check_batch(batch)
        state, values = step_once(state, shard_batch(batch, mesh))
        done += 1
        pending.append((done, values))
        if done % log_every == 0:
            look()
        if evaluate_every and done % evaluate_every == 0:
            conclude()
        if checkpoint_every and done % checkpoint_every == 0:
            save()
    if not history or history[-1]["step"] != done:
        conclude()
    save()
    return state, history


def _not_finite(
    step: int, metric: str, value: Any, checkpoints: Checkpoints | None
) -> str:
    saved = None if checkpoints is None else checkpoints.latest
    last = "none"
    if checkpoints is not None and saved is not None:
        last = f"step {saved} in {checkpoints.folder}"
    return (
        f"{metric} is {value} at step {step}; last good checkpoint: {last}. Lower the "
        "learning rate or clip gradients; a label outside the classes gives NaN too"
    )
