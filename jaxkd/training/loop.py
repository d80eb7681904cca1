"""One loop for every program: it knows its init and its step, and nothing else."""

import functools
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PRNGKeyArray, PyTree

from jaxkd.arguments import checked, count, own_check
from jaxkd.checks import check_batch, unknown_name
from jaxkd.data.iterators import array_batch, batch_iterator, resumable
from jaxkd.data.prefetch import Prefetch
from jaxkd.sharding.mesh import (
    make_mesh,
    on_mesh,
    shard_batch,
    state_sharding,
)
from jaxkd.teachers.targets import variables_fingerprint
from jaxkd.training.checkpoint import Checkpoints
from jaxkd.training.metrics import MetricWriter
from jaxkd.training.preemption import TERMINATED, preemption
from jaxkd.training.progress import ProgressBar
from jaxkd.training.saved import array_paths
from jaxkd.training.stopping import History
from jaxkd.types import Batch, Program

logger = logging.getLogger(__name__)


@checked(
    batches=own_check,
    steps=count,
    evaluate_every=count,
    checkpoint_every=count,
    log_every=count,
)
def fit(
    program: Program,
    batches: Iterable[Any],
    *,
    key: PRNGKeyArray,
    steps: int | None = None,
    mesh: Mesh | None = None,
    evaluate: Callable[[Any], Mapping[str, float]] | None = None,
    evaluate_every: int | None = None,
    stop: Callable[[History], bool] | None = None,
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int | None = None,
    log_every: int = 50,
    writers: Sequence[MetricWriter] = (),
    progress: ProgressBar | None = None,
    name: str = "training",
) -> tuple[Any, list[dict[str, int | float]]]:
    """Train a program, and return its last state and the evaluations.

    With checkpoints in the folder, the run goes on from the newest: state, place in the
    data and history are those of a run that was never interrupted. A finished run goes
    on likewise, when it is given more steps or epochs. On SIGTERM a run with
    ``checkpoints`` saves one, and leaves by ``SystemExit`` with status 143.

    With several processes (``jax.distributed``) each calls this with the same
    arguments; ``jaxkd.data.batches`` gives each its part of every batch.

    Args:
        program: what to train.
        batches: any iterable of dicts of arrays: a list, a generator, PyTorch's
            ``DataLoader``, grain data such as `jaxkd.data.batches` makes. With
            ``steps``, a list or loader is begun again when it ends; a generator cannot
            be, and grain data say themselves how many epochs they have. With
            ``checkpoints`` it must know its place: grain data, a list or other
            sequence, or one whose iterators have ``get_state`` and ``set_state``.
        key: all the run's randomness comes from it.
        steps: to train for; None until the batches end.
        mesh: from `make_mesh`; None for one device, or with several processes for all
            devices on the data axis.
        evaluate: ``state -> metrics``, run every ``evaluate_every`` steps and at the
            end, such as `jaxkd.evaluation.classification.evaluator`'s.
        evaluate_every: steps; None for the end only.
        stop: ``evaluations so far -> whether to stop``, asked after each evaluation;
            `patience` makes one.
        checkpoints: where to save; the end is always saved. What the program says is
            frozen is not saved, but made again, and must then be the same.
        checkpoint_every: steps; None for the end only.
        log_every: steps between looks at the metrics, which wait for the device.
        writers: of the metrics, as each look and each evaluation finds them.
        progress: a bar to draw on.
        name: of the run on the bar.

    Returns:
        The state, and one dict an evaluation: ``step``, the last step's training
        metrics as ``train_…``, and what ``evaluate`` returned.

    Raises:
        ValueError: no batches; a batch that is no dict, empty, not finite, that counts
            nothing, has labels or tokens out of range, or is not divisible among the
            mesh's devices; a metric called ``step`` or, of ``evaluate``, ``train_…``; a
            checkpoint of another model, teacher,
            key, configuration or data; checkpoints of batches that do not know their
            place; ``stop`` without ``evaluate_every``; a number of steps below 1.
        OSError: a checkpoint could not be written, or another run writes to its folder.
        FloatingPointError: a training metric is not finite. It names step, metric and
            the last checkpoint, and nothing is saved after that step.
    """
    if stop is not None and evaluate_every is None:
        raise ValueError("stop is asked after evaluations: give evaluate_every too")
    mesh = mesh or make_mesh("one" if jax.process_count() == 1 else "data")
    source = batch_iterator(batches, repeat=steps is not None)
    if checkpoints is not None and not resumable(source):
        raise ValueError(
            f"batches is a {type(batches).__name__}, which cannot say where it is, as "
            "checkpoints need: pass a list of batches, data.batches(source, ...) or "
            "other grain data, or give its iterators get_state and set_state; or train "
            "without checkpoints"
        )

    def place(batch: Any) -> Batch:
        batch = array_batch(batch)
        check_batch(batch)
        placed = shard_batch(batch, mesh)
        # What the program has found out by its init, it checks the first batch by too.
        if not known:
            known.append(_compiled(_Same(program), mesh, _Shapes.of(placed)))
        program.check(known[0].like, batch)
        return placed

    known: list[_Compiled] = []
    iterator = Prefetch(source, place)
    first = iterator.peek()
    if first is None:
        raise ValueError("batches is empty: there is nothing to train on")
    (compiled,) = known
    (done, state, position, history), about = _begin(
        program, compiled, key, first, checkpoints
    )
    del first
    if position is not None:
        iterator.set_state(position)
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
            _check_names("program", values, "step")
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
        try:
            _check_names("evaluate", found, "step", "train_")
        except ValueError:
            save()
            raise
        values = {metric: float(value) for metric, value in found.items()}
        trained = {f"train_{metric}": value for metric, value in metrics.items()}
        history.append({"step": done, **trained, **values})
        if values:
            write(values)
        if checkpoints is None or checkpoints.best_metric is None:
            return
        if checkpoints.best_metric in values:
            save()
        if checkpoints.best_metric not in history[-1]:
            save()
            name = checkpoints.best_metric
            raise ValueError(unknown_name("best metric", name, history[-1]))

    def save() -> None:
        look()
        if checkpoints is not None:
            checkpoints.save(done, state, iterator.get_state(), history, **about)

    def stopped() -> bool:
        return stop is not None and bool(history and stop(history))

    def ended() -> bool:
        return (steps is not None and done >= steps) or iterator.peek() is None

    # A run that was stopped stays so, since its history says the same again.
    stopping = stopped()
    with preemption(checkpoints is not None) as preempted:
        while not (stopping or ended()):
            state, values = compiled.step(state, next(iterator))
            done += 1
            pending.append((done, values))
            if done % log_every == 0:
                look()
                write(metrics)
            if (evaluate_every and done % evaluate_every == 0) or ended():
                conclude()
                stopping = stopped()
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
    if steps is not None and done < steps and not stopping:
        logger.warning("batches ended after %s of %s steps", done, steps)
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


class _Compiled(NamedTuple):
    """What all runs of a program share.

    Attributes:
        start: the jitted init.
        step: the jitted step.
        like: the state's shapes, with shardings.
        frozen: whether no step changes it, for each of the state's arrays.
    """

    start: Callable
    step: Callable
    like: PyTree
    frozen: PyTree


@functools.lru_cache(maxsize=16)
def _compiled(same: _Same, mesh: Mesh, batch: _Shapes) -> _Compiled:
    """Return jitted init and step, and what is known of the state.

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
    # Each array's shape is an object of its own, by which it is known again.
    chosen = {id(x) for x in jax.tree.leaves(program.frozen(like))}
    frozen = jax.tree.map(lambda x: id(x) in chosen, like)
    # Init runs once, but on CPUs it would take longer to compile than the step: random
    # numbers for every array, which LLVM's optimisation makes no faster.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    start = jax.jit(
        init,
        out_shardings=shardings,
        compiler_options={"xla_backend_optimization_level": 0} if on_cpu else None,
    )
    step = jax.jit(train, donate_argnums=0, out_shardings=(shardings, everywhere))
    return _Compiled(start, step, like, frozen)


def _begin(
    program: Program,
    compiled: _Compiled,
    key: PRNGKeyArray,
    batch: Batch,
    checkpoints: Checkpoints | None,
) -> tuple[tuple[int, Any, Any, list[dict]], dict[str, Any]]:
    """Return where a run begins: at its newest checkpoint if there is one.

    Returns:
        Steps done, state, place in the data (None at its beginning) and history; and
        what the run's checkpoints tell about it.
    """
    start, _, like, frozen = compiled
    if checkpoints is None:
        return (0, start(key, batch), None, []), {}
    named = zip(array_paths(like), jax.tree.leaves(frozen), strict=True)
    paths = [path for path, is_frozen in named if is_frozen]
    checkpoints.claim()
    begun = checkpoints.latest is not None
    # What is frozen is in no checkpoint: init makes it again.
    state = like if begun and not paths else start(key, batch)
    identity: dict[str, Any] = {"key": np.asarray(jax.random.key_data(key)).tolist()}
    if paths:
        what = os.path.commonpath(paths) or "what is frozen"
        fingerprint = variables_fingerprint(program.frozen(state))
        identity[f"fingerprint of {what}"] = fingerprint
    about = {"identity": identity, "frozen": paths}
    if not begun:
        return (0, state, None, []), about
    # Only the shapes of the rest, to free its memory for the checkpoint's.
    state = jax.tree.map(
        lambda is_frozen, x, shape: x if is_frozen else shape, frozen, state, like
    )
    found = checkpoints.restore(state, identity=identity)
    assert found is not None, "there is a latest checkpoint"
    return found, about


def _check_names(who: str, metrics: Any, *taken: str) -> None:
    """Refuse what is no dict, and a metric that would overwrite the history's own."""
    if not isinstance(metrics, Mapping):
        raise ValueError(
            f"{who} must return a dict of metrics, got {type(metrics).__name__}: "
            f"{metrics!r:.80}"
        )
    for name, value in metrics.items():
        if not isinstance(name, str) or np.ndim(value):
            raise ValueError(
                f"{who} must return a number for each name, got {name!r}: {value!r:.80}"
            )
        if name == "step" or name.startswith(taken[1:]):
            raise ValueError(
                f"{who} returned a metric {name!r}, but the history keeps that name "
                f"for its own ({', '.join(taken)}…): give it another"
            )


def _not_finite(
    step: int, metric: str, value: Any, checkpoints: Checkpoints | None
) -> str:
    saved = None if checkpoints is None else checkpoints.last_good()
    last = "none"
    if checkpoints is not None and saved is not None:
        last = f"step {saved} in {checkpoints.folder}"
    return (
        f"{metric} is {value} at step {step}; last good checkpoint: {last}. Lower the "
        "learning rate or clip gradients; a label outside the classes gives NaN too, "
        "and so do probabilities that do not sum to 1, and a token of the teacher's "
        "that the student has not"
    )
