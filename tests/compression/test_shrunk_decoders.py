"""Decoders within a decoder: one compiled step for all masks, and what is cut out."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.compression.shrink import DecoderMask, extract_decoder, mask_decoder
from jaxkd.interop import load_pretrained, save_pretrained
from jaxkd.models import llama

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"
INPUTS = {"input_ids": jnp.arange(14).reshape(2, 7)}


def mask_of(network, layers, seed=0):
    _, arguments = network.spec
    rng = np.random.default_rng(seed)
    depth = arguments["layers"]
    groups = np.ones((depth, arguments["kv_heads"]), bool)
    groups[[0, 2], [1, 0]] = False
    neurons = rng.random((depth, arguments["hidden"])) < 0.6
    return DecoderMask(np.array(layers), groups, neurons)


SLOW = [pytest.param(x, marks=pytest.mark.slow) for x in ("qwen2", "gemma2", "qwen3")]


@pytest.mark.parametrize("family", ["llama", *SLOW])
def test_extracted_is_the_masked_one(family, tmp_path):
    network, variables = load_pretrained(GOLDEN / family)
    # A process's first trace imports kernels, whose settings have jax trace anew.
    jax.eval_shape(network.apply, variables, INPUTS)
    depth = network.spec[1]["layers"]
    traced = []

    @jax.jit
    def masked(mask):
        traced.append(mask)
        params = mask_decoder(network, variables["params"], mask)
        return network.apply({**variables, "params": params}, INPUTS)[0].logits

    masks = [mask_of(network, np.arange(depth) != i, seed=i) for i in (1, 2)]
    logits = [masked(mask) for mask in masks]
    assert len(traced) == 1
    smaller, its_own = extract_decoder(network, variables, masks[0])
    extracted = jax.jit(smaller.apply)(its_own, INPUTS)[0].logits
    np.testing.assert_allclose(extracted, logits[0], rtol=1e-5, atol=1e-5)
    assert jnp.abs(logits[1] - logits[0]).max() > 1e-3
    assert smaller.spec[1]["hidden"] < network.spec[1]["hidden"]
    if family == "gemma2":  # Its layers' windows take turns, which a cut ends.
        return
    save_pretrained(tmp_path, smaller, its_own)
    again, read = load_pretrained(tmp_path)
    assert again.spec == smaller.spec
    jax.tree.map(np.testing.assert_array_equal, read["params"], its_own["params"])


SMALL = {"vocabulary": 14, "width": 8, "layers": 3, "heads": 2, "hidden": 6}


def test_what_cannot_be_masked():
    network = llama(**SMALL, kv_heads=2)
    params = jax.eval_shape(network.init, jax.random.key(0))["params"]
    whole = DecoderMask(np.ones(3, bool), np.ones((3, 2), bool), np.ones((3, 6), bool))
    with pytest.raises(ValueError, match=r"mask.groups has shape \(3, 1\) but must"):
        mask_decoder(network, params, whole._replace(groups=np.ones((3, 1), bool)))
    with pytest.raises(ValueError, match=r"one of jaxkd\.models\.llama"):
        mask_decoder(replace(network, spec=None), params, whole)
    with pytest.raises(ValueError, match="norms of all heads together"):
        mask_decoder(llama(**SMALL, qk_norm="whole"), params, whole)
    none = whole._replace(layers=np.zeros(3, bool))
    with pytest.raises(ValueError, match="must keep at least one layer"):
        extract_decoder(network, {"params": params}, none)
