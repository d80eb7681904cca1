"""Decoders of any depth and width inside one: as masks, or cut out for good."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxkd.arguments import checked
from jaxkd.models.language.llama import llama
from jaxkd.network import Network


class DecoderMask(NamedTuple):
    """What stays of a decoder.

    Attributes:
        layers: whole blocks.
        groups: query heads that share keys and values, with those.
        neurons: of the MLPs.
    """

    layers: Bool[Array | np.ndarray, "layers"]
    groups: Bool[Array | np.ndarray, "layers kv_heads"]
    neurons: Bool[Array | np.ndarray, "layers hidden"]


@checked()
def mask_decoder(
    network: Network, params: Mapping[str, Any], mask: DecoderMask
) -> dict[str, Any]:
    """Return parameters with which the network computes what `extract_decoder` gives.

    Rows of the projections that end attention and MLP become 0, so that what is left
    out adds nothing and gets no gradient. The mask may be traced: one compiled step
    trains every shape, and `jax.vmap` or `jax.lax.scan` runs over several. A layer goes
    as in AmoebaLLM (Fu et al. 2024, arXiv:2411.10606), attention and MLP together.

    Args:
        network: from `jaxkd.models.llama`, with any of its options but mixtures, latent
            attention and norms of all heads together.
        params: of the network.
        mask: what stays.

    Raises:
        ValueError: another network, or a mask of another size.
    """
    arguments = _arguments(network)
    layers, kv_heads = arguments["layers"], arguments["kv_heads"]
    sizes = (layers,), (layers, kv_heads), (layers, arguments["hidden"])
    for name, part, size in zip(mask._fields, mask, sizes, strict=True):
        if part.shape != size:
            raise ValueError(f"mask.{name} has shape {part.shape} but must have {size}")
    keep = jnp.asarray(mask.layers)
    served = arguments["heads"] // kv_heads * arguments["head_dim"]
    rows = jnp.repeat(jnp.asarray(mask.groups), served, axis=1) & keep[:, None]
    neurons = jnp.asarray(mask.neurons) & keep[:, None]
    blocks = params["blocks"]
    attention, mlp = blocks["attention"], blocks["mlp"]
    out = {**attention["out"], "kernel": _kept(attention["out"]["kernel"], rows)}
    if "bias" in out:
        out["bias"] = _kept(out["bias"], keep)
    down = {**mlp["down"], "kernel": _kept(mlp["down"]["kernel"], neurons)}
    blocks = {
        **blocks,
        "attention": {**attention, "out": out},
        "mlp": {**mlp, "down": down},
    }
    return {**params, "blocks": blocks}


@checked()
def extract_decoder(
    network: Network, variables: Mapping[str, Any], mask: DecoderMask
) -> tuple[Network, dict[str, Any]]:
    """Cut out an ordinary smaller decoder, and its variables.

    Its logits are those of the masked one, and `jaxkd.interop.save_pretrained` writes
    it. All layers have the width of the widest that stays: in others, rows of zeros
    fill it up.

    Args:
        network: as of `mask_decoder`.
        variables: its params and stats.
        mask: what stays, not traced.

    Raises:
        ValueError: another network, a mask of another size, or no layer that stays.
    """
    kept = np.flatnonzero(mask.layers)
    if not kept.size:
        raise ValueError("mask.layers must keep at least one layer")
    params = mask_decoder(network, variables["params"], mask)
    arguments = _arguments(network)
    per, dim = arguments["heads"] // arguments["kv_heads"], arguments["head_dim"]
    groups = _places(np.asarray(mask.groups)[kept])
    neurons = _places(np.asarray(mask.neurons)[kept])
    heads = _within(groups, per)
    channels, shared = _within(heads, dim), _within(groups, dim)
    blocks = jax.tree.map(lambda leaf: leaf[kept], params["blocks"])
    attention, mlp = blocks["attention"], blocks["mlp"]
    for name, places in (("query", channels), ("key", shared), ("value", shared)):
        attention[name] = jax.tree.map(lambda w, p=places: _take(w, p), attention[name])
    attention["out"]["kernel"] = _take(attention["out"]["kernel"], channels, -2)
    if "sinks" in attention:
        attention["sinks"] = _take(attention["sinks"], heads)
    for name in ("gate", "up"):
        mlp[name] = jax.tree.map(lambda w: _take(w, neurons), mlp[name])
    mlp["down"]["kernel"] = _take(mlp["down"]["kernel"], neurons, -2)
    kinds = arguments["attention"]
    smaller = llama(
        **arguments
        | {
            "layers": len(kept),
            "heads": heads.shape[1],
            "kv_heads": groups.shape[1],
            "hidden": neurons.shape[1],
            "attention": kinds and [kinds[i % len(kinds)] for i in kept],
        }
    )
    return smaller, {**variables, "params": {**params, "blocks": blocks}}


def _arguments(network: Network) -> dict[str, Any]:
    """Return what the network was made with, numbers of heads and their width too."""
    name, arguments = network.spec or ("another network", {})
    if name != "llama":
        raise ValueError(f"network must be one of jaxkd.models.llama, got {name}")
    given = dict(arguments)
    if given["latent"] or given["mixture"] or given["qk_norm"] == "whole":
        raise ValueError(
            "network has a mixture, latent attention or norms of all heads together "
            "(qk_norm='whole'), whose widths cannot be masked"
        )
    given["kv_heads"] = given["kv_heads"] or given["heads"]
    given["head_dim"] = given["head_dim"] or given["width"] // given["heads"]
    return given


def _kept(weights: Array, keep: Array) -> Array:
    """Return the weights, 0 where the leading axes are not kept."""
    axes = tuple(range(keep.ndim, weights.ndim))
    return jnp.where(jnp.expand_dims(keep, axes), weights, 0)


def _places(keep: np.ndarray) -> np.ndarray:
    """Return (layers, most) positions, those that are kept first."""
    most = max(1, keep.sum(1).max())
    return np.argsort(~keep, axis=1, stable=True)[:, :most]


def _within(groups: np.ndarray, size: int) -> np.ndarray:
    """Return the positions of the members of groups of neighbours."""
    members = groups[..., None] * size + np.arange(size)
    return members.reshape(len(groups), -1)


def _take(weights: Array, places: np.ndarray, axis: int = -1) -> Array:
    """Return each layer's own places along an axis."""
    other = 1 if axis == -1 else 2
    index = places if weights.ndim == 2 else np.expand_dims(places, other)
    return jnp.take_along_axis(weights, jnp.asarray(index), axis=axis)
