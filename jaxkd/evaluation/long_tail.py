"""Accuracy by class, and of frequent, middling and rare classes, from any predictions.

On long-tailed data the mean over all examples says little of rare classes. These take
predicted classes and labels alone, whatever made them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Integer

from jaxkd.arguments import checked

GROUPS = ("head", "middle", "tail")
"""Groups of classes, from frequent to rare."""


@checked()
def class_accuracies(
    predictions: Integer[np.ndarray, "examples"],
    labels: Integer[np.ndarray, "examples"],
    classes: int,
) -> Float[np.ndarray, "classes"]:
    """Return the accuracy on each class's examples; NaN of a class that has none.

    Args:
        predictions: of the classes, such as ``logits.argmax(-1)``.
        labels: the right ones.
        classes: labels are below it.

    Raises:
        ValueError: other numbers of predictions and labels, or labels out of range.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape:
        raise ValueError(
            f"predictions has shape {predictions.shape} but labels has {labels.shape}: "
            "give one predicted class an example, such as logits.argmax(-1)"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"labels must be below classes, {classes}, got {labels.min()} to "
            f"{labels.max()}"
        )
    right = np.bincount(labels[predictions == labels], minlength=classes)
    have = np.bincount(labels, minlength=classes)
    return np.where(have > 0, right / np.maximum(have, 1), np.nan)


@checked()
def class_groups(
    counts: Sequence[int] | Integer[np.ndarray, "classes"],
    borders: tuple[int, int] | None = None,
) -> dict[str, np.ndarray]:
    """Return the classes of the head, the middle and the tail.

    Args:
        counts: the training examples of each class.
        borders: (20, 100) makes the tail classes of fewer than 20 training examples and
            the head those of more than 100, as Liu et al. 2019, arXiv:1904.05160, have
            it; None makes thirds of the classes, sorted by their counts.
    """
    counts = np.asarray(counts)
    if borders is None:
        parts = np.array_split(np.argsort(-counts, kind="stable"), len(GROUPS))
    else:
        few, many = borders
        rare, frequent = counts < few, counts > many
        parts = map(np.flatnonzero, (frequent, ~rare & ~frequent, rare))
    return {name: np.sort(part) for name, part in zip(GROUPS, parts, strict=True)}


@checked()
def group_accuracies(
    predictions: Integer[np.ndarray, "examples"],
    labels: Integer[np.ndarray, "examples"],
    groups: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """Return each group's mean of its classes' accuracies, and that of all classes.

    Args:
        predictions: as in `class_accuracies`.
        labels: likewise.
        groups: from `class_groups`, or your own: their classes by name.

    Returns:
        By the groups' names, and ``balanced``, the mean over all classes of the groups.
        Classes without examples, and groups of none, are left out.

    Raises:
        ValueError: as `class_accuracies`; no groups.
    """
    if not groups:
        raise ValueError("groups is empty: make them with class_groups(counts)")
    everyone = np.concatenate([np.asarray(x, int) for x in groups.values()])
    last = max(everyone.max(initial=-1), np.max(labels, initial=-1))
    accuracies = class_accuracies(predictions, labels, int(last) + 1)
    found = {}
    for name, classes in {**groups, "balanced": everyone}.items():
        own = accuracies[np.asarray(classes, int)]
        if (~np.isnan(own)).any():
            found[name] = float(np.nanmean(own))
    return found
