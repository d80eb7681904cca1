"""Self-distillation of networks: squares of probabilities, and a penalty on weights.

The closed form's objective carried over to classifiers, as the authors' code has it:
the squared difference of probabilities from the mix of labels and the last step's
network, without a temperature.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxkd.arguments import checked, probability
from jaxkd.checks import unknown_name
from jaxkd.losses.basics import as_float, check_same_shape, frozen
from jaxkd.methods.base import from_loss
from jaxkd.types import Method


@checked(alpha=probability)
def self_distill_mse_loss(
    student_logits: Float[Array, "*batch classes"],
    teacher_logits: Float[Array, "*batch classes"] | None,
    targets: Float[Array, "*batch classes"],
    alpha: float,
) -> Float[Array, "*batch"]:
    """Squared error of probabilities against labels and against a teacher.

    α·mean_c (p_s − y)² + (1 − α)·mean_c (p_s − p_t)², Borup, Andersen 2021,
    arXiv:2102.13088, in their code; the mean is over classes.

    Args:
        student_logits: z_s, p_s = softmax(z_s).
        teacher_logits: z_t; None in the first step, which learns the labels alone.
        targets: y, one-hot or other probabilities.
        alpha: α in [0, 1], the weight of the labels.

    Returns:
        One loss an example.

    Raises:
        ValueError: shapes differ, or α is outside [0, 1].
    """
    check_same_shape(student_logits, targets, "targets")
    probabilities = jax.nn.softmax(as_float(student_logits))

    def error(wanted: Array) -> Array:
        return jnp.square(probabilities - frozen(wanted)).mean(-1)

    labelled = error(as_float(targets))
    if teacher_logits is None:
        return labelled
    check_same_shape(student_logits, teacher_logits, "logits")
    teacher = jax.nn.softmax(as_float(teacher_logits))
    return alpha * labelled + (1 - alpha) * error(teacher)


@checked(alpha=probability)
def self_distillation(alpha: float | None = 0.6) -> Method:
    """Return the mix of labels and the last step's network, as squares.

    Borup, Andersen 2021, arXiv:2102.13088; the student has the teacher's architecture
    and starts anew.

    Args:
        alpha: the weight of the labels, 0.6 in the authors' example; None for the
            first step, without a teacher.

    Raises:
        ValueError: α is outside [0, 1].
    """

    def loss(student, teacher, batch):
        labels = batch["label"]
        if labels.ndim < student.logits.ndim:
            labels = jax.nn.one_hot(labels, student.logits.shape[-1])
        taught = None if alpha is None else teacher.logits
        return self_distill_mse_loss(student.logits, taught, labels, alpha or 0.0)

    return from_loss(loss, name="self_distillation")


REGULARIZERS: dict[str, Callable[[Array], Array]] = {
    "l2_squared": lambda x: jnp.vdot(x, x),
    "norm": lambda x: optax.safe_norm(x, 0.0),
}


@checked()
def norm_regularizer(params: PyTree, kind: str = "l2_squared") -> Float[Array, ""]:
    """Return the penalty on weights.

    Args:
        params: of a network.
        kind: ``"l2_squared"``, the theory's sum of squares; or ``"norm"``, the sum of
            the arrays' norms, which the authors' code has, with slope 0 at 0.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in REGULARIZERS:
        raise ValueError(unknown_name("kind", kind, REGULARIZERS))
    leaves = [REGULARIZERS[kind](as_float(x)) for x in jax.tree.leaves(params)]
    return sum(leaves, jnp.zeros(()))


@checked()
def regularized(
    coefficient: float, kind: str = "l2_squared"
) -> optax.GradientTransformation:
    """Return what adds the penalty's gradient, to be put before an optimizer.

    Example:
        >>> optimizer = optax.chain(regularized(1e-4), optax.adam(1e-3))

    Args:
        coefficient: of the penalty, at least 0.
        kind: as in `norm_regularizer`.

    Raises:
        ValueError: the coefficient is negative or not finite, or an unknown kind.
    """
    if kind not in REGULARIZERS:
        raise ValueError(unknown_name("kind", kind, REGULARIZERS))

    @optax.stateless
    def add(updates: PyTree, params: PyTree) -> PyTree:
        slopes = jax.grad(norm_regularizer)(params, kind)
        return jax.tree.map(lambda u, s: u + coefficient * s, updates, slopes)

    return add
