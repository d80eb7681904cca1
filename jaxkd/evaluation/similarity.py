"""How alike two networks' features are: centred kernel alignment (CKA)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkd.arguments import checked
from jaxkd.data.sources import Examples
from jaxkd.data.transforms import Transform
from jaxkd.evaluation.classification import labelled_inputs
from jaxkd.losses.basics import as_float
from jaxkd.network import Network
from jaxkd.types import Variables


@checked()
def linear_cka(
    x: Float[Array, "examples *shape"], y: Float[Array, "examples *other"]
) -> Float[Array, ""]:
    """Return linear CKA, ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) of centred features, in [0, 1].

    Kornblith et al. 2019, arXiv:1905.00414, Table 1, in Frobenius norms. It does not
    change when either is rotated, scaled or shifted. It is computed through
    the (examples, examples) Gram matrices, so wide maps cost no more memory. Features
    that are the same for all examples have no similarity to anything: 0.

    Args:
        x: features of any shape; all axes but the first are flattened.
        y: features of the same examples.

    Raises:
        ValueError: other numbers of examples, or fewer than two.
    """
    if x.shape[0] != y.shape[0]:
        raise ValueError(
            f"x has shape {x.shape} and y has {y.shape}: give features of the same "
            "examples"
        )
    return jnp.vdot(_unit_gram(x), _unit_gram(y), precision="highest")


def _unit_gram(x: Float[Array, "examples *shape"]) -> Float[Array, "examples examples"]:
    """Return the centred Gram matrix over its norm; 0 of features without change."""
    if x.shape[0] < 2:
        raise ValueError(
            f"features have shape {x.shape}: CKA compares how they change over "
            "examples, so give at least two"
        )
    x = as_float(x).reshape(x.shape[0], -1)
    # Less the first example, a constant is exactly 0; less the mean, it may not be.
    x = x - x[0]
    x = x - x.mean(0)
    # The largest becomes 1, so that no fourth power leaves float32's range.
    x = _over(x, jnp.abs(x).max())
    gram = jnp.matmul(x, x.T, precision="highest")
    return _over(gram, jnp.linalg.norm(gram))


def _over(x: Array, scale: Array) -> Array:
    return x / jnp.where(scale == 0, 1, scale)


@checked()
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

    Raises:
        ValueError: fewer than two examples, or an unknown tap.
    """

    def grams(network: Network, variables: Variables, taps: Sequence[str]):
        inputs, _ = next(labelled_inputs(network, source, len(source), transform))
        run = jax.jit(lambda v, x: network.apply(v, x, taps=tuple(taps))[0].features)
        found = run(variables, inputs)
        return jnp.stack([gram(found[tap]) for tap in taps])

    gram = jax.jit(_unit_gram)
    rows = grams(*student, student_taps)
    columns = grams(*teacher, teacher_taps or student_taps)
    return np.asarray(jnp.einsum("rij,cij->rc", rows, columns, precision="highest"))
