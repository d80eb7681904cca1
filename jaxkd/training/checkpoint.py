"""Checkpoints of a whole run: state, place in the data, history and configuration."""

import contextlib
import copy
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    preservation_policy,
)

from jaxkd.arguments import checked
from jaxkd.checks import unknown_name

logger = logging.getLogger(__name__)


@checked()
class Checkpoints:
    """Checkpoints in a folder; each is complete or absent.

    The newest are kept, and the best if a metric is named. Writing goes on in the
    background; `close` waits for it. Use as a context manager. With several processes
    each opens the same folder, on a file system that all of them share.

    Args:
        folder: made if it is missing.
        keep: how many of the newest to keep, at least 1.
        best: an evaluation metric whose best checkpoint is kept too, and saved whenever
            it is evaluated.
        best_mode: which end of it is best.
        config: what the run was made from, as JSON can hold it. It is saved along, and
            a checkpoint of another configuration is refused.

    Raises:
        ValueError: nothing is to be kept, or another mode.
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int = 2,
        *,
        best: str | None = None,
        best_mode: Literal["max", "min"] = "max",
        config: Mapping[str, Any] | None = None,
    ):
        if keep < 1:
            raise ValueError(f"keep must be at least 1 checkpoint, got {keep}")
        if best_mode not in ("max", "min"):
            raise ValueError(unknown_name("best_mode", best_mode, ("max", "min")))
        self.folder = Path(folder).resolve()
        self.best_metric = best
        self._sign = -1 if best_mode == "min" else 1
        self._config = None if config is None else json.loads(json.dumps(dict(config)))
        kept: list[Any] = [preservation_policy.LatestN(keep)]
        if best is not None:
            kept.append(
                preservation_policy.BestN(
                    get_metric_fn=self._score,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
            # Without it orbax writes no metrics.
            best_fn=None if best is None else self._score,
        )
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "loop": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(
            self.folder, options=options, item_handlers=handlers
        )
        self._being_written: int | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self) -> None:
        """Wait for the checkpoint being written.

        Raises:
            OSError: it could not be written. It names the step, the folder, the cause
                and the last good checkpoint.
        """
        with self._explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the checkpoint being written, and release the folder."""
        try:
            self.wait()
        finally:
            self._manager.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step of the best checkpoint that is there, or None."""
        return None if self.best_metric is None else self._manager.best_step()

    def save(
        self,
        step: int,
        state: PyTree,
        data: Any,
        history: list[dict],
        *,
        identity: Mapping[str, Any] | None = None,
        frozen: Sequence[str] = (),
    ) -> None:
        """Save a checkpoint.

        Args:
            step: its name; a step that is there already is left alone.
            state: the program's.
            data: the batch iterator's ``get_state()``.
            history: the evaluations so far.
            identity: what else tells the run from others, as JSON can hold it.
            frozen: the paths (`array_paths`) of the arrays that are left out.

        Raises:
            OSError: the checkpoint before this one could not be written, as of `wait`.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        evaluated = history[-1] if history and history[-1]["step"] == step else {}
        metrics = None
        if self.best_metric in evaluated:
            metrics = {self.best_metric: evaluated[self.best_metric]}
        loop = {
            "data": data,
            "history": history,
            "config": self._config,
            "identity": identity,
            "frozen": list(frozen),
        }
        self._being_written = step
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_without(state, frozen)),
                    # A copy: it is written in the background, while the lists grow.
                    loop=ocp.args.JsonSave(copy.deepcopy(loop)),
                ),
                metrics=metrics,
            )

    def restore(
        self,
        like: PyTree,
        step: int | None = None,
        *,
        identity: Mapping[str, Any] | None = None,
    ) -> tuple[int, PyTree, Any, list[dict]] | None:
        """Return a checkpoint's step, state, data state and history.

        Args:
            like: a state of the right structure, such as `fit` returned: of arrays, or
                of shapes with shardings (``jax.ShapeDtypeStruct``). What was left out
                of the checkpoint, as frozen, is taken from here.
            step: which; None for the newest that can be read. One that cannot be read
                is then reported in the log, and the one before it is used.
            identity: as of `save`; None compares none.

        Returns:
            None if there is no checkpoint.

        Raises:
            ValueError: there are checkpoints, but none can be read, is of this program
                and of this configuration and identity. It names what differs.
        """
        self.wait()
        problems = []
        steps = self._manager.all_steps() if step is None else [step]
        for candidate in sorted(steps, reverse=True):
            try:
                loop = self._read(candidate, loop=ocp.args.JsonRestore())["loop"]
                different = _changes(loop["config"], self._config)
                different += _changes(loop.get("identity"), identity)
                state = None if different else self._state(candidate, like, loop)
            except Exception as error:  # orbax, tensorstore and json each have theirs
                reason = str(error).strip().splitlines() or [type(error).__name__]
                problems.append(f"step {candidate}: {reason[0]:.300}")
                logger.warning(
                    "checkpoint %s of %s cannot be used (%s); trying the one before",
                    candidate,
                    self.folder,
                    problems[-1],
                )
                continue
            if different:
                raise ValueError(
                    f"the checkpoints in {self.folder} are of another configuration: "
                    f"{'; '.join(different)}. Use the one it was saved with, or "
                    "another folder"
                )
            return candidate, state, loop["data"], loop["history"]
        if problems:
            raise ValueError(
                f"no checkpoint in {self.folder} can be used for this program: "
                f"{'; '.join(problems)}. Use the model and the configuration it was "
                "saved with, or another folder"
            )
        return None

    def _state(self, step: int, like: PyTree, loop: Mapping[str, Any]) -> PyTree:
        frozen = loop.get("frozen", ())
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            _without(like, frozen),
        )
        saved = self._manager.item_metadata(step)["state"]
        if saved is not None and (difference := _difference(saved.tree, shapes)):
            raise ValueError(difference)
        found = self._read(step, state=ocp.args.StandardRestore(shapes))["state"]

        def value(mine: Any, saved: Any) -> Any:
            if saved is None and isinstance(mine, jax.ShapeDtypeStruct):
                raise ValueError(f"it does not hold {frozen}: give their arrays")
            return mine if saved is None else saved

        return jax.tree.map(value, like, found)

    def _read(self, step: int, **items: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _score(self, metrics: Any) -> float:
        return self._sign * metrics[self.best_metric]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Say which checkpoint failed, why, and what is left."""
        try:
            yield
        except Exception as error:  # tensorstore's are ValueErrors, others OSErrors
            free = shutil.disk_usage(self.folder).free / 2**20
            last = "there is none before it"
            if self.latest is not None:
                last = f"the run goes on from step {self.latest}"
            raise OSError(
                f"the checkpoint of step {self._being_written} could not be written to "
                f"{self.folder} ({str(error).strip():.500}). {free:,.0f} MiB are free "
                f"there: make room and start again; {last}"
            ) from error


def array_paths(tree: PyTree) -> list[str]:
    """Return a name for each of a tree's leaves, such as ``student/params/bias``."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def _without(tree: PyTree, paths: Sequence[str]) -> PyTree:
    """Return the tree with None for some of its leaves."""
    leaves, structure = jax.tree.flatten(tree)
    left_out = set(paths)
    kept = [
        None if path in left_out else leaf
        for path, leaf in zip(array_paths(tree), leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, kept)


def _changes(saved: Any, mine: Mapping[str, Any] | None) -> list[str]:
    """Return how settings differ from those that were saved, if there are both."""
    if saved is None or mine is None:
        return []
    return [
        f"{name} was {saved.get(name)!r}, is {mine.get(name)!r}"
        for name in sorted({*saved, *mine})
        if saved.get(name) != mine.get(name)
    ]


def _difference(saved: PyTree, like: PyTree) -> str:
    """Return the first difference in shape of a checkpoint from a state, or ``""``."""
    shapes = _shapes(saved), _shapes(like)
    for name in sorted({*shapes[0], *shapes[1]}):
        found, expected = (tree.get(name) for tree in shapes)
        # Keys are saved as the integers they are made of.
        if found != expected and not (found and expected == _KEY):
            return (
                f"{name} has shape {found} in the checkpoint and {expected} in this "
                "program (None: absent)"
            )
    return ""


_KEY = ("key",)


def _shapes(tree: PyTree) -> dict[str, tuple]:
    return {
        path: (
            _KEY
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else tuple(leaf.shape)
        )
        for path, leaf in zip(array_paths(tree), jax.tree.leaves(tree), strict=True)
        if hasattr(leaf, "shape")
    }
