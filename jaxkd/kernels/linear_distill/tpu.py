"""No logits in HBM at all: kernels that make them block by block, anew in every pass.

Probabilities need their normalisers, and gradients need sums of what the probabilities
give, so there are three passes over all blocks of tokens and vocabulary:

1. normalisers, with maxima that are corrected as blocks come;
2. sums of the divergence's terms and of their derivatives, and the labels' logits;
3. gradients: a head's block is summed in VMEM over all tokens, the hidden states' is
   fetched from HBM, added to, and sent back while the next block is at work.

The first two are the loss, the third is the backward pass.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from jaxkd.kernels.linear_distill.blocks import (
    LABEL_WEIGHT,
    LOG_HARD,
    LOG_P,
    LOG_Q,
    SHARE,
    SLOPE_P,
    SLOPE_Q,
    WEIGHT,
    Cut,
    Inputs,
    cost,
    cut_up,
    parameters,
    shape_of,
    specs,
)
from jaxkd.kernels.linear_distill.rows import (
    LEFT_OUT,
    Objective,
    Rows,
    gradients,
    target_logits,
    terms_and_slopes,
)
from jaxkd.kernels.linear_distill.varying import as_argument, summed, varying


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def tpu(
    objective: Objective,
    interpret: Any,
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
    arrays = student_hidden, student_head, teacher_hidden, teacher_head
    arrays = *arrays, weights, label_weights, labels, interpolation
    return _loss(objective, interpret, arrays)[0]


def _forward(objective: Objective, interpret: Any, *arguments: Any) -> Any:
    """Return the result, and what the third pass needs."""
    arrays = tuple(None if x is None else x.value for x in arguments)
    result, values = _loss(objective, interpret, arrays)
    # Which gradients are wanted is told by the tree's structure: () or None.
    wanted = [() if x.perturbed else None for x in arguments[:4]]
    return result, (wanted, result[1:], values, arrays)


def _backward(objective: Objective, interpret: Any, kept: Any, slopes: Any) -> Any:
    """Return the gradients, by the third pass for the first four arguments."""
    wanted, by_weights, values, arrays = kept
    # The tokens' values are shown, not differentiated: see `linear_distill`.
    slope = slopes[0]
    if isinstance(slope, jax.custom_derivatives.SymbolicZero):
        return (None,) * 8
    asked = tuple(i for i, want in enumerate(wanted) if want is not None)
    found: dict[int, Array] = {4: slope * by_weights[0], 5: slope * by_weights[1]}
    if asked:
        values = values.at[:, :SHARE].multiply(slope)
        cut, inputs = cut_up(objective, interpret, arrays, values, asked)
        found |= dict(zip(asked, _differentiated(cut, inputs), strict=True))
    for i in asked:
        if i % 2 == 0:
            found[i] = summed(found[i], objective.axis_name, arrays[i])
    return tuple(
        as_argument(found[i], arrays[i]) if i in found else None for i in range(8)
    )


tpu.defvjp(_forward, _backward, symbolic_zeros=True)


def _loss(
    objective: Objective, interpret: Any, arrays: tuple
) -> tuple[tuple[Array, Array, Array], Float[Array, "tokens 8"]]:
    """Return the result and all values of the tokens, by the first two passes."""
    weights, label_weights, labels, interpolation = arrays[4:]
    axis = objective.axis_name
    share = 0 if interpolation is None else interpolation
    values = jnp.stack([weights, label_weights, jnp.full_like(weights, share)], 1)
    cut, inputs = cut_up(objective, interpret, arrays, values)
    normalizers = _reduced(cut, _normalize, inputs, 3, running=2)
    if axis is not None:
        largest = lax.pmax(normalizers, axis)
        total = lax.psum(jnp.exp(normalizers - largest), axis)
        normalizers = largest + jnp.log(total)
    values = jnp.concatenate(varying([values, normalizers], values, normalizers), 1)
    cut, inputs = cut_up(objective, interpret, arrays, values)
    sums = _reduced(cut, _sum, inputs, 5)
    if axis is not None:
        sums = lax.psum(sums, axis)
    divergence = objective.temperature**2 * sums[:, 0]
    divergence = jnp.where(weights != 0, divergence, 0)
    cross_entropy = jnp.zeros_like(divergence)
    if labels is not None:
        log_hard, (logit, found) = normalizers[:, LOG_HARD - LOG_P], sums[:, 3:].T
        cross_entropy = jnp.where(found > 0, log_hard - logit, jnp.nan)
        cross_entropy = jnp.where(label_weights != 0, cross_entropy, 0)
    total = (weights * divergence + label_weights * cross_entropy).sum()
    values = jnp.concatenate(varying([values, sums[:, 1:3]], values, sums), 1)
    return (total, divergence, cross_entropy), values


def _reduced(
    cut: Cut, kernel: Any, inputs: Inputs, outputs: int, running: int = 0
) -> Float[Array, "tokens outputs"]:
    """Run a kernel that reduces the vocabulary to some values a token.

    Args:
        cut: how the work is cut.
        kernel: called with the cut and references: inputs, output, running arrays.
        inputs: of `cut_up`.
        outputs: values a token.
        running: how many arrays like the output are kept from block to block.
    """
    dtype, tokens = inputs[4].dtype, len(inputs[4])
    found = pl.pallas_call(
        functools.partial(kernel, cut),
        grid=(tokens // cut.rows, pl.cdiv(cut.vocabulary, cut.columns)),
        in_specs=specs(cut, inputs, lambda t, v: (t, v)),
        out_specs=pl.BlockSpec((cut.rows, outputs), lambda t, v: (t, 0)),
        out_shape=shape_of((tokens, outputs), dtype, inputs),
        scratch_shapes=[pltpu.VMEM((cut.rows, outputs), dtype)] * running,
        cost_estimate=cost(cut, inputs),
        compiler_params=parameters("parallel", "arbitrary"),
        interpret=cut.interpret,
    )(*inputs)
    return found[: cut.tokens]


def _normalize(cut: Cut, *refs: Any) -> None:
    """Write the log normalisers of target, student, and student at temperature 1."""
    *inputs, out, largest, total = refs
    block = _read(cut, inputs, 1)

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        largest[...] = jnp.full_like(largest, -jnp.inf)
        total[...] = jnp.zeros_like(total)

    student = block.logits[0]
    tempered = student / cut.objective.temperature
    for i, x in enumerate((_target(cut, block), tempered, student)):
        if block.inside is not None:
            x = jnp.where(block.inside, x, -jnp.inf)
        column = slice(i, i + 1)
        before = largest[:, column]
        after = jnp.maximum(before, x.max(1, keepdims=True))
        new = jnp.exp(x - after).sum(1, keepdims=True)
        total[:, column] = total[:, column] * jnp.exp(before - after) + new
        largest[:, column] = after

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _() -> None:
        out[...] = largest[...] + jnp.log(total[...])


def _sum(cut: Cut, *refs: Any) -> None:
    """Add up terms, slopes by log p and log q, the label's logit, and its presence."""
    *inputs, out = refs
    block = _read(cut, inputs, 1)

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        out[...] = jnp.zeros_like(out)

    student = block.logits[0]
    log_p = jnp.maximum(_target(cut, block) - block.value(LOG_P), LEFT_OUT)
    log_q = student / cut.objective.temperature - block.value(LOG_Q)
    found = terms_and_slopes(cut.objective, log_p, log_q)
    if cut.labelled:
        columns = lax.broadcasted_iota(jnp.int32, student.shape, 1) + block.start
        here = columns == block.labels
        found = *found, jnp.where(here, student, 0), here.astype(student.dtype)
    for i, x in enumerate(found):
        if block.inside is not None:
            x = jnp.where(block.inside, x, 0)
        out[:, i : i + 1] += x.sum(1, keepdims=True)


def _differentiated(cut: Cut, inputs: Inputs) -> list[Array]:
    """Return the gradients asked for, those of hidden states in the values' dtype."""
    dtype = inputs[4].dtype
    of_inputs = specs(cut, inputs, lambda v, t: (t, v))
    shapes, places, totals = [], [], []
    for i in cut.asked:
        x = inputs[i]
        of_head = i % 2 == 1
        shapes.append(shape_of(x.shape, x.dtype if of_head else dtype, inputs))
        places.append(of_inputs[i] if of_head else pl.BlockSpec(memory_space=pl.ANY))
        size = (len(x), cut.columns) if of_head else (cut.rows, x.shape[1])
        totals.append(pltpu.VMEM(size, dtype))
    found = pl.pallas_call(
        functools.partial(_differentiate, cut),
        grid=(pl.cdiv(cut.vocabulary, cut.columns), len(inputs[4]) // cut.rows),
        in_specs=of_inputs,
        out_specs=places,
        out_shape=shapes,
        scratch_shapes=[*totals, pltpu.SemaphoreType.DMA((4, 2))],
        cost_estimate=cost(cut, inputs),
        compiler_params=parameters("arbitrary", "arbitrary"),
        interpret=cut.interpret,
    )(*inputs)
    return [
        x if i % 2 else x[: cut.tokens] for i, x in zip(cut.asked, found, strict=True)
    ]


def _differentiate(cut: Cut, *refs: Any) -> None:
    """Add a block's share to the gradients of hidden states and heads."""
    inputs, outs = refs[:6], refs[6 : 6 + len(cut.asked)]
    *totals, semaphores = refs[6 + len(cut.asked) :]
    part, turn = pl.program_id(0), pl.program_id(1)
    last_turn = turn == pl.num_programs(1) - 1
    last = (part == pl.num_programs(0) - 1) & last_turn
    rows = pl.ds(pl.multiple_of(turn * cut.rows, cut.rows), cut.rows)
    wanted = list(zip(cut.asked, outs, totals, strict=True))
    transfers = {
        i: (
            pltpu.make_async_copy(total, out.at[rows], semaphores.at[i, 0]),
            pltpu.make_async_copy(out.at[rows], total, semaphores.at[i, 1]),
        )
        for i, out, total in wanted
        if i % 2 == 0
    }
    for send, fetch in transfers.values():
        # What the block before has summed leaves before these rows' sum comes in.
        pl.when((part > 0) | (turn > 0))(send.wait)
        pl.when(part > 0)(fetch.start)
    block = _read(cut, inputs, 0)
    slopes = _slopes(cut, block)
    for i, out, total in wanted:
        slope, x, head = (pair[i // 2] for pair in (slopes, block.hidden, block.heads))
        slope = slope.astype(jnp.result_type(x, head))
        if i % 2:
            _add(total, _product(x, slope, 0, 0, total.dtype), turn == 0)
            pl.when(last_turn)(functools.partial(_copy, out, total))
        else:
            send, fetch = transfers[i]
            pl.when(part > 0)(fetch.wait)
            _add(total, _product(slope, head, 1, 1, total.dtype), part == 0)
            send.start()
            pl.when(last)(send.wait)


def _add(total: Any, share: Array, first: Any) -> None:
    total[...] = jnp.where(first, share, total[...] + share)


def _copy(out: Any, total: Any) -> None:
    out[...] = total[...].astype(out.dtype)


class _Block(NamedTuple):
    """What a kernel sees of the inputs, and the logits of student and teacher.

    Attributes:
        start: the first column of the vocabulary.
        inside: False for columns beyond the vocabulary; None where there are none.
    """

    hidden: tuple[Array, Array]
    heads: tuple[Array, Array]
    logits: tuple[Float[Array, "rows columns"], Float[Array, "rows columns"]]
    values: Float[Array, "rows values"]
    labels: Int[Array, "rows 1"]
    start: Any
    inside: Array | None

    def value(self, index: int) -> Float[Array, "rows 1"]:
        return self.values[:, index : index + 1]


def _read(cut: Cut, refs: Any, vocabulary_axis: int) -> _Block:
    """Return the block that references show; the axis is of the grid."""
    first, head, second, other, values, labels = (ref[...] for ref in refs)
    start = pl.program_id(vocabulary_axis) * cut.columns
    inside = None
    if cut.vocabulary % cut.columns:
        columns = lax.broadcasted_iota(jnp.int32, (1, cut.columns), 1) + start
        inside = columns < cut.vocabulary
        head, other = (
            jnp.where(inside, x.astype(values.dtype), 0).astype(x.dtype)
            for x in (head, other)
        )
    logits = (
        _product(first, head, 1, 0, values.dtype),
        _product(second, other, 1, 0, values.dtype),
    )
    hidden, heads = (first, second), (head, other)
    return _Block(hidden, heads, logits, values, labels, start, inside)


def _product(a: Array, b: Array, of_a: int, of_b: int, dtype: Any) -> Array:
    """Return the product that sums over one axis of each matrix."""
    axes = (((of_a,), (of_b,)), ((), ()))
    return lax.dot_general(a, b, axes, preferred_element_type=dtype)


def _target(cut: Cut, block: _Block) -> Array:
    share = block.value(SHARE) if cut.interpolated else None
    return target_logits(cut.objective, *block.logits, None, share)


def _slopes(cut: Cut, block: _Block) -> tuple[Array, Array]:
    """Return the gradients by the block's logits, 0 beyond the vocabulary."""
    found = (LOG_P, LOG_Q, LOG_HARD, SLOPE_P, SLOPE_Q)
    slopes = gradients(
        *(cut.objective, Rows(None, *map(block.value, found)), *block.logits),
        block.labels - block.start if cut.labelled else None,
        block.value(SHARE) if cut.interpolated else None,
        *(block.value(WEIGHT), block.value(LABEL_WEIGHT)),
    )
    if block.inside is None:
        return slopes
    for_student, for_teacher = (jnp.where(block.inside, x, 0) for x in slopes)
    return for_student, for_teacher
