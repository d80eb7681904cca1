"""Checkpoints of a whole run: state, place in the data, and history."""

import copy
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

logger = logging.getLogger(__name__)


class Checkpoints:
    """Checkpoints in a folder, newest last; each is complete or absent.

    Writing goes on in the background; `close` waits for it. Use as a context manager.

    Args:
        folder: made if it is missing.
        keep: how many of the newest to keep.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder = Path(folder).resolve()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for the checkpoints being written, and release the folder."""
        self._manager.wait_until_finished()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: PyTree, data: Any, history: list[dict]) -> None:
        """Save a checkpoint.

        Args:
            step: its name; a step that is there already is left alone.
            state: the program's.
            data: the batch iterator's ``get_state()``.
            history: the evaluations so far.
        """
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                # A copy: it is written in the background, while the lists grow.
                loop=ocp.args.JsonSave(
                    copy.deepcopy({"data": data, "history": history})
                ),
            ),
        )

    def restore(self, like: PyTree) -> tuple[int, PyTree, Any, list[dict]] | None:
        """Return the newest readable checkpoint's step, state, data state and history.

        One that cannot be read is reported in the log, and the one before it is used.

        Args:
            like: a state of the right structure, shapes, dtypes and shardings.

        Returns:
            None if there is no checkpoint.

        Raises:
            ValueError: there are checkpoints, but none fits or can be read.
        """
        problems = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(_abstract(like)),
                        loop=ocp.args.JsonRestore(),
                    ),
                )
            except Exception as error:  # orbax, tensorstore and json each have theirs
                reason = str(error).strip().splitlines() or [type(error).__name__]
                problems.append(f"step {step}: {reason[0]:.300}")
                logger.warning(
                    "checkpoint %s of %s cannot be used (%s); trying the one before",
                    step,
                    self.folder,
                    problems[-1],
                )
                continue
            loop = found["loop"]
            return step, found["state"], loop["data"], loop["history"]
        if problems:
            raise ValueError(
                f"no checkpoint in {self.folder} can be used for this program: "
                f"{'; '.join(problems)}. Use the configuration it was saved with, or "
                "another folder"
            )
        return None


def _abstract(tree: PyTree) -> PyTree:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )
