"""What holds of every loss on class logits, checked by one jitted program a loss.

The program takes all cases at once, stacked: random, identical and constant logits,
logits of ±1e4, classes at −∞, one class left, NaN at masked examples, and a batch that
is masked out. Beside them stands the batch with classes at −∞ without those classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.losses.basics import weighted_mean

BATCH, CLASSES = 6, 8
KEPT = np.array([0, 2, 3, 5, 7])
"""Classes that exist in the case ``suppressed``."""

MASK = np.array([1, 1, 0, 1, 0, 1], "f4")


class Law(NamedTuple):
    """A loss, and what holds of it beside what holds of all.

    Attributes:
        loss: ``(student, teacher, labels, weights, theta)`` to one loss an example, or
            to the batch's. A loss of examples need not read the weights.
        frozen: the teacher gets no gradient.
        minimum: value and gradient are 0 where student and teacher are identical.
        alone: an example is compared with itself, not with one of other classes.
        shared: with one class left there is nothing to learn, since classes share
            what probability there is.
    """

    loss: Callable[..., jax.Array]
    frozen: bool = True
    minimum: bool = False
    alone: bool = True
    shared: bool = True


class Case(NamedTuple):
    """One batch: logits (batch, classes), labels and weights of the examples."""

    student: np.ndarray
    teacher: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


def cases() -> dict[str, Case]:
    """Return the batches by name; the masked one has a twin without NaN."""
    rng = np.random.default_rng(0)

    def draw(scale: float = 3.0) -> np.ndarray:
        return rng.normal(0, scale, (BATCH, CLASSES)).astype("f4")

    s, t, ones = draw(), draw(), np.ones(BATCH, "f4")
    labels = KEPT[rng.integers(0, len(KEPT), BATCH)]

    def without(gone: np.ndarray) -> Case:
        return Case(*(np.where(gone, -np.inf, x) for x in (s, t)), labels, ones)

    suppressed = np.isin(np.arange(CLASSES), KEPT, invert=True)[None]
    is_label = labels[:, None] == np.arange(CLASSES)
    masked = MASK[:, None] == 0

    def hidden(values: float) -> Case:
        both = (np.where(masked, np.float32(values), x) for x in (s, t))
        return Case(*both, np.where(MASK > 0, labels, -1), MASK)

    nan = np.full_like(s, np.nan)
    return {
        "random": Case(s, t, labels, ones),
        "identical": Case(t, t, labels, ones),
        "zeros": Case(0 * s, 0 * t, labels, ones),
        "constant student": Case(0 * s + 1, t, labels, ones),
        "opposed": Case(1e4 * np.sign(s), -1e4 * np.sign(s), labels, ones),
        "sure": Case(1e4 * is_label, 1e4 * np.sign(t), labels, ones),
        "spread": Case(draw(1e4), draw(1e4), labels, ones),
        "suppressed": without(suppressed),
        "ragged": without((rng.random(s.shape) < 0.4) & ~is_label),
        "one class": without(~is_label),
        "no class": without(np.ones_like(is_label)),
        "other": hidden(7),
        "masked": hidden(np.nan),
        "all masked": Case(nan, nan, labels - 9, 0 * ones),
    }


CASES = cases()


def check(law: Law) -> None:
    """Hold a loss to all laws."""

    def total(case: Case, theta):
        values = law.loss(*case, theta)
        if values.ndim:
            values = weighted_mean(values, case.weights)
        return values

    def slopes(case: Case, theta):
        def of(student, teacher, theta):
            return total(case._replace(student=student, teacher=teacher), theta)

        return jax.value_and_grad(of, (0, 1, 2))(case.student, case.teacher, theta)

    @jax.jit
    def program(stacked: Case, small: Case):
        theta = jnp.array(0.3)
        return jax.vmap(lambda case: slopes(case, theta))(stacked), slopes(small, theta)

    big = CASES["suppressed"]
    small = Case(
        *(x[:, KEPT] for x in big[:2]), np.searchsorted(KEPT, big.labels), big.weights
    )
    stacked = Case(*(np.stack(x) for x in zip(*CASES.values(), strict=True)))
    found, alone = jax.tree.map(np.asarray, program(stacked, small))
    results = {
        name: jax.tree.map(lambda x, i=i: x[i], found) for i, name in enumerate(CASES)
    }
    for name, (value, (own, other, theta)) in results.items():
        if name in ("ragged", "one class") and not law.alone:
            continue
        counts = CASES[name].weights > 0
        assert np.isfinite(value) or name == "no class", name
        assert np.isfinite(own[counts]).all(), name
        if law.frozen:
            assert (other[counts] == 0).all(), name
        if name not in ("masked", "all masked"):
            assert np.isfinite(theta), name
        assert (own[np.isneginf(CASES[name].student)] == 0).all(), name

    value, (own, *_) = results["suppressed"]
    expected, (slope, *_) = alone
    close(value, expected)
    close(own[:, KEPT], slope)
    if law.minimum:
        value, (own, *_) = results["identical"]
        np.testing.assert_allclose(value, 0, atol=2e-5)
        np.testing.assert_allclose(own, 0, atol=2e-5)
    if law.shared and law.alone:
        np.testing.assert_allclose(results["one class"][1][0], 0, atol=1e-6)
    np.testing.assert_array_equal(results["masked"][0], results["other"][0])
    counts = MASK > 0
    close(results["masked"][1][0][counts], results["other"][1][0][counts])
    assert results["all masked"][0] == 0
    half = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in CASES["random"][:2]]
    loss = jax.eval_shape(law.loss, *half, *CASES["random"][2:], 0.3)
    assert loss.dtype == jnp.float32
    if loss.ndim == 0:
        # It has the weights: what it masks must not reach the gradient either.
        np.testing.assert_array_equal(results["masked"][1][0][~counts], 0)
        np.testing.assert_array_equal(results["all masked"][1][0], 0)


def close(found, expected):
    """Compare to 1e-5 of the largest entry."""
    np.testing.assert_allclose(
        found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max() + 1e-7
    )
