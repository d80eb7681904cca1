"""Distillation in which one loss's gradient never works against another's."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from jaxkd.arguments import checked, count
from jaxkd.methods.base import Schedule, combine, weighted_losses
from jaxkd.network import Network
from jaxkd.programs.distill import distillation
from jaxkd.programs.update import Merge
from jaxkd.types import Method, Metrics, Program


def gradient_cosine(primary: PyTree, secondary: PyTree) -> Float[Array, ""]:
    """Return the cosine of two gradients, below 0 where they conflict; 0 of a zero.

    Args:
        primary: of one loss, over all parameters or a part of them.
        secondary: of another, of the same structure.
    """
    norms = optax.tree.norm(primary) * optax.tree.norm(secondary)
    dot = optax.tree.vdot(primary, secondary)
    return jnp.where(norms > 0, dot / jnp.where(norms > 0, norms, 1), 0)


def align_gradients(
    primary: PyTree, secondary: PyTree
) -> tuple[PyTree, Bool[Array, ""]]:
    """Return g₁ + g₂, from which the part of g₂ that opposes g₁ has been taken.

    Yang et al. 2024, arXiv:2411.08937: where ⟨g₁, g₂⟩ < 0, g₂ becomes
    g₂ − ⟨g₁, g₂⟩/‖g₁‖²·g₁. That is one side of gradient surgery (Yu et al. 2020,
    arXiv:2001.06782); the first is never changed. The authors take both over all that
    is trained, the heads too; pass a part of the trees to align that part alone.

    Args:
        primary: g₁.
        secondary: g₂.

    Returns:
        The merged gradient, whose product with g₁ is never below 0, and whether the
        two were in conflict.

    Raises:
        ValueError: the trees differ in structure.
    """
    structures = jax.tree.structure(primary), jax.tree.structure(secondary)
    if structures[0] != structures[1]:
        raise ValueError(
            f"primary is a tree {structures[0]} but secondary {structures[1]}: take "
            "both gradients for the same parameters"
        )
    dot = jnp.asarray(optax.tree.vdot(primary, secondary))
    conflict = dot < 0
    square = optax.tree.vdot(primary, primary)
    factor = jnp.where(conflict, dot / jnp.where(conflict, square, 1), 0)
    merged = jax.tree.map(lambda a, b: a + (b - factor * a), primary, secondary)
    return merged, conflict


@checked(accumulate=count)
def distill_merged(
    student: Network,
    teacher: Network | None,
    terms: Sequence[tuple[float | Schedule, Method]],
    optimizer: optax.GradientTransformation,
    merge: Merge,
    *,
    accumulate: int = 1,
) -> Program:
    """Return the program that merges a gradient of each weighted method.

    One forward pass of each network serves them all; each has a backward pass.

    Args:
        student: the network to train.
        teacher: the network to learn from, or None.
        terms: ``(weight, method)`` pairs, as in `jaxkd.methods.combine`.
        optimizer: any optax transformation.
        merge: ``gradients -> (gradient to apply, metrics)``; each is a dict of
            ``student`` and ``method``, the parameters of those.
        accumulate: as in `jaxkd.distill`.

    Returns:
        A program like `jaxkd.distill`'s.

    Raises:
        ValueError: as `jaxkd.distill`.
    """
    return distillation(
        student,
        teacher,
        combine(*terms),
        optimizer,
        lambda *arguments: weighted_losses(terms, *arguments),
        merge,
        accumulate=accumulate,
    )


@checked(accumulate=count)
def distill_aligned(
    student: Network,
    teacher: Network | None,
    primary: tuple[float | Schedule, Method],
    secondary: tuple[float | Schedule, Method],
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
) -> Program:
    """Return the program that trains by `align_gradients` of two weighted methods.

    With ``(1.0, cross_entropy())`` and ``(1.0, dhkd())`` it is Yang et al. 2024,
    arXiv:2411.08937, with gradient alignment.

    Args:
        student: the network to train.
        teacher: the network to learn from, or None.
        primary: ``(weight, method)`` whose gradient is kept whole.
        secondary: ``(weight, method)`` whose gradient gives way.
        optimizer: any optax transformation.
        accumulate: as in `jaxkd.distill`.

    Returns:
        A program like `jaxkd.distill`'s, with metrics ``gradient_cosine`` and
        ``conflict`` (1 where the second gradient was projected) besides.

    Raises:
        ValueError: as `jaxkd.distill`.
    """

    def merge(gradients: list[PyTree]) -> tuple[PyTree, Metrics]:
        merged, conflict = align_gradients(*gradients)
        return merged, {
            "gradient_cosine": gradient_cosine(*gradients),
            "conflict": conflict.astype(jnp.float32),
        }

    return distill_merged(
        student,
        teacher,
        (primary, secondary),
        optimizer,
        merge,
        accumulate=accumulate,
    )
