"""Losses on a router's logits: that its experts share the tokens, and stay finite.

``weights`` are one a token; a token of weight 0 is as good as absent.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked, count
from jaxkd.losses.basics import as_float, logsumexp, zero_masked

Scores = Literal["softmax", "sigmoid"]


@checked(k=count)
def expert_load(
    logits: Float[Array, "tokens experts"],
    k: int = 2,
    weights: Float[Array, "tokens"] | None = None,
) -> Float[Array, "experts"]:
    """Return which share of the tokens' k choices goes to each expert; they sum to 1.

    Args:
        logits: the router's.
        k: experts of a token.
        weights: one a token.

    Raises:
        ValueError: k is above the number of experts.
    """
    tokens, experts = logits.shape
    if k > experts:
        raise ValueError(f"k is {k}, but logits has {experts} experts")
    counted = jnp.ones(tokens) if weights is None else as_float(weights)
    _, chosen = jax.lax.top_k(zero_masked(as_float(logits), weights), k)
    load = jnp.zeros(experts).at[chosen].add(counted[:, None])
    return load / jnp.maximum(load.sum(), 1e-12)


@checked(k=count)
def load_balance_loss(
    logits: Float[Array, "tokens experts"],
    k: int = 2,
    weights: Float[Array, "tokens"] | None = None,
    scores: Scores = "softmax",
) -> Float[Array, ""]:
    """Return experts · Σ_e load_e · p_e: 1 where all experts get as much, more if not.

    Fedus, Zoph, Shazeer 2021, arXiv:2101.03961, Eq. 4-6: the load is `expert_load`,
    which has no gradient, and p the tokens' mean probability of each expert. The loss
    that transformers adds for Mixtral and Qwen3-MoE is k times this one, over the
    tokens of all layers together. Of the tokens of one sequence, with ``"sigmoid"``,
    it is that of DeepSeek-AI 2024, arXiv:2412.19437, Eq. 17-20.

    Args:
        logits: the router's.
        k: experts of a token.
        weights: one a token; 0 where none counts.
        scores: of which a token's probabilities are the shares: ``"softmax"``, or
            ``"sigmoid"`` for routers of `sigmoid_of_top`.

    Raises:
        ValueError: k is above the number of experts.
    """
    logits = zero_masked(as_float(logits), weights)
    counted = jnp.ones(len(logits)) if weights is None else as_float(weights)
    load = jax.lax.stop_gradient(expert_load(logits, k, weights))
    share = counted / jnp.maximum(counted.sum(), 1e-12)
    # Shares of sigmoids are the softmax of their logarithms, finite at any logits.
    logits = jax.nn.log_sigmoid(logits) if scores == "sigmoid" else logits
    mean = jnp.einsum("t,te->e", share, jax.nn.softmax(logits), precision="highest")
    return logits.shape[-1] * jnp.sum(load * mean)


def router_z_loss(logits: Float[Array, "*tokens experts"]) -> Float[Array, "*tokens"]:
    """Return logsumexp(logits)² of each token, which keeps a router's logits small.

    Zoph et al. 2022, arXiv:2202.08906, Eq. 5.
    """
    return logsumexp(as_float(logits)) ** 2
