"""T5's buckets of distances."""

import flax.nnx as nnx
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxkd.models.language.relative import RelativeBias, distance_buckets


def test_near_distances_have_a_bucket_each_and_farther_ones_grow_twofold():
    # 16 buckets, 8 of them of one distance; the rest from 8 to 128 by √2 each.
    found = distance_buckets(16, 128)
    assert found[:8].tolist() == list(range(8))
    steps = np.flatnonzero(np.diff(found)) + 1
    assert steps.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    assert found[-1] == 15


@given(buckets=st.integers(2, 64), beyond=st.integers(1, 300))
def test_buckets_never_fall_and_are_all_there_is(buckets, beyond):
    found = distance_buckets(buckets, buckets // 2 + beyond)
    assert (np.diff(found) >= 0).all()
    assert found[0] == 0
    assert found[-1] == buckets - 1


@pytest.mark.parametrize(("buckets", "distance"), [(1, 8), (8, 4), (8, 2)])
def test_buckets_that_do_not_fit_are_refused(buckets, distance):
    with pytest.raises(ValueError, match=f"max_distance {distance}, got {buckets}"):
        distance_buckets(buckets, distance)


@pytest.mark.parametrize("both_ways", [True, False])
def test_the_bias_is_of_the_distance_and_of_its_side(both_ways):
    bias = RelativeBias(8, 20, 3, both_ways=both_ways, scale=1.0, rngs=nnx.Rngs(0))
    whole = bias(jnp.arange(6), jnp.arange(6))
    assert whole.shape == (1, 3, 6, 6)
    np.testing.assert_array_equal(whole[..., 1:, 1:], whole[..., :-1, :-1])
    # A later part of the rows, as with a cache.
    part = bias(4 + jnp.arange(2), jnp.arange(6))
    np.testing.assert_array_equal(part, whole[..., 4:, :])
    before, after = whole[0, :, 3, 2], whole[0, :, 2, 3]
    assert (before != after).all()
    assert (after == whole[0, :, 2, 2]).all() == (not both_ways)
