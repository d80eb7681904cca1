"""Which version runs on which platform, and what is refused."""

import jax
import jax.numpy as jnp
import pytest

from jaxkd.kernels.dispatch import Versions, dispatch

VERSIONS = Versions(
    reference=lambda x: x,
    xla=lambda x: x + 1,
    tpu=lambda x: x + 2,
    gpu=lambda x: x + 3,
)
X = jnp.zeros(2)


@pytest.mark.parametrize(
    ("implementation", "expected"), [("reference", 0), ("xla", 1), ("auto", 1)]
)
def test_the_version_asked_for_runs(implementation, expected):
    function = jax.jit(lambda x: dispatch("op", implementation, VERSIONS, x))
    assert function(X).tolist() == [expected] * 2


@pytest.mark.parametrize("implementation", ["auto", "pallas"])
@pytest.mark.parametrize(("platform", "added"), [("tpu", 2.0), ("cuda", 3.0)])
def test_pallas_is_of_the_platform_that_is_compiled_for(
    implementation, platform, added
):
    function = jax.jit(lambda x: dispatch("op", implementation, VERSIONS, x))
    text = function.trace(X).lower(lowering_platforms=(platform,)).as_text()
    assert f"dense<{added:.6e}>" in text


def test_pallas_is_refused_where_there_is_none():
    function = jax.jit(lambda x: dispatch("op", "pallas", VERSIONS, x))
    with pytest.raises(NotImplementedError, match="op has Pallas kernels for tpu and"):
        function(X)
    with pytest.raises(ValueError, match="op has no Pallas kernel: choose"):
        dispatch("op", "pallas", VERSIONS._replace(tpu=None, gpu=None), X)
    with pytest.raises(ValueError, match="implementation 'cuda'"):
        dispatch("op", "cuda", VERSIONS, X)
