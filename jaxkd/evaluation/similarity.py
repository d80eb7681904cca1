"""How alike two networks' features are: centred kernel alignment (CKA)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkd.data.sources import Examples
from jaxkd.data.transforms import Transform
from jaxkd.evaluation.classification import input_batches
from jaxkd.losses.basics import as_float
from jaxkd.types import Network, Variables


def linear_cka(
    x: Float[Array, "examples *shape"], y: Float[Array, "examples *other"]
) -> Float[Array, ""]:
    """Return linear CKA, ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) of centred features, in [0, 1].

    Kornblith et al. 2019, arXiv:1905.00414, Eq. 5 with a linear kernel, in Frobenius
    norms. It does not change when either is rotated or scaled. It is computed through
    the (examples, examples) Gram matrices, so wide maps cost no more memory. Features
    that are the same for all examples have no similarity to anything: 0.

    Args:
        x: features of any shape; all axes but the first are flattened.
        y: features of the same examples.

    Raises:
        ValueError: other numbers of examples, or fewer than two.
    """
    if x.shape[0] != y.shape[0] or x.shape[0] < 2:
        raise ValueError(
            f"x has shape {x.shape} and y has {y.shape}: give features of the same "
            "examples, at least two"
        )
    grams = [_centred_gram(z) for z in (x, y)]
    norms = [jnp.linalg.norm(gram) for gram in grams]
    # Rounding leaves of a constant a norm of about eps times its size.
    scale = norms[0] * norms[1]
    return jnp.where(scale > 0, jnp.vdot(*grams) / jnp.where(scale > 0, scale, 1), 0.0)


def _centred_gram(x: Array) -> Array:
    x = as_float(x).reshape(x.shape[0], -1)
    centred = x - x.mean(0)
    # What is left of a feature that does not change is rounding, not signal.
    noise = 4 * jnp.finfo(x.dtype).eps * jnp.abs(x).max(0)
    centred = jnp.where(jnp.abs(centred).max(0) > noise, centred, 0)
    return centred @ centred.T


def tapped_cka(
    student: tuple[Network, Variables],
    teacher: tuple[Network, Variables],
    source: Examples,
    student_taps: Sequence[str],
    teacher_taps: Sequence[str] | None = None,
    *,
    transform: Transform | None = None,
) -> Float[np.ndarray, "student teacher"]:
    """Return linear CKA of every tapped feature of one network with another's.

    Args:
        student: a network and its variables.
        teacher: another, or the same.
        source: examples, all of which are held at once: a few hundred are enough.
        student_taps: the rows.
        teacher_taps: the columns; None for the same names.
        transform: of the examples, without randomness, such as ``Normalize``.
    """
    inputs = next(input_batches(source, len(source), transform))

    def features(network: Network, variables: Variables, taps: Sequence[str]):
        run = jax.jit(lambda v, x: network.apply(v, x, taps=tuple(taps))[0].features)
        found = run(variables, inputs)
        return [found[tap] for tap in taps]

    rows = features(*student, student_taps)
    columns = features(*teacher, teacher_taps or student_taps)
    cka = jax.jit(linear_cka)
    return np.array([[float(cka(x, y)) for y in columns] for x in rows])
