"""Blocks that are all alike, their weights stacked: compiled once, not once a block."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PyTree


def stacked(
    build: Callable[[nnx.Rngs], nnx.Module], layers: int, *, rngs: nnx.Rngs
) -> Any:
    """Return a module whose weights are those of as many, along a new first axis."""
    return nnx.split_rngs(splits=layers)(nnx.vmap(build))(rngs)


def run_stack(
    blocks: nnx.Module,
    apply: Callable[[Any, PyTree, Array], tuple[PyTree, dict[str, Array]]],
    carry: PyTree,
    *,
    taps: tuple[str, ...],
    scan: bool,
    remat: bool,
) -> tuple[PyTree, dict[str, Array]]:
    """Run stacked blocks one after another; return the carry and the features tapped.

    Args:
        blocks: from `stacked`.
        apply: ``(block, carry, number) -> (carry, features)``, a block's features by
            what follows ``block{i}`` in their taps.
        carry: what the first block is given.
        taps: of the network; others than blocks' are passed over.
        scan: whether the blocks are one compiled loop; else they are unrolled, which
            compiles slowly, but lets XLA drop the taps that are not asked for.
        remat: whether a block's activations are computed anew in the backward pass.
    """
    graph, weights = nnx.split(blocks)
    layers = jax.tree.leaves(weights)[0].shape[0]
    kinds = block_kinds(taps)

    def step(carry: PyTree, scanned: Any) -> tuple[PyTree, dict[str, Array]]:
        block, number = scanned
        carry, features = apply(nnx.merge(graph, block), carry, number)
        return carry, {kind: features[kind] for kind in kinds}

    carry, found = jax.lax.scan(
        jax.checkpoint(step) if remat else step,
        carry,
        (weights, jnp.arange(layers)),
        unroll=1 if scan else layers,
    )
    return carry, {
        f"block{i}{kind}": features[i]
        for kind, features in found.items()
        for i in range(layers)
    }


def block_kinds(taps: tuple[str, ...]) -> set[str]:
    """Return what follows ``block{i}`` in the taps of blocks."""
    asked = [tap for tap in taps if tap.startswith("block")]
    return {re.sub(r"^block\d+", "", tap) for tap in asked}


def block_taps(layers: int, *kinds: str) -> tuple[str, ...]:
    """Return the taps of as many blocks, those of one kind together."""
    return tuple(f"block{i}{kind}" for kind in kinds for i in range(layers))
