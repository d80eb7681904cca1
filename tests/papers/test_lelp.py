"""LELP's directions: closed forms, an independent SVD, and classes that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data, models
from jaxkd.evaluation.features import tapped
from jaxkd.losses import subclass_targets
from jaxkd.papers.lelp import class_pca, null_space_projector, subclass_directions

RNG = np.random.default_rng(0)
labels = np.repeat([0, 1], [40, 30])
# Variances of 4, 1, … in a basis of its own, far from 0.
FEATURES = RNG.normal(size=(70, 6)) * [2, 1, 0.5, 0.3, 0.2, 0.1] + 3
KERNEL = RNG.normal(size=(6, 2))
KEY = jax.random.key(0)


def test_the_projector_takes_out_what_the_last_layer_reads():
    projector = null_space_projector(KERNEL)
    expected = np.eye(6) - KERNEL @ np.linalg.pinv(KERNEL)
    np.testing.assert_allclose(projector, expected, atol=1e-12)
    np.testing.assert_allclose(projector @ projector, projector, atol=1e-12)
    np.testing.assert_allclose(projector @ KERNEL, 0, atol=1e-12)
    twice = np.concatenate([KERNEL, KERNEL[:, :1]], 1)  # of rank 2 all the same
    np.testing.assert_allclose(null_space_projector(twice), projector, atol=1e-12)


@pytest.mark.parametrize("projector", [None, null_space_projector(KERNEL)])
def test_principal_directions_are_those_of_an_svd(projector):
    means, directions, deviations = class_pca(FEATURES, labels, 2, 3, projector)
    projected = FEATURES if projector is None else FEATURES @ projector
    for c in range(2):
        own = projected[labels == c]
        np.testing.assert_allclose(means[c], own.mean(0), rtol=1e-5, atol=1e-6)
        _, sizes, vectors = np.linalg.svd(own - own.mean(0))
        np.testing.assert_allclose(
            deviations[c], sizes[:3] / np.sqrt(len(own)), rtol=1e-5
        )
        cosines = np.abs((directions[c] * vectors[:3].T).sum(0))
        np.testing.assert_allclose(cosines, 1, rtol=1e-5)
        assert (directions[c][np.abs(directions[c]).argmax(0), range(3)] > 0).all()


def test_rotations_share_the_variance_and_scales_make_it_one():
    plain = subclass_directions(FEATURES, labels, 2, 3, KEY, rotate=False)
    turned = subclass_directions(FEATURES, labels, 2, 3, KEY, kernel=KERNEL)
    raw = subclass_directions(
        FEATURES, labels, 2, 3, KEY, rotate=False, normalize=False
    )
    np.testing.assert_allclose(turned.directions.mT @ KERNEL, 0, atol=1e-5)
    for c in range(2):
        own = FEATURES[labels == c]

        def variances(found, own=own, c=c):
            return np.var((own - own.mean(0)) @ np.asarray(found.directions[c]), axis=0)

        np.testing.assert_allclose(variances(plain).mean(), 1, rtol=1e-4)
        np.testing.assert_allclose(variances(turned).mean(), 1, rtol=1e-4)
        ratios = [v.max() / v.min() for v in map(variances, (plain, turned))]
        assert ratios[1] < ratios[0]
        np.testing.assert_allclose(
            np.linalg.norm(raw.directions[c], axis=0), 1, rtol=1e-5
        )
    # The whole pipeline on projected features gives the same targets.
    projected = FEATURES @ null_space_projector(KERNEL)
    logits = jnp.asarray(FEATURES @ KERNEL, jnp.float32)
    targets = [
        subclass_targets(jnp.asarray(h, jnp.float32), logits, turned)
        for h in (FEATURES, projected)
    ]
    np.testing.assert_allclose(*targets, rtol=1e-4, atol=1e-4)


def test_features_of_a_network_in_their_order():
    found = data.load("digits").test
    network = models.mlp(64, (8,), 10)
    variables = network.init(KEY)
    outputs = tapped(network, variables, found, ("pooled",), batch_size=300)
    image = jnp.asarray(found.arrays["image"])
    expected, _ = network.apply(variables, image, taps=("pooled",))
    np.testing.assert_allclose(outputs.logits, expected.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        outputs.features["pooled"], expected.features["pooled"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: null_space_projector(np.ones(3)), r"\(channels, classes\)"),
        (lambda: class_pca(FEATURES, labels, 3, 2), "class 2 has 0 examples"),
        (lambda: class_pca(FEATURES[:43], labels[:43], 2, 3), "class 1 has 3 examples"),
        (
            lambda: subclass_directions(FEATURES, labels, 2, 5, KEY, kernel=KERNEL),
            "subclasses must be at most 4, .*class 0",
        ),
        (lambda: class_pca(0 * FEATURES, labels, 2, 1), "at most 0"),
        (
            lambda: subclass_directions(FEATURES, labels, 2, 2, KEY, kernel=KERNEL[1:]),
            "have 6 channels",
        ),
    ],
)
def test_bad_input_is_refused(call, message, unchecked_shapes):
    with pytest.raises(ValueError, match=message):
        call()
