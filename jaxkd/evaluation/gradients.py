"""Whether two losses pull one way: the cosine of their gradients."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, PyTree

from jaxkd.arguments import checked
from jaxkd.programs.aligned import gradient_cosine


@checked()
def grad_cosine(
    params: PyTree,
    first: Callable[[PyTree], Array],
    second: Callable[[PyTree], Array],
    part: Callable[[PyTree], PyTree] | None = None,
) -> Float[Array, ""]:
    """Return the cosine of two losses' gradients, below 0 where they conflict.

    Of one linear head on features z, cross-entropy and distillation have the gradients
    (p̂ − y)zᵀ and (p̂ − p)zᵀ, which conflict where the teacher's p contradicts the label
    (Kang et al. 2025, arXiv:2505.07675). A zero gradient has cosine 0.

    Args:
        params: of the student.
        first: ``params ->`` a scalar loss.
        second: another.
        part: ``gradient -> the part of it to compare``, such as the layers before the
            head; None for all.
    """
    gradients = (jax.grad(loss)(params) for loss in (first, second))
    return gradient_cosine(*(part(g) if part else g for g in gradients))
