"""FIRST: the teacher's k best tokens, re-calibrated before the student learns them.

Shum et al. 2024, arXiv:2408.12168. A fine-tuned language model is too sure of its best
token. One temperature, which `jaxkd.evaluation.calibration` finds on held-out data,
makes its k best probabilities as reliable as they can be; nothing else is learnt.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from jaxkd.arguments import checked, non_negative, positive
from jaxkd.checks import unknown_name
from jaxkd.losses.basics import as_float, check_array, check_positive, frozen
from jaxkd.losses.divergences import kl_divergence
from jaxkd.losses.topk import gather_log_probs

Space = Literal["log", "probability"]
SPACES = ("log", "probability")


@checked(temperature=positive, eps=non_negative)
def recalibrate_top_k(
    log_probs: Float[Array, "*batch k"],
    temperature: float | Float[Array, ""] = 1.0,
    space: Space = "log",
    eps: float = 1e-6,
) -> Float[Array, "*batch k"]:
    """Return k best tokens' log-probabilities, sharpened or flattened to sum to 1.

    In ``log`` space they are softmax(log(p + ε)/c), which is the usual temperature: c
    above 1 flattens, and c = 1 only normalises. In ``probability`` space they are
    softmax(p/c), as the paper's Section 4.3 has it: of k = 5 tokens the best one gets
    0.40 at most with c = 1, and 0.999 with c = 0.1.

    Args:
        log_probs: log p, of the whole vocabulary.
        temperature: c > 0.
        space: in which p is divided.
        eps: ε, of the authors' code, without which an impossible token would cost a
            student that thinks so no end.

    Raises:
        ValueError: c is not above 0, or an unknown space.
    """
    check_positive("temperature", temperature)
    if space not in SPACES:
        raise ValueError(unknown_name("space", space, SPACES))
    p = jnp.exp(as_float(log_probs))
    return jax.nn.log_softmax((jnp.log(p + eps) if space == "log" else p) / temperature)


@checked()
def smooth_top_k(
    log_probs: Float[Array, "*batch k"], amount: float = 0.1
) -> Float[Array, "*batch k"]:
    """Return k best tokens' log-probabilities with the best one's taken down.

    The paper's alternative to a temperature: of the probabilities, normalised over the
    k, the first one loses d, and each other one gets d/(k − 1). The authors' code does
    so to the logarithms, after which they are no distribution.

    Args:
        log_probs: best first.
        amount: d, at least 0 and below 1/k, so that no probability is below 0.

    Raises:
        ValueError: d out of range, or k below 2.
    """
    check_array("log_probs", log_probs)
    k = jnp.shape(log_probs)[-1]
    if k < 2:
        raise ValueError(f"log_probs has {k} token: smoothing needs 2 or more")
    if not 0 <= amount < 1 / k:
        raise ValueError(f"amount must be at least 0 and below 1/{k}, got {amount}")
    p = jax.nn.softmax(as_float(log_probs))
    moved = jnp.full(k, amount / (k - 1)).at[0].set(-amount)
    return jnp.log(p + moved)


@checked(eps=positive)
def first_loss(
    student_logits: Float[Array, "*batch vocabulary"],
    teacher_ids: Integer[Array, "*batch k"],
    targets: Float[Array, "*batch k"],
    *,
    space: Space = "log",
    eps: float = 1e-6,
) -> Float[Array, "*batch"]:
    """KL(targets ‖ student) over the teacher's k best tokens.

    Shum et al. 2024, arXiv:2408.12168, Eq. 4, as the authors' code has it. The
    student's probabilities of these tokens are normalised over them
    (`recalibrate_top_k` with c = 1); what it gives to others has no part in the loss.

    Args:
        student_logits: of every token.
        teacher_ids: the teacher's k best tokens.
        targets: their log-probabilities, which sum to 1, from `recalibrate_top_k`.
        space: of the student's normalisation; ``log`` divides by the sum.
        eps: ε of the student's.

    Returns:
        The loss of each token.

    Raises:
        ValueError: shapes do not fit, or an unknown space.
    """
    check_array("targets", targets)
    if jnp.shape(teacher_ids) != jnp.shape(targets):
        raise ValueError(
            f"teacher_ids has shape {jnp.shape(teacher_ids)} but targets has "
            f"{jnp.shape(targets)}: give each token one log-probability"
        )
    found = gather_log_probs(student_logits, teacher_ids)
    return kl_divergence(frozen(targets), recalibrate_top_k(found, 1.0, space, eps))
