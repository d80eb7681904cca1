"""Generation from a cache of 8 bits a number, for any decoder with a `KVCache`."""

from dataclasses import replace
from typing import Any

from jaxkd.arguments import checked
from jaxkd.models.language.cache import KVCache
from jaxkd.network import Network
from jaxkd.types import Outputs


@checked()
def with_quantized_cache(network: Network, dtype: Any) -> Network:
    """Return the network whose cache is rounded once its first tokens are read.

    These tokens attend to one another as they are; those after them, to what was
    rounded, by the scales of the first.

    Args:
        network: a decoder with the tap ``cache``.
        dtype: ``jnp.float8_e4m3fn``, ``jnp.int8`` or another of 8 bits.

    Raises:
        ValueError: from ``apply``, a cache that holds no keys and values.
    """

    def apply(variables, inputs, *, taps=(), **kwargs):
        outputs, variables = network.apply(variables, inputs, taps=taps, **kwargs)
        cache = outputs.features.get("cache")
        if cache is None or inputs.get("cache") is not None:
            return outputs, variables
        if not isinstance(cache, KVCache):
            raise ValueError(
                f"the network's cache is a {type(cache).__name__}: only keys and "
                "values are rounded"
            )
        features = {**outputs.features, "cache": cache.quantized(dtype)}
        return Outputs(outputs.logits, features), variables

    return replace(network, apply=apply)
