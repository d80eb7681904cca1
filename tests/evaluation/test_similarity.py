"""CKA: its closed form, what leaves it unchanged, and degenerate features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd import models
from jaxkd.data import Source
from jaxkd.evaluation.similarity import linear_cka, tapped_cka

seeds = st.integers(0, 2**31)


def reference(x, y):
    """The feature-space form of Kornblith et al., in double precision."""
    x, y = (z.reshape(len(z), -1).astype(float) for z in (x, y))
    x, y = (z - z.mean(0) for z in (x, y))
    cross = np.linalg.norm(y.T @ x) ** 2
    return cross / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_linear_cka_is_the_feature_space_form(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 2, (9, 2, 2, 3)).astype("f4")
    y = (x.reshape(9, -1)[:, :5] + rng.normal(size=(9, 5))).astype("f4")
    found = linear_cka(jnp.asarray(x), jnp.asarray(y))
    assert found == pytest.approx(reference(x, y), rel=1e-4)
    assert 0 <= found <= 1 + 1e-6


@settings(deadline=None, max_examples=20)
@given(seeds, st.floats(-15, 15))
def test_rotation_scale_and_shift_change_nothing(seed, decades):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 12, 6))
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    moved = 10**decades * (x @ rotation + rng.normal(size=6))
    x, y, moved = (jnp.asarray(z, jnp.float32) for z in (x, y, moved))
    assert linear_cka(x, y) == pytest.approx(float(linear_cka(moved, y)), abs=1e-4)
    assert linear_cka(x, moved) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4])
def test_features_that_do_not_change_are_like_nothing(value):
    # As many as make the mean of a constant another number, in single precision.
    x = jnp.full((300, 4), value)
    y = jnp.asarray(np.random.default_rng(0).normal(size=(300, 4)), jnp.float32)
    assert linear_cka(x, y) == linear_cka(y, x) == linear_cka(x, x) == 0


@pytest.mark.slow
def test_features_that_are_not_finite_have_no_similarity():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 4)), jnp.float32)
    for value in (jnp.nan, jnp.inf):
        assert jnp.isnan(linear_cka(x.at[2, 1].set(value), x))


def test_unequal_or_single_examples_are_refused(unchecked_shapes):
    with pytest.raises(ValueError, match=r"\(3, 2\) .* \(4, 2\): .* the same examples"):
        linear_cka(jnp.ones((3, 2)), jnp.ones((4, 2)))
    with pytest.raises(ValueError, match=r"shape \(1, 2\): .* give at least two"):
        linear_cka(jnp.ones((1, 2)), jnp.ones((1, 2)))


def test_tapped_cka_compares_every_layer_with_every_layer():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(20, 8, 8, 1)).astype("f4")
    source = Source("toy", {"image": image, "label": np.arange(20) % 3}, 3)
    network = models.cnn(1, (4, 8), 3)
    one, two = (network.init(jax.random.key(seed)) for seed in (0, 1))
    taps = ("stage0", "stage1", "pooled")
    own = tapped_cka((network, one), (network, one), source, taps)
    np.testing.assert_allclose(np.diag(own), 1, rtol=1e-5)
    np.testing.assert_allclose(own, own.T, rtol=1e-4)
    other = tapped_cka((network, one), (network, two), source, taps, ("stage1",))
    features = [
        network.apply(v, jnp.asarray(image), taps=taps)[0].features for v in (one, two)
    ]
    expected = [
        [reference(np.asarray(features[0][tap]), np.asarray(features[1]["stage1"]))]
        for tap in taps
    ]
    np.testing.assert_allclose(other, expected, rtol=1e-3)
