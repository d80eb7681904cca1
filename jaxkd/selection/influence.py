"""Influence: what one training example more or less does to the loss of others.

Koh, Liang 2017, arXiv:1703.04730: counting example i by ε more changes the validation
loss by ε·I_i, I_i = −∇L_valᵀ (H + λI)⁻¹ ∇ℓ_i, where H is the mean Hessian of the
training losses at their minimum. Negative: the example helps; positive: it harms.

`last_layer_influence` is exact for a linear last layer, and a score like those of
`jaxkd.selection.scores`. For all parameters there are the products `hvp` and
`gauss_newton_product`, their inverses by conjugate gradients and LiSSA, and
`influence_scores`, by one forward pass for the whole batch.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxkd.arguments import checked, count, finite, fraction, positive, positive_share
from jaxkd.losses.basics import as_float
from jaxkd.losses.divergences import cross_entropy_loss
from jaxkd.selection.seen import Seen
from jaxkd.types import Batch

Losses = Callable[[PyTree, Batch], Array]
"""``(params, batch) ->`` one loss an example, without dropout and the like."""


DENSE = 2000
"""Rows of the largest Hessian that `last_layer_influence` makes."""


class Inverse(NamedTuple):
    """The solution s of (H + λI) s = v.

    Attributes:
        solution: s.
        residual: ‖(H + λI) s − v‖ / ‖v‖.
        converged: whether the residual is within the tolerance.
    """

    solution: PyTree
    residual: Any
    converged: Any


@checked()
def hvp(losses: Losses, params: PyTree, vector: PyTree, batch: Batch) -> PyTree:
    """Return H v, the Hessian of the batch's mean loss times a vector.

    Args:
        losses: ``(params, batch) -> (examples,)``.
        params: where the Hessian is taken.
        vector: v, like ``params``; it is a constant.
        batch: the examples.

    Raises:
        ValueError: the vector is not like the parameters.
    """
    _check_like(params, vector)
    slope = jax.grad(lambda p: losses(p, batch).mean())
    return jax.jvp(slope, (params,), (lax.stop_gradient(vector),))[1]


@checked()
def gauss_newton_product(
    outputs: Callable[[PyTree, Batch], Array],
    losses: Callable[[Array, Batch], Array],
    params: PyTree,
    vector: PyTree,
    batch: Batch,
) -> PyTree:
    """Return JᵀCJ v: the Hessian without the network's own curvature, so never below 0.

    J are the outputs' slopes, C the losses' curvature in the outputs.

    Args:
        outputs: ``(params, batch) -> (examples, …)``, such as logits.
        losses: ``(outputs, batch) -> (examples,)``, convex in the outputs.
        params: where it is taken.
        vector: v, like ``params``.
        batch: the examples.

    Raises:
        ValueError: the vector is not like the parameters.
    """
    _check_like(params, vector)
    z, pull = jax.vjp(lambda p: outputs(p, batch), params)
    _, moved = jax.jvp(lambda p: outputs(p, batch), (params,), (vector,))
    slope = jax.grad(lambda z: losses(z, batch).mean())
    return pull(jax.jvp(slope, (z,), (moved,))[1])[0]


@checked(steps=count, tolerance=positive)
def inverse_hvp_cg(
    product: Callable[[PyTree], PyTree],
    vector: PyTree,
    *,
    damping: float = 0.01,
    steps: int = 100,
    tolerance: float = 1e-3,
) -> Inverse:
    """Return (H + λI)⁻¹ v by conjugate gradients.

    Args:
        product: ``v -> H v``, with H not below 0, as `gauss_newton_product`'s is; a
            Hessian away from a minimum needs a larger λ.
        vector: v.
        damping: λ.
        steps: at most.
        tolerance: of the residual.
    """

    def damped(s: PyTree) -> PyTree:
        return jax.tree.map(lambda h, x: h + damping * x, product(s), s)

    solution, _ = jax.scipy.sparse.linalg.cg(
        damped, vector, tol=0.1 * tolerance, maxiter=steps
    )
    return _inverse(damped, solution, vector, tolerance)


@checked(damping=fraction, scale=positive, depth=count, repeats=count)
def inverse_hvp_lissa(
    key: PRNGKeyArray,
    product: Callable[[PyTree, PRNGKeyArray], PyTree],
    vector: PyTree,
    *,
    damping: float = 0.01,
    scale: float = 25.0,
    depth: int = 5000,
    repeats: int = 1,
    tolerance: float = 0.1,
) -> Inverse:
    """Return (H + λI)⁻¹ v, λ = damping·scale, by a series of products (LiSSA).

    Agarwal, Bullins, Hazan 2017, arXiv:1602.03943, as Koh and Liang use it: h ← v +
    (1 − damping)·h − H h / scale from h = v, and s = h / scale. Authors of influence
    code leave out the last division, which no ranking sees.

    Args:
        key: of the products' batches.
        product: ``(v, key) -> H v`` of a batch drawn by the key, or of all examples.
        vector: v.
        damping: what is lost of h in every step, in [0, 1).
        scale: above the largest eigenvalue of H, or the series grows without end.
        depth: steps.
        repeats: series, whose mean is returned.
        tolerance: of the residual.
    """

    def series(key: PRNGKeyArray) -> PyTree:
        def step(h: PyTree, key: PRNGKeyArray) -> tuple[PyTree, None]:
            curved = product(h, key)
            return jax.tree.map(
                lambda v, h, c: v + (1 - damping) * h - c / scale, vector, h, curved
            ), None

        return lax.scan(step, vector, jax.random.split(key, depth))[0]

    found = lax.map(series, jax.random.split(key, repeats))
    solution = jax.tree.map(lambda h: h.mean(0) / scale, found)

    def damped(s: PyTree) -> PyTree:
        curved = product(s, key)
        return jax.tree.map(lambda c, x: c + damping * scale * x, curved, s)

    return _inverse(damped, solution, vector, tolerance)


@checked()
def inverse_hvp_last_layer(
    curvature: Float[Array, "examples classes classes"],
    features: Float[Array, "examples features"],
    vector: Float[Array, "classes features"],
    *,
    damping: float = 0.01,
    tolerance: float = 1e-3,
) -> Inverse:
    """Return (H + λI)⁻¹ v for a linear last layer, H = mean of C_i ⊗ h_i h_iᵀ, exactly.

    For losses that are convex in the logits H is their Hessian itself. It has (classes
    · features)² entries: for more than some thousands take `inverse_hvp_cg`.

    Args:
        curvature: C_i, of each example's loss in its logits.
        features: h_i, what the layer reads, a 1 for the bias included.
        vector: v.
        damping: λ.
        tolerance: of the residual.
    """
    n, classes, _ = curvature.shape
    width = features.shape[1]
    squares = features[:, :, None] * features[:, None, :]
    with jax.default_matmul_precision("highest"):
        hessian = curvature.reshape(n, -1).T @ squares.reshape(n, -1) / n
        hessian = hessian.reshape(classes, classes, width, width)
        hessian = hessian.transpose(0, 2, 1, 3).reshape(classes * width, -1)
        damped = hessian + damping * jnp.eye(len(hessian))
        solution = jnp.linalg.solve(damped, vector.ravel())
        found = _inverse(lambda s: damped @ s, solution, vector.ravel(), tolerance)
    return found._replace(solution=solution.reshape(classes, width))


@checked()
def influence_scores(
    losses: Losses, params: PyTree, solution: PyTree, batches: Iterable[Batch]
) -> Float[Array, "examples"]:
    """Return every example's influence −⟨s, ∇ℓ_i⟩, negative where it helps.

    The slopes of all losses along s are one forward-mode derivative: no example's
    gradient is ever made.

    Args:
        losses: ``(params, batch) -> (examples,)``.
        params: where the gradients are taken.
        solution: s = (H + λI)⁻¹ ∇L_val; ∇L_val itself for products of gradients alone
            (TracIn, Pruthi et al. 2020, arXiv:2002.08484).
        batches: all training examples in their order.

    Raises:
        ValueError: no batches, or a solution that is not like the parameters.
    """
    _check_like(params, solution)

    @jax.jit
    def slopes(params: PyTree, solution: PyTree, batch: Batch) -> Array:
        return jax.jvp(lambda p: losses(p, batch), (params,), (solution,))[1]

    found = [-slopes(params, solution, batch) for batch in batches]
    if not found:
        raise ValueError("batches is empty: there is no example to score")
    return jnp.concatenate(found)


@checked()
def last_layer_influence(
    seen: Seen,
    validation: Seen,
    losses: Callable[[Array], Array] | None = None,
    *,
    damping: float = 0.01,
) -> Float[Array, "examples"]:
    """Return every example's influence through the last linear layer: HIGH harms.

    The gradient is (∂ℓ_i/∂z_i) ⊗ [h_i; 1], and the Hessian exact. It is inverted by
    `inverse_hvp_last_layer`, or by conjugate gradients where it has over 2,000 rows.
    With several networks the influence is the mean over them.

    Args:
        seen: ``logits`` and ``features`` h of the training examples.
        validation: likewise, of examples with labels to be trusted, whose mean
            cross-entropy counts; never of the test.
        losses: ``logits (examples, classes) -> (examples,)``, what was trained on, of
            these examples in their order; None for the cross-entropy with the labels.
        damping: λ.

    Raises:
        ValueError: something is missing or does not fit.
    """
    train, held_out = (x.need("logits", "features") for x in (seen, validation))
    labels = jnp.asarray(seen.labels)
    trained = losses or (lambda z: cross_entropy_loss(z, labels))

    def held_out_losses(z: Array) -> Array:
        return cross_entropy_loss(z, jnp.asarray(validation.labels))

    def one(z: Array, h: Array, z_val: Array, h_val: Array) -> Array:
        h, h_val = (jnp.pad(x, ((0, 0), (0, 1)), constant_values=1) for x in (h, h_val))
        slope = jax.grad(lambda z: trained(z).sum())
        vector = jax.grad(lambda z: held_out_losses(z).mean())(z_val).T @ h_val

        def curved(direction: Array) -> Array:
            return jax.jvp(slope, (z,), (jnp.broadcast_to(direction, z.shape),))[1]

        if vector.size > DENSE:
            solution = inverse_hvp_cg(
                lambda v: curved(h @ v.T).T @ h / len(h), vector, damping=damping
            )[0]
        else:
            # An example's loss reads its own logits alone: one direction serves all.
            eye = jnp.eye(z.shape[-1], dtype=z.dtype)
            curvature = jax.vmap(curved, out_axes=1)(eye)
            solution = inverse_hvp_last_layer(curvature, h, vector, damping=damping)[0]
        return -jnp.sum((slope(z) @ solution) * h, axis=-1)

    arrays = [as_float(x) for x in (*train, *held_out)]
    return lax.map(lambda some: one(*some), arrays).mean(0)


@checked(sign=finite, slope=positive, clip=positive, keep=positive_share)
def influence_weights(
    scores: Float[Array, "examples"],
    kind: Literal["sigmoid", "exp", "linear", "topk"] = "sigmoid",
    *,
    sign: int = -1,
    slope: float = 3.0,
    clip: float | None = 3.0,
    keep: float = 0.7,
    normalize: bool = True,
) -> Float[Array, "examples"]:
    """Return weights of training examples, larger for those that help.

    With x the scores times the sign over their standard deviation, cut off at ±clip:
    ``sigmoid`` is σ(slope·x). Of x brought to [−1, 1] by its least and greatest,
    ``exp`` is eˣ and ``linear`` 1 + x. ``topk`` is 1 for the best and 0 for the rest.

    Wu et al. 2025 (KD-AIF), arXiv:2501.02705. Their example has ``kind="exp", sign=1,
    clip=None, normalize=False``: by that sign examples that harm weigh more.

    Args:
        scores: influences, negative where an example helps.
        kind: of the weights.
        sign: −1 favours what helps, 1 what harms.
        slope: of the sigmoid.
        clip: deviations at most; None for any.
        keep: share of the examples that ``topk`` keeps, in (0, 1].
        normalize: whether to divide by the mean, so that the learning rate stays.

    Raises:
        ValueError: a sign that is not 1 or −1.
    """
    if sign not in (1, -1):
        raise ValueError(f"sign must be 1 or -1, got {sign}")
    scores = as_float(scores)
    spread = scores.std()
    constant = spread == 0
    x = sign * scores / jnp.where(constant, 1, spread)
    if clip is not None:
        x = jnp.clip(x, -clip, clip)
    low, high = x.min(), x.max()
    unit = 2 * (x - low) / jnp.where(constant, 1, high - low) - 1
    if kind == "topk":
        count = max(round(keep * len(x)), 1)
        weights = jnp.zeros_like(x).at[lax.top_k(x, count)[1]].set(1)
    elif kind == "sigmoid":
        weights = jax.nn.sigmoid(slope * x)
    else:
        weights = jnp.exp(unit) if kind == "exp" else 1 + unit
    weights = jnp.where(constant, 1, weights)
    return weights / weights.mean() if normalize else weights


def _inverse(
    damped: Callable[[PyTree], PyTree],
    solution: PyTree,
    vector: PyTree,
    tolerance: float,
) -> Inverse:
    """Return a solution with its residual."""

    def length(tree: PyTree) -> Array:
        return jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))

    error = length(jax.tree.map(jnp.subtract, damped(solution), vector))
    size = length(vector)
    residual = error / jnp.where(size == 0, 1, size)
    return Inverse(solution, residual, residual <= tolerance)


def _check_like(params: PyTree, vector: PyTree) -> None:
    shapes = [
        {jax.tree_util.keystr(path): jnp.shape(x) for path, x in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (params, vector))
    ]
    if shapes[0] != shapes[1]:
        other = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
        raise ValueError(
            f"the vector is not like the parameters: they differ in {other[:4]}; make "
            "it by jax.grad of a loss of these parameters"
        )
