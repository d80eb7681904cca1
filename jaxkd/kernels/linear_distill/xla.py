"""Losses and gradients at once, some tokens at a time.

A chunk's logits are made once: they give its losses and, still at hand, its share of
the gradients, which a linear head turns into gradients of hidden states and weights
(Hsu et al. 2024, arXiv:2410.10989, do so for the cross-entropy). So the backward pass
has nothing to compute again, and only scales.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jaxkd.kernels.linear_distill.accumulate import add_columns, empty_sum, finished
from jaxkd.kernels.linear_distill.rows import (
    Objective,
    gradients,
    local_labels,
    summarize,
)
from jaxkd.kernels.linear_distill.varying import as_argument, summed, varying

LOGITS, CPU_LOGITS = 2**28, 2**26
"""Bytes that the logits of a chunk, the student's and the teacher's, take at most.

On a CPU several arrays of their size are made besides.
"""

COLUMNS = 4096
"""Entries of the vocabulary whose gradients are held at a time."""

ROUND = 16
"""Tokens of a chunk are a multiple, the rows of a tile of bfloat16 on a TPU."""


def chunk_of(bytes_of_logits: int, vocabulary: int) -> int:
    """Return the tokens whose float32 logits, of two networks, take that much."""
    return max(bytes_of_logits // (2 * 4 * vocabulary) // ROUND, 1) * ROUND


def chunking(tokens: int, chunk: int) -> tuple[int, int]:
    """Return how many chunks there are and of how many tokens, as even as can be."""
    count = max(-(-tokens // chunk), 1)
    size = -(-tokens // count)
    return count, min(-(-size // ROUND) * ROUND, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def xla(
    objective: Objective,
    chunk: int | None,
    student_hidden: Array,
    student_head: Array,
    teacher_hidden: Array,
    teacher_head: Array,
    weights: Array,
    label_weights: Array,
    labels: Array | None,
    interpolation: Array | None,
) -> tuple[Array, Array, Array]:
    """Return the weighted sum, and each token's divergence and cross-entropy."""
    hidden = student_hidden, teacher_hidden
    heads = student_head, teacher_head
    arrays = weights, label_weights, labels, interpolation
    return _by_platform(objective, chunk, (False,) * 4, hidden, heads, *arrays)[0]


def _forward(objective: Objective, chunk: int | None, *arguments: Any) -> Any:
    """Return the result and the gradients of what is differentiated."""
    perturbed = tuple(x is not None and x.perturbed for x in arguments)
    values: list[Any] = [None if x is None else x.value for x in arguments]
    hidden, heads = (values[0], values[2]), (values[1], values[3])
    wanted = perturbed[0], perturbed[2], perturbed[1], perturbed[3]
    result, found = _by_platform(objective, chunk, wanted, hidden, heads, *values[4:])
    for_hidden, for_heads = found
    kept = for_hidden[0], for_heads[0], for_hidden[1], for_heads[1], *result[1:]
    return result, (kept, values[:6])


def _backward(objective: Objective, chunk: int | None, kept: Any, slopes: Any) -> Any:
    """Return the gradients, those of the forward pass times that of the sum."""
    found, arguments = kept
    # The tokens' values are shown, not differentiated: see `linear_distill`.
    slope = slopes[0]
    if isinstance(slope, jax.custom_derivatives.SymbolicZero):
        return (None,) * 8
    scaled = [
        None if gradient is None else as_argument(slope * gradient, argument)
        for gradient, argument in zip(found, arguments, strict=True)
    ]
    return *scaled, None, None


xla.defvjp(_forward, _backward, symbolic_zeros=True)


def _by_platform(
    objective: Objective,
    chunk: int | None,
    wanted: tuple[bool, ...],
    hidden: tuple[Array, Array],
    heads: tuple[Array, Array],
    *arrays: Array | None,
) -> tuple[tuple[Array, Array, Array], tuple[list, list]]:
    """Return `_chunks` with the platform's chunk, or the one asked for."""

    def of(chunk: int) -> Any:
        return functools.partial(_chunks, objective, chunk, wanted)

    if chunk is not None:
        return of(chunk)(hidden, heads, *arrays)
    vocabulary = heads[0].shape[1]
    return lax.platform_dependent(
        *(hidden, heads, *arrays),
        cpu=of(chunk_of(CPU_LOGITS, vocabulary)),
        default=of(chunk_of(LOGITS, vocabulary)),
    )


def _chunks(
    objective: Objective,
    chunk: int,
    wanted: tuple[bool, ...],
    hidden: tuple[Array, Array],
    heads: tuple[Array, Array],
    weights: Array,
    label_weights: Array,
    labels: Array | None,
    interpolation: Array | None,
) -> tuple[tuple[Array, Array, Array], tuple[list, list]]:
    """Go through the tokens; gradients are None where they are not wanted.

    ``wanted``, hidden states and heads are of student and teacher, in this order.
    """
    tokens, vocabulary = len(weights), heads[0].shape[1]
    axis = objective.axis_name
    count, size = chunking(tokens, chunk)
    if labels is not None:
        labels = local_labels(labels, vocabulary, axis)

    def cut(array: Array) -> Array:
        widths = [(0, count * size - tokens), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array, widths).reshape(count, size, *array.shape[1:])

    def step(sums: tuple, part: tuple) -> tuple[tuple, tuple]:
        hidden, weights, label_weights, labels = part
        weighs, labelled = weights != 0, label_weights != 0
        # What a masked token holds, NaN perhaps, must not reach any product.
        counts = (weighs | labelled)[:, None]
        hidden = [jnp.where(counts, x, 0) for x in hidden]
        logits = [
            jnp.dot(x, head, preferred_element_type=weights.dtype)
            for x, head in zip(hidden, heads, strict=True)
        ]
        divergence, cross_entropy, rows = summarize(
            objective, logits[0], logits[1], labels, interpolation
        )
        divergence = jnp.where(weighs, divergence, 0)
        cross_entropy = jnp.where(labelled, cross_entropy, 0)

        def add(start: Any, width: int, sums: tuple) -> tuple:
            """Add the gradients of ``width`` columns of the vocabulary."""

            def read(array: Array) -> Array:
                return lax.dynamic_slice_in_dim(array, start, width, 1)

            for_logits = gradients(
                objective,
                rows,
                read(logits[0]),
                read(logits[1]),
                None if labels is None else labels[:, None] - start,
                interpolation,
                weights[:, None],
                label_weights[:, None],
            )
            return tuple(
                _add_products(total, slope, x, read(head), start)
                for total, slope, x, head in zip(
                    sums, for_logits, hidden, heads, strict=True
                )
            )

        for_hidden = tuple(
            varying(jnp.zeros(x.shape, weights.dtype), x, heads[0], weights)
            if wants
            else None
            for x, wants in zip(hidden, wanted[:2], strict=True)
        )
        sums = tuple(zip(for_hidden, sums, strict=True))
        if any(wanted):
            full, rest = divmod(vocabulary, COLUMNS)
            if full:
                sums = lax.fori_loop(
                    0, full, lambda i, sums: add(i * COLUMNS, COLUMNS, sums), sums
                )
            if rest:
                sums = add(full * COLUMNS, rest, sums)
        for_hidden = tuple(
            None if total is None else _kept(summed(total, axis, x), x.dtype)
            for (total, _), x in zip(sums, hidden, strict=True)
        )
        outputs = divergence, cross_entropy, for_hidden
        return tuple(for_head for _, for_head in sums), outputs

    sums = tuple(
        varying(empty_sum(head.shape, head.dtype), head, hidden[0], weights)
        if wants
        else None
        for head, wants in zip(heads, wanted[2:], strict=True)
    )
    parts = tuple(map(cut, hidden)), cut(weights), cut(label_weights)
    parts = *parts, None if labels is None else cut(labels)
    sums, outputs = lax.scan(step, sums, parts)
    divergence, cross_entropy, for_hidden = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:])[:tokens], outputs
    )
    total = (weights * divergence + label_weights * cross_entropy).sum()
    for_heads = [None if x is None else finished(x) for x in sums]
    return (total, divergence, cross_entropy), (list(for_hidden), for_heads)


def _add_products(
    totals: tuple, slope: Array, hidden: Array, head: Array, start: Any
) -> tuple:
    """Add what a block of the logits' gradient gives hidden states and head.

    Args:
        totals: gradients of the hidden states and of the head, None if not wanted.
        slope: gradient by the block's logits.
        hidden: the tokens' hidden states.
        head: the block's columns.
        start: the first of them.
    """
    for_hidden, for_head = totals
    low = jnp.result_type(hidden, head)
    if low == jnp.float16:
        # Its range, unlike bfloat16's, is too small for gradients of single logits.
        low = slope.dtype
    product = functools.partial(jnp.dot, preferred_element_type=slope.dtype)
    if for_hidden is not None:
        for_hidden += product(slope.astype(low), head.T)
    if for_head is not None:
        for_head = add_columns(for_head, product(hidden.T, slope.astype(low)), start)
    return for_hidden, for_head


def _kept(gradient: Array, dtype: jnp.dtype) -> Array:
    """Return a gradient as it is kept for the backward pass."""
    return gradient.astype(dtype) if dtype == jnp.bfloat16 else gradient
