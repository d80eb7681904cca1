"""Blocks that are all alike, their weights stacked: compiled once, not once a block."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PyTree

from jaxkd.adapters import Steps, unchanged
from jaxkd.arguments import checked


@checked()
def stacked(
    build: Callable[[nnx.Rngs], nnx.Module], layers: int, *, rngs: nnx.Rngs
) -> Any:
    """Return a module whose weights are those of as many, along a new first axis."""
    return nnx.split_rngs(splits=layers)(nnx.vmap(build))(rngs)


@checked()
def run_stack(
    blocks: nnx.Module,
    apply: Callable[[Any, Array, PyTree, Array, Callable], tuple[Array, PyTree]],
    x: Array,
    state: PyTree,
    steps: Steps,
    *,
    scan: bool,
    remat: bool,
    prefix: str = "",
    first: int = 0,
) -> tuple[Array, PyTree]:
    """Run stacked blocks one after another; return the last one's output, and state.

    Their outputs are the steps ``block0``, ``block1``, …, from ``first`` on.

    Args:
        blocks: from `stacked`.
        apply: ``(block, x, state, number, tap) -> (x, state)``. What ``tap(".attn",
            value)`` returns is the value of the tap ``block{number}.attn``, as edited.
        x: what the first block is given.
        state: what blocks hand on beside it, such as a cache.
        steps: of the forward pass.
        scan: whether the blocks are one compiled loop; else they are unrolled, which
            compiles slowly, but lets XLA drop the taps that are not asked for.
        remat: whether a block's activations are computed anew in the backward pass.
        prefix: of the blocks' names.
        first: number of the first block, where others have run before.
    """
    graph, weights = nnx.split(blocks)
    layers = jax.tree.leaves(weights)[0].shape[0]
    names = block_taps(first + layers, "", prefix=prefix)

    def step(carry: PyTree, scanned: Any) -> tuple[PyTree, dict[str, Array]]:
        (x, state), (block, number), found = carry, scanned, {}

        def tap(kind: str, value: Array) -> Array:
            return tap_scanned(steps, names, kind, number, value, found)

        x, state = apply(nnx.merge(graph, block), x, state, number, tap)
        return (tap("", x), state), found

    def run(places: range) -> Array:
        nonlocal x, state
        numbers = range(first + places.start, first + places.stop)
        own = jax.tree.map(lambda w: w[places.start : places.stop], weights)
        (x, state), found = jax.lax.scan(
            jax.checkpoint(step) if remat else step,
            (x, state),
            (own, jnp.arange(numbers.start, numbers.stop)),
            unroll=1 if scan else len(numbers),
        )
        for kind, values in found.items():
            keep_scanned(steps, names, kind, numbers, values)
        return x

    return steps.row(names[first:], run), state


@checked()
def tap_scanned(
    steps: Steps,
    names: Sequence[str],
    kind: str,
    number: Array,
    value: Array,
    found: dict[str, Array],
) -> Array:
    """Return a block's activation in a compiled loop, as edited for this block.

    Args:
        steps: of the forward pass.
        names: of all blocks.
        kind: what follows a block's name in the tap.
        number: of the block.
        value: the activation.
        found: where it is kept by kind, to leave the loop, if any block's is tapped.

    Raises:
        ValueError: an edit changes the shape or dtype, which a loop cannot go on with.
    """
    taps = [f"{name}{kind}" for name in names]
    edits = {tap: steps.edits[tap] for tap in taps if tap in steps.edits}
    for tap, edit in edits.items():
        after = jax.eval_shape(edit, value)
        if (after.shape, after.dtype) != (value.shape, value.dtype):
            raise ValueError(
                f"edits[{tap!r}] makes {after.dtype}{after.shape} of "
                f"{value.dtype}{value.shape}: in a row of blocks it must keep both"
            )
    if edits:
        order = [*edits]
        place = [order.index(tap) + 1 if tap in edits else 0 for tap in taps]
        branches = [unchanged, *edits.values()]
        value = jax.lax.switch(jnp.asarray(place)[number], branches, value)
        steps.edited.update(edits)
    if any(tap in steps.taps for tap in taps):
        found[kind] = value
    return value


@checked()
def keep_scanned(
    steps: Steps, names: Sequence[str], kind: str, numbers: range, values: Array
) -> None:
    """Keep the activations of blocks that a compiled loop has stacked, if tapped."""
    for i, number in enumerate(numbers):
        tap = f"{names[number]}{kind}"
        if tap in steps.taps:
            steps.features[tap] = values[i]


@checked()
def block_taps(layers: int, *kinds: str, prefix: str = "") -> tuple[str, ...]:
    """Return the taps of as many blocks, those of one kind together."""
    return tuple(f"{prefix}block{i}{kind}" for kind in kinds for i in range(layers))
