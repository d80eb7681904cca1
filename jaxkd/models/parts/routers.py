"""Routers of mixtures: which experts a token goes through, and how they are weighed.

Each is ``(logits, k) -> (weights, experts)`` of each token's k experts, the best first.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked, count

Router = Callable[..., tuple[Array, Array]]


@checked(k=count)
def softmax_of_top(
    logits: Float[Array, "*tokens experts"], k: int
) -> tuple[Float[Array, "*tokens k"], Int[Array, "*tokens k"]]:
    """Return the k best experts, weighed by the softmax among them.

    Shazeer et al. 2017, arXiv:1701.06538, Eq. 3, without noise. So does gpt-oss; and
    Mixtral and Qwen3-MoE, whose softmax over all, divided by the sum over the k best,
    is the same.
    """
    best, experts = jax.lax.top_k(logits, k)
    return jax.nn.softmax(best), experts


@checked(k=count)
def top_of_softmax(
    logits: Float[Array, "*tokens experts"], k: int
) -> tuple[Float[Array, "*tokens k"], Int[Array, "*tokens k"]]:
    """Return the k best experts, weighed by the softmax over all (Switch, V-MoE).

    Riquelme et al. 2021, arXiv:2106.05974, Eq. 2, without noise. So does Qwen3-MoE with
    ``norm_topk_prob=False``.
    """
    weights, experts = jax.lax.top_k(jax.nn.softmax(logits), k)
    return weights, experts


@checked(k=count, groups=count, top_groups=count)
def sigmoid_of_top(
    logits: Float[Array, "*tokens experts"],
    k: int,
    bias: Float[Array, "experts"] | None = None,
    groups: int = 1,
    top_groups: int = 1,
) -> tuple[Float[Array, "*tokens k"], Int[Array, "*tokens k"]]:
    """Return the k best experts, weighed by their sigmoids over these' sum.

    DeepSeek-AI 2024, arXiv:2412.19437, Eq. 13-16 and Section 2.1.2.

    Args:
        logits: of the experts.
        k: experts of a token.
        bias: added to the sigmoids where experts are chosen, not where they are
            weighed.
        groups: of as many experts each, side by side.
        top_groups: of which the experts are: those whose two best have the largest sum.
    """
    scores = jax.nn.sigmoid(logits)
    choice = scores if bias is None else scores + bias
    if groups > 1:
        grouped = choice.reshape(*choice.shape[:-1], groups, -1)
        two, _ = jax.lax.top_k(grouped, 2)
        _, best = jax.lax.top_k(two.sum(-1), top_groups)
        kept = jax.nn.one_hot(best, groups, dtype=bool).any(-2)
        choice = jnp.where(kept[..., None], grouped, -jnp.inf).reshape(choice.shape)
    _, experts = jax.lax.top_k(choice, k)
    # Sigmoids over their sum, whose gradient is finite where all of them are 0 as well.
    best = jax.nn.log_sigmoid(jnp.take_along_axis(logits, experts, -1))
    return jax.nn.softmax(best), experts


ROUTERS: Mapping[str, Router] = {
    router.__name__: router
    for router in (softmax_of_top, top_of_softmax, sigmoid_of_top)
}
RouterName = Literal["softmax_of_top", "top_of_softmax", "sigmoid_of_top"]


@checked(k=count, experts=count)
def check_experts(k: int, experts: int) -> None:
    """Refuse a router that is to choose more experts than there are.

    Raises:
        ValueError: it names both numbers.
    """
    if k > experts:
        raise ValueError(
            f"k is {k}, but there are {experts} experts: a token goes through as many "
            "at most"
        )
