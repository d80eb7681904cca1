"""Products with weights of 8, 4 or 2 bits, and with rounded activations."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked
from jaxkd.checks import unknown_name
from jaxkd.kernels.dispatch import Versions, dispatch
from jaxkd.kernels.quant_matmul import reference, xla
from jaxkd.kernels.quant_matmul.activations import ACTIVATIONS
from jaxkd.kernels.quant_matmul.weights import QuantizedWeights as QuantizedWeights
from jaxkd.kernels.quant_matmul.weights import dequantize as dequantize
from jaxkd.kernels.quant_matmul.weights import fake_quantize as fake_quantize
from jaxkd.kernels.quant_matmul.weights import pack_ternary as pack_ternary
from jaxkd.kernels.quant_matmul.weights import quantize as quantize
from jaxkd.kernels.quant_matmul.weights import unpack_ternary as unpack_ternary


@checked()
def quant_matmul(
    x: Float[Array, "*tokens inputs"],
    weights: QuantizedWeights,
    *,
    activations: str | None = None,
    implementation: str = "auto",
) -> Float[Array, "*tokens outputs"]:
    """Return ``x·W`` of quantised weights.

    XLA dequantises within the product, so that no dense weight is in memory: 8 tokens
    from 8,192 to 28,672 access 243 MiB on a TPU v5e with int8 in groups of 128, 131
    with int4, 75 with int2, and 449 with bfloat16 (the compiler's figures). So there is
    no kernel. What is saved beyond plain JAX is the backward pass: scanned layers would
    keep their dequantised weights for it, which are 256 of the 768 MiB of temporaries
    of 8 layers of 4,096 by 4,096 and 2,048 tokens.

    Before a scan XLA widens int2 to int8; a loop in Python over layers does not.

    Args:
        x: any leading axes. Without rounding the weights are used in its dtype, with
            sums in float32.
        weights: `quantize`'s, or another's of the same meaning. Constants: they get no
            gradient; train with `fake_quantize`.
        activations: ``"int8"`` or ``"fp8"`` rounds x too, with a scale for each token;
            its gradient is straight-through. For weights of integers and of fp8.
        implementation: ``"auto"``, ``"reference"`` or ``"xla"``; see `jaxkd.kernels`.

    Returns:
        In the dtype of x.

    Raises:
        ValueError: shapes or the two kinds do not fit, or an unknown name.
    """
    _check(x, weights, activations)
    flat = x.reshape(-1, x.shape[-1])
    out = _product((activations, implementation), flat, weights)
    return out.reshape(*x.shape[:-1], out.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(how: tuple, x: Array, weights: QuantizedWeights) -> Array:
    activations, implementation = how
    versions = Versions(
        *(
            functools.partial(version.product, activations=activations)
            for version in (reference, xla)
        )
    )
    return dispatch("quant_matmul", implementation, versions, x, weights)


def _forward(
    how: tuple, x: Array, weights: QuantizedWeights
) -> tuple[Array, QuantizedWeights]:
    # Kept for the backward pass are the codes, not the weights that they stand for.
    return _product(how, x, weights), weights


def _backward(
    how: tuple, weights: QuantizedWeights, gradient: Array
) -> tuple[Array, Any]:
    versions = Versions(reference.transposed_product, xla.transposed_product)
    return dispatch("quant_matmul", how[1], versions, gradient, weights), None


_product.defvjp(_forward, _backward)


def _check(x: Array, weights: QuantizedWeights, activations: str | None) -> None:
    inputs, outputs = weights.codes.shape
    if x.shape[-1] != inputs:
        raise ValueError(
            f"x has {x.shape[-1]} inputs (shape {x.shape}) but weights has codes of "
            f"shape {weights.codes.shape}: the inputs must be the same"
        )
    groups = weights.scale.shape
    zero = groups if weights.zero is None else weights.zero.shape
    if groups[1] != outputs or zero != groups or inputs % groups[0]:
        raise ValueError(
            f"weights has codes of shape {weights.codes.shape}, scale {groups} and "
            f"zero {zero}: scale and zero must be (groups, {outputs}), and the groups "
            f"divide the {inputs} inputs"
        )
    if activations is None:
        return
    if activations not in ACTIVATIONS:
        raise ValueError(unknown_name("activations", activations, ACTIVATIONS))
    integers = jnp.issubdtype(weights.codes.dtype, jnp.integer)
    if integers != (activations == "int8"):
        raise ValueError(
            f"activations {activations!r} cannot be multiplied with codes of "
            f"{weights.codes.dtype}: int8 goes with int8, int4 and int2, fp8 with fp8"
        )
