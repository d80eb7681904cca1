"""Accuracy on corrupted images: what a network is worth off the data it learnt."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd.arguments import checked, count
from jaxkd.checks import unknown_name
from jaxkd.data.corruptions import CORRUPTIONS, SEVERITIES, Corrupt
from jaxkd.data.sources import Examples
from jaxkd.data.transforms import Compose, Transform
from jaxkd.evaluation.classification import labelled_inputs
from jaxkd.network import Network
from jaxkd.types import deployed


@checked(batch_size=count)
def robustness_evaluator(
    network: Network,
    source: Examples,
    corruptions: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = SEVERITIES,
    transform: Transform | None = None,
    batch_size: int = 1000,
    seed: int = 0,
) -> Callable[[Any], dict[str, float]]:
    """Return ``variables -> accuracies`` of a network on a source's corrupted images.

    They are, by the name of each of the corruptions, ``gaussian_noise_accuracy`` …, the
    mean over the severities, and ``corruption_accuracy``, the mean over corruptions.
    Images are corrupted as they are read: no copy of the data is kept.

    Args:
        network: to test.
        source: the examples, with uint8 images or floats in [0, 1], and ``label``.
        corruptions: names of `jaxkd.data.corruptions.CORRUPTIONS`.
        severities: of 1 to 5.
        transform: of each batch after it is corrupted, such as ``Normalize``.
        batch_size: examples in one forward pass.
        seed: of the corruptions.

    Raises:
        ValueError: an unknown corruption, a severity outside 1 to 5, or none of them;
            a source without labels.
    """
    if not corruptions or not severities:
        raise ValueError(
            f"corruptions is {list(corruptions)} and severities {list(severities)}: "
            "give at least one of each"
        )
    for name in corruptions:
        if name not in CORRUPTIONS:
            raise ValueError(unknown_name("corruption", name, CORRUPTIONS))
    each = {
        name: [Corrupt(name, severity, seed) for severity in severities]
        for name in corruptions
    }
    size = min(batch_size, len(source))
    predict = jax.jit(lambda v, inputs: network.apply(v, inputs)[0].logits.argmax(-1))

    def right(variables: Any, corrupt: Corrupt) -> float:
        steps = (corrupt,) if transform is None else (corrupt, transform)
        count = 0
        for inputs, label in labelled_inputs(network, source, size, Compose(steps)):
            if label is None:
                raise ValueError(
                    f"data set {source.name!r} has no label to evaluate by"
                )
            found = np.asarray(predict(variables, inputs))[: len(label)]
            count += int((found == label).sum())
        return count / len(source)

    def evaluate(state: Any) -> dict[str, float]:
        variables = deployed(state)
        found = {
            f"{name}_accuracy": float(np.mean([right(variables, x) for x in levels]))
            for name, levels in each.items()
        }
        return {**found, "corruption_accuracy": float(np.mean(list(found.values())))}

    return evaluate


@checked()
def mean_corruption_error(
    found: Mapping[str, float], reference: Mapping[str, float]
) -> float:
    """Return the errors on corruptions, each relative to a reference's, on average.

    Hendrycks, Dietterich 2019, arXiv:1903.12261, Section 4: mCE, of which 1 is the
    reference. It counts hard corruptions no more than easy ones.

    Args:
        found: of `robustness_evaluator`.
        reference: the same of the network that is compared with.

    Raises:
        ValueError: other corruptions, or one on which the reference makes no error.
    """
    names = [name for name in found if name != "corruption_accuracy"]
    others = [name for name in reference if name != "corruption_accuracy"]
    if not names or set(names) != set(others):
        raise ValueError(
            f"found is of {sorted(names)} but reference of {sorted(others)}: measure "
            "both networks on the same corruptions"
        )
    perfect = [name for name in names if reference[name] >= 1]
    if perfect:
        raise ValueError(
            f"reference makes no error in {perfect[0]}, to which none is relative: "
            "leave it out, or take higher severities"
        )
    return float(np.mean([(1 - found[n]) / (1 - reference[n]) for n in names]))
