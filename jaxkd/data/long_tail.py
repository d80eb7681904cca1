"""Long-tailed data: a source of which the classes keep fewer and fewer examples."""

import numpy as np
from jaxtyping import Int, Integer

from jaxkd.arguments import Rule, checked
from jaxkd.data.sources import Examples, Subset, example_labels

at_least_1 = Rule("at least 1", lambda x: x >= 1)


@checked(imbalance=at_least_1)
def long_tailed_counts(
    classes: int, largest: int, imbalance: float
) -> Int[np.ndarray, "classes"]:
    """Return how many examples each class keeps: largest·imbalance^(−c/(classes − 1)).

    Cui et al. 2019, arXiv:1901.05555, Section 5.1. They fall exponentially from class
    0, are rounded, and at least 1.

    Args:
        classes: how many.
        largest: of class 0.
        imbalance: the ratio of the first and the last, such as 100.
    """
    share = np.arange(classes) / max(classes - 1, 1)
    return np.maximum(np.round(largest * imbalance**-share), 1).astype(int)


@checked(imbalance=at_least_1)
def long_tailed(
    source: Examples,
    imbalance: float,
    *,
    largest: int | None = None,
    order: Integer[np.ndarray, "classes"] | None = None,
    labels: Integer[np.ndarray, "examples"] | None = None,
    seed: int = 0,
) -> Subset:
    """Return some examples of a source whose classes are long-tailed.

    Which examples of a class stay is drawn; `long_tailed_counts` says how many do.

    Args:
        source: any, also of your own.
        imbalance: the ratio of the most and the least frequent class, such as 100.
        largest: examples of the most frequent class; None for all that it has.
        order: the classes from most to least frequent; None for 0, 1, 2, ….
        labels: of all examples, where reading them would decode every image; None reads
            them.
        seed: of the choice.

    Raises:
        ValueError: a class has fewer examples than it is to keep, an order that is not
            of all classes, or other numbers of labels than of examples.
    """
    labels = example_labels(source) if labels is None else np.asarray(labels)
    if len(labels) != len(source):
        raise ValueError(
            f"labels has {len(labels)} entries, but {source.name} has {len(source)} "
            "examples: give one for each"
        )
    classes = np.arange(source.classes) if order is None else np.asarray(order)
    if sorted(classes.tolist()) != list(range(source.classes)):
        raise ValueError(
            f"order must name each of the {source.classes} classes of {source.name} "
            f"once, got {classes.tolist()}"
        )
    have = np.bincount(labels, minlength=source.classes)
    most = int(have[classes[0]]) if largest is None else largest
    kept = long_tailed_counts(len(classes), most, imbalance)
    rng, chosen = np.random.default_rng(seed), []
    for label, keep in zip(classes, kept, strict=True):
        if have[label] < keep:
            raise ValueError(
                f"class {label} of {source.name} has {have[label]} examples and is to "
                f"keep {keep}: give a smaller largest than {most}, or another order"
            )
        chosen.append(rng.permutation(np.flatnonzero(labels == label))[:keep])
    return Subset(source, np.sort(np.concatenate(chosen)))
