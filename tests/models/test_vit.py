"""ViT and DeiT against transformers' numbers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.interop import load_pretrained
from jaxkd.models import vit

GOLDEN = Path(__file__).parents[1] / "golden" / "hf"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "deit"])
def test_logits_and_hidden_states_are_those_of_transformers(name):
    network, variables = load_pretrained(GOLDEN / name)
    expected = np.load(GOLDEN / name / "io.npz")
    image = jnp.asarray(expected["pixel_values"].transpose(0, 2, 3, 1))
    outputs, _ = jax.jit(lambda v, x: network.apply(v, x, taps=network.taps))(
        variables, image
    )
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(outputs.logits, expected["logits"], **close)
    blocks = sum(tap.startswith("block") and "." not in tap for tap in network.taps)
    for i in range(blocks + 1):
        tap = f"block{i - 1}" if i else "embed"
        np.testing.assert_allclose(
            outputs.features[tap], expected[f"hidden_{i}"], **close
        )
    if name == "deit":
        second = outputs.features["distillation_logits"]
        np.testing.assert_allclose(second, expected["distillation_logits"], **close)
        # In training the logits are those of the class token alone.
        outputs, _ = network.apply(variables, image, train=True)
        np.testing.assert_allclose(outputs.logits, expected["cls_logits"], **close)


def test_the_mlps_width_and_the_norms_epsilon_can_be_others():
    small = {"size": (12, 1, 3), "classes": 2, "image_size": 4, "patch_size": 4}
    plain, other = (
        jax.eval_shape(vit(**small, **changes).init, jax.random.key(0))["params"]
        for changes in ({}, {"hidden": 7, "epsilon": 1e-12})
    )
    assert plain["blocks"]["0"]["mlp"]["fc1"]["kernel"].shape == (12, 48)
    assert other["blocks"]["0"]["mlp"]["fc1"]["kernel"].shape == (12, 7)
