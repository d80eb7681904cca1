"""Reading prompts and continuing them, as programs that a compiler can plan."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxkd.models.language.cache import CACHE_AXES
from jaxkd.network import Network
from jaxkd.types import Batch, Program, Variables


def stage_evaluator(
    network: Network, ids: Int[Array, "batch length"]
) -> Callable[[Variables], dict[str, float]]:
    """Return ``variables ->`` how far inference's last logits are from training's.

    The largest difference: ``stage_error`` of prompts that are read at once,
    ``chunk_error`` of such as are read in two chunks.

    Args:
        network: that stops prompts' tokens.
        ids: prompts.
    """
    length, half = ids.shape[1], ids.shape[1] // 2

    @jax.jit
    def errors(variables: Variables) -> dict[str, Array]:
        def read(ids: Array, kept: list[int], **cache: Any):
            places = jnp.asarray(kept, jnp.int32)
            inputs = {"input_ids": ids, "logits_to_keep": places, **cache}
            return network.apply(variables, inputs, taps=("cache",))[0]

        expected = network.apply(variables, {"input_ids": ids})[0].logits[:, -1]
        once = read(ids, [length - 1])
        first = read(ids[:, :half], [])
        cache = first.features["cache"].grown(length - half)
        second = read(ids[:, half:], [length - half - 1], cache=cache)
        found = {"stage_error": once, "chunk_error": second}
        return {
            name: jnp.abs(outputs.logits[:, 0] - expected).max()
            for name, outputs in found.items()
        }

    return lambda variables: jax.tree.map(float, errors(variables))


def serving_programs(
    networks: Mapping[str, Network],
    tokens: jax.ShapeDtypeStruct,
    room: int,
    dtype: str,
) -> dict[str, tuple[Program, Batch]]:
    """Return the prefill and the decode of each network.

    Args:
        networks: by name.
        tokens: shape of the prompts.
        room: tokens that they can be continued by.
        dtype: of weights and cache.
    """
    one = jax.ShapeDtypeStruct((tokens.shape[0], 1), jnp.int32)
    found: dict[str, tuple[Program, Batch]] = {}
    for name, network in networks.items():
        prefill, decode = _programs(network.astype(dtype), tokens, room)
        found[f"{name} prefill"] = prefill, {"input_ids": tokens}
        found[f"{name} decode"] = decode, {"input_ids": one}
    return found


def _programs(
    network: Network, tokens: jax.ShapeDtypeStruct, room: int
) -> tuple[Program, Program]:
    """Return the programs whose state is the weights and the cache."""

    def read(variables: Variables, ids: Array) -> tuple[Array, Any]:
        last = jnp.array([ids.shape[1] - 1])
        inputs = {"input_ids": ids, "logits_to_keep": last}
        outputs, _ = network.apply(variables, inputs, taps=("cache",))
        return outputs.logits[:, 0], outputs.features["cache"].grown(room)

    def init(key, batch) -> dict[str, Any]:
        variables = network.init(key)
        _, cache = jax.eval_shape(read, variables, tokens)
        empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), cache)
        return {"variables": variables, "cache": empty}

    def prefill(state, batch):
        logits, cache = read(state["variables"], batch["input_ids"])
        return {**state, "cache": cache}, {"loss": logits.max()}

    def decode(state, batch):
        inputs = {"input_ids": batch["input_ids"], "cache": state["cache"]}
        outputs, _ = network.apply(state["variables"], inputs, taps=("cache",))
        state = {**state, "cache": outputs.features["cache"]}
        return state, {"loss": outputs.logits.max()}

    axes = {**network.axes, **CACHE_AXES}
    return Program(init, prefill, axes=axes), Program(init, decode, axes=axes)
