"""TopKLD: another direction of the divergence for the classes that are sampled.

A sampler that draws from a teacher's K best classes never asks for the others. The
student is to match those K closely (reverse KL, which seeks modes) and to keep the rest
as a whole (forward KL, which covers mass).
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd.arguments import checked, integer
from jaxkd.kernels.linear_distill.divergences import Divergence, forward_kl, reverse_kl
from jaxkd.losses.basics import as_float, check_array
from jaxkd.losses.divergences import tempered

Head = Literal["reverse", "forward"]


@checked(k=integer)
def top_k_mask(
    logits: Float[Array, "*batch classes"], k: int
) -> Bool[Array, "*batch classes"]:
    """Return whether each class is among the k largest; of equal ones, the first are.

    Args:
        logits: or anything else that orders the classes.
        k: exactly as many are.

    Raises:
        ValueError: k is not between 0 and the number of classes.
    """
    check_array("logits", logits)
    classes = jnp.shape(logits)[-1]
    if not 0 <= k <= classes:
        raise ValueError(f"k must be 0 to {classes} (the classes), got {k}")
    _, best = jax.lax.top_k(as_float(logits), k)
    nothing = jnp.zeros(jnp.shape(logits), bool)
    return jnp.put_along_axis(nothing, best, True, axis=-1, inplace=False)


@checked(k=integer)
def topkld_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"],
    k: int,
    tail_weight: float = 1.0,
    head: Head = "reverse",
) -> Float[Array, "*batch"]:
    """Return one divergence on the teacher's k best classes, the other on the rest.

    With p the teacher, q the student, and H the teacher's k best classes::

        Σ_H [q·log(q/p) − q + p] + λ·Σ_rest [p·log(p/q) − p + q]

    Ding et al. 2025, arXiv:2501.06218, rebuilt from what their abstract and reviews
    say, since the equation was not to be read. The terms q − p make each part at least
    0; without them the student could move its mass to where it is not held to account.
    With λ = 1, no class in H gives `kd_loss` at T = 1, and all give `reverse_kd_loss`.

    Args:
        student_logits: of q.
        teacher_logits: of p.
        k: classes in H; 0 to all.
        tail_weight: λ ≥ 0.
        head: the direction on H; ``forward`` exchanges the two.

    Returns:
        The loss of each example or token, at least 0.

    Raises:
        ValueError: shapes differ, or k is not between 0 and the number of classes.
    """
    log_q, log_p = tempered(student_logits, teacher_logits, 1.0)
    inside, outside = reverse_kl, forward_kl
    if head == "forward":
        inside, outside = outside, inside
    best = top_k_mask(log_p, k)

    def part(divergence: Divergence, classes: Array) -> Array:
        # Others are taken out first: the gradient of what is infinite there is NaN.
        kept = (jnp.where(classes, x, 0) for x in (log_p, log_q))
        return jnp.where(classes, divergence(*kept), 0)

    return (part(inside, best) + tail_weight * part(outside, ~best)).sum(-1)
