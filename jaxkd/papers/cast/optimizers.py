"""CAST: dense training that ends N:M sparse, and the optimizers it is compared with.

Huang et al. 2025, arXiv:2509.25996. The forward pass stays dense. An Adam whose
direction is bent draws the weights that an N:M mask drops to 0, harder and harder, so
that pruning at the end removes only zeros. The dense model teaches meanwhile:
``combine((1 - eta, cross_entropy()), (eta, kd(1.0)))`` with η = 1/3 for Llama (Eq. 13).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxkd.arguments import checked, count, positive
from jaxkd.compression.prune.sparsity import (
    named,
    nested,
    nm_masks,
    path_name,
    prune,
    weights_in_scope,
)

Pull = Callable[[Array, Array, Array], Array]
"""``(first moment, weights, step) ->`` the direction of the weights that are dropped"""


class MaskedAdamState(NamedTuple):
    """The state of `masked_adam`.

    Attributes:
        count: steps done.
        mu: first moment of the gradient, nothing else in it.
        nu: second moment, in scope that of the bent direction.
        mask: the weights kept, each at its weight's path and of its shape, so that it
            lies on a mesh as the weight does.
    """

    count: Array
    mu: PyTree
    nu: PyTree
    mask: PyTree


@checked(eps=positive, decay=positive)
def adams(
    learning_rate: float | optax.Schedule,
    decay: float,
    share: optax.Schedule,
    scope: str,
    *,
    mask_every: int = 10,
    n: int = 2,
    m: int = 4,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Return AdamS: Adam with an L1 pull on the weights that a mask drops.

    Huang et al. 2025, arXiv:2509.25996, Algorithm 1 and Eq. 7-8: for a dropped weight
    θ the direction is (1 − α_t)·μ_t + α_t·λ·sign(θ), whose square also makes the second
    moment. Since it is divided by its own size, once the pull dominates a step is about
    the learning rate, whatever λ: λ, of the order of the gradient, sets when that is;
    the learning rates to come set how far a weight can shrink (`decay_budget`), and the
    last of them how close to 0 it ends.

    Args:
        learning_rate: a number, or a schedule of the step; let it decay.
        decay: λ > 0; the paper's 4e-7 goes with the rate 2e-5 and Llama 2 7B.
        share: α_t in [0, 1] by the step; the paper's is
            ``optax.linear_schedule(0.0, 1.0, steps)`` over the planned steps.
        scope: the weights' paths, as in `compression.prune.sparsity`.
        mask_every: steps between new masks, which are of the weights before the step.
        n: weights kept of every m.
        m: consecutive inputs.
        b1: of the first moment.
        b2: of the second.
        eps: added to its root.

    Raises:
        ValueError: λ that is not above 0, or what `masked_adam` refuses.
    """

    def pull(mu: Array, weights: Array, step: Array) -> Array:
        alpha = share(step)
        return jnp.asarray((1 - alpha) * mu + alpha * decay * jnp.sign(weights))

    return masked_adam(
        learning_rate, pull, scope, mask_every, n=n, m=m, b1=b1, b2=b2, eps=eps
    )


@checked(eps=positive)
def ast_adam(
    learning_rate: float | optax.Schedule,
    decay: optax.Schedule,
    scope: str,
    *,
    mask_every: int = 10,
    n: int = 2,
    m: int = 4,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Return AST's optimizer: Adam with an L2 pull on the weights that a mask drops.

    Huang et al. 2024, "Pruning Large Language Models with Semi-Structural Adaptive
    Sparse Training", arXiv:2407.20584: their direction is μ_t + λ_t·θ, the second
    moment its square. It goes with the forward pass of `straight_through`, whose masks
    must be renewed as often.

    Args:
        learning_rate: a number, or a schedule of the step.
        decay: λ_t; the authors' code has
            ``optax.linear_schedule(0.0, 1e-4, 10_000)`` for 40,000 steps.
        scope: as in `adams`.
        mask_every: likewise.
        n: likewise.
        m: likewise.
        b1: likewise.
        b2: likewise.
        eps: likewise.

    Raises:
        ValueError: what `masked_adam` refuses.
    """
    return masked_adam(
        learning_rate,
        lambda mu, weights, step: mu + decay(step) * weights,
        scope,
        mask_every,
        n=n,
        m=m,
        b1=b1,
        b2=b2,
        eps=eps,
    )


@checked(eps=positive, mask_every=count)
def masked_adam(
    learning_rate: float | optax.Schedule,
    pull: Pull,
    scope: str,
    mask_every: int = 10,
    *,
    n: int = 2,
    m: int = 4,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Return Adam that takes another direction for weights that an N:M mask drops.

    The mask is renewed every ``mask_every`` steps, the first included, from the weights
    before the step. The other direction is not kept in the first moment. Parameters out
    of scope have plain Adam.

    Args:
        learning_rate: a number, or a schedule of the step.
        pull: ``(first moment, weights, step) -> direction``.
        scope: as in `adams`.
        mask_every: likewise.
        n: likewise.
        m: likewise.
        b1: likewise.
        b2: likewise.
        eps: likewise.

    Raises:
        ValueError: ``mask_every`` below 1; from ``init``, nothing in scope, inputs that
            m does not divide, or weights of less than 32 bits, in which the pull would
            be lost; from ``update``, no ``params``.
    """

    def init(params: PyTree) -> MaskedAdamState:
        for name, weight in weights_in_scope(params, scope).items():
            if jnp.finfo(weight.dtype).bits < 32:
                raise ValueError(
                    f"{name} is {weight.dtype}, in which a small pull is rounded off: "
                    "train float32 parameters, with network.computing_in(jnp.bfloat16)"
                )
        return MaskedAdamState(
            jnp.zeros((), jnp.int32),
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(jnp.zeros_like, params),
            nested(nm_masks(params, scope, n, m)),
        )

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None
    ) -> tuple[PyTree, MaskedAdamState]:
        if params is None:
            raise ValueError(
                "params is None, but the masks and the pull are of the weights: pass "
                "update(updates, state, params)"
            )
        step = state.count
        mask = jax.lax.cond(
            step % mask_every == 0,
            lambda: nested(nm_masks(params, scope, n, m)),
            lambda: state.mask,
        )
        kept = named(mask)

        def bend(path: tuple, mu: Array, weights: Array) -> Array:
            name = path_name(path)
            if name not in kept:
                return mu
            return jnp.where(kept[name], mu, pull(mu, weights, step))

        def square(path: tuple, nu: Array, bent: Array, gradient: Array) -> Array:
            source = bent if path_name(path) in kept else gradient
            return b2 * nu + (1 - b2) * source**2

        mu = jax.tree.map(lambda mu, g: b1 * mu + (1 - b1) * g, state.mu, updates)
        bent = jax.tree_util.tree_map_with_path(bend, mu, params)
        nu = jax.tree_util.tree_map_with_path(square, state.nu, bent, updates)
        rate = jnp.asarray(
            learning_rate(step) if callable(learning_rate) else learning_rate
        )
        first, second = _debias(b1, step), _debias(b2, step)
        updates = jax.tree.map(
            lambda bent, nu: -rate * (bent / first) / (jnp.sqrt(nu / second) + eps),
            bent,
            nu,
        )
        return updates, MaskedAdamState(step + 1, mu, nu, mask)

    return optax.GradientTransformation(init, update)


def _debias(decay: float, step: Array) -> Array:
    """Return 1 − decay^(step + 1), of which a power in float32 keeps few digits."""
    log = math.log(decay) if decay else -math.inf
    return -jnp.expm1((step + 1) * log)


@checked()
def keep_zeros(scope: str) -> optax.GradientTransformation:
    """Return the transformation that leaves weights in scope at 0 where they are 0.

    After an optimizer in ``optax.chain`` it trains a pruned network under its fixed
    mask.

    Args:
        scope: as in `adams`.

    Raises:
        ValueError: from ``init``, nothing in scope; from ``update``, no ``params``.
    """

    def init(params: PyTree) -> optax.EmptyState:
        weights_in_scope(params, scope)
        return optax.EmptyState()

    def update(updates, state, params=None):
        if params is None:
            raise ValueError("params is None: pass update(updates, state, params)")
        held = {
            name: weight != 0
            for name, weight in weights_in_scope(params, scope).items()
        }
        return prune(updates, held), state

    return optax.GradientTransformation(init, update)


@checked()
def decay_budget(
    learning_rate: float | optax.Schedule, share: optax.Schedule, steps: int
) -> float:
    """Return Σ_t lr_t·α_t: about how far `adams` can shrink a weight in so many steps.

    Compare it with the weights' mean magnitude before a run: where it is smaller,
    pruning at the end still removes something, whatever λ.

    Args:
        learning_rate: of `adams`.
        share: of `adams`.
        steps: of the run.
    """
    rate = learning_rate if callable(learning_rate) else lambda step: learning_rate
    at = jnp.arange(steps)
    return float(jnp.sum(jax.vmap(lambda step: rate(step) * share(step))(at)))
