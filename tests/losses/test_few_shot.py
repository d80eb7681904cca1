"""Cosine classifiers and CLAP: the authors' numbers, closed forms and hard inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxkd.losses import (
    clap_class_weights,
    clap_loss,
    cosine_logits,
    cross_entropy_loss,
    tip_adapter_logits,
)
from jaxkd.selection import fit_clap, fit_tip_adapter


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param


@pytest.mark.parametrize("case", ["clap0", "clap1"])
def test_the_authors_value_parts_and_gradient(load_golden, case, precision):
    numbers = load_golden("44-pcoreset")
    g = {k[len(case) + 1 :]: v for k, v in numbers.items() if k.startswith(case)}
    names = ("prototypes", "zs_weights", "features")
    w, start, features = (jnp.asarray(g[name], precision) for name in names)
    labels, scale = jnp.asarray(g["labels"]), float(g["logit_scale"])
    # Their features have unit length to float32 only, which cosine_logits makes exact.
    rtol = 1e-7 if precision == "float64" else 1e-5

    trust = clap_class_weights(jnp.asarray(g["zs_logits"], precision), labels)
    # The authors computed them in float32 in either case.
    np.testing.assert_allclose(trust, g["class_weight_alpha"], rtol=1e-5, atol=1e-12)
    trust = jnp.asarray(g["class_weight_alpha"], precision)

    loss = jax.jit(jax.value_and_grad(clap_loss, has_aux=True), static_argnums=5)
    (value, parts), gradient = loss(w, start, features, labels, trust, scale)
    expected = g["grad_prototypes"]
    np.testing.assert_allclose(value, g["loss"], rtol=rtol)
    np.testing.assert_allclose(parts["ce"], g["loss_ce"], rtol=rtol)
    np.testing.assert_allclose(parts["constraint"], g["loss_constraint"], rtol=rtol)
    np.testing.assert_allclose(
        gradient, expected, rtol=rtol, atol=rtol * np.abs(expected).max()
    )


def arrays(seed=0, batch=7, features=5, classes=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, features)).astype("f4")
    w = rng.normal(size=(features, classes)).astype("f4")
    return jnp.asarray(x), jnp.asarray(w), jnp.asarray(rng.integers(0, classes, batch))


def test_cosine_logits_are_the_cosines():
    x, w, _ = arrays()
    lengths = np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(w, axis=0))
    expected = 12 * np.asarray(x, "f8") @ np.asarray(w, "f8") / lengths
    np.testing.assert_allclose(cosine_logits(3 * x, 0.1 * w, 12.0), expected, rtol=1e-4)
    assert not cosine_logits(jnp.zeros_like(x), w).any()


def test_class_weights_are_mean_probabilities_of_the_true_class():
    logits = jnp.array([[1.0, 2, 3], [0, 1, 0], [4, 0, 0]])
    p = softmax(logits, -1)
    found = clap_class_weights(logits, jnp.array([1, 1, 0]))
    np.testing.assert_allclose(found, [p[2, 0], (p[0, 1] + p[1, 1]) / 2, 0], rtol=1e-6)


@pytest.mark.slow
def test_weights_mask_and_bf16():
    x, w, labels = arrays()
    trust = jnp.array([0.5, 0.2, 0.9])
    mask = jnp.array([1.0, 1, 0, 1, 1, 0, 1])
    kept = mask > 0

    def loss(w, x, labels, weights):
        return clap_loss(w, 0.9 * w, x, labels, trust, weights=weights)[0]

    spoilt = jnp.where(kept[:, None], x, jnp.nan)
    found = jax.value_and_grad(loss)(w, spoilt, labels, mask)
    expected = jax.value_and_grad(loss)(w, x[kept], labels[kept], None)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    nothing, parts = clap_loss(w, w, x, labels, trust, weights=jnp.zeros(7))
    assert nothing == parts["ce"] == 0
    low, _ = clap_loss(w.astype(jnp.bfloat16), w, x, labels, trust)
    assert low.dtype == jnp.float32


def test_a_zero_prototype_has_a_finite_gradient():
    x, w, labels = arrays()
    gradient = jax.grad(lambda w: clap_loss(w, w, x, labels, jnp.ones(3))[0])
    assert np.isfinite(gradient(w.at[:, 0].set(0))).all()


def test_fitting_follows_momentum_and_the_rate_on_whole_batches():
    """All labels in one batch leave nothing random: NumPy can follow."""
    x, start, labels = arrays()
    fit = dict(scale=4.0, passes=20, batch_size=64, learning_rate=0.5)
    found = fit_clap(jax.random.key(0), x, labels, start, **fit)
    trust = clap_class_weights(cosine_logits(x, start, 4.0), labels)
    gradient = jax.jit(
        jax.grad(lambda w: clap_loss(w, start, x, labels, trust, 4.0)[0])
    )
    w, speed = np.asarray(start), 0.0
    for step in range(20):
        rate = 0.5 * (step / 2 if step < 2 else (20 - step) / 18)
        speed = np.asarray(gradient(w)) + 0.9 * speed
        w = w - rate * speed
    np.testing.assert_allclose(found, w, rtol=1e-3, atol=1e-4)


def test_fitting_small_batches_learns_the_labels():
    x, start, labels = arrays(1, batch=12)
    fit = dict(scale=10.0, passes=200, batch_size=4, learning_rate=0.05)
    found = fit_clap(jax.random.key(0), x, labels, start, **fit)
    before, after = (
        np.mean(cosine_logits(x, w).argmax(-1) == labels) for w in (start, found)
    )
    assert before < 0.6 < after


X, W, LABELS = arrays()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cosine_logits(X, W[:2]), "as many rows as an embedding has values"),
        (lambda: cosine_logits(X, W, 0.0), "scale must be above 0"),
        (lambda: clap_class_weights(X, X[:, 0]), "needs class indices"),
        (
            lambda: clap_loss(W, W[:, :2], X, LABELS, jnp.ones(3)),
            "both hold a column for each class",
        ),
        (
            lambda: fit_clap(jax.random.key(0), X[:0], LABELS[:0], W),
            "labels is empty",
        ),
    ],
)
def test_bad_input_is_named(call, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        call()


def test_tip_adapter_adds_what_the_cache_says():
    x, w, labels = arrays()
    keys = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    values = jax.nn.one_hot(labels, 3)
    found = tip_adapter_logits(2 * x, w, keys, values, 0.7, 3.0, 10.0)
    likeness = np.asarray(keys, "f8") @ np.asarray(keys, "f8").T
    cache = np.exp(-3.0 * (1 - likeness)) @ np.asarray(values)
    zero_shot = cosine_logits(x, w, 10.0)
    np.testing.assert_allclose(found, zero_shot + 0.7 * cache, rtol=1e-5, atol=1e-5)
    alone = tip_adapter_logits(x, w, keys, values, alpha=0.0, scale=10.0)
    np.testing.assert_array_equal(alone, zero_shot)


def test_a_trained_cache_knows_its_labels_better():
    x, w, labels = arrays(1, batch=12)
    fit = dict(scale=2.0, passes=100, batch_size=6, learning_rate=0.01)
    keys, values = fit_tip_adapter(jax.random.key(0), x, labels, w, **fit)
    start = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    before, after = (
        cross_entropy_loss(tip_adapter_logits(x, w, k, values, scale=2.0), labels)
        for k in (start, keys)
    )
    assert after.mean() < before.mean() - 0.05
    none, _ = fit_tip_adapter(jax.random.key(0), x, labels, w, passes=1)
    assert np.abs(none - start).max() < 2e-3  # one step of AdamW


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: tip_adapter_logits(X, W, X[:, :2], jnp.ones((7, 3))),
            r"keys has shape \(7, 2\)",
        ),
        (
            lambda: tip_adapter_logits(X, W, X, jnp.ones((6, 3))),
            r"values has shape \(6, 3\)",
        ),
        (
            lambda: fit_tip_adapter(jax.random.key(0), X[:0], LABELS[:0], W),
            "labels is empty",
        ),
    ],
)
def test_a_cache_that_does_not_fit_is_named(call, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        call()
