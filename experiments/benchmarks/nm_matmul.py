"""What 2:4 sparse weights cost in a product, beside dense ones in bfloat16.

For a TPU v5e by its compiler, at the up projection of a 70B Llama (8,192 to 28,672),
whose dense weights do not fit the chip's fast memory: for 8 tokens (decoding), and for
the gradient of 2,048. ``reference`` unpacks the weights first. The compiler knows of a
kernel's bytes what the kernel declares; each block of weights is read once for 256
tokens. Times on the CPU are ratios to the dense product's, of 8 tokens and 1,024 to
4,096 in float32, in one interleaved run.
"""

import functools

import jax
import jax.numpy as jnp
from products import Case, compiled_table, timed_table
from rich.console import Console

from jaxkd.kernels.nm_matmul import nm_matmul, nm_pack

INPUTS, OUTPUTS = 8192, 28672


def dense(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the plain product."""
    return jnp.dot(x, weights, preferred_element_type=jnp.float32).astype(x.dtype)


def cases(
    weights: jax.Array | jax.ShapeDtypeStruct, versions: tuple[str, ...]
) -> list[Case]:
    """Return the dense product and the sparse one's versions."""
    if isinstance(weights, jax.ShapeDtypeStruct):
        sparse = jax.eval_shape(nm_pack, weights)
    else:
        sparse = nm_pack(weights)
    return [Case("dense", dense, weights)] + [
        Case(name, functools.partial(nm_matmul, implementation=name), sparse)
        for name in versions
    ]


def main() -> None:
    """Measure and print the tables."""
    console = Console()
    weights = jax.ShapeDtypeStruct((INPUTS, OUTPUTS), jnp.bfloat16)
    versions = cases(weights, ("reference", "xla", "pallas"))
    console.print(compiled_table("decoding, 8 tokens", versions, 8))
    console.print(compiled_table("gradient, 2,048 tokens", versions, 2048, grad=True))
    small = jax.random.normal(jax.random.key(0), (1024, 4096))
    console.print(timed_table("CPU, 8 tokens", cases(small, ("reference", "xla")), 8))


if __name__ == "__main__":
    main()
