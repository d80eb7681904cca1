"""T5's relative position bias: what a query adds to a key's score by how far it is.

Raffel et al. 2019 (arXiv:1910.10683), Section 2.1: near distances have a bucket each,
farther ones share buckets that grow with the logarithm of the distance.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked
from jaxkd.sharding.axes import declare

FARTHEST = 2**24
"""The table of buckets has a number for each distance up to the largest."""


@checked()
def distance_buckets(buckets: int, max_distance: int) -> np.ndarray:
    """Return the bucket of every distance from 0 to ``max_distance``.

    Half of the buckets are of one distance each. It is a table, since the logarithms of
    accelerators are not exact enough to tell buckets apart.

    Args:
        buckets: that there are.
        max_distance: from which on all distances share the last bucket.

    Raises:
        ValueError: fewer than two buckets, or none for distances that share one, or a
            distance above `FARTHEST`.
    """
    exact = buckets // 2
    if not 0 < exact < max_distance:
        raise ValueError(
            f"there must be at least 2 buckets for one direction, half of them fewer "
            f"than max_distance {max_distance}, got {buckets}"
        )
    if max_distance > FARTHEST:
        raise ValueError(f"max_distance must be at most {FARTHEST}, got {max_distance}")
    distance = np.arange(max_distance + 1)
    ratio = np.maximum(distance, exact).astype(np.float32) / exact
    growth = np.log(ratio) / np.float32(math.log(max_distance / exact))
    shared = exact + (growth * (buckets - exact)).astype(int)
    return np.where(distance < exact, distance, np.minimum(shared, buckets - 1))


class RelativeBias(nnx.Module):
    """A learned number for every bucket and head.

    Args:
        buckets: of distances; half of them are of later keys if ``both_ways``.
        max_distance: from which on all distances share a bucket.
        heads: of the attention.
        both_ways: whether later keys are seen; else they count as at distance 0.
        scale: deviation of the numbers at the start.
    """

    def __init__(
        self,
        buckets: int,
        max_distance: int,
        heads: int,
        *,
        both_ways: bool,
        scale: float,
        rngs: nnx.Rngs,
    ):
        self.max_distance, self.both_ways = max_distance, both_ways
        self.one_way = buckets // 2 if both_ways else buckets
        normal = nnx.initializers.normal(scale)
        self.embedding = nnx.Param(
            normal(rngs.params(), (buckets, heads)), **declare(None, "heads")
        )

    def __call__(
        self, rows: Int[Array, " rows"], columns: Int[Array, " columns"]
    ) -> Float[Array, "1 heads rows columns"]:
        """Return what is added to the scores of queries and keys at these places."""
        table = jnp.asarray(distance_buckets(self.one_way, self.max_distance))
        offset = columns - rows[:, None]
        distance = jnp.abs(offset) if self.both_ways else jnp.maximum(-offset, 0)
        bucket = table[jnp.minimum(distance, self.max_distance)]
        if self.both_ways:
            bucket = bucket + jnp.where(offset > 0, self.one_way, 0)
        return self.embedding[...][bucket].transpose(2, 0, 1)[None]
