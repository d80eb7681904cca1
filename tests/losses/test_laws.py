"""Every loss on class logits keeps the laws of `laws`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import Law, check

from jaxkd import losses
from jaxkd.kernels import linear_distill as divergences
from jaxkd.losses.divergences import tempered

SENDERS, RECEIVERS = jnp.array([0, 1, 1, 3, 5, 0]), jnp.array([1, 0, 3, 1, 0, 5])


def entrywise(divergence):
    """Return a law of a divergence of `jaxkd.kernels.linear_distill`."""
    return Law(
        lambda s, t, y, w, theta: losses.divergence_loss(s, t, divergence, 2.0),
        minimum=divergence is not divergences.soft_cross_entropy,
    )


def top_k(loss, k, rest=True, stored="float32"):
    """Return a law of a loss on the k best tokens, or on all if there are fewer."""

    def of(s, t, y, w, theta):
        ids, log_probs = losses.top_k_log_probs(t, min(k, t.shape[-1]))
        return loss(s, ids, log_probs.astype(stored), rest=rest)

    return Law(of, minimum=stored == "float32")


def first(space):
    def of(s, t, y, w, theta):
        ids, log_probs = losses.top_k_log_probs(t, 3)
        targets = losses.recalibrate_top_k(log_probs, 1.0, space)
        return losses.first_loss(s, ids, targets, space=space)

    return Law(of, minimum=True)


def ctkd(s, t, y, w, theta):
    return losses.kd_loss(s, t, losses.ctkd_temperature(theta, -1.0))


def lskd(s, t, y, w, theta):
    return losses.kd_loss(*map(losses.standardize_logits, (s, t)), 2.0)


def soft_labels(s, t, y, w, theta):
    log_p = tempered(t, t, 1.0)[1]
    return losses.cross_entropy_loss(s, jnp.exp(log_p))


def uld(s, t, y, w, theta):
    ones = jnp.ones((len(s), 1))
    return losses.uld_loss(s[:, None], t[:, None], ones, ones, 1.0, 2.0)


def kdcl(kind):
    def of(s, t, y, w, theta):
        target = losses.kdcl_targets([s, t], jnp.maximum(y, 0), kind, w)
        return losses.kd_loss(s, target, 2.0)

    return Law(of)


def dual_head(s, t, y, w, theta):
    mixture = losses.dual_head_log_probs(s, t, 0.4, 0.7)
    return losses.cross_entropy_loss(mixture, y)


def dho(s, t, y, w, theta):
    labelled = jnp.arange(len(s)) < 4
    return losses.dho_loss(s, s, t, y, labelled, weights=w)[0]


def fd(s, t, y, w, theta):
    return losses.fd_distill_loss(s, jnp.exp(tempered(t, t, 2.0)[1]), None, 2.0)


def fused(alpha):
    return Law(
        lambda s, t, y, w, theta: losses.fused_kd_loss(s, t, y, alpha(s, t, y), 2.0)
    )


def one(s, t, y, w, theta):
    shares = jax.nn.softmax(jnp.array([theta, 1 - theta]))
    gate = jnp.broadcast_to(shares, (len(s), 2))
    return losses.one_loss(jnp.stack([s, t]), gate, y)


def cwd(s, t, y, w, theta):
    s, t = (z[:, None, None] for z in (s, t))
    return losses.cwd_loss(
        jnp.concatenate([s, s / 2], 1), jnp.concatenate([t, 1 + t / 3], 1)
    )


def augmented(s, t, y, w, theta):
    return losses.hard_augmenter_loss(t, t + 1, s, 2.0)[0]


def plackett_luce(s, t, y, w, theta):
    ranking = losses.teacher_ranking(t, jnp.maximum(y, 0))
    weights = 1.0 * ~jnp.isneginf(jnp.take_along_axis(s, ranking, -1))
    return losses.plackett_luce_loss(s, ranking, weights)


def subclasses(s, t, y, w, theta):
    """Return the loss of a student with two equal sub-classes of each class."""
    targets = losses.hard_subclass_targets(2 * jnp.maximum(y, 0), t, 2, 0.1)
    return losses.subclass_loss(jnp.repeat(s, 2, axis=-1), targets, 2.0)


def lelp(s, t, y, w, theta):
    classes = t.shape[-1]
    found = losses.SubclassDirections(
        jnp.zeros((classes, 1)), jnp.ones((classes, 1, 2))
    )
    # Features that say nothing: the marginal of equal shares is the teacher's.
    targets = losses.subclass_targets(jnp.ones((len(t), 1)), t, found, 0.5)
    return losses.kd_loss(
        losses.subclass_log_probs(jnp.repeat(s, 2, -1), classes),
        losses.subclass_log_probs(targets.reshape(len(t), -1), classes),
        1.0,
    )


def edge(loss):
    """Return a law of a loss of edges, as one of the nodes that they start from."""

    def of(s, t, y, w, theta):
        values = loss(s, t, SENDERS, RECEIVERS)
        return jax.ops.segment_sum(values, SENDERS, len(s))

    return Law(of, alone=False)


LAWS = {
    "kd": Law(lambda s, t, y, w, _: losses.kd_loss(s, t), minimum=True),
    "reverse kd": Law(lambda s, t, y, w, _: losses.reverse_kd_loss(s, t), minimum=True),
    "cross entropy": Law(lambda s, t, y, w, _: losses.cross_entropy_loss(s, y)),
    "smoothed": Law(lambda s, t, y, w, _: losses.cross_entropy_loss(s, y, 0.1)),
    "soft labels": Law(soft_labels, frozen=False),
    "entropy": Law(lambda s, t, y, w, _: losses.prediction_entropy(s, 2.0)),
    "dkd": Law(lambda s, t, y, w, _: losses.dkd_loss(s, t, y), minimum=True),
    "ofa": Law(lambda s, t, y, w, _: losses.ofa_loss(s, t, y, 1.4, 2.0)),
    "lskd": Law(lskd, minimum=True),
    "deviation": Law(lambda s, t, y, w, _: losses.logit_deviation(s)),
    "ctkd": Law(ctkd, minimum=True),
    "pld": Law(lambda s, t, y, w, _: losses.pld_loss(s, t, y, 2.0)),
    "plackett luce": Law(plackett_luce),
    "top 3": top_k(losses.top_k_kd_loss, 3),
    "topkld": Law(lambda s, t, y, w, _: losses.topkld_loss(s, t, 3), minimum=True),
    "top 3 reverse": top_k(losses.top_k_reverse_kd_loss, 3),
    "top 6": top_k(losses.top_k_kd_loss, 6),
    "top 6 reverse": top_k(losses.top_k_reverse_kd_loss, 6),
    "top 3 half": top_k(losses.top_k_kd_loss, 3, stored="float16"),
    "top 6 no rest": top_k(losses.top_k_kd_loss, 6, rest=False),
    "binary kl": Law(
        lambda s, t, y, w, _: losses.binary_kl_loss(s, t), minimum=True, shared=False
    ),
    "binary norm": Law(
        lambda s, t, y, w, _: losses.binary_kl_norm_loss(s, t),
        minimum=True,
        shared=False,
    ),
    "binary clipped": Law(
        lambda s, t, y, w, _: losses.binary_kl_loss(s, t, 2.0, 1e-8),
        minimum=True,
        shared=False,
    ),
    "first": first("log"),
    "first in probabilities": first("probability"),
    "taid": Law(lambda s, t, y, w, _: losses.taid_loss(s, t, 0.4)),
    "forward kl": entrywise(divergences.forward_kl),
    "reverse kl": entrywise(divergences.reverse_kl),
    "soft cross entropy": entrywise(divergences.soft_cross_entropy),
    "total variation": entrywise(divergences.total_variation),
    "jensen shannon": entrywise(divergences.jensen_shannon(0.3)),
    "skew kl": entrywise(divergences.skew_kl()),
    "skew reverse kl": entrywise(divergences.skew_reverse_kl()),
    "adaptive kl": Law(
        lambda s, t, y, w, _: losses.adaptive_kl_loss(s, t), minimum=True
    ),
    "uld": Law(uld),
    "cwd": Law(cwd, shared=False),
    "dist": Law(lambda s, t, y, w, _: losses.dist_loss(s, t, weights=w)),
    "sinkd": Law(lambda s, t, y, w, _: losses.sinkd_loss(s, t, weights=w)),
    "dml": Law(lambda s, t, y, w, _: sum(losses.dml_loss([s, t], y)), frozen=False),
    "bdkd": Law(lambda s, t, y, w, _: sum(losses.bdkd_loss(s, t, y)), frozen=False),
    "kdcl naive": kdcl("naive"),
    "kdcl minlogit": kdcl("minlogit"),
    "kdcl linear": kdcl("linear"),
    "one": Law(one, frozen=False),
    "dual head": Law(dual_head, frozen=False),
    "dho": Law(dho),
    "fd": Law(fd, minimum=True),
    "disagreement": Law(
        lambda s, t, y, w, _: losses.disagreement(t, s), frozen=False, minimum=True
    ),
    "hard augmenter": Law(augmented, frozen=False),
    "hard student": Law(
        lambda s, t, y, w, _: losses.hard_student_loss(s, t, s / 2, t / 2)[0],
        minimum=True,
    ),
    "fused wls": fused(losses.wls_alpha),
    "fused ada": fused(lambda s, t, y: losses.ada_alpha(t, y)),
    "sub-classes": Law(subclasses),
    "lelp": Law(lelp, minimum=True),
    "low frequency": edge(losses.edge_low_frequency_loss),
    "high frequency": edge(losses.edge_high_frequency_loss),
}


def test_values_that_agree_pull_nowhere():
    # JAX gives |x| the slope 1 at 0.
    p, q = jnp.log(jnp.array([[0.2, 0.5, 0.3], [0.2, 0.3, 0.5]]))
    teacher = jnp.array([[1.0, 2], [0, 0]])

    def edge(z):
        ends = jnp.array([0]), jnp.array([1])
        return losses.edge_difference_log_probs(z, *ends)[0, 2]

    @jax.jit
    def slopes(q, student, z):
        return (
            jax.grad(lambda q: divergences.total_variation(p, q).sum())(q),
            jax.grad(lambda student: losses.cc_loss(student, teacher))(student),
            jax.grad(edge)(z),
        )

    variation, congruence, edges = slopes(
        q, jnp.array([[1.0, 5], [7, 1]]), jnp.array([[1.0, 5, 2], [1, 4, 7]])
    )
    np.testing.assert_allclose(variation, [0, -0.15, 0.25], rtol=1e-6)
    np.testing.assert_array_equal(congruence, [[0, 1], [0, 3]])
    assert (edges[:, 0] == 0).all()
    assert (edges[:, 1:] != 0).all()


@pytest.mark.parametrize("name", LAWS)
def test_laws(name):
    check(LAWS[name])
