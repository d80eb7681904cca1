"""Nyströmformer's attention: few landmarks stand for all queries and keys.

Its three softmaxes are of length x landmarks, landmarks x landmarks and landmarks x
length; the first and the last are `attention` with other queries and keys, so that
neither is kept. It has no versions of its own.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxkd.arguments import checked
from jaxkd.kernels.attention import attention


@checked()
def nystrom_attention(
    query: Float[Array, "batch length heads dim"],
    key: Float[Array, "batch length heads dim"],
    value: Float[Array, "batch length heads dim"],
    landmarks: int,
    *,
    mask: Bool[Array, "batch length"] | None = None,
    iterations: int = 6,
    shared_scale: bool = False,
    implementation: str = "auto",
) -> Float[Array, "batch length heads dim"]:
    """Approximate full attention in time and memory that grow with the length.

    With landmarks q̃ and k̃, means of as many stretches of equal length, it is
    ``softmax(q·k̃ᵀ)·pinv(softmax(q̃·k̃ᵀ))·softmax(q̃·kᵀ)·v``, scores divided by √dim
    (Xiong et al. 2021, arXiv:2102.03902, Eq. 13). The convolution over the values that
    Nyströmformer adds has weights and belongs to the model.

    Args:
        query: of every token.
        key: of every token.
        value: of every token.
        landmarks: they divide the length; as many as the length give full attention.
        mask: False for keys that nobody sees. As in the authors' code the landmarks are
            means of padding too: avoid it, or give it zeros.
        iterations: of the pseudo-inverse.
        shared_scale: as in `newton_pinv`, the authors' code.
        implementation: of `attention`.

    Raises:
        ValueError: landmarks that do not divide the length, or shapes that do not fit.
    """
    batch, length, heads, dim = query.shape
    if landmarks < 1 or length % landmarks:
        raise ValueError(
            f"landmarks must divide the length {length}, got {landmarks}: pad the "
            "sequence or choose a divisor"
        )
    seen = None
    if mask is not None:
        seen = jnp.ones((batch, landmarks), jnp.int32), mask
    if landmarks == length:
        return attention(
            query, key, value, segment_ids=seen, implementation=implementation
        )
    stretches = (batch, landmarks, length // landmarks, heads, dim)
    work = jnp.promote_types(query.dtype, jnp.float32)
    queries, keys = (x.astype(work).reshape(stretches).mean(2) for x in (query, key))
    scores = jnp.einsum("bihd,bjhd->bhij", queries, keys) / math.sqrt(dim)
    inverse = newton_pinv(jax.nn.softmax(scores), iterations, shared_scale=shared_scale)
    gathered = attention(
        queries,
        key.astype(work),
        value.astype(work),
        segment_ids=seen,
        implementation=implementation,
    )
    mixed = jnp.einsum("bhij,bjhd->bihd", inverse, gathered)
    out = attention(query.astype(work), keys, mixed, implementation=implementation)
    return out.astype(query.dtype)


@checked()
def newton_pinv(
    matrix: Float[Array, "*batch size size"],
    iterations: int = 6,
    *,
    shared_scale: bool = False,
) -> Float[Array, "*batch size size"]:
    """Return the pseudo-inverse of matrices whose rows are probabilities.

    The iteration of third order ``Z ← Z(13 − AZ(15 − AZ(7 − AZ)))/4`` from Aᵀ over the
    largest sum of a column (Razavi et al. 2014; Xiong et al. 2021, arXiv:2102.03902,
    Eq. 11).

    Args:
        matrix: A.
        iterations: 6 in the paper.
        shared_scale: start from the largest sum of all matrices, as the authors' code
            does, which ties the examples of a batch together; else of each its own.
    """

    def times(x: Array, y: Array) -> Array:
        # The products' errors grow from iteration to iteration.
        return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)

    sums = jnp.abs(matrix).sum(-2)
    largest = sums.max() if shared_scale else sums.max(-1)[..., None, None]
    unit = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
    inverse = matrix.swapaxes(-1, -2) / largest
    for _ in range(iterations):
        product = times(matrix, inverse)
        inner = 15 * unit - times(product, 7 * unit - product)
        inverse = times(inverse, 13 * unit - times(product, inner)) / 4
    return inverse
