"""Zero-cost proxies against their definitions, written out."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.losses import cross_entropy_loss
from jaxkd.search import (
    Supernet,
    code_similarity,
    grad_norm,
    nwot,
    snip,
    synflow,
    zero_cost,
)
from jaxkd.types import Outputs

RNG = np.random.default_rng(0)


def tree(seed):
    rng = np.random.default_rng(seed)
    return {
        "one": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)},
        "bn": {"scale": jnp.asarray(rng.normal(size=(4,)), jnp.float32)},
        "two": {
            "kernel": jnp.asarray(rng.normal(size=(4, 2)), jnp.float32),
            "bias": jnp.zeros(2),
        },
    }


def test_sums_over_kernels_only():
    w, g = tree(0), tree(1)
    kernels = [
        (np.asarray(w[k]["kernel"]), np.asarray(g[k]["kernel"])) for k in w if k != "bn"
    ]
    norms = sum(np.sqrt((b**2).sum()) for _, b in kernels)
    np.testing.assert_allclose(grad_norm(g), norms, rtol=1e-6)
    saliency = sum(np.abs(a * b).sum() for a, b in kernels)
    np.testing.assert_allclose(snip(w, g), saliency, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(snip)(w, g), saliency, rtol=1e-6)


def test_synflow_of_a_linear_network_counts_its_paths():
    """Each layer's Σ w·∂R/∂w is R itself, the sum over all paths of |w|."""
    w = tree(0)

    def logits(params):
        return jnp.ones((1, 3)) @ params["one"]["kernel"] @ params["two"]["kernel"]

    paths = np.abs(w["one"]["kernel"]) @ np.abs(w["two"]["kernel"])
    np.testing.assert_allclose(synflow(logits, w), np.log(2 * paths.sum()), rtol=1e-6)


def test_nwot_counts_units_that_agree():
    layers = [RNG.normal(size=(5, 3, 2)) > 0, RNG.normal(size=(5, 7)) > 0]
    codes = np.concatenate([x.reshape(5, -1) for x in layers], axis=1)
    agree = (codes[:, None] == codes[None]).sum(-1)
    kernel = sum(code_similarity(jnp.asarray(x)) for x in layers)
    np.testing.assert_array_equal(kernel, agree)
    np.testing.assert_allclose(
        nwot(kernel), np.log(np.abs(np.linalg.det(agree.astype(float)))), rtol=1e-4
    )
    same = code_similarity(jnp.ones((3, 4), bool))
    assert nwot(same) == -jnp.inf


def test_all_proxies_of_a_supernets_network():
    """Its network scales a linear layer by the architecture."""

    def apply(params, image, architecture, *, taps=(), train=True):
        x = image.reshape(len(image), -1) @ params["fc"]["kernel"] * architecture[0]
        codes = {"codes": code_similarity(x > 0)} if taps else {}
        return Outputs(x, codes)

    image = jnp.asarray(RNG.normal(size=(6, 2, 2, 1)), jnp.float32)
    batch = {"image": image, "label": jnp.array([0, 1, 2, 0, 1, 2])}
    params = {"fc": {"kernel": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)}}
    net = Supernet(lambda key: params, apply, lambda p, a: p, ("codes",))
    found = zero_cost(net)(params, (2,), batch)

    def loss(params):
        logits = apply(params, image, (2,)).logits
        return cross_entropy_loss(logits, batch["label"]).mean()

    gradients = jax.grad(loss)(params)
    kernel = np.asarray(params["fc"]["kernel"], np.float64)
    expected = {
        "grad_norm": grad_norm(gradients),
        "snip": snip(params, gradients),
        "nwot": nwot(apply(params, image, (2,), taps=("codes",)).features["codes"]),
        "synflow": np.log(2 * np.abs(kernel).sum()),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
