"""Which weights are rounded to what, and the bits that are left."""

import jax
import jax.numpy as jnp
import pytest

from jaxkd.compression.quantise.mixed_bits import average_bits, quantize_layers
from jaxkd.kernels.quant_matmul import QuantizedWeights, dequantize, quantize

PARAMS = {
    "embed": jnp.ones((8, 4)),
    "blocks": {
        "attention": {"kernel": jax.random.normal(jax.random.key(0), (2, 8, 4))},
        "mlp": {
            "kernel": jax.random.normal(jax.random.key(1), (2, 8, 4)),
            "bias": jnp.ones((2, 4)),
        },
    },
}


@pytest.mark.slow
def test_the_first_rule_that_matches_decides():
    rules = [(r"attention\.kernel", "int4"), (".*kernel", "ternary"), ("embed", None)]
    found = quantize_layers(PARAMS, rules, group=4)
    assert found["embed"] is PARAMS["embed"]
    attention = found["blocks"]["attention"]["kernel"]
    assert attention.codes.dtype == jnp.int4
    assert attention.scale.shape == (2, 2, 4)
    mlp = found["blocks"]["mlp"]
    assert isinstance(mlp["kernel"], QuantizedWeights)
    second = jax.tree.map(lambda x: x[1], mlp["kernel"])
    weights = PARAMS["blocks"]["mlp"]["kernel"][1]
    assert (
        dequantize(second) == dequantize(quantize(weights, "ternary", group=4))
    ).all()
    assert mlp["bias"] is PARAMS["blocks"]["mlp"]["bias"]


def test_bits_count_scales_and_what_is_left():
    assert average_bits(PARAMS) == 32
    found = quantize_layers({"kernel": jnp.ones((64, 2))}, [("kernel", "int4")], 32)
    assert average_bits(found) == 4 + 32 / 32
    both = {"a": jnp.ones((8, 2), jnp.bfloat16), "b": found["kernel"]}
    assert average_bits(both) == pytest.approx((16 * 16 + 128 * 5) / 144)


def test_rules_without_a_weight_are_named():
    with pytest.raises(ValueError, match="rules 'head' match no path"):
        quantize_layers(PARAMS, [(".*kernel", "int4"), ("head", "int8")])
    with pytest.raises(ValueError, match=r"'mlp.kernel' match no path, or only"):
        quantize_layers(PARAMS, [(".*kernel", "int4"), ("mlp.kernel", "int8")])
    with pytest.raises(ValueError, match="match no path, or only"):
        quantize_layers({"bias": jnp.ones(4)}, [("kernel", "int4")])
    with pytest.raises(ValueError, match=r"bias of shape \(4,\) is no matrix"):
        quantize_layers({"bias": jnp.ones(4)}, [("bias", "int4")])
