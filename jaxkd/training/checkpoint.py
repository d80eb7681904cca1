"""Checkpoints of a whole run: state, place in the data, history and configuration."""

import contextlib
import copy
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
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

logger = logging.getLogger(__name__)


class Checkpoints:
    """Checkpoints in a folder; each is complete or absent.

    The newest are kept, and the best if a metric is named. Writing goes on in the
    background; `close` waits for it. Use as a context manager. With several processes
    each opens the same folder, on a file system that all of them share.

    Args:
        folder: made if it is missing.
        keep: how many of the newest to keep.
        best: an evaluation metric whose best checkpoint is kept too, and saved whenever
            it is evaluated.
        best_mode: which end of it is best.
        config: what the run was made from, as JSON can hold it. It is saved along, and
            a checkpoint of another configuration is refused.
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

    def save(self, step: int, state: PyTree, data: Any, history: list[dict]) -> None:
        """Save a checkpoint.

        Args:
            step: its name; a step that is there already is left alone.
            state: the program's.
            data: the batch iterator's ``get_state()``.
            history: the evaluations so far.

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
        loop = {"data": data, "history": history, "config": self._config}
        self._being_written = step
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    # A copy: it is written in the background, while the lists grow.
                    loop=ocp.args.JsonSave(copy.deepcopy(loop)),
                ),
                metrics=metrics,
            )

    def restore(
        self, like: PyTree, step: int | None = None
    ) -> tuple[int, PyTree, Any, list[dict]] | None:
        """Return a checkpoint's step, state, data state and history.

        Args:
            like: arrays of the right structure, shapes, dtypes and shardings, or
                shapes (``jax.ShapeDtypeStruct``).
            step: which; None for the newest that can be read. One that cannot be read
                is then reported in the log, and the one before it is used.

        Returns:
            None if there is no checkpoint.

        Raises:
            ValueError: there are checkpoints, but none can be read, is of this program
                and of this configuration. It names what differs.
        """
        self.wait()
        problems = []
        steps = self._manager.all_steps() if step is None else [step]
        for candidate in sorted(steps, reverse=True):
            try:
                state, loop = self._read(candidate, like)
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
            self._check_config(loop["config"])
            return candidate, state, loop["data"], loop["history"]
        if problems:
            raise ValueError(
                f"no checkpoint in {self.folder} can be used for this program: "
                f"{'; '.join(problems)}. Use the model and the configuration it was "
                "saved with, or another folder"
            )
        return None

    def _read(self, step: int, like: PyTree) -> tuple[PyTree, dict[str, Any]]:
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        saved = self._manager.item_metadata(step)["state"]
        if saved is not None and (difference := _difference(saved.tree, like)):
            raise ValueError(difference)
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like), loop=ocp.args.JsonRestore()
            ),
        )
        return found["state"], found["loop"]

    def _check_config(self, saved: Any) -> None:
        mine = self._config
        if saved is None or mine is None or saved == mine:
            return
        changed = [
            f"{name} was {saved.get(name)!r}, is {mine.get(name)!r}"
            for name in sorted({*saved, *mine})
            if saved.get(name) != mine.get(name)
        ]
        raise ValueError(
            f"the checkpoints in {self.folder} are of another configuration: "
            f"{'; '.join(changed)}. Use the one it was saved with, or another folder"
        )

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
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            _KEY
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else tuple(leaf.shape)
        )
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        if hasattr(leaf, "shape")
    }
