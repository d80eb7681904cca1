"""MiniLLM: reverse KL over whole answers, by policy gradient."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxkd.arguments import checked
from jaxkd.losses.basics import as_float, frozen, weighted_loss
from jaxkd.losses.divergences import kl_divergence
from jaxkd.losses.policy import (
    length_normalized_returns,
    policy_gradient_loss,
    reverse_kl_rewards,
    whiten,
)
from jaxkd.methods.base import batch_weights, from_loss
from jaxkd.types import Method


@checked()
def minillm(
    *, discount: float = 0.95, reward_limit: float | None = 100.0, clip: float = 0.2
) -> Method:
    """Return the policy gradient of the reverse KL, and its exact single-step part.

    Gu et al. 2023, arXiv:2306.08543, Eq. 3 to 6. Train on answers that were sampled for
    the step, by `jaxkd.programs.on_policy` from
    ``networks.mixed(student, teacher, 0.2)`` (the paper's teacher-mixed sampling); the
    batch's ``sampled_log_prob`` (batch, length) is what each token was sampled with,
    and ``label`` the sampled tokens. The authors add cross-entropy on other text, and
    take four updates an answer; here it is one, so that the policy that sampled is the
    one that is trained.

    Args:
        discount: γ of rewards to come, a token.
        reward_limit: of log p − log q, or None.
        clip: ε of the policy's change.

    Raises:
        ValueError: from ``loss``, a batch without ``sampled_log_prob``.
    """

    def loss(student, teacher, batch):
        if "sampled_log_prob" not in batch:
            raise ValueError(
                f"the batch has {sorted(batch)}, but minillm() needs sampled_log_prob: "
                "train with programs.on_policy"
            )
        log_q_all = jax.nn.log_softmax(as_float(student.logits))
        log_p_all = jax.nn.log_softmax(frozen(teacher.logits))
        log_q, log_p = (
            jnp.take_along_axis(log, batch["label"][..., None], axis=-1)[..., 0]
            for log in (log_q_all, log_p_all)
        )
        mask = batch_weights(batch, log_q.shape)
        mask = jnp.ones(log_q.shape) if mask is None else mask
        sampled_log_q = lax.stop_gradient(log_q)
        rewards = reverse_kl_rewards(log_p, log_q, reward_limit)
        returns = length_normalized_returns(rewards, mask > 0, discount)
        importance = jnp.exp(sampled_log_q - batch["sampled_log_prob"])
        losses = policy_gradient_loss(
            log_q, sampled_log_q, whiten(returns, mask > 0), importance, clip
        )
        exact = kl_divergence(log_q_all, log_p_all)
        return weighted_loss(losses + exact, mask)

    return from_loss(loss, name="minillm")
