"""How the Pallas kernels cut their work: blocks of tokens and of the vocabulary.

Every block has the whole width of both networks, so that its logits are made at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from jaxkd.kernels.linear_distill.rows import Objective, local_labels
from jaxkd.kernels.linear_distill.varying import varying

REDUCING, DIFFERENTIATING = (1024, 512), (256, 1024)
"""Tokens and columns of a block at most, of a reduction and of the gradients.

In a reduction every block of tokens reads the heads once. In the gradients every block
of the vocabulary reads all hidden states, and theirs, once.
"""

LANES, ROWS = 128, 16
"""A block's columns and tokens are multiples, or all that there are."""

VMEM, BLOCKS = 62 * 2**20, 58 * 2**20
"""Bytes that a kernel may use, and that its blocks may take as far as counted.

The cores of v5p have 64 MiB, of v5e and v6e 128.
"""

ARRAYS = 16
"""Arrays like a block's logits, as many as the compiler was seen to keep at a time."""

WEIGHT, LABEL_WEIGHT, SHARE, LOG_P, LOG_Q, LOG_HARD, SLOPE_P, SLOPE_Q = range(8)
"""Columns of the values of every token: the first three given, the others found.

``SHARE`` is the teacher's share of the target's logits; for the others see `Rows`.
"""

Inputs = tuple[Array, Array, Array, Array, Array, Array]
"""Student's hidden states and head, teacher's, values and labels of the tokens."""


@dataclass(frozen=True)
class Cut:
    """How the work is cut, and what is to be done.

    Attributes:
        objective: what is compared.
        asked: which of the first four inputs' gradients are wanted.
        tokens: that there are; the inputs' last block is filled up.
        vocabulary: columns that there are; the last block goes beyond.
        rows: tokens of a block.
        columns: of a block.
        interpolated: the target has a share of the student.
        labelled: there are labels.
        interpret: run the kernels without a TPU; see ``pallas_call``.
    """

    objective: Objective
    asked: tuple[int, ...]
    tokens: int
    vocabulary: int
    rows: int
    columns: int
    interpolated: bool
    labelled: bool
    interpret: Any


def cut_up(
    objective: Objective,
    interpret: Any,
    arrays: tuple[Any, ...],
    values: Float[Array, "tokens values"],
    asked: tuple[int, ...] = (),
) -> tuple[Cut, Inputs]:
    """Return the cut, and the kernels' inputs in whole blocks of tokens.

    Args:
        objective: what is compared.
        interpret: as in `Cut`.
        arrays: what `jaxkd.kernels.linear_distill.reference` takes.
        values: of the tokens, as many as are known.
        asked: as in `Cut`; none for a reduction.

    Raises:
        ValueError: the networks are so wide that the smallest block is too large.
    """
    student_hidden, student_head, teacher_hidden, teacher_head = arrays[:4]
    labels, interpolation = arrays[6:]
    tokens, vocabulary = len(values), student_head.shape[1]
    rows, columns = _block(arrays, values.dtype, asked)
    if labels is None:
        local = jnp.full(tokens, -1, jnp.int32)
    else:
        local = local_labels(labels, vocabulary, objective.axis_name)
    counts = ((values[:, WEIGHT] != 0) | (values[:, LABEL_WEIGHT] != 0))[:, None]
    missing = max(pl.cdiv(tokens, rows), 1) * rows - tokens

    def whole(array: Array) -> Array:
        return jnp.pad(array, [(0, missing), (0, 0)])

    # What a masked token holds, NaN perhaps, must not reach any product.
    inputs = (
        *(whole(jnp.where(counts, student_hidden, 0)), student_head),
        *(whole(jnp.where(counts, teacher_hidden, 0)), teacher_head),
        *(whole(values), whole(local[:, None].astype(jnp.int32))),
    )
    cut = Cut(
        *(objective, asked, tokens, vocabulary, rows, columns),
        *(interpolation is not None, labels is not None, interpret),
    )
    return cut, varying(inputs, *inputs)


def specs(
    cut: Cut, inputs: Inputs, order: Callable[[Any, Any], tuple]
) -> list[pl.BlockSpec]:
    """Return the inputs' blocks; ``order`` turns the grid's into (tokens, columns)."""

    def of_tokens(array: Array) -> pl.BlockSpec:
        shape = (cut.rows, array.shape[1])
        return pl.BlockSpec(shape, lambda i, j: (order(i, j)[0], 0))

    def of_vocabulary(array: Array) -> pl.BlockSpec:
        shape = (len(array), cut.columns)
        return pl.BlockSpec(shape, lambda i, j: (0, order(i, j)[1]))

    kinds = [of_tokens, of_vocabulary] * 2 + [of_tokens] * 2
    return [kind(x) for kind, x in zip(kinds, inputs, strict=True)]


def shape_of(
    shape: tuple[int, ...], dtype: Any, inputs: Inputs
) -> jax.ShapeDtypeStruct:
    """Return an output's shape, which varies over the mesh as the inputs do."""
    return jax.ShapeDtypeStruct(
        shape, dtype, manual_axis_type=jax.typeof(inputs[0]).mat
    )


def parameters(*semantics: Any) -> pltpu.CompilerParams:
    """Return the compiler's parameters, given what each axis of the grid may do."""
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=VMEM)


def cost(cut: Cut, inputs: Inputs) -> pl.CostEstimate:
    """Return what XLA is told: all products, and what the grid's order reads again."""
    widths = [len(inputs[i | 1]) for i in (0, 2, *cut.asked)]
    hidden = inputs[0].nbytes + inputs[2].nbytes
    heads = inputs[1].nbytes + inputs[3].nbytes
    if cut.asked:
        summed = sum(2 * inputs[i].size for i in cut.asked if i % 2 == 0)
        again = hidden + summed * inputs[4].dtype.itemsize
        written = sum(inputs[i].nbytes for i in cut.asked if i % 2)
        accessed = pl.cdiv(cut.vocabulary, cut.columns) * again + heads + written
    else:
        accessed = len(inputs[0]) // cut.rows * heads + hidden
    return pl.CostEstimate(
        flops=2 * cut.tokens * cut.vocabulary * sum(widths),
        transcendentals=4 * cut.tokens * cut.vocabulary,
        bytes_accessed=accessed,
    )


def _block(arrays: Any, dtype: Any, asked: tuple[int, ...]) -> tuple[int, int]:
    """Return the tokens and columns of a block, as many as VMEM has room for."""
    tokens, vocabulary = len(arrays[0]), arrays[1].shape[1]
    most_rows, most_columns = DIFFERENTIATING if asked else REDUCING
    size, widths = jnp.dtype(dtype).itemsize, [len(arrays[i | 1]) for i in range(4)]
    sizes = [jnp.dtype(arrays[i].dtype).itemsize for i in range(4)]
    # Two blocks of each input, as one is fetched while the other is used.
    row = sum(2 * widths[i] * sizes[i] for i in (0, 2))
    column = sum(2 * widths[i] * sizes[i] for i in (1, 3))
    row += sum(widths[i] * size for i in asked if i % 2 == 0)
    column += sum(widths[i] * (size + 2 * sizes[i]) for i in asked if i % 2)
    while True:
        rows, columns = _rows(tokens, most_rows), _columns(vocabulary, most_columns)
        if rows * row + columns * column + ARRAYS * size * rows * columns <= BLOCKS:
            return rows, columns
        if most_rows <= ROWS and most_columns <= LANES:
            raise ValueError(
                f"widths {widths[1]} and {widths[3]} are too large for "
                "linear_distill's Pallas kernels: choose implementation 'xla'"
            )
        wide = most_columns > LANES and columns * column > rows * row
        if wide or most_rows <= ROWS:
            most_columns //= 2
        else:
            most_rows //= 2


def _rows(tokens: int, most: int) -> int:
    """Return a block's tokens, such that blocks are even and little is filled up."""
    each = pl.cdiv(tokens, max(pl.cdiv(tokens, most), 1))
    return max(pl.cdiv(each, ROWS), 1) * ROWS


def _columns(vocabulary: int, most: int) -> int:
    """Return a block's columns, such that blocks are whole, where that can be."""
    whole = (c for c in range(LANES, most + 1, LANES) if vocabulary % c == 0)
    return max(whole, default=min(most, vocabulary))
