"""Checkpoints of a whole run: state, place in the data, history and configuration."""

import contextlib
import copy
import json
import logging
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    preservation_policy,
)

from jaxkd.arguments import checked, count
from jaxkd.checks import unknown_name
from jaxkd.digests import verify_digests, write_digests
from jaxkd.files import held, in_all_processes
from jaxkd.training.saved import (
    changes,
    check_state,
    difference,
    first_cause,
    remedy,
    without,
)

LOCK = ".lock"
"""The file that says which process writes checkpoints to a folder."""

logger = logging.getLogger(__name__)


@checked(keep=count)
class Checkpoints:
    """Checkpoints in a folder; each is complete or absent, and its damage shows.

    The newest are kept, and the best if a metric is named. Writing goes on in the
    background; `close` waits for it. Use as a context manager. With several processes
    each opens the same folder, on a file system that all of them share. Any number of
    runs may read a folder, and one may write to it.

    Args:
        folder: made if it is missing.
        keep: how many of the newest to keep, at least 1.
        best: an evaluation metric whose best checkpoint is kept too, and saved whenever
            it is evaluated; NaN is never the best.
        best_mode: which end of it is best.
        config: what the run was made from, as JSON can hold it. It is saved along, and
            a checkpoint of another configuration is refused.

    Raises:
        ValueError: nothing is to be kept, or another mode.
        OSError: the folder cannot be made.
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
        if best_mode not in ("max", "min"):
            raise ValueError(unknown_name("best_mode", best_mode, ("max", "min")))
        self.folder = Path(folder).resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"the folder {self.folder} of checkpoints cannot be made "
                f"({error.strerror}): allow writing there, or name another"
            ) from error
        self.best_metric = best
        self._sign = -1 if best_mode == "min" else 1
        try:
            held = None if config is None else dict(config)
            self._config = json.loads(json.dumps(held))
        except TypeError as error:
            raise ValueError(f"config must be what JSON can hold: {error}") from None
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
            # Called when all is written, before the checkpoint gets its name.
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=self._write_digests
            ),
            # Without it orbax writes no metrics.
            best_fn=None if best is None else self._score,
        )
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "loop": ocp.JsonCheckpointHandler(),
        }
        self._check_metrics()
        self._manager = ocp.CheckpointManager(
            self.folder, options=options, item_handlers=handlers
        )
        self._being_written: int | None = None
        self._damaged: dict[int, str] = {}
        self._lock: contextlib.ExitStack | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            self.close()
            return
        if isinstance(error, Exception) and jax.process_count() > 1:
            # If others are gone it takes minutes to show; the cause is known now.
            logger.error(
                "%r. If another process has ended, its log says why. Waiting for the "
                "checkpoint being written",
                error,
            )
        try:
            self.close()
        except Exception as second:  # what came first is what leaves
            logger.error("%s", second)

    def claim(self) -> None:
        """Take the folder to write to, until `close`; `fit` does so before it begins.

        What a run that was killed has left half-written is cleared away.

        Raises:
            BlockingIOError: another run writes to it. It names host and process.
            OSError: the folder cannot be written to.
        """
        if self._lock is not None:
            return
        lock = contextlib.ExitStack()
        lock.enter_context(held(self.folder / LOCK))
        if jax.process_index() == 0:
            for left in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(left)
        self._lock = lock
        self._manager.reload()

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
        with self._lock or contextlib.nullcontext(), contextlib.closing(self._manager):
            self._lock = None
            self.wait()

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, but for those passed over, or None."""
        return max(self._steps(), default=None)

    @property
    def best(self) -> int | None:
        """The step of the best checkpoint that is there, or None."""
        return None if self.best_metric is None else self._manager.best_step()

    def last_good(self) -> int | None:
        """Return the step of the newest checkpoint that is as it was written, or None.

        All of its files are read.
        """
        with contextlib.suppress(OSError):
            self.wait()
        for step in sorted(self._steps(), reverse=True):
            with contextlib.suppress(ValueError):
                for part in ("loop", "state"):
                    verify_digests(self._path(step) / part)
                return step
        return None

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
            ValueError: the state is no tree of arrays.
            OSError: the checkpoint before this one could not be written, as of `wait`,
                or this one as of `claim`.
        """
        check_state(state)
        self.claim()
        self._set_aside()
        if step in self._manager.all_steps():
            return
        self.wait()
        evaluated = history[-1] if history and history[-1]["step"] == step else {}
        metrics = None
        # Of NaN, none would be better or worse.
        if not math.isnan(evaluated.get(self.best_metric, math.nan)):
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
                    state=ocp.args.StandardSave(without(state, frozen)),
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
            step: which; None for the newest that is as it was written and can be read.
                The log names those passed over, and the next `save` sets them aside
                as ``STEP.damaged``.
            identity: as of `save`; None compares none.

        Returns:
            None if there is no checkpoint.

        Raises:
            ValueError: there are checkpoints, but none can be read, is of this program
                and of this configuration and identity. It names what differs.
        """
        check_state(like)
        self.wait()
        problems: dict[int, str] = {}
        steps = self._manager.all_steps() if step is None else [step]
        for candidate in sorted(steps, reverse=True):
            try:
                verify_digests(self._path(candidate) / "loop", together=True)
                loop = self._read(candidate, loop=ocp.args.JsonRestore())["loop"]
                different = changes(loop["config"], self._config)
                different += changes(loop.get("identity"), identity)
                state = None if different else self._state(candidate, like, loop)
            except Exception as error:  # orbax, tensorstore and json each have theirs
                reason = str(error).strip().splitlines() or [type(error).__name__]
                problems[candidate] = f"step {candidate}: {reason[0]:.300}"
                continue
            if different:
                raise ValueError(
                    f"the checkpoints in {self.folder} are of another configuration: "
                    f"{'; '.join(different)}. Use the one it was saved with, or "
                    "another folder"
                )
            if problems:
                self._damaged |= problems
                logger.warning(
                    "checkpoints in %s cannot be used (%s); going on from step %s",
                    self.folder,
                    "; ".join(problems.values()),
                    candidate,
                )
            return candidate, state, loop["data"], loop["history"]
        if problems:
            raise ValueError(
                f"no checkpoint in {self.folder} can be used for this program: "
                f"{'; '.join(problems.values())}. Use the model and the configuration "
                "it was saved with, or another folder"
            )
        return None

    def _state(self, step: int, like: PyTree, loop: Mapping[str, Any]) -> PyTree:
        frozen = loop.get("frozen", ())
        verify_digests(self._path(step) / "state", together=True)
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=getattr(x, "sharding", None)
            ),
            without(like, frozen),
        )
        saved = self._manager.item_metadata(step)["state"]
        if saved is not None and (problem := difference(saved.tree, shapes)):
            raise ValueError(problem)
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
        """Say which checkpoint failed, by which cause, and what is left."""
        try:
            yield
        except Exception as error:  # tensorstore's are ValueErrors, others OSErrors
            last = "there is none before it"
            if self.latest is not None:
                last = f"the run goes on from step {self.latest}"
            cause = first_cause(error)
            raise OSError(
                f"the checkpoint of step {self._being_written} could not be written to "
                f"{self.folder} ({str(cause).strip() or type(cause).__name__:.500}). "
                f"{remedy(cause, self.folder)}; {last}"
            ) from error

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _steps(self) -> list[int]:
        return [step for step in self._manager.all_steps() if step not in self._damaged]

    def _write_digests(self) -> None:
        (partial,) = self.folder.glob(f"{self._being_written}.orbax-checkpoint-tmp*")
        # Not of the files beside these folders, to which orbax still adds.
        for part in partial.iterdir():
            if part.is_dir():
                write_digests(part)

    def _check_metrics(self) -> None:
        """Set checkpoints aside of damaged metrics, which orbax reads as it begins."""
        for metrics in self.folder.glob("*/metrics"):
            if not metrics.parent.name.isdigit():
                continue
            try:
                verify_digests(metrics)
            except ValueError as error:
                logger.warning("%s; the checkpoint is set aside", error)
                if jax.process_index() == 0:
                    _rename_damaged(metrics.parent)
        in_all_processes("")  # The others wait for it.

    def _set_aside(self) -> None:
        """Rename what `restore` has passed over, so that it is not the newest."""
        if not self._damaged:
            return
        if jax.process_index() == 0:
            for step in self._damaged:
                _rename_damaged(self._path(step))
        in_all_processes("")  # The others wait for it.
        self._damaged.clear()
        self._manager.reload()


def _rename_damaged(path: Path) -> None:
    aside = path.with_name(f"{path.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
