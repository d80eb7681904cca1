"""Whether losses pull one way: the cosines of their gradients."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
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


class GradientConflict(NamedTuple):
    """How far several gradients disagree.

    Attributes:
        cosines: (gradients, gradients) of all pairs.
        mean: over pairs of different gradients.
        negative: the share of such pairs that conflict, with a cosine below 0.
    """

    cosines: Float[Array, "gradients gradients"]
    mean: Float[Array, ""]
    negative: Float[Array, ""]


@checked()
def gradient_conflict(gradients: PyTree) -> GradientConflict:
    """Measure how far the gradients of several losses, or shapes, disagree.

    The interference of shapes that share weights (Fu et al. 2024, AmoebaLLM,
    arXiv:2411.10606; Xu et al. 2022, AutoDistil, arXiv:2201.12507). A zero gradient has
    cosine 0.

    Args:
        gradients: stacked along the first axis of each leaf, as ``jax.vmap(jax.grad)``
            returns them, over all parameters or a part.

    Raises:
        ValueError: fewer than two gradients.
    """
    leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(gradients)]
    number = len(leaves[0]) if leaves else 0
    if number < 2:
        raise ValueError(f"gradients must be at least 2, stacked, got {number}")
    exact = jax.lax.Precision.HIGHEST
    flat = [leaf.reshape(number, -1) for leaf in leaves]
    dots = sum((jnp.matmul(x, x.T, precision=exact) for x in flat), jnp.zeros(()))
    norms = jnp.sqrt(jnp.diagonal(dots))
    norms = norms[:, None] * norms
    cosines = jnp.where(norms > 0, dots / jnp.where(norms > 0, norms, 1), 0)
    pairs = cosines[jnp.triu_indices(number, 1)]
    return GradientConflict(cosines, pairs.mean(), (pairs < 0).mean())
