"""What weights of few bits cost in a product, beside dense ones in bfloat16.

For a TPU v5e by its compiler, at the up projection of a 70B Llama (8,192 to 28,672),
whose dense weights do not fit the chip's fast memory: 8 tokens (decoding), scales for
groups of 128 inputs; then the gradient through 8 scanned layers of 4,096 by 4,096,
against dequantising in plain JAX. Times on the CPU are ratios to the dense product's,
of 8 tokens and 1,024 to 4,096 in float32, in one interleaved run.
"""

import functools

import jax
import jax.numpy as jnp
from products import Case, compiled_table, timed_table
from rich.console import Console

from jaxkd.kernels.quant_matmul import (
    QuantizedWeights,
    dequantize,
    quant_matmul,
    quantize,
)

GROUP = 128


def dense(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the plain product."""
    return jnp.dot(x, weights, preferred_element_type=jnp.float32).astype(x.dtype)


def dequantized_first(x: jax.Array, weights: QuantizedWeights) -> jax.Array:
    """Return what one writes without the operation."""
    return dense(x, dequantize(weights).astype(x.dtype))


def cases(weights: jax.Array | jax.ShapeDtypeStruct) -> list[Case]:
    """Return the dense product and one for each kind of code."""
    found = [Case("dense", dense, weights)]
    for kind, group, activations in (
        ("int8", GROUP, None),
        ("int4", GROUP, None),
        ("int2", GROUP, None),
        ("fp8", GROUP, None),
        ("int8", None, "int8"),
    ):
        make = functools.partial(quantize, kind=kind, group=group)
        rounded = jax.eval_shape(make, weights)
        if not isinstance(weights, jax.ShapeDtypeStruct):
            rounded = make(weights)
        product = functools.partial(quant_matmul, activations=activations)
        name = kind if activations is None else f"{kind}, activations too"
        found.append(Case(name, product, rounded))
    return found


def layers(product, x: jax.Array, weights: QuantizedWeights) -> jax.Array:
    """Return what residual layers make of x."""
    return jax.lax.scan(
        lambda h, w: (h + jax.nn.gelu(product(h, w)), None), x, weights
    )[0]


def main() -> None:
    """Measure and print the tables."""
    console = Console()
    weights = jax.ShapeDtypeStruct((8192, 28672), jnp.bfloat16)
    console.print(compiled_table("decoding, 8 tokens", cases(weights), 8))
    one = jax.ShapeDtypeStruct((8, 4096, 4096), jnp.bfloat16)
    stacked = jax.eval_shape(
        jax.vmap(functools.partial(quantize, kind="int4", group=GROUP)), one
    )
    scanned = [
        Case(name, functools.partial(layers, product), stacked)
        for name, product in (
            ("dequantised first", dequantized_first),
            ("quant_matmul", quant_matmul),
        )
    ]
    title = "gradient of 2,048 tokens through 8 layers, int4"
    console.print(compiled_table(title, scanned, 2048, grad=True))
    small = jax.random.normal(jax.random.key(0), (1024, 4096))
    console.print(timed_table("CPU, 8 tokens", cases(small), 8))


if __name__ == "__main__":
    main()
