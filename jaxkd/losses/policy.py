"""Distillation as reinforcement learning: the teacher judges the student's own text.

Gu et al. 2023 (MiniLLM), arXiv:2306.08543: the gradient of the reverse KL over whole
answers, estimated from sampled ones. Arrays are (batch, length), of an answer's tokens;
``mask`` is 0 after its end.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Shaped

from jaxkd.arguments import checked, probability
from jaxkd.losses.basics import as_float, check_same_shape, frozen, zero_masked

Tokens = Float[Array, "batch length"]
Mask = Shaped[Array, "batch length"]


@checked()
def reverse_kl_rewards(
    log_p: Tokens, log_q: Tokens, limit: float | None = None
) -> Tokens:
    """Return log p − log q of the sampled tokens, without gradient.

    Args:
        log_p: the teacher's log-probabilities of them.
        log_q: the student's.
        limit: rewards are clipped to ± it; None leaves them.
    """
    check_same_shape(log_q, log_p, "log_probs")
    rewards = frozen(log_p) - frozen(log_q)
    return rewards if limit is None else jnp.clip(rewards, -limit, limit)


@checked()
def reverse_kl_k3(log_p: Tokens, log_q: Tokens) -> Tokens:
    """Return what each sampled token says of KL(q ‖ p), to watch it without all logits.

    Schulman 2020, "Approximating KL divergence" (joschu.net/blog/kl-approx.html), the
    estimator k3: exp(d) − 1 − d with d = log p − log q. It is at least 0, and its mean
    over tokens that were sampled from q is the divergence. No gradient.

    Args:
        log_p: the teacher's log-probabilities of the tokens.
        log_q: the student's, from which they were sampled.

    Raises:
        ValueError: shapes differ.
    """
    gap = reverse_kl_rewards(log_p, log_q)
    return jnp.expm1(gap) - gap


@checked(discount=probability)
def length_normalized_returns(
    rewards: Tokens,
    mask: Mask,
    discount: float = 0.95,
    segments: Integer[Array, "batch length"] | None = None,
) -> Tokens:
    """Return each token's discounted rewards to come, over how many tokens they are.

    MiniLLM, Section 2.2 (length normalisation, without which short answers win).

    Args:
        rewards: of each token.
        mask: 0 for tokens that do not count.
        discount: γ in [0, 1] a token.
        segments: the number of each token's document, where a row has several, one
            after another: what another one earns is none of its rewards to come.

    Raises:
        ValueError: γ is outside [0, 1].
    """
    mask, rewards = as_float(mask), zero_masked(frozen(rewards), mask)
    segments = jnp.ones(mask.shape, int) if segments is None else segments
    last = segments != jnp.roll(segments, -1, axis=1)

    def back(carry: tuple, now: tuple) -> tuple:
        (total, left), (reward, real, last) = carry, now
        total, left = (jnp.where(last, 0, x) for x in (total, left))
        total, left = reward * real + discount * total, left + real
        return (total, left), total / jnp.maximum(left, 1)

    columns = tuple(jnp.moveaxis(x, 1, 0) for x in (rewards, mask, last))
    start = jnp.zeros(rewards.shape[0]), jnp.zeros(rewards.shape[0])
    _, returns = jax.lax.scan(back, start, columns, reverse=True)
    return jnp.moveaxis(returns, 0, 1) * mask


@checked()
def whiten(values: Tokens, mask: Mask | None = None) -> Tokens:
    """Return values with mean 0 and (unbiased) variance 1 over the counted tokens.

    Args:
        values: such as returns.
        mask: 0 for tokens that do not count; they become 0.
    """
    weights = jnp.ones(values.shape) if mask is None else as_float(mask)
    values = zero_masked(values, weights)
    count = weights.sum()
    mean = (values * weights).sum() / jnp.maximum(count, 1)
    centred = (values - mean) * weights
    variance = (centred**2).sum() / jnp.maximum(count - 1, 1)
    return centred * jax.lax.rsqrt(variance + 1e-8)


@checked()
def policy_gradient_loss(
    log_q: Tokens,
    sampled_log_q: Tokens,
    advantages: Tokens,
    importance: Tokens | None = None,
    clip: float = 0.2,
) -> Tokens:
    """Return each token's clipped policy-gradient loss (PPO), for a masked mean.

    max(−A·ρ, −A·clip(ρ, 1 ± ε)) with ρ = w·q/q_sampled: Schulman et al. 2017,
    arXiv:1707.06347, Eq. 7; w as MiniLLM, Eq. 5, for tokens that were not sampled from
    the student alone.

    Args:
        log_q: the student's log-probabilities of the tokens, differentiated.
        sampled_log_q: those of the student that sampled them.
        advantages: A.
        importance: w, q_sampled over the probability that they were sampled with; None
            for 1.
        clip: ε > 0.

    Raises:
        ValueError: shapes differ.
    """
    check_same_shape(log_q, sampled_log_q, "log_probs")
    ratio = jnp.exp(as_float(log_q) - frozen(sampled_log_q))
    if importance is not None:
        ratio = ratio * frozen(importance)
    advantages = frozen(advantages)
    clipped = jnp.clip(ratio, 1 - clip, 1 + clip)
    return jnp.maximum(-advantages * ratio, -advantages * clipped)
