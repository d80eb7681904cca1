"""Examples to choose among: what is known of them, and which have been chosen so far.

A selection returns positions in the pool of its round, which shrinks from round to
round; `label_picked` and `ask_teacher` turn them into positions in the data set.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from jaxkd.arguments import checked, count, natural, positive_share

Select = Callable[..., Any]
"""``(key, pool, q) -> positions`` in the pool, in the order they were picked; all of
them if there are fewer than q. Options are keywords, for `functools.partial`."""


class Pool(NamedTuple):
    """What is known of the examples to choose among; a selection says what it needs.

    Attributes:
        probs: (examples, classes), a network's predictions.
        features: (examples, features), what its last layer reads.
        labels: (examples,), of a data set that is labelled already.
        scores: (examples,), of `jaxkd.selection.scores`, or your own.
        chosen_probs: (chosen, classes), predictions for those chosen before.
        chosen_features: (chosen, features), likewise.
        chosen_labels: (chosen,), likewise.
    """

    probs: Any = None
    features: Any = None
    labels: Any = None
    scores: Any = None
    chosen_probs: Any = None
    chosen_features: Any = None
    chosen_labels: Any = None

    @property
    def size(self) -> int:
        """The number of examples to choose among.

        Raises:
            ValueError: nothing is known of them, not even how many there are, or arrays
                have different lengths.
        """
        named = zip(self._fields[:4], self[:4], strict=True)
        sizes = {name: len(array) for name, array in named if array is not None}
        if len(set(sizes.values())) != 1:
            problem = f"arrays of unequal length: {sizes}" if sizes else "no array"
            raise ValueError(f"pool has {problem}: give one row an example in each")
        return next(iter(sizes.values()))

    def need(self, *names: str) -> tuple[Array, ...]:
        """Return some of its arrays.

        Raises:
            ValueError: one is missing.
        """
        for name in names:
            if getattr(self, name) is None:
                raise ValueError(f"pool.{name} is None, but this selection needs it")
        return tuple(jnp.asarray(getattr(self, name)) for name in names)


@checked(fraction=positive_share)
def keep_fraction(
    select: Select, key: PRNGKeyArray | None, pool: Pool, fraction: float
) -> np.ndarray:
    """Return the positions of a share of the examples, in order: what pruning keeps.

    ``data.Subset(source, keep_fraction(…))`` is a source to train on.

    Args:
        select: a selection, such as `top_select`, or a partial of one with options.
        key: of what is random in it; None where nothing is.
        pool: what it needs of the examples.
        fraction: f in (0, 1] that is KEPT; f times the examples, rounded down.

    Raises:
        ValueError: the fraction keeps none, or as the selection says.
    """
    # 0.29 · 100 is 28.999999999999996.
    kept = math.floor(fraction * pool.size + 1e-9)
    if kept < 1:
        raise ValueError(
            f"fraction {fraction:g} of {pool.size} examples keeps none: it is the "
            "share that is kept, not removed"
        )
    return np.sort(np.asarray(select(key, pool, kept)))


@checked(seed=natural)
def initial_pool(
    labels: np.ndarray, per_class: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return a random start with as many labels of each class.

    Args:
        labels: of the data set's examples.
        per_class: at least 1.
        seed: of the choice.

    Returns:
        Positions of the labelled examples, by class, and of the others, in order.

    Raises:
        ValueError: per_class is below 1, or above the examples of a class.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    if not 1 <= per_class <= counts.min():
        raise ValueError(
            f"per_class must be 1 to {counts.min()} (the examples of class "
            f"{classes[counts.argmin()]}), got {per_class}"
        )
    chosen = [order[labels[order] == value][:per_class] for value in classes]
    labelled = np.concatenate(chosen)
    return labelled, np.setdiff1d(np.arange(len(labels)), labelled)


@checked()
def label_picked(
    labelled: np.ndarray, unlabelled: np.ndarray, picks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Move the picked examples from the unlabelled to the labelled ones.

    Args:
        labelled: positions in the data set.
        unlabelled: positions in the data set, in the order the selection saw.
        picks: positions in ``unlabelled``, each once.

    Returns:
        The new two, in the data set's positions.

    Raises:
        ValueError: a pick is repeated or out of range.
    """
    picks = np.asarray(picks)
    if len(np.unique(picks)) != len(picks):
        raise ValueError(f"picks has an example twice: {picks.tolist()}")
    if len(picks) and not 0 <= picks.min() <= picks.max() < len(unlabelled):
        raise ValueError(
            f"picks must be 0 to {len(unlabelled) - 1}, positions in unlabelled, got "
            f"{picks.tolist()}"
        )
    moved = np.concatenate([labelled, unlabelled[picks]])
    return moved, np.delete(unlabelled, picks)


class Asked(NamedTuple):
    """What a teacher has been asked so far.

    Attributes:
        positions: (asked,), in the data set, of the examples it was asked for.
        targets: (asked, classes), its probabilities for them.
        unlabelled: (others,), positions of those that it can still be asked for.
    """

    positions: np.ndarray
    targets: np.ndarray
    unlabelled: np.ndarray


@checked(q=count)
def ask_teacher(
    asked: Asked,
    select: Select,
    key: PRNGKeyArray | None,
    pool: Pool,
    q: int,
    teacher: Callable[[np.ndarray], Any],
) -> Asked:
    """Choose examples, have a teacher label them, and return what is known after it.

    A round of active distillation: the student is then trained on ``targets`` too, by
    `jaxkd.methods.cross_entropy`, whose labels may be probabilities.

    Args:
        asked: so far.
        select: a selection.
        key: of what is random in it.
        pool: what is known of ``asked.unlabelled``, in its order.
        q: how many to ask for.
        teacher: ``positions in the data set -> probabilities``; it is asked for no
            others.

    Raises:
        ValueError: fewer than q are left, or the pool is of other examples.
    """
    left = asked.unlabelled
    if len(left) < q:
        raise ValueError(f"q is {q}, but {len(left)} unlabelled examples are left")
    if pool.size != len(left):
        raise ValueError(
            f"pool has {pool.size} examples, but {len(left)} are unlabelled: give it "
            "their predictions, in their order"
        )
    picks = np.asarray(select(key, pool, q))
    positions, unlabelled = label_picked(asked.positions, left, picks)
    targets = np.asarray(teacher(left[picks]))
    return Asked(positions, np.concatenate([asked.targets, targets]), unlabelled)
