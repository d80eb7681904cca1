"""SwiftKV: a trained Llama whose prompts stop half way (Qiao et al. 2024).

arXiv:2410.03960. `swiftkv` rewires it, `jaxkd.papers.swiftkv.swiftkv` repairs it by its
own teaching, and `jaxkd.generation.generate` runs it; what that saves is counted here.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxkd.arguments import checked
from jaxkd.losses.basics import l2_normalize
from jaxkd.models.language.llama_config import Config
from jaxkd.network import Network
from jaxkd.papers.swiftkv.model import swiftkv_llama
from jaxkd.types import Variables

TRAINED = r"(shared_norm|shared|late\.attention\.query(_norm)?)\..*"
"""Paths of the weights that SwiftKV trains, for `train_only`: the norm of the shared
features, all keys and values made from them, and the later layers' queries."""


@checked()
def swiftkv(network: Network, kv_layers: int, group: int = 1) -> Network:
    """Return a Llama whose later layers attend to keys made of their first's input.

    Its weights are the network's: the new norm that of the first later layer's input,
    keys and values the mean of a group's. With a group of 1 the first later layer
    computes what it did. A network that starts from trained weights, as
    ``network.with_variables(variables)``, so makes the student of its own teacher.

    Args:
        network: `jaxkd.models.llama`'s, or loaded from a checkpoint of its kind.
        kv_layers: layers that stay as they are.
        group: later layers to one pair of keys and values (AcrossKV).

    Raises:
        ValueError: another kind of network, or layers that do not fit
            (`swiftkv_llama`).
    """
    if network.spec is None or network.spec[0] != "llama":
        kind = "one without a spec" if network.spec is None else repr(network.spec[0])
        raise ValueError(
            f"SwiftKV rewires jaxkd.models.llama's networks, got {kind}: build or "
            "load a Llama, Mistral or Qwen"
        )
    swift = swiftkv_llama(dict(network.spec[1]), kv_layers, group)

    def init(key: PRNGKeyArray) -> Variables:
        variables = network.init(key)
        params = shared_weights(variables["params"], kv_layers, group)
        return {**variables, "params": params}

    return replace(swift, init=init)


@checked()
def shared_weights(params: PyTree, kv_layers: int, group: int = 1) -> PyTree:
    """Return `swiftkv_llama`'s parameters as SwiftKV starts from a Llama's.

    Args:
        params: of `jaxkd.models.llama`.
        kv_layers: layers that stay as they are.
        group: later layers to one pair of keys and values.
    """
    blocks = params["blocks"]
    late = jax.tree.map(lambda w: w[kv_layers:], blocks)
    theirs = {"key", "value", "key_norm"} & late["attention"].keys()

    def mean(weight: Any) -> Array:
        grouped = jnp.asarray(weight).reshape(-1, group, *weight.shape[1:])
        work = jnp.promote_types(grouped.dtype, jnp.float32)
        return grouped.mean(1, dtype=work).astype(grouped.dtype)

    attention = late["attention"]
    own = {name: x for name, x in attention.items() if name not in theirs}
    return {
        **{name: x for name, x in params.items() if name != "blocks"},
        "early": jax.tree.map(lambda w: w[:kv_layers], blocks),
        "shared_norm": jax.tree.map(lambda w: w[0], late["attention_norm"]),
        "shared": jax.tree.map(
            mean, {name: late["attention"][name] for name in theirs}
        ),
        "late": {**late, "attention": own},
    }


@checked()
def prefill_flops(
    network: Network, tokens: int, *, last_only: bool = True
) -> dict[str, float]:
    """Return the operations of matrix products that read a prompt, by kind.

    Embedding and norms are left out, and so are the head's, which only the last token
    needs. Attention is counted for what is visible, half the square.

    Args:
        network: `jaxkd.models.llama`'s or `swiftkv_llama`'s.
        tokens: of the prompt.
        last_only: whether tokens but the last stop where they may; the last one's way
            through the later layers is then counted too.

    Returns:
        ``key_value``, ``query_out``, ``mlp`` and ``attention``.

    Raises:
        ValueError: another kind of network.
    """
    config, kv_layers, groups = _layers(network)
    late = config.layers - kv_layers
    through = 1 if last_only else tokens
    layers_tokens = kv_layers * tokens + late * through
    pairs = tokens * (tokens + 1) / 2
    late_pairs = tokens if last_only else pairs
    heads = config.heads * config.head_dim
    return {
        "key_value": 4.0
        * (kv_layers + groups)
        * tokens
        * config.width
        * config.kv_heads
        * config.head_dim,
        "query_out": 4.0 * layers_tokens * config.width * heads,
        "mlp": 6.0 * layers_tokens * config.width * config.hidden,
        "attention": 4.0 * heads * (kv_layers * pairs + late * late_pairs),
    }


@checked()
def decode_flops(network: Network, context: int) -> dict[str, float]:
    """Return the operations of matrix products for one more token, by kind.

    Args:
        network: `jaxkd.models.llama`'s or `swiftkv_llama`'s.
        context: tokens that it sees, itself included.

    Returns:
        ``key_value``, ``query_out``, ``mlp``, ``attention`` and ``head``.

    Raises:
        ValueError: another kind of network.
    """
    config = _layers(network)[0]
    one = prefill_flops(network, 1)
    return {
        **one,
        "attention": one["attention"] * context,
        "head": 2.0 * config.width * config.vocabulary,
    }


@checked()
def kv_cache_bytes(network: Network, tokens: int, dtype: Any = jnp.bfloat16) -> int:
    """Return the bytes of the keys and values of one sequence.

    Args:
        network: `jaxkd.models.llama`'s or `swiftkv_llama`'s.
        tokens: of the sequence.
        dtype: of the cache.

    Raises:
        ValueError: another kind of network.
        TypeError: no dtype.
    """
    config, kv_layers, groups = _layers(network)
    a_layer = 2 * tokens * config.kv_heads * config.head_dim
    return (kv_layers + groups) * a_layer * jnp.dtype(dtype).itemsize


@checked()
def layer_input_similarity(
    hidden: Float[Array, "layers batch length width"],
) -> Float[Array, "layers layers"]:
    """Return the mean cosine between the features that enter any two layers.

    Where those of later layers are alike, one can stand for the others: it helps to
    choose ``kv_layers``.

    Args:
        hidden: inputs of the layers, taps ``embed``, ``block0`` …
    """
    unit = l2_normalize(hidden.astype(jnp.float32))
    return jnp.einsum("ibld,jbld->ij", unit, unit) / (hidden.shape[1] * hidden.shape[2])


def _layers(network: Network) -> tuple[Config, int, int]:
    """Return sizes, layers with keys of their own, and pairs of shared ones."""
    name, arguments = network.spec or ("unknown", {})
    if name == "llama":
        config = Config.of(**arguments)
        return config, config.layers, 0
    if name == "swiftkv_llama":
        config, kv_layers = Config.of(**arguments["llama"]), arguments["kv_layers"]
        return config, kv_layers, (config.layers - kv_layers) // arguments["group"]
    raise ValueError(f"network must be llama or swiftkv_llama, got {name}")
