"""MiniLLM: reverse KL over whole answers, by policy gradient."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxkd.arguments import checked
from jaxkd.losses.basics import (
    as_float,
    check_same_shape,
    frozen,
    weighted_loss,
    zero_masked,
)
from jaxkd.losses.divergences import kl_divergence
from jaxkd.losses.policy import (
    length_normalized_returns,
    policy_gradient_loss,
    reverse_kl_k3,
    reverse_kl_rewards,
    whiten,
)
from jaxkd.methods.base import from_loss
from jaxkd.methods.masks import batch_weights, documents
from jaxkd.types import Method


@checked()
def minillm(
    *, discount: float = 0.95, reward_limit: float | None = 100.0, clip: float = 0.2
) -> Method:
    """Return the policy gradient of the reverse KL, and its exact single-step part.

    Gu et al. 2023, arXiv:2306.08543, Eq. 3 to 6. Train on answers that were sampled for
    the step, by `jaxkd.programs.on_policy` from
    ``networks.mixed(student, teacher, 0.2)`` (the paper's teacher-mixed sampling); the
    batch's ``sampled_log_prob`` (batch, length) is what each token was sampled with
    (after temperature, top-k and top-p: the importance weights are the student's
    probabilities over it), and ``label`` the sampled tokens. The authors add
    cross-entropy on other text, and take four updates an answer; here it is one, so
    that the policy that sampled is the one that is trained.

    The metric ``reverse_kl_k3`` is the sampled tokens' estimate of the reverse KL.

    Args:
        discount: γ of rewards to come, a token.
        reward_limit: of log p − log q, or None.
        clip: ε of the policy's change.

    Raises:
        ValueError: from ``loss``, a batch without ``sampled_log_prob``, or logits of
            two widths.
    """

    def loss(student, teacher, batch):
        if "sampled_log_prob" not in batch:
            raise ValueError(
                f"the batch has {sorted(batch)}, but minillm() needs sampled_log_prob: "
                "train with programs.on_policy, where student_share and teacher_share "
                "are 1 in all, for nobody knows what drew the batch's own answers"
            )
        check_same_shape(student.logits, teacher.logits, "logits")
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
        segments = documents(batch, log_q.shape)
        returns = length_normalized_returns(rewards, mask > 0, discount, segments)
        sampled = zero_masked(batch["sampled_log_prob"], mask)
        importance = jnp.exp(sampled_log_q - sampled)
        losses = policy_gradient_loss(
            log_q, sampled_log_q, whiten(returns, mask > 0), importance, clip
        )
        exact = kl_divergence(log_q_all, log_p_all)
        return weighted_loss(losses + exact, mask)

    def k3(student, teacher, batch):
        log_q, log_p = (
            jnp.take_along_axis(
                jax.nn.log_softmax(frozen(found.logits)),
                batch["label"][..., None],
                axis=-1,
            )[..., 0]
            for found in (student, teacher)
        )
        return reverse_kl_k3(log_p, log_q)

    trained = from_loss(loss, name="minillm")
    watched = from_loss(k3, name="reverse_kl_k3")

    def both(*arguments):
        total, (state, metrics) = trained.loss(*arguments)
        return total, (state, metrics | watched.loss(*arguments)[1][1])

    return trained._replace(loss=both)
