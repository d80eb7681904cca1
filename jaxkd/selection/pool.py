"""Which examples of a data set are labelled: positions in it, never in a pool.

A selection returns positions in the pool of its round, which shrinks from round to
round; `label_picked` turns them into positions in the data set.
"""

import numpy as np

from jaxkd.arguments import checked, natural


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
