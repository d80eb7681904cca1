"""One round of KD-AIF, whatever trains the models and scores the examples."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxkd.arguments import checked, positive_share
from jaxkd.selection.influence import influence_weights

Weights = Float[np.ndarray, "examples"]


class Models(NamedTuple):
    """Student and teacher as networks, variables or states: as what trains has them."""

    student: Any
    teacher: Any


class Round(NamedTuple):
    """What a round leaves.

    Attributes:
        models: after it.
        weights: for the next round.
        scores: influences that they follow from, negative where an example helps.
    """

    models: Models
    weights: Weights
    scores: Weights


@checked(momentum=positive_share)
def kd_aif_round(
    models: Models,
    weights: Weights,
    *,
    distil: Callable[[Models, Weights], Any],
    score: Callable[[Models], Any],
    retrain: Callable[[Models, Weights], Any] | None = None,
    mode: Literal["S", "T", "TS"] = "S",
    weigh: Callable[[Any], Any] = influence_weights,
    momentum: float = 1.0,
) -> Round:
    """Distil by the weights, find the examples' influence, and weigh them anew.

    Wu et al. 2025, arXiv:2501.02705. w ← (1 − momentum)·w + momentum·weigh(influence).
    The weights serve the student's distillation (S), the teacher's further training
    (T), whose student is distilled by weights of 1, or both (TS).

    Args:
        models: student and teacher.
        weights: one a training example, with mean 1; the first round's are 1.
        distil: ``(models, weights) -> student``, some epochs further.
        score: ``models -> (examples,)``, such as `selection.last_layer_influence` of
            the student on validation examples.
        retrain: ``(models, weights) -> teacher``, some epochs further; of T and TS.
        mode: whom the weights serve.
        weigh: influences ``->`` weights.
        momentum: share of the new weights, in (0, 1].

    Raises:
        ValueError: T or TS without ``retrain``, or weights of another number than the
            scores.
    """
    teach = retrain if "T" in mode else None
    if "T" in mode and teach is None:
        raise ValueError(
            f"retrain is None, but mode {mode!r} trains the teacher on: give (models, "
            "weights) -> teacher, or take mode 'S'"
        )
    served = weights if "S" in mode else np.ones_like(weights)
    models = models._replace(student=distil(models, served))
    scores = jnp.asarray(score(models))
    if scores.shape != np.shape(weights):
        raise ValueError(
            f"score returned shape {scores.shape}, but weights has shape "
            f"{np.shape(weights)}: give one of each for every training example"
        )
    weights = (1 - momentum) * weights + momentum * np.asarray(weigh(scores))
    if teach is not None:
        models = models._replace(teacher=teach(models, weights))
    return Round(models, weights, np.asarray(scores))
