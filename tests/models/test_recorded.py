"""Every constructor of the zoo records what it was called with."""

import inspect
import typing

import jax
import jax.numpy as jnp
import pytest

from jaxkd import models, networks
from jaxkd.network import Network

NEEDED = {
    "cell": "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|",
    "classes": 3,
    "features": 3,
    "heads": 2,
    "hidden": 8,
    "kv_layers": 1,
    "layers": 2,
    "llama": models.llama(8, 8, 2, 2, 8).spec[1],  # pyright: ignore
    "positions": 8,
    "vocabulary": 8,
    "width": 32,
}
"""Values of the parameters that have no default."""

MAY_BE_0 = {"blocks", "eos", "first_position", "pad", "random_blocks", "types"}
"""Tokens, and parts that a network may do without."""


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_the_spec_is_the_name_and_all_arguments(name, monkeypatch):
    monkeypatch.setattr(Network, "from_nnx", lambda build, **_: Network(build, build))
    parameters = inspect.signature(models.MODELS[name]).parameters
    given = {key: NEEDED[key] for key, p in parameters.items() if p.default is p.empty}
    defaults = {key: p.default for key, p in parameters.items()}
    assert models.create(name, **given).spec == (name, {**defaults, **given})


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_no_network_is_made_of_nothing(name):
    """Every whole number of a constructor is refused as 0, or has 0 as its default."""
    parameters = inspect.signature(models.MODELS[name]).parameters
    hints = typing.get_type_hints(inspect.unwrap(models.MODELS[name]))
    given = {key: NEEDED[key] for key, p in parameters.items() if p.default is p.empty}
    for argument, parameter in parameters.items():
        sizes = hints[argument] in (int, int | None) and argument not in MAY_BE_0
        if sizes and parameter.default != 0:
            with pytest.raises(ValueError, match=rf"{argument}\b.*\b0\b"):
                models.create(name, **{**given, argument: 0})


def test_the_spec_stays_with_the_same_network():
    network = models.mlp(6, widths=[4])
    assert network.spec == ("mlp", {"features": 6, "widths": [4], "classes": 10})
    variables = network.init(jax.random.key(0))
    for same in (
        network.with_variables(variables),
        network.astype(jnp.bfloat16),
        network.computing_in(jnp.bfloat16),
    ):
        assert same.spec is network.spec
    assert networks.with_logits(network, "pooled").spec is None
