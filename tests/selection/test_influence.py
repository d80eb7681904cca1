"""Influence against the authors' numbers, dense inverses, and models fitted anew."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxkd import losses, selection
from jaxkd.selection.seen import Seen


def logits_of(params, batch):
    return batch["x"] @ params["w"].T + params["b"]


def cross_entropies(params, batch):
    return losses.cross_entropy_loss(logits_of(params, batch), batch["y"])


def case(found, name):
    return {k[len(name) + 1 :]: v for k, v in found.items() if k.startswith(name)}


@pytest.mark.parametrize("name", ["inf0", "inf1"])
def test_authors_influence(load_golden, name, x64):
    get = case(load_golden("38-kdaif"), name)
    params = {
        "w": jnp.asarray(get["weight"], float),
        "b": jnp.asarray(get["bias"], float),
    }
    train = {"x": jnp.asarray(get["x_train"], float), "y": jnp.asarray(get["y_train"])}
    held_out = {
        "x": jnp.asarray(get["x_valid"][:1], float),
        "y": jnp.asarray(get["y_valid"][:1]),
    }
    depth, scale = int(get["recursion_depth_detached"]), float(get["scale"])

    @jax.jit
    def run(params):
        vector = jax.grad(lambda p: cross_entropies(p, held_out).mean())(params)
        product = selection.hvp(cross_entropies, params, vector, train)
        found = selection.inverse_hvp_lissa(
            jax.random.key(0),
            lambda v, key: selection.hvp(cross_entropies, params, v, train),
            vector,
            damping=float(get["damp"]),
            scale=scale,
            depth=depth,
        )
        return vector, product, found.solution

    vector, product, solution = run(params)
    # The authors do not divide by the scale, and they do by the number of examples.
    unscaled = jax.tree.map(lambda x: x * scale, solution)
    for tree, key in ((vector, "grad_valid0"), (product, "hvp"), (unscaled, "s_test")):
        for part in ("w", "b"):
            np.testing.assert_allclose(
                tree[part], get[f"{key}_{part}"], rtol=1e-6, atol=1e-9
            )
    halves = [
        jax.tree.map(lambda x, i=i: x[i], train) for i in (slice(0, 5), slice(5, None))
    ]
    scores = selection.influence_scores(cross_entropies, params, unscaled, halves)
    scores = scores / len(train["y"])
    np.testing.assert_allclose(scores, get["influence"], rtol=1e-6, atol=1e-9)
    weights = selection.influence_weights(
        scores, "exp", sign=1, clip=None, normalize=False
    )
    np.testing.assert_allclose(weights, get["weights"], rtol=1e-6)
    np.testing.assert_allclose(
        jnp.log(weights), get["normalized"], rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("name", ["kd0", "kd1"])
def test_authors_weighted_loss(load_golden, name, x64):
    get = case(load_golden("38-kdaif"), name)
    x, labels = jnp.asarray(get["x"], float), jnp.asarray(get["labels"])

    @jax.jit
    @jax.value_and_grad
    def loss(student):
        w, b = student
        each = losses.weighted_kd_loss(
            x @ w.T + b,
            jnp.asarray(get["teacher_logits"], float),
            labels,
            jnp.asarray(get["weights"], float),
            float(get["T"]),
        )
        return each.mean()

    student = tuple(jnp.asarray(get[f"student_{p}"], float) for p in "wb")
    value, gradient = loss(student)
    np.testing.assert_allclose(value, get["loss"], rtol=1e-6)
    for found, part in zip(gradient, "wb", strict=True):
        expected = get[f"grad_student_{part}"]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


N, CLASSES, WIDTH, PENALTY = 40, 3, 4, 0.02


@pytest.fixture(scope="module")
def fitted():
    """Return training and validation examples, and the fit of weights of the first.

    In float64 by SciPy: softmax regression with the mean of w² as a penalty.
    """
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(2 * N, WIDTH)), rng.integers(0, CLASSES, 2 * N)
    x = x + 1.5 * np.eye(CLASSES, WIDTH)[labels]
    ones = np.concatenate([x, np.ones((2 * N, 1))], 1)
    onehot = np.eye(CLASSES)[labels]

    def value(theta, rows, weights):
        z = ones[rows] @ theta.reshape(CLASSES, -1).T
        z = z - np.log(np.exp(z).sum(1, keepdims=True))
        error = (np.exp(z) - onehot[rows]) * weights[:, None]
        slope = error.T @ ones[rows] / len(z) + PENALTY * theta.reshape(CLASSES, -1)
        loss = -(weights * (z * onehot[rows]).sum(1)).mean()
        return loss + PENALTY / 2 * (theta**2).sum(), slope.ravel()

    def fit(weights):
        start = np.zeros(CLASSES * (WIDTH + 1))
        rows = np.arange(N)
        options = {"gtol": 1e-9, "maxiter": 1000}
        found = minimize(
            value, start, (rows, weights), "BFGS", jac=True, options=options
        )
        return found.x.reshape(CLASSES, -1)

    def held_out(theta):
        z = ones[N:] @ theta.T
        z = z - np.log(np.exp(z).sum(1, keepdims=True))
        return -(z * onehot[N:]).sum(1).mean()

    return ones, labels, fit, held_out


def seen(ones, labels, theta, rows):
    features = ones[rows, :-1]
    return Seen(
        labels[rows],
        jnp.asarray(ones[rows] @ theta.T)[None],
        jnp.asarray(features)[None],
    )


def test_influence_is_what_a_little_more_of_an_example_does(fitted):
    """To the loss of models that are fitted anew, sign and all."""
    ones, labels, fit, held_out = fitted
    theta = fit(np.ones(N))
    train, validation = (
        seen(ones, labels, theta, rows) for rows in (np.arange(N), np.arange(N, 2 * N))
    )
    scores = selection.last_layer_influence(train, validation, damping=PENALTY)
    for i in range(0, N, 3):
        # A weight of 1 + εN adds ε·ℓ_i to the mean loss.
        little = 0.001 * N * (np.arange(N) == i)
        change = (held_out(fit(1 + little)) - held_out(fit(1 - little))) / 0.002
        np.testing.assert_allclose(scores[i], change, rtol=0.01, atol=1e-4)
    assert scores.min() < 0 < scores.max()


def test_all_ways_to_the_inverse_agree(fitted):
    ones, labels, fit, _ = fitted
    theta = fit(np.ones(N))
    params = {
        "w": jnp.asarray(theta[:, :-1], "f4"),
        "b": jnp.asarray(theta[:, -1], "f4"),
    }
    train, held_out = (
        {"x": jnp.asarray(ones[r, :-1], "f4"), "y": jnp.asarray(labels[r])}
        for r in (slice(0, N), slice(N, None))
    )

    @jax.jit
    def run(params):
        vector = jax.grad(lambda p: cross_entropies(p, held_out).mean())(params)

        def curved(v):
            return selection.hvp(cross_entropies, params, v, train)

        def newton(v):
            def of_logits(z, batch):
                return losses.cross_entropy_loss(z, batch["y"])

            return selection.gauss_newton_product(
                logits_of, of_logits, params, v, train
            )

        cg = selection.inverse_hvp_cg(newton, vector, damping=0.02, tolerance=1e-4)
        lissa = selection.inverse_hvp_lissa(
            jax.random.key(0),
            lambda v, key: curved(v),
            vector,
            damping=0.01,
            scale=2.0,
            depth=1500,
            repeats=2,
        )
        short = selection.inverse_hvp_cg(curved, vector, damping=0.02, steps=1)
        return cg, lissa, short

    cg, lissa, short = run(params)
    assert cg.converged
    assert lissa.converged
    assert not short.converged
    rows = np.arange(N), np.arange(N, 2 * N)
    train_seen, held_out_seen = (seen(ones, labels, theta, r) for r in rows)
    exact = selection.last_layer_influence(train_seen, held_out_seen, damping=0.02)
    for found in (cg, lissa):
        scores = selection.influence_scores(
            cross_entropies, params, found.solution, [train]
        )
        np.testing.assert_allclose(scores, exact, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_a_distillation_loss_has_its_own_influence(fitted, monkeypatch):
    """Against the dense Hessian of the loss; also where it is never made."""
    ones, labels, fit, _ = fitted
    theta = jnp.asarray(fit(np.ones(N)), "f4")
    teacher = jnp.asarray(np.random.default_rng(1).normal(size=(N, CLASSES)), "f4")
    ones, y = jnp.asarray(ones, "f4"), jnp.asarray(labels)

    def trained(z):
        return losses.fused_kd_loss(z, teacher, y[:N], 0.5, 2.0)

    @jax.jit
    def dense(theta):
        def mean(theta):
            return trained(ones[:N] @ theta.T).mean()

        hessian = jax.hessian(mean)(theta).reshape(theta.size, -1)
        vector = jax.grad(
            lambda t: losses.cross_entropy_loss(ones[N:] @ t.T, y[N:]).mean()
        )(theta)
        s = jnp.linalg.solve(hessian + 0.05 * jnp.eye(theta.size), vector.ravel())
        each = jax.jacobian(lambda t: trained(ones[:N] @ t.T))(theta)
        return -each.reshape(N, -1) @ s

    rows = np.arange(N), np.arange(N, 2 * N)
    train, held_out = (seen(ones, labels, theta, r) for r in rows)
    found = selection.last_layer_influence(train, held_out, trained, damping=0.05)
    np.testing.assert_allclose(found, dense(theta), rtol=1e-3, atol=1e-4)
    monkeypatch.setattr("jaxkd.selection.influence.DENSE", 1)
    found = selection.last_layer_influence(train, held_out, trained, damping=0.05)
    np.testing.assert_allclose(found, dense(theta), rtol=1e-2, atol=1e-3)


def test_weights_favour_what_helps_and_keep_the_mean():
    static = ("kind", "sign", "normalize", "keep")
    weigh = jax.jit(selection.influence_weights, static_argnames=static)
    scores = jnp.array([-2.0, -1, 0, 0.5, 40])
    for kind in ("sigmoid", "exp", "linear", "topk"):
        weights = weigh(scores, kind)
        assert (np.diff(weights) <= 0).all()
        assert weights[0] > weights[-1] >= 0
        np.testing.assert_allclose(weights.mean(), 1, rtol=1e-6)
        reversed_ = weigh(scores, kind, sign=1)
        assert reversed_[0] < reversed_[-1]
        same = weigh(jnp.full(3, 2.0), kind)
        np.testing.assert_array_equal(same, 1)
    x = -np.asarray(scores) / np.std(np.asarray(scores))
    expected = 1 / (1 + np.exp(-3 * x))
    plain = weigh(scores, normalize=False)
    np.testing.assert_allclose(plain, expected, rtol=1e-5)
    kept = weigh(scores, "topk", keep=0.4, normalize=False)
    np.testing.assert_array_equal(kept, [1, 1, 0, 0, 0])


def test_bad_arguments_are_named(unchecked_shapes):
    z, unknown = jnp.zeros((2, 3)), cast(Any, "best")
    params = {"w": jnp.ones((2, 2))}
    for make, message in (
        (lambda: selection.influence_weights(z[0], unknown), "unknown kind"),
        (lambda: selection.influence_weights(z[0], sign=2), "sign must be 1 or -1"),
        (
            lambda: selection.hvp(lambda p, b: p["w"], params, {}, {}),
            "not like the par",
        ),
        (
            lambda: selection.inverse_hvp_cg(lambda v: v, params, damping=-1.0),
            "damping must be at least 0, got -1",
        ),
        (
            lambda: selection.influence_scores(lambda p, b: z, {}, {}, []),
            "batches is empty",
        ),
        (
            lambda: selection.last_layer_influence(Seen([0, 1]), Seen([0, 1])),
            "seen.logits is None",
        ),
        (
            lambda: losses.weighted_kd_loss(z, z, jnp.zeros(2, int), jnp.ones(3)),
            "weights has shape",
        ),
        (
            lambda: losses.weighted_kd_loss(
                z, z, jnp.zeros(2, int), jnp.array([1.0, -2])
            ),
            "weights must be at least 0, got -2",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()
