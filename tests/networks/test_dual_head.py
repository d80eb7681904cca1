"""A second head on any network with pooled features."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax

from jaxkd import distill, methods, models, networks

KEY = jax.random.key(0)
IMAGE = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4, 4, 1)), jnp.float32)
TAPS = ("ce.logits", "kd.logits", "pooled")


def build(network, features, **options):
    return networks.dual_head(network, features, 3, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "features"),
    [(models.mlp(16, (8,), 3), 8), (models.cnn(1, (4, 6), 3), 6)],
    ids=["mlp", "cnn"],
)
def test_heads_share_features_and_the_logits_are_their_mixture(network, features):
    student = build(network, features, alpha=0.3, beta=0.5)
    variables = student.init(KEY)
    outputs, _ = student.apply(variables, IMAGE, taps=TAPS)
    own = {"params": variables["params"]["network"], "stats": variables["stats"]}
    alone, _ = network.apply(own, IMAGE, taps=("pooled",))
    np.testing.assert_array_equal(outputs.features["ce.logits"], alone.logits)
    np.testing.assert_array_equal(outputs.features["pooled"], alone.features["pooled"])
    head = variables["params"]["kd_head"]
    kd = np.asarray(alone.features["pooled"]) @ np.asarray(head["kernel"])
    np.testing.assert_allclose(outputs.features["kd.logits"], kd, rtol=1e-4, atol=1e-5)
    mixed = 0.3 * softmax(alone.logits, -1) + 0.7 * softmax(2 * kd, -1)
    np.testing.assert_allclose(jnp.exp(outputs.logits), mixed, rtol=1e-4)
    assert not student.apply(variables, IMAGE)[0].features


def test_features_of_one_length_for_the_second_head():
    network = models.mlp(16, (8,), 3)
    student = build(network, 8, normalize_to=100.0)
    variables = student.init(KEY)
    outputs, _ = student.apply(variables, IMAGE, taps=TAPS)
    x = np.asarray(outputs.features["pooled"])
    x = 100 * x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = x @ np.asarray(variables["params"]["kd_head"]["kernel"])
    np.testing.assert_allclose(outputs.features["kd.logits"], expected, rtol=1e-4)
    low = student.astype(jnp.bfloat16)
    outputs, _ = low.apply(low.init(KEY), IMAGE, taps=TAPS)
    assert outputs.features["kd.logits"].dtype == jnp.bfloat16


@pytest.mark.slow
def test_each_signal_trains_its_head_and_labels_not_the_other():
    student = build(models.cnn(1, (4, 6), 3), 6)
    batch = {
        "image": IMAGE,
        "label": jnp.array([0, 1, 2, 0, 0, 0]),
        "labelled": jnp.array([True] * 3 + [False] * 3),
        "teacher_logits": jax.random.normal(KEY, (6, 3)),
    }
    changed = {}
    for lam in (0.0, 1.0):
        method = methods.cached(methods.dho(lam))
        program = distill(student, None, method, optax.sgd(1.0))
        before = program.init(KEY, batch)
        after, metrics = jax.jit(program.step)(before, batch)
        assert np.isfinite(metrics["loss"])
        moved = jax.tree.map(
            lambda a, b: bool(np.any(a != b)), before.student, after.student
        )
        params = moved["params"]
        changed[lam] = (
            any(jax.tree.leaves(params["network"]["head"])),
            any(jax.tree.leaves(params["kd_head"])),
            any(jax.tree.leaves(params["network"]["stages"])),
        )
        assert any(jax.tree.leaves(moved["stats"]))
    assert changed == {0.0: (False, True, True), 1.0: (True, False, True)}


def test_bad_arguments_are_named():
    network = models.mlp(16, (8,), 3)
    with pytest.raises(ValueError, match="unknown tap 'poled': did you mean 'pooled'"):
        build(network, 8, tap="poled")
    student = build(network, 8)
    with pytest.raises(ValueError, match="unknown tap 'ce'"):
        student.apply(student.init(KEY), IMAGE, taps=("ce",))
    sharp = build(network, 8, alpha=2.0)
    with pytest.raises(ValueError, match="alpha must be in"):
        sharp.apply(sharp.init(KEY), IMAGE)
