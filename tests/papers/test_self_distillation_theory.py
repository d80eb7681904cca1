"""Self-distillation's theory: the authors' numbers, and closed forms against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd.papers.self_distillation_theory import (
    greedy_optimal_weights,
    krr_self_distill,
    norm_regularizer,
    optimal_distill_weight,
    rbf_kernel,
    regularized,
    ridge_smoother,
    self_distill_closed_form,
    self_distill_limit,
    self_distill_mse_loss,
    self_distillation,
    spectral_shrinkage,
)
from jaxkd.types import Outputs

KERNEL_CASES = ["krr0", "krr1", "krr2"]
DEEP_CASES = ["deep3", "deep4", "deep5"]
EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    x, queries = rng.normal(size=(30, 2)), rng.normal(size=(7, 2))
    gram, kernel = rbf_kernel(x, x, 0.7), rbf_kernel(queries, x, 0.7)
    return gram, kernel, rng.normal(size=(30, 3)), 0.05


def case(golden, name):
    return {
        key.removeprefix(name).lstrip("_/"): golden[key]
        for key in golden
        if key.startswith(name)
    }


@pytest.mark.parametrize("name", KERNEL_CASES)
def test_the_authors_kernel_regression(load_golden, name):
    g = case(load_golden("25-self_distillation_theory"), name)
    x, query = g["X"], g["x_query"][:, None]
    gram, kernel = (rbf_kernel(a, x, float(g["rbf_gamma"])) for a in (x, query))
    np.testing.assert_allclose(gram, g["K"], rtol=1e-12)
    lam, alpha, steps = float(g["lambd"]), float(g["alpha"]), int(g["steps"])
    fits = krr_self_distill(gram, kernel, g["Y"], lam, alpha, steps)
    np.testing.assert_allclose(fits.train, g["y_train_steps"], rtol=1e-8)
    np.testing.assert_allclose(fits.query, g["f_query_steps"], rtol=1e-8)
    limit = self_distill_limit(gram, kernel, g["Y"], lam, alpha)
    np.testing.assert_allclose(limit.query, g["f_query_limit"], rtol=1e-8, atol=1e-14)
    eigenvalues = np.maximum(g["kernel_eigs"], 0)
    shrunk = [spectral_shrinkage(eigenvalues, lam, alpha, t + 1) for t in range(steps)]
    np.testing.assert_allclose(shrunk, g["B_diag_steps"], rtol=1e-8, atol=1e-10)
    forever = spectral_shrinkage(eigenvalues, lam, alpha, 3000)
    np.testing.assert_allclose(forever, g["B_diag_limit"], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("alphas", [0.0, 0.35, 1.0, [0.9, -1.4, 0.2, 0.7, 0.1, 2.0]])
def test_one_step_is_what_the_loop_comes_to(problem, alphas):
    gram, kernel, y, lam = problem
    loop = krr_self_distill(gram, kernel, y, lam, alphas, 6)
    smoother = ridge_smoother(gram, lam)
    np.testing.assert_allclose(loop.train[0], smoother @ y, **EXACT)
    for step in range(1, 7):
        some = alphas if np.ndim(alphas) == 0 else alphas[:step]
        direct = self_distill_closed_form(gram, kernel, y, lam, some, step)
        np.testing.assert_allclose(direct.train, loop.train[step - 1], **EXACT)
        np.testing.assert_allclose(direct.query, loop.query[step - 1], **EXACT)


@pytest.mark.parametrize("alpha", [0.0, 0.35, 1.0])
def test_the_limit_is_a_ridge_of_lambda_over_alpha(problem, alpha):
    gram, kernel, y, lam = problem
    limit = self_distill_limit(gram, kernel, y, lam, alpha)
    if alpha == 0:
        np.testing.assert_array_equal(limit.train, 0)
        np.testing.assert_array_equal(limit.query, 0)
        return
    plain = krr_self_distill(gram, kernel, y, lam / alpha, 1.0, 1)
    np.testing.assert_allclose(limit.train, plain.train[0], **EXACT)
    np.testing.assert_allclose(limit.query, plain.query[0], **EXACT)


def test_smaller_directions_shrink_ever_faster(problem):
    d = np.linalg.eigvalsh(problem[0])[::-1]

    def ratios(alpha: float) -> np.ndarray:
        shrunk = np.stack([spectral_shrinkage(d, 0.05, alpha, t) for t in range(1, 60)])
        return np.log(shrunk[:, :-1] / shrunk[:, 1:])

    pure, mixed = ratios(0.0), ratios(0.35)
    np.testing.assert_allclose(pure, pure[:1] * np.arange(1, 60)[:, None], rtol=1e-9)
    # Where the labels remain it grows at first, may fall again, and has a limit.
    assert (mixed >= mixed[0] - 1e-12).all()
    assert np.diff(mixed, axis=0).min() < -0.01
    bound = (1 + 0.05 / (0.35 * d[1:])) / (1 + 0.05 / (0.35 * d[:-1]))
    np.testing.assert_allclose(mixed[-1], np.log(bound), rtol=1e-6)


def test_the_best_weight_beats_every_other(problem):
    gram, kernel, y, lam = problem
    truth = np.random.default_rng(1).normal(size=(7, 3))
    alphas, fits = greedy_optimal_weights(gram, kernel, y, truth, lam, 4)
    assert alphas[0] == 1.0
    for step in range(1, 4):
        best = np.square(fits.query[step] - truth).mean()
        for other in np.linspace(-2, 2, 81):
            tried = [*alphas[:step], other]
            found = krr_self_distill(gram, kernel, y, lam, tried, step + 1).query[-1]
            assert best <= np.square(found - truth).mean() + 1e-12
    clipped, _ = greedy_optimal_weights(gram, kernel, y, truth, lam, 4, clip=True)
    assert ((clipped >= 0) & (clipped <= 1)).all()
    assert optimal_distill_weight(y, y, y) == (1.0, False)


@pytest.mark.parametrize("name", DEEP_CASES)
def test_the_authors_loss_of_networks(load_golden, x64, name):
    g = case(load_golden("25-self_distillation_theory"), name)
    onehot, alpha = jnp.asarray(g["onehot"]), float(g["alpha"])
    teacher = jnp.asarray(g["logits_t"]) if g["has_teacher"] else None
    logits = jnp.asarray(g["logits_s"])

    def loss(logits):
        return self_distill_mse_loss(logits, teacher, onehot, alpha).mean()

    value, gradient = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, g["loss_noreg"], rtol=1e-9)
    np.testing.assert_allclose(gradient, g["grad_logits_noreg"], rtol=1e-9, atol=1e-15)
    # The authors' logits are a parameter too.
    params = {"logits": logits, "extra": jnp.asarray(g["extra_param"])}
    coefficient = float(g["reg_coef"])
    penalty = coefficient * norm_regularizer(params, "norm")
    np.testing.assert_allclose(value + penalty, g["loss_withreg"], rtol=1e-9)
    add = regularized(coefficient, "norm")
    slopes = {"logits": gradient, "extra": jnp.zeros_like(params["extra"])}
    found, _ = add.update(slopes, add.init(params), params)
    np.testing.assert_allclose(found["logits"], g["grad_logits_withreg"], rtol=1e-9)
    np.testing.assert_allclose(found["extra"], g["grad_extra_param"], rtol=1e-9)


def test_squares_are_twice_optax_decay_and_norms_have_no_slope_at_zero():
    params = {"w": jnp.array([3.0, -4.0]), "b": jnp.zeros(2)}
    nothing = jax.tree.map(jnp.zeros_like, params)
    ours, theirs = regularized(0.1), optax.add_decayed_weights(0.2)
    found = ours.update(nothing, ours.init(params), params)[0]
    wanted = theirs.update(nothing, theirs.init(params), params)[0]
    jax.tree.map(np.testing.assert_allclose, found, wanted)
    slopes = jax.grad(norm_regularizer)(params, "norm")
    np.testing.assert_allclose(slopes["w"], [0.6, -0.8], rtol=1e-6)
    np.testing.assert_array_equal(slopes["b"], 0)


def test_the_method_takes_labels_and_probabilities():
    rng = np.random.default_rng(0)
    student, teacher = (Outputs(jnp.asarray(rng.normal(size=(4, 3)))) for _ in "st")
    labels = jnp.array([0, 2, 1, 1])
    values = []
    for label in (labels, jax.nn.one_hot(labels, 3)):
        batch = {"label": label, "mask": jnp.array([1.0, 1.0, 1.0, 0.0])}
        method = self_distillation(0.25)
        variables = method.init(jax.random.key(0), student, teacher, batch)
        loss, _ = method.loss(
            variables, student, teacher, batch, jax.random.key(0), jnp.array(0)
        )
        values.append(loss.total / loss.weight)
    expected = self_distill_mse_loss(
        student.logits[:3], teacher.logits[:3], jax.nn.one_hot(labels[:3], 3), 0.25
    ).mean()
    np.testing.assert_allclose(values, [expected, expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, k, y: rbf_kernel(g, k, 0.0), "gamma must be above 0"),
        (lambda g, k, y: rbf_kernel(g, y, 1.0), "30 features and x2 3"),
        (lambda g, k, y: ridge_smoother(g, -1.0), "lam must be above 0"),
        (lambda g, k, y: ridge_smoother(k, 1.0), "gram must be square"),
        (lambda g, k, y: krr_self_distill(g, k, y, 1.0, 0.5, 0), "steps must be a"),
        (lambda g, k, y: krr_self_distill(g, k, y, 1.0, [0.5], 2), "alphas has shape"),
        (lambda g, k, y: krr_self_distill(g, k.T, y, 1.0, 0.5, 2), "k_query has shape"),
        (lambda g, k, y: krr_self_distill(g, k, y[:, 0], 1.0, 1.0, 2), "one column"),
        (lambda g, k, y: krr_self_distill(g, k, y * np.nan, 1.0, 1.0, 2), "finite"),
        (lambda g, k, y: self_distill_limit(g, k, y, 1.0, 1.5), r"alpha must be in"),
        (lambda g, k, y: spectral_shrinkage([1.0, -1.0], 1.0, 0.5, 2), "none below 0"),
        (lambda g, k, y: optimal_distill_weight(y, y, y[1:]), "y_val"),
        (lambda g, k, y: self_distillation(1.5), "alpha must be in"),
        (lambda g, k, y: regularized(-1.0), "coefficient must be at least 0"),
        (lambda g, k, y: norm_regularizer({}, "l1"), "unknown kind 'l1'"),
    ],
)
def test_bad_input_is_refused(problem, call, message):
    gram, kernel, y, _ = problem
    with pytest.raises(ValueError, match=message):
        call(gram, kernel, y)
