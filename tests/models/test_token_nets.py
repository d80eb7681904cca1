"""ViT, MLP-Mixer and ResMLP: their taps, sizes as JSON holds them, and their starts.

`test_image_layers.py` has their forward passes against NumPy.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd import models
from jaxkd.models.vision.vit import ViT

# Name, arguments, tokens, features a token, and the tap inside of a block.
CIFAR = {"image_size": 32, "patch_size": 4, "classes": 10}
NETS = {
    "vit": ("vit", {"size": [12, 2, 3], **CIFAR}, 65, 12, "attn"),
    "deit": ("vit", {"size": [12, 2, 3], "distilled": True, **CIFAR}, 66, 12, "attn"),
    "mixer": ("mlp_mixer", {"size": [12, 2, 5, 7], **CIFAR}, 64, 12, "mix"),
    "resmlp": ("resmlp", {"size": [12, 2], **CIFAR}, 64, 12, "mix"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_taps_of_a_network_built_from_json(name):
    model, arguments, tokens, width, inner = NETS[name]
    network = models.create(model, **json.loads(json.dumps(arguments)))

    def forward(key):
        image = jnp.zeros((3, 32, 32, 3))
        return network.apply(network.init(key), image, taps=network.taps)[0]

    outputs = jax.eval_shape(forward, jax.random.key(0))
    found = {tap: feature.shape for tap, feature in outputs.features.items()}
    sequences = ["embed", "block0", "block1", f"block0.{inner}", f"block1.{inner}"]
    expected: dict[str, tuple] = dict.fromkeys(
        [*sequences, "final"], (3, tokens, width)
    )
    expected["pooled"] = (3, width)
    if name == "deit":
        expected["distillation_logits"] = (3, 10)
    assert found == expected
    assert outputs.logits.shape == (3, 10)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((12, 2), "size must be 3 positive numbers or one of tiny, small, base, got"),
        ((12, 2, 3, 4), "size must be 3 positive numbers"),
        ((12, 0, 3), r"size must be 3 positive numbers .* got \(12, 0, 3\)"),
        ([10, 2, 3], r"the width a multiple of the heads, got \(10, 2, 3\)"),
    ],
)
def test_sizes_that_are_no_vit_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        models.vit(size)


@pytest.mark.parametrize(
    ("depth", "expected"),
    # Touvron et al. 2021 (arXiv:2103.17239): 0.1 to depth 18, 1e-5 at 24, 1e-6 beyond.
    [(12, 0.1), (18, 0.1), (24, 1e-5), (36, 1e-6)],
)
def test_layer_scale_starts_smaller_in_deeper_networks(depth, expected):
    network = models.resmlp([2, depth], 2, image_size=2, patch_size=2)

    @jax.jit
    def scales(key):
        blocks = network.init(key)["params"]["blocks"].values()
        return [(block["scale1"], block["scale2"]) for block in blocks]

    found = scales(jax.random.key(0))
    assert len(found) == depth
    np.testing.assert_allclose(found, np.full((depth, 2, 2), expected), rtol=1e-6)


def test_stochastic_depth_rises_from_nothing_and_keeps_the_mean():
    model = ViT((6, 5, 2), 2, 4, 2, False, 0.4, 3, rngs=nnx.Rngs(0))
    assert model.blocks[0].drop is None
    drops = [block.drop for block in model.blocks if block.drop is not None]
    rates = [drop.rate for drop in drops]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4])
    branch = jnp.ones((4000, 2, 3))
    first, second = (np.asarray(drop(branch)) for drop in drops[-2:])
    for kept, rate in ((first, 0.3), (second, 0.4)):
        # One draw an example, and those that stay make up for those that go.
        np.testing.assert_array_equal(
            kept, np.broadcast_to(kept[:, :1, :1], kept.shape)
        )
        np.testing.assert_allclose(np.unique(kept), [0, 1 / (1 - rate)], rtol=1e-6)
        assert kept.mean() == pytest.approx(1, abs=0.05)
    drawn = (first[:, 0, 0] > 0), (second[:, 0, 0] > 0)
    assert abs(np.corrcoef(*drawn)[0, 1]) < 0.06, "blocks skip independently"


def test_weights_start_as_deits_do():
    model = ViT((96, 1, 3), 10, 8, 2, True, 0.0, 3, rngs=nnx.Rngs(0))
    # A normal cut off at two deviations has 0.8796 of its deviation.
    for leaf in (
        model.patches.projection.kernel,
        model.blocks[0].attention.qkv.kernel,
        model.blocks[0].mlp.fc1.kernel,
        model.positions,
    ):
        values = np.asarray(leaf[...])
        assert np.abs(values).max() <= 0.04
        assert values.std() == pytest.approx(0.8796 * 0.02, rel=0.05)
    for leaf in (model.blocks[0].attention.qkv.bias, model.head.bias):
        assert leaf is not None
        assert not np.any(leaf[...])
