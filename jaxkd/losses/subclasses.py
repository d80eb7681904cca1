"""Sub-classes: a class's probability, divided among kinds that a teacher tells apart.

A teacher of few classes has little to say beyond the label; what it knows of the kinds
of examples inside a class is lost with its logits. Here its answer is divided out: a
student of classes · S outputs learns them all, output c·S + j for kind j of class c,
and a class's probability is the sum of its kinds'.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked, count, fraction, positive
from jaxkd.losses.basics import (
    as_float,
    check_class_indices,
    frozen,
    log_softmax,
    logsumexp,
)
from jaxkd.losses.divergences import kd_loss


class SubclassDirections(NamedTuple):
    """By which directions of a teacher's features a class's kinds are told apart.

    Attributes:
        means: each class's mean feature.
        directions: each class's; (h − μ_c)·U_c are the logits of its kinds.
    """

    means: Float[Array, "classes channels"]
    directions: Float[Array, "classes channels subclasses"]


@checked(beta=positive)
def subclass_targets(
    features: Float[Array, "*batch channels"],
    logits: Float[Array, "*batch classes"],
    found: SubclassDirections,
    beta: float = 1.0,
) -> Float[Array, "*batch classes subclasses"]:
    """Return log p_c + log softmax((h − μ_c)·U_c / β)_j of every class and its kinds.

    Loo et al. 2024 (LELP), arXiv:2409.20449. Of an example every class's kinds are
    weighed, not its own class's alone.

    Args:
        features: h, the inputs of the teacher's last layer.
        logits: the teacher's, of p. One of a binary teacher that has a single logit z
            is (0, z).
        found: μ and U.
        beta: β > 0, a temperature of the kinds.

    Returns:
        Log-probabilities without gradient, which sum to p over a class's kinds.

    Raises:
        ValueError: features or classes are not those of ``found``.
    """
    means, directions = found
    if jnp.shape(features)[-1:] != means.shape[1:] or logits.shape[-1] != len(means):
        raise ValueError(
            f"features have shape {jnp.shape(features)} and logits "
            f"{jnp.shape(logits)}, but the directions are of {len(means)} classes and "
            f"{means.shape[1]} channels: tap the layer that they were found in"
        )
    centred = frozen(features)[..., None, :] - means
    kinds = jnp.einsum("...cd,cds->...cs", centred, directions, precision="highest")
    return log_softmax(frozen(logits))[..., None] + log_softmax(frozen(kinds), beta)


@checked(subclasses=count, eps=fraction)
def hard_subclass_targets(
    assignments: Int[Array, "*batch"],
    logits: Float[Array, "*batch classes"],
    subclasses: int,
    eps: float = 0.0,
) -> Float[Array, "*batch classes subclasses"]:
    """Return log p_c + log r_cj with r smoothed one-hot, for kinds that are given.

    They may be finer labels, or clusters. In the class that an example is assigned to,
    its kind has 1 − ε + ε/S and the others ε/S; other classes' kinds have 1/S each.

    Args:
        assignments: c·S + j, or −1 of an example whose kind is not known: 1/S each.
        logits: the teacher's, of p.
        subclasses: S.
        eps: ε in [0, 1).

    Returns:
        Log-probabilities without gradient, which sum to p over a class's kinds.

    Raises:
        ValueError: assignments are no indices or out of range; under jit, where values
            cannot be checked, one that is too large gives NaN.
    """
    check_class_indices(assignments)
    outputs = logits.shape[-1] * subclasses
    known = not isinstance(assignments, Tracer) and np.size(assignments) > 0
    if known and not -1 <= np.min(assignments) <= np.max(assignments) < outputs:
        raise ValueError(
            f"assignments must be -1 to {outputs - 1}, of {logits.shape[-1]} classes "
            f"and {subclasses} sub-classes; got {int(np.min(assignments))} to "
            f"{int(np.max(assignments))}"
        )
    chosen = jax.nn.one_hot(assignments, outputs).reshape(*logits.shape, subclasses)
    shares = (1 - eps) * chosen + eps / subclasses
    shares = jnp.where(chosen.any(-1, keepdims=True), shares, 1 / subclasses)
    shares = jnp.where((assignments < outputs)[..., None, None], shares, jnp.nan)
    return log_softmax(frozen(logits))[..., None] + jnp.log(shares)


@checked(temperature=positive)
def subclass_loss(
    logits: Float[Array, "*batch outputs"],
    log_targets: Float[Array, "*batch classes subclasses"],
    temperature: float = 1.0,
) -> Float[Array, "*batch"]:
    """Return T²·KL(targets ‖ student) over all classes' kinds, both tempered by T.

    Args:
        logits: the student's, output c·S + j for kind j of class c.
        log_targets: as `subclass_targets` returns them.
        temperature: T > 0.

    Raises:
        ValueError: the student has another number of outputs.
    """
    classes, subclasses = log_targets.shape[-2:]
    if logits.shape[-1] != classes * subclasses:
        raise ValueError(
            f"logits has shape {jnp.shape(logits)}, but {classes} classes of "
            f"{subclasses} sub-classes need {classes * subclasses} outputs: build the "
            "student with as many classes, inside jaxkd.networks.with_subclasses"
        )
    return kd_loss(logits, log_targets.reshape(logits.shape), temperature)


@checked(classes=count)
def subclass_log_probs(
    logits: Float[Array, "*batch outputs"], classes: int
) -> Float[Array, "*batch classes"]:
    """Return each class's log-probability, log Σ_j softmax(u)_cj.

    Args:
        logits: u, output c·S + j for kind j of class c.
        classes: their number.

    Raises:
        ValueError: the outputs are no multiple of the classes.
    """
    outputs = logits.shape[-1]
    if outputs % classes:
        raise ValueError(
            f"logits has {outputs} outputs, which {classes} classes cannot share: give "
            "the network classes · sub-classes outputs"
        )
    log_p = log_softmax(as_float(logits))
    shape = (*logits.shape[:-1], classes, outputs // classes)
    return logsumexp(log_p.reshape(shape))
