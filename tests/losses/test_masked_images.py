"""Masked image modelling and aligned features: the authors' numbers, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.losses import (
    feature_align_loss,
    mae_reconstruction_loss,
    normalize_patches,
    patchify,
    random_masking,
    restore_tokens,
    unpatchify,
    visible_tokens,
)

LAYERS = {"dist1": 1, "dist2": 2, "dist3": 2}


@pytest.fixture
def given(load_golden, x64):
    found = load_golden("47-dmae").items()
    return {k: x if x.dtype.kind == "U" else jnp.asarray(x) for k, x in found}


@pytest.mark.parametrize("case", ["rec1", "rec2"])
def test_the_authors_masking_and_reconstruction(given, case):
    g = {k.removeprefix(f"{case}_"): x for k, x in given.items() if case in k}
    masking = random_masking(g["noise"], float(g["mask_ratio"]))
    np.testing.assert_array_equal(masking.ids_keep, g["ids_keep"])
    np.testing.assert_array_equal(masking.ids_restore, g["ids_restore"])
    np.testing.assert_array_equal(masking.hidden, g["mask"])
    kept = visible_tokens(g["tokens"], masking.ids_keep, 0)
    np.testing.assert_array_equal(kept, g["tokens_kept"])
    image, size = g["imgs"].transpose(0, 2, 3, 1), int(g["patch"])
    patches = patchify(image, size)
    np.testing.assert_array_equal(patches, g["target"])
    np.testing.assert_array_equal(unpatchify(patches, size), image)
    if g["norm_pix"]:
        patches = normalize_patches(patches.astype(float))
    loss, gradient = jax.value_and_grad(mae_reconstruction_loss)(
        g["pred"].astype(float), patches, masking.hidden
    )
    np.testing.assert_allclose(loss, g["loss"], rtol=1e-12)
    np.testing.assert_allclose(gradient, g["grad_pred"], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("case", LAYERS)
def test_the_authors_alignment(given, case):
    g = {k.removeprefix(f"{case}_"): x for k, x in given.items() if case in k}
    projected = bool(g["proj"])

    def loss(z, weight, i):
        own = z @ weight.T + g[f"b{i}"] if projected else z
        return feature_align_loss(
            own, g[f"z_t{i}"].astype(float), str(g["norm"]).lower(), normalize=projected
        ).mean()

    for i in range(LAYERS[case]):
        z, weight = (
            g.get(f"{name}{i}", jnp.zeros(1)).astype(float) for name in ("z_s", "W")
        )
        value, gradients = jax.value_and_grad(loss, (0, 1))(z, weight, i)
        np.testing.assert_allclose(value, g[f"loss{i}"], rtol=1e-12)
        names = ("z_s", "W") if projected else ("z_s",)
        for name, found in zip(names, gradients, strict=False):
            np.testing.assert_allclose(
                found, g[f"grad_{name}{i}"], rtol=1e-9, atol=1e-14
            )


def test_hidden_tokens_go_back_to_their_places():
    tokens = jax.random.normal(jax.random.key(0), (2, 5, 3))
    masking = random_masking(jax.random.uniform(jax.random.key(1), (2, 4)), 0.5)
    seen = visible_tokens(tokens, masking.ids_keep)
    blank = jnp.array([7.0, 8, 9])
    found = restore_tokens(seen, blank, masking.ids_restore)
    hidden = jnp.pad(masking.hidden, ((0, 0), (1, 0)))[..., None]
    np.testing.assert_array_equal(found, jnp.where(hidden > 0, blank, tokens))


def test_the_number_of_visible_patches_is_the_authors_float():
    def seen(patches, ratio):
        return random_masking(jnp.zeros((1, patches)), ratio).ids_keep.shape[1]

    assert [seen(196, r) for r in (0.75, 0.95, 0.98)] == [49, 9, 3]
    assert seen(16, 0.9) == 1


def test_aligned_features_have_no_gradient_and_extremes_a_finite_one():
    z = jnp.array([[[0.0, 0], [1e4, -1e4]]])

    def total(a, b, **arguments):
        return feature_align_loss(a, b, **arguments).sum()

    for arguments in ({}, {"distance": "l2"}, {"normalize": False}):
        np.testing.assert_array_equal(jax.grad(total)(z, z, **arguments), 0)
        assert np.isfinite(jax.grad(total)(z, z[:, ::-1], **arguments)).all()
        np.testing.assert_array_equal(jax.grad(total, 1)(z, z[:, ::-1]), 0)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_masking(jnp.zeros((1, 4)), 0.8), "hides all of 4 patches"),
        (lambda: random_masking(jnp.zeros((1, 4)), 1.0), r"mask_ratio must be in \[0"),
        (lambda: patchify(jnp.zeros((1, 6, 8, 3)), 4), "does not tile images"),
        (lambda: unpatchify(jnp.zeros((1, 3, 4)), 2), "a square number of patches"),
        (lambda: normalize_patches(jnp.zeros((1, 4, 1))), "one value has no variance"),
        (
            lambda: mae_reconstruction_loss(
                *2 * (jnp.zeros((1, 4, 2)),), jnp.zeros((1, 4))
            ),
            "hide at least one patch",
        ),
        (
            lambda: feature_align_loss(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3, 5))),
            r"student_features has shape \(2, 3, 4\).*project",
        ),
        (lambda: feature_align_loss(jnp.zeros(2), jnp.zeros(2)), "at least one more"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
