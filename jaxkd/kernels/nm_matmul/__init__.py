"""Products with N:M sparse weights, stored without their zeros."""

import functools
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxkd.arguments import checked
from jaxkd.kernels.dispatch import Versions, dispatch
from jaxkd.kernels.nm_matmul import reference, xla
from jaxkd.kernels.nm_matmul.masks import nm_mask as nm_mask
from jaxkd.kernels.nm_matmul.masks import sr_ste as sr_ste
from jaxkd.kernels.nm_matmul.packing import NMWeights as NMWeights
from jaxkd.kernels.nm_matmul.packing import nm_pack as nm_pack
from jaxkd.kernels.nm_matmul.packing import nm_unpack as nm_unpack


@checked()
def nm_matmul(
    x: Float[Array, "*tokens inputs"],
    weights: NMWeights,
    *,
    implementation: str = "auto",
) -> Float[Array, "*tokens outputs"]:
    """Return ``x·W`` of weights of which n of every m inputs are kept.

    2:4 in bfloat16 takes 9/16 of the dense bytes, which is what decoding is limited by:
    8 tokens from 8,192 to 28,672 access 257 MiB on a TPU v5e with the kernel, and 449
    with dense weights. XLA alone accesses 1,245, and unpacking the weights first 4,789,
    with 1,176 MiB of temporaries (the compiler's figures; the kernel's are by its
    blocks). With thousands of tokens arithmetic is the limit, and dense weights are
    faster. Elsewhere than on TPUs memory is saved, not time: at any moment a 16th of
    the dense weights exists.

    Args:
        x: any leading axes; the weights are used in its dtype, sums are float32.
        weights: `nm_pack`'s. Their gradient is that of the kept values alone.
        implementation: ``"auto"``, ``"reference"``, ``"xla"`` or ``"pallas"`` (on
            TPUs); see `jaxkd.kernels`.

    Returns:
        In the dtype of x.

    Raises:
        ValueError: x has other inputs than the weights, or an unknown implementation.
    """
    if x.shape[-1] != weights.inputs:
        raise ValueError(
            f"x has {x.shape[-1]} inputs (shape {x.shape}) but weights "
            f"{weights.inputs}: they must be the same"
        )
    flat = x.reshape(-1, weights.inputs)
    out = _product(implementation, flat, weights)
    return out.reshape(*x.shape[:-1], out.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(implementation: str, x: Array, weights: NMWeights) -> Array:
    from jaxkd.kernels.nm_matmul import tpu  # Pallas: most of a second.

    versions = Versions(reference.product, xla.product, tpu.product)
    return dispatch("nm_matmul", implementation, versions, x, weights)


def _forward(implementation: str, x: Array, weights: NMWeights) -> tuple[Array, Any]:
    return _product(implementation, x, weights), (x, weights)


def _backward(implementation: str, kept: Any, gradient: Array) -> tuple[Array, Any]:
    from jaxkd.kernels.nm_matmul import tpu  # Pallas: most of a second.

    x, weights = kept
    versions = Versions(
        reference.transposed_product, xla.transposed_product, tpu.transposed_product
    )
    of_x = dispatch("nm_matmul", implementation, versions, gradient, weights)
    of_values = xla.values_gradient(x, gradient, weights)
    # Integers have gradients of a type of their own.
    places = np.zeros(weights.places.shape, jax.dtypes.float0)
    return of_x, weights.replace(values=of_values, places=places)


_product.defvjp(_forward, _backward)
