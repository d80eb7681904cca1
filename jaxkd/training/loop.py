"""One loop for every program: it knows its init and its step, and nothing else."""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PRNGKeyArray, PyTree

from jaxkd.checks import check_batch
from jaxkd.data.prefetch import Prefetch
from jaxkd.sharding.mesh import (
    make_mesh,
    on_mesh,
    shard_batch,
    state_sharding,
)
from jaxkd.training.checkpoint import Checkpoints
from jaxkd.training.metrics import MetricWriter
from jaxkd.training.preemption import TERMINATED, preemption
from jaxkd.training.progress import ProgressBar
from jaxkd.types import Batch, Program

logger = logging.getLogger(__name__)


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
    writers: Sequence[MetricWriter] = (),
    progress: ProgressBar | None = None,
    name: str = "training",
) -> tuple[Any, list[dict[str, int | float]]]:
    """Train a program, and return its last state and the evaluations.

    With checkpoints in the folder, the run goes on from the newest: state, place in the
    data and history are those of a run that was never interrupted. On SIGTERM a run
    with ``checkpoints`` saves one, and leaves by ``SystemExit`` with status 143.

    With several processes (``jax.distributed``) each calls this with the same
    arguments; ``jaxkd.data.batches`` gives each its part of every batch.

    Args:
        program: what to train.
        batches: a grain data set, such as `jaxkd.data.batches` makes.
        key: all the run's randomness comes from it.
        steps: to train for; None until the batches end.
        mesh: from `make_mesh`; None for one device, or with several processes for all
            devices on the data axis.
        evaluate: ``state -> metrics``, run every ``evaluate_every`` steps and at the
            end.
        evaluate_every: steps; None for the end only.
        checkpoints: where to save; the end is always saved.
        checkpoint_every: steps; None for the end only.
        log_every: steps between looks at the metrics, which wait for the device.
        writers: of the metrics, as each look and each evaluation finds them.
        progress: a bar to draw on.
        name: of the run on the bar.

    Returns:
        The state, and one dict an evaluation: ``step``, the last step's training
        metrics as ``train_…``, and what ``evaluate`` returned.

    Raises:
        ValueError: no batches; a batch that is empty, not finite or not divisible among
            the mesh's devices; a checkpoint of another model, configuration or data.
        OSError: a checkpoint could not be written.
        FloatingPointError: a training metric is not finite. It names step, metric and
            the last checkpoint, and nothing is saved after that step.
    """
    mesh = mesh or make_mesh("one" if jax.process_count() == 1 else "data")

    def place(batch: Batch) -> Batch:
        check_batch(batch)
        return shard_batch(batch, mesh)

    first = next(iter(batches), None)
    if first is None:
        raise ValueError("batches is empty: there is nothing to train on")
    first = place(first)
    start, step_once, like = _compiled(_Same(program), mesh, _Shapes.of(first))
    iterator = Prefetch(iter(batches), place)
    found = None if checkpoints is None else checkpoints.restore(like)
    if found:
        done, state, position, history = found
        iterator.set_state(position)
    else:
        done, state, history = 0, start(key, first), []
    if jax.process_index():
        progress, writers = None, ()
    if progress is not None:
        progress.start(name, steps, done)
    for writer in writers:
        writer.start(done)

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

    def write(values: Mapping[str, float]) -> None:
        for writer in writers:
            writer.write(done, values)

    def conclude() -> None:
        look()
        found = {} if evaluate is None else evaluate(state)
        values = {metric: float(value) for metric, value in found.items()}
        trained = {f"train_{metric}": value for metric, value in metrics.items()}
        history.append({"step": done, **trained, **values})
        if values:
            write(values)
        if checkpoints is not None and checkpoints.best_metric in values:
            save()

    def save() -> None:
        look()
        if checkpoints is not None:
            checkpoints.save(done, state, iterator.get_state(), history)

    with preemption(checkpoints is not None) as preempted:
        while steps is None or done < steps:
            batch = next(iterator, None)
            if batch is None:
                break
            state, values = step_once(state, batch)
            done += 1
            pending.append((done, values))
            if done % log_every == 0:
                look()
                write(metrics)
            if evaluate_every and done % evaluate_every == 0:
                conclude()
            if checkpoint_every and done % checkpoint_every == 0:
                save()
            if preempted(done) and checkpoints is not None:
                save()
                checkpoints.wait()
                logger.warning(
                    "terminated at step %s; saved in %s: start again to go on",
                    done,
                    checkpoints.folder,
                )
                raise SystemExit(TERMINATED)
    if not history or history[-1]["step"] != done:
        conclude()
    save()
    return state, history


class _Same:
    """A program, to be compared and hashed: the mapping of its axes has no hash."""

    def __init__(self, program: Program):
        self.program = program

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.program == other.program

    def __hash__(self) -> int:
        return hash(self.program[:3])


class _Shapes:
    """A batch's shapes, to be compared and hashed."""

    def __init__(self, leaves: tuple, structure: Any):
        self.leaves, self.structure = leaves, structure

    @classmethod
    def of(cls, batch: Batch) -> "_Shapes":
        leaves, structure = jax.tree.flatten(batch)
        shapes = tuple(
            jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in leaves
        )
        return cls(shapes, structure)

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.leaves, self.structure))


@functools.lru_cache(maxsize=16)
def _compiled(
    same: _Same, mesh: Mesh, batch: _Shapes
) -> tuple[Callable, Callable, PyTree]:
    """Return jitted init and step, and the state's shapes, for all runs of a program.

    The state is made where it belongs: no device ever holds more than its share. The
    step takes its state's memory for the new state (donation).
    """
    program = same.program
    example = jax.tree.unflatten(batch.structure, batch.leaves)
    init, train = on_mesh(program.init, mesh), on_mesh(program.step, mesh)
    shapes = jax.eval_shape(init, jax.random.key(0), example)
    shardings = state_sharding(shapes, mesh, program.axes)
    everywhere = NamedSharding(mesh, PartitionSpec())
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        shardings,
    )
    # Init runs once, but on CPUs it would take longer to compile than the step: random
    # numbers for every array, which LLVM's optimisation makes no faster.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    start = jax.jit(
        init,
        out_shardings=shardings,
        compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None,
    )
    step = jax.jit(train, donate_argnums=0, out_shardings=(shardings, everywhere))
    return start, step, like


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
