"""Mutual learning, against independent float64 computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from jaxkd.losses.online import dml_loss, kdcl_targets, one_gate_logits, one_loss


def normal(seed, shape=(6, 5), scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape), jnp.float32)


def assert_close(result, expected, tolerance=1e-5):
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


PEERS = [normal(i, (7, 4), scale=2.0) for i in range(3)]
LABELS = jnp.array([0, 1, 2, 3, 0, 1, 1])


def cross_entropy(z):
    return -log_softmax(np.asarray(z, np.float64), axis=-1)[..., np.arange(7), LABELS]


def kl(p, q, temperature=1.0):
    p, q = (np.asarray(z, np.float64) / temperature for z in (p, q))
    gap = log_softmax(p, axis=-1) - log_softmax(q, axis=-1)
    return (softmax(p, axis=-1) * gap).sum(-1)


class TestOnline:
    def test_dml_is_its_formula_and_trains_each_peer_by_its_own_loss(self):
        losses = jax.jit(dml_loss)(PEERS, LABELS)
        for k, loss in enumerate(losses):
            others = [kl(z, PEERS[k]) for j, z in enumerate(PEERS) if j != k]
            assert_close(loss, cross_entropy(PEERS[k]) + np.mean(others, axis=0), 1e-4)
        gradients = jax.grad(lambda z: dml_loss(z, LABELS)[1].sum())(PEERS)
        assert [bool(jnp.any(g != 0)) for g in gradients] == [False, True, False]

    def test_kdcl_naive_takes_the_best_peer(self):
        best = cross_entropy(np.stack(PEERS)).argmin(0)
        assert len(set(best)) > 1
        expected = np.stack(PEERS)[best, np.arange(7)]
        assert_close(kdcl_targets(PEERS, LABELS, "naive"), expected, 1e-6)

    def test_kdcl_minlogit_bounds_every_peer(self):
        shifted = [np.asarray(z - z[jnp.arange(7), LABELS][:, None]) for z in PEERS]
        targets = kdcl_targets(PEERS, LABELS)
        assert_close(targets, np.minimum.reduce(shifted), 1e-6)
        assert np.all(cross_entropy(targets) <= cross_entropy(np.stack(PEERS)) + 1e-6)

    # At 1e3 the loss is piecewise linear: its best corner is only approached.
    @pytest.mark.parametrize(
        ("scale", "tolerance"), [(0.1, 1e-4), (1.0, 1e-4), (20.0, 1e-4), (1e3, 0.05)]
    )
    @pytest.mark.parametrize("good", [0.0, 3.0], ids=["poor peers", "one good peer"])
    def test_kdcl_linear_finds_the_best_mixture(self, scale, tolerance, good):
        peers = [scale * z for z in PEERS]
        peers[0] += scale * good * jax.nn.one_hot(LABELS, 4)

        def objective(mixture):
            mixed = np.tensordot(mixture, np.asarray(peers, np.float64), axes=1)
            return cross_entropy(mixed).mean()

        best = minimize(
            objective,
            np.full(3, 1 / 3),
            bounds=[(0, 1)] * 3,
            constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
            options={"maxiter": 500, "ftol": 1e-12},
        )
        targets = jax.jit(kdcl_targets, static_argnums=2)(peers, LABELS, "linear")
        value = cross_entropy(targets).mean()
        assert value <= best.fun * (1 + tolerance) + 1e-6
        # It is one mixture for all examples, and a convex one.
        flat = np.stack([np.ravel(z) for z in peers], axis=1)
        mixture = np.linalg.lstsq(flat, np.ravel(targets), rcond=None)[0]
        np.testing.assert_allclose(flat @ mixture, np.ravel(targets), atol=1e-3 * scale)
        assert_close(mixture.sum(), 1, 1e-3)
        assert mixture.min() > -1e-3

    @pytest.mark.parametrize("kind", ["naive", "minlogit", "linear"])
    def test_kdcl_is_frozen_finite_and_ignores_masked_examples(self, kind):
        def total(peers, weights=None):
            return kdcl_targets(peers, LABELS, kind, weights).sum()

        gradients = jax.grad(total)([1e4 * z for z in PEERS])
        assert all(jnp.all(g == 0) for g in gradients)
        assert jnp.all(
            jnp.isfinite(kdcl_targets([1e4 * z for z in PEERS], LABELS, kind))
        )
        weights = jnp.ones(7).at[-1].set(0)
        masked = [z.at[-1].set(jnp.nan) for z in PEERS]
        kept = kdcl_targets([z[:-1] for z in PEERS], LABELS[:-1], kind)
        assert_close(kdcl_targets(masked, LABELS, kind, weights)[:-1], kept, 1e-4)

    def test_one_is_its_formula_and_its_gate_learns_from_labels_alone(self):
        branches, gate = jnp.stack(PEERS), jax.nn.softmax(normal(9, (7, 3)))
        ensemble = np.einsum("bm,mbc->bc", gate, np.asarray(branches, np.float64))
        assert_close(one_gate_logits(branches, gate), ensemble)
        taught = 9 * sum(kl(ensemble, z, 3.0) for z in PEERS)
        expected = cross_entropy(branches).sum(0) + cross_entropy(ensemble) + taught
        assert_close(jax.jit(one_loss)(branches, gate, LABELS), expected, 1e-4)
        gradient = jax.grad(lambda g: one_loss(branches, g, LABELS).sum())(gate)
        error = softmax(ensemble, axis=1) - np.eye(4)[LABELS]
        assert_close(gradient, np.einsum("bc,mbc->bm", error, branches), 1e-4)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dml_loss(PEERS[:1], LABELS), "2 or more"),
        (lambda: dml_loss([PEERS[0], PEERS[1][:, :3]], LABELS), "same classes"),
        (lambda: kdcl_targets(PEERS[:1], LABELS), "2 or more"),
        (lambda: kdcl_targets(PEERS, LABELS[:1]), r"labels has shape \(1,\) but each"),
        (lambda: kdcl_targets(PEERS, LABELS - 9), "labels has label -9 at example 0"),
        (lambda: kdcl_targets(PEERS, LABELS, "mean"), "naive.*minlogit.*linear"),
        (lambda: one_gate_logits(PEERS[0][None], jnp.ones((7, 1))), "2 or more"),
        (lambda: one_gate_logits(jnp.stack(PEERS), jnp.ones((3, 7))), "gate has shape"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
