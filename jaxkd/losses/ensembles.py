"""Losses and targets of federated distillation: many clients' predictions as a teacher.

Clients share class probabilities of unlabelled proxy samples, some of them only on part
of the samples; the server averages what it got, and every client learns the average.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd.arguments import checked, positive, probability
from jaxkd.losses.basics import (
    as_float,
    frozen,
    log_softmax,
    zero_masked,
)


@checked()
def masked_ensemble(
    predictions: Float[Array, "clients samples classes"],
    masks: Bool[Array, "clients samples"],
) -> tuple[Float[Array, "samples classes"], Bool[Array, "samples"]]:
    """Average, sample by sample, the predictions of the clients that contribute.

    A prediction that is not finite contributes nothing, whatever its mask: one broken
    client costs its own contribution. The average over the clients that share a sample
    is Mujtaba et al. 2025, arXiv:2508.14769, and with all masks set FedMD's (Li and
    Wang 2019, arXiv:1910.03581).

    Args:
        predictions: of every client; anything where it does not contribute.
        masks: where it does.

    Returns:
        The mean, 0 where there is none, and the samples that have one.

    Raises:
        ValueError: the shapes do not fit.
    """
    if jnp.ndim(predictions) != 3 or jnp.shape(masks) != jnp.shape(predictions)[:2]:
        raise ValueError(
            f"predictions has shape {jnp.shape(predictions)} and masks "
            f"{jnp.shape(masks)}: give (clients, samples, classes) and one mask a "
            "client and sample"
        )
    predictions = as_float(predictions)
    shared = masks & jnp.isfinite(predictions).all(-1)
    contributors = shared.sum(0)
    total = jnp.where(shared[..., None], predictions, 0).sum(0)
    return total / jnp.maximum(contributors, 1)[:, None], contributors > 0


@checked(temperature=positive)
def era_sharpen(
    probabilities: Float[Array, "*batch classes"], temperature: float = 0.1
) -> Float[Array, "*batch classes"]:
    """Entropy reduction of an ensemble: softmax(p/T), the probabilities as logits.

    The server's step of DS-FL (Itahara et al. 2020, arXiv:2008.06180). No class gets
    more than e^(1/T) times another, so that T = 0.1 makes a mean of 0.9 certain and
    leaves near-uniform means nearly uniform.

    Args:
        probabilities: p, the ensemble's mean.
        temperature: T > 0.

    Raises:
        ValueError: T is not above 0.
    """
    return jax.nn.softmax(as_float(probabilities) / temperature)


@checked(threshold=probability)
def ambiguity_filter(
    probabilities: Float[Array, "*batch classes"], threshold: float
) -> Bool[Array, "*batch"]:
    """Return the samples of which an ensemble is sure: largest probability ≥ threshold.

    It is the server-side selector of Selective-FD (Shao et al. 2024,
    "Selective knowledge sharing for privacy-preserving federated distillation",
    arXiv:2304.01731).

    Args:
        probabilities: the ensemble's.
        threshold: in [0, 1].

    Raises:
        ValueError: a threshold out of range.
    """
    return as_float(probabilities).max(-1) >= threshold


@checked(temperature=positive)
def fd_distill_loss(
    logits: Float[Array, "*batch classes"],
    targets: Float[Array, "*batch classes"],
    valid: Bool[Array, "*batch"] | None = None,
    temperature: float = 1.0,
) -> Float[Array, "*batch"]:
    """Distillation from an ensemble's probabilities: T²·KL(targets ‖ softmax(z/T)).

    Args:
        logits: z, a client's.
        targets: probabilities, of members that took softmax(z/T) with the same T; they
            get no gradient. A class of probability 0 adds nothing.
        valid: samples that have a target; the others' loss and gradient are 0, whatever
            their target holds. None for all.
        temperature: T > 0.

    Returns:
        The loss of each sample; `weighted_mean` with ``valid`` averages it.

    Raises:
        ValueError: shapes differ, or T is not above 0.
    """
    if jnp.shape(logits) != jnp.shape(targets):
        raise ValueError(
            f"logits has shape {jnp.shape(logits)} but targets {jnp.shape(targets)}: "
            "give one row of probabilities a sample, over the same classes"
        )
    targets, logits = zero_masked(frozen(targets), valid), zero_masked(logits, valid)
    log_q = log_softmax(as_float(logits), temperature)
    positive = targets > 0
    log_p = jnp.log(jnp.where(positive, targets, 1))
    return temperature**2 * jnp.where(positive, targets * (log_p - log_q), 0).sum(-1)
