"""Kernel ridge regression that learns from its own fits, step by step and in one.

Borup, Andersen 2021, arXiv:2102.13088. With a kernel's matrix G of the training inputs
and S = G (G + λI)⁻¹, the fits are y⁽¹⁾ = S Y and

    y⁽ᵗ⁾ = S target⁽ᵗ⁾,  target⁽ᵗ⁾ = α_t Y + (1 − α_t) y⁽ᵗ⁻¹⁾,

so that α weighs the ground truth: 1 is the plain fit at every step, 0 learns from the
last fit alone. In G's eigenvectors all of it is diagonal. λ stands on the diagonal as
it is, not times the number of inputs.

All in NumPy and float64: small λ and many steps leave float32 no digit.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float
from scipy.linalg import cho_factor, cho_solve
from scipy.spatial.distance import cdist

from jaxkd.arguments import checked, count, positive, probability

Matrix = Float[np.ndarray, "rows columns"]
Numbers = np.ndarray | Array | Sequence[Any] | float | int


class Fits(NamedTuple):
    """Fits on the training and on other inputs.

    Attributes:
        train: y⁽ᵗ⁾, (inputs, outputs); of several steps with these on the first axis.
        query: f⁽ᵗ⁾, the same for the other inputs.
    """

    train: Float[np.ndarray, "... inputs outputs"]
    query: Float[np.ndarray, "... queries outputs"]


@checked(gamma=positive)
def rbf_kernel(x1: Numbers, x2: Numbers, gamma: float) -> Matrix:
    """Return exp(−γ‖x − x'‖²) of all pairs.

    Args:
        x1: (inputs, features).
        x2: (others, features).
        gamma: γ > 0.

    Raises:
        ValueError: γ is not above 0, or the inputs' sizes differ.
    """
    first, second = _matrix("x1", x1), _matrix("x2", x2)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"x1 has {first.shape[1]} features and x2 {second.shape[1]}: give inputs "
            "of the same kind"
        )
    return np.exp(-gamma * cdist(first, second, "sqeuclidean"))


@checked(lam=positive)
def ridge_smoother(gram: Numbers, lam: float) -> Matrix:
    """Return S = G (G + λI)⁻¹, which takes targets to fits.

    Args:
        gram: G, (inputs, inputs), symmetric.
        lam: λ > 0.

    Raises:
        ValueError: G is not square or not symmetric, or λ is not above 0.
    """
    matrix = _gram(gram)
    # G and (G + λI)⁻¹ commute.
    return cho_solve(_factor(matrix, lam), matrix)


@checked(lam=positive, steps=count)
def krr_self_distill(
    gram: Numbers,
    k_query: Numbers,
    y: Numbers,
    lam: float,
    alphas: Numbers,
    steps: int,
) -> Fits:
    """Return the fits of all steps, each trained on the one before.

    Args:
        gram: G, (inputs, inputs).
        k_query: the kernel of other inputs with the training inputs, (queries, inputs).
        y: Y, (inputs, outputs).
        lam: λ > 0.
        alphas: α, one for all steps or one a step; the first is not used, as the first
            step's target is Y.
        steps: at least 1.

    Returns:
        (steps, inputs, outputs) and (steps, queries, outputs).

    Raises:
        ValueError: sizes do not fit each other, λ is not above 0, steps is below 1, or
            alphas has another length.
    """
    matrix, kernel, targets = _problem(gram, k_query, y)
    weights = _alphas(alphas, steps)
    factor = _factor(matrix, lam)
    train, query = [], []
    target = targets
    for step in range(steps):
        if step:
            target = weights[step] * targets + (1 - weights[step]) * train[-1]
        coefficients = cho_solve(factor, target)
        train.append(matrix @ coefficients)
        query.append(kernel @ coefficients)
    return Fits(np.stack(train), np.stack(query))


@checked(lam=positive, step=count)
def self_distill_closed_form(
    gram: Numbers,
    k_query: Numbers,
    y: Numbers,
    lam: float,
    alphas: Numbers,
    step: int,
) -> Fits:
    """Return the fit of one step without those before it.

    Args:
        gram: as in `krr_self_distill`, like all that follow.
        k_query: kernel of the other inputs.
        y: Y.
        lam: λ.
        alphas: α, one for all steps or one for each of the first ``step``.
        step: t ≥ 1.

    Raises:
        ValueError: as in `krr_self_distill`.
    """
    matrix, kernel, targets = _problem(gram, k_query, y)
    weights = _alphas(alphas, step)
    d, vectors = _spectrum(matrix)
    share = _target_share(d / (d + lam), weights)
    return _fits(d, vectors, kernel, share / (d + lam), targets)


@checked(lam=positive, alpha=probability)
def self_distill_limit(
    gram: Numbers, k_query: Numbers, y: Numbers, lam: float, alpha: float
) -> Fits:
    """Return the fit after infinitely many steps with one α.

    It is the plain fit with λ/α for λ, and 0 for α = 0.

    Args:
        gram: as in `krr_self_distill`, like all that follow.
        k_query: kernel of the other inputs.
        y: Y.
        lam: λ.
        alpha: α in [0, 1].

    Raises:
        ValueError: as in `krr_self_distill`, or α is outside [0, 1].
    """
    matrix, kernel, targets = _problem(gram, k_query, y)
    d, vectors = _spectrum(matrix)
    return _fits(d, vectors, kernel, alpha / (alpha * d + lam), targets)


@checked(lam=positive, step=count)
def spectral_shrinkage(
    eigenvalues: Numbers, lam: float, alphas: Numbers, step: int
) -> Float[np.ndarray, "inputs"]:
    """Return the diagonal of B⁽ᵗ⁾, by which a step shrinks Y in G's eigenvectors.

    y⁽ᵗ⁾ = V B⁽ᵗ⁾ Vᵀ Y. Smaller directions shrink faster, the more so the more steps;
    with α > 0 the ratio of two directions stays bounded.

    Args:
        eigenvalues: of G, in any order.
        lam: λ > 0.
        alphas: α, one for all steps or one for each of the first ``step``.
        step: t ≥ 1.

    Raises:
        ValueError: an eigenvalue is negative by more than rounding, λ is not above 0,
            t is below 1, or alphas has another length.
    """
    d = np.asarray(eigenvalues, np.float64)
    if d.ndim != 1 or not len(d):
        raise ValueError(f"eigenvalues must be a vector, got shape {d.shape}")
    shrunk = _nonnegative(d)
    a = shrunk / (shrunk + lam)
    return a * _target_share(a, _alphas(alphas, step))


class Weight(NamedTuple):
    """The α that fits best.

    Attributes:
        value: α.
        determined: False where both predictions are the same, so that any α would do
            and 1 is returned.
    """

    value: float
    determined: bool


@checked()
def optimal_distill_weight(
    p_label: Numbers, p_distill: Numbers, y_val: Numbers, *, clip: bool = False
) -> Weight:
    """Return the α whose mix of two predictions is closest to the truth.

    α p₁ + (1 − α) p₀ is closest to Y in squares at α* = ⟨Y − p₀, p₁ − p₀⟩/‖p₁ − p₀‖².
    It is exact where predictions are linear in targets, and an estimate for networks,
    at the cost of two trainings a step.

    Args:
        p_label: p₁ on validation inputs, of the model trained on the ground truth.
        p_distill: p₀, of the one trained on the last step's predictions alone.
        y_val: the truth Y.
        clip: whether α is kept in [0, 1]. Outside it the mix extrapolates.

    Raises:
        ValueError: shapes differ, or a value is not finite.
    """
    named = {"p_label": p_label, "p_distill": p_distill, "y_val": y_val}
    p1, p0, truth = (_finite(name, value) for name, value in named.items())
    if not p1.shape == p0.shape == truth.shape:
        raise ValueError(
            f"p_label has shape {p1.shape}, p_distill {p0.shape} and y_val "
            f"{truth.shape}: give all three for the same inputs and outputs"
        )
    difference = p1 - p0
    square = np.vdot(difference, difference)
    if square == 0:
        return Weight(1.0, determined=False)
    found = float(np.vdot(truth - p0, difference) / square)
    return Weight(min(max(found, 0.0), 1.0) if clip else found, determined=True)


@checked(lam=positive, steps=count)
def greedy_optimal_weights(
    gram: Numbers,
    k_val: Numbers,
    y: Numbers,
    y_val: Numbers,
    lam: float,
    steps: int,
    *,
    clip: bool = False,
) -> tuple[Float[np.ndarray, "steps"], Fits]:
    """Return the best α of every step, each given those before it, and the fits.

    Args:
        gram: as in `krr_self_distill`.
        k_val: the kernel of validation inputs with the training inputs.
        y: Y.
        y_val: the truth at the validation inputs.
        lam: λ.
        steps: at least 1; the first one's α is 1.
        clip: whether every α is kept in [0, 1].

    Raises:
        ValueError: as in `krr_self_distill` and `optimal_distill_weight`.
    """
    matrix, kernel, targets = _problem(gram, k_val, y)
    alphas = _alphas(1.0, steps)
    factor = _factor(matrix, lam)
    coefficients = [plain := cho_solve(factor, targets)]
    for step in range(1, steps):
        pure = cho_solve(factor, matrix @ coefficients[-1])
        best = optimal_distill_weight(kernel @ plain, kernel @ pure, y_val, clip=clip)
        alphas[step] = best.value
        coefficients.append(best.value * plain + (1 - best.value) * pure)
    stacked = np.stack(coefficients)
    return alphas, Fits(matrix @ stacked, kernel @ stacked)


def _target_share(a: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Return target⁽ᵗ⁾ over Y in each eigenvector, for fits that shrink by a."""
    steps = len(alphas)
    # left[i] = Π of 1 − α_j over the steps after the i-th, counted from 0.
    left = np.append(np.cumprod(1 - alphas[:0:-1])[::-1], 1.0)
    powers = a[:, None] ** np.arange(steps)[::-1]
    # The first step's target is Y, whatever its α.
    return powers @ (np.append(1.0, alphas[1:]) * left)


def _fits(
    d: np.ndarray,
    vectors: np.ndarray,
    kernel: np.ndarray,
    coefficients: np.ndarray,
    targets: np.ndarray,
) -> Fits:
    spectral = coefficients[:, None] * (vectors.T @ targets)
    return Fits(vectors @ (d[:, None] * spectral), kernel @ (vectors @ spectral))


def _spectrum(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    d, vectors = np.linalg.eigh(gram)
    return _nonnegative(d), vectors


def _nonnegative(d: np.ndarray) -> np.ndarray:
    if d.min() < -1e-8 * max(abs(d).max(), 1.0):
        raise ValueError(
            f"the kernel's matrix has the eigenvalue {d.min():.3g}: a kernel has none "
            "below 0"
        )
    return np.maximum(d, 0.0)


def _factor(gram: np.ndarray, lam: float) -> Any:
    return cho_factor(gram + lam * np.eye(len(gram)))


def _problem(
    gram: Numbers, k_query: Numbers, y: Numbers
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    matrix = _gram(gram)
    kernel, targets = _matrix("k_query", k_query), _matrix("y", y)
    if kernel.shape[1] != len(matrix) or len(targets) != len(matrix):
        raise ValueError(
            f"gram is of {len(matrix)} training inputs, but k_query has shape "
            f"{kernel.shape} and y {targets.shape}: give (queries, {len(matrix)}) and "
            f"({len(matrix)}, outputs)"
        )
    return matrix, kernel, targets


def _gram(gram: Numbers) -> np.ndarray:
    matrix = _matrix("gram", gram)
    if matrix.shape[0] != matrix.shape[1] or not np.allclose(matrix, matrix.T):
        raise ValueError(
            f"gram must be square and symmetric, got shape {matrix.shape}: give the "
            "kernel of the training inputs with themselves"
        )
    return matrix


def _matrix(name: str, value: Numbers) -> np.ndarray:
    array = _finite(name, value)
    if array.ndim != 2 or not array.size:
        raise ValueError(
            f"{name} must be a matrix with at least one entry, got shape "
            f"{array.shape}: write a vector as one column, {name}[:, None]"
        )
    return array


def _finite(name: str, value: Numbers) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite: clean the data")
    return array


def _alphas(alphas: Numbers, steps: int) -> np.ndarray:
    given = _finite("alphas", alphas)
    if given.shape not in ((), (steps,)):
        raise ValueError(
            f"alphas has shape {given.shape}: give one number, or one for each of the "
            f"{steps} steps"
        )
    return np.array(np.broadcast_to(given, (steps,)))
