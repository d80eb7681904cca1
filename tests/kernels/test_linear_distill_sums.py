"""Float32 sums in two halves, of which one is the bfloat16 result."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxkd.kernels.linear_distill.accumulate import add_columns, empty_sum, finished

# None so small that a difference of two is no normal number.
floats = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False).map(
    lambda x: x if abs(x) > 2.0**-60 else 0.0
)


@settings(deadline=None, max_examples=30)
@given(hnp.arrays("f4", (4, 2), elements=floats))
def test_halves_sum_as_float32_does(terms):
    bfloat16 = jnp.dtype(jnp.bfloat16)
    total, expected = empty_sum((1, 3), bfloat16), np.zeros(2, "f4")
    for term in terms:
        total = add_columns(total, jnp.asarray(term[None]), 1)
        expected = expected + term
    nearest = finished(total)[0]
    assert (nearest.dtype, nearest[0]) == (bfloat16, 0)
    # Ties may go either way.
    error, least = (
        np.abs(np.asarray(x, "f8") - expected)
        for x in (nearest[1:], expected.astype(bfloat16))
    )
    np.testing.assert_array_equal(error, least)
