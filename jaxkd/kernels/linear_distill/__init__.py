"""Distillation through two linear heads without their logits."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked, positive
from jaxkd.kernels.dispatch import Versions, dispatch
from jaxkd.kernels.linear_distill.divergences import Divergence as Divergence
from jaxkd.kernels.linear_distill.divergences import forward_kl as forward_kl
from jaxkd.kernels.linear_distill.divergences import jensen_shannon as jensen_shannon
from jaxkd.kernels.linear_distill.divergences import reverse_kl as reverse_kl
from jaxkd.kernels.linear_distill.divergences import skew_kl as skew_kl
from jaxkd.kernels.linear_distill.divergences import skew_reverse_kl as skew_reverse_kl
from jaxkd.kernels.linear_distill.divergences import (
    soft_cross_entropy as soft_cross_entropy,
)
from jaxkd.kernels.linear_distill.divergences import total_variation as total_variation
from jaxkd.kernels.linear_distill.reference import reference
from jaxkd.kernels.linear_distill.rows import Objective
from jaxkd.kernels.linear_distill.xla import xla


class LinearDistill(NamedTuple):
    """What `linear_distill` returns.

    Attributes:
        loss: the weighted sum of all, a scalar, to differentiate.
        divergence: T²·D of each token, 0 where its weight is 0; without gradient.
        cross_entropy: likewise.
    """

    loss: Array
    divergence: Array
    cross_entropy: Array


@checked(temperature=positive)
def linear_distill(
    student_hidden: Float[Array, "*batch student_width"],
    student_head: Float[Array, "student_width vocabulary"],
    teacher_hidden: Float[Array, "*batch teacher_width"],
    teacher_head: Float[Array, "teacher_width vocabulary"],
    labels: Int[Array, "*batch"] | None = None,
    *,
    divergence: Divergence = forward_kl,
    weights: Float[Array, "*batch"] | None = None,
    label_weights: Float[Array, "*batch"] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    interpolation: float | Float[Array, ""] | None = None,
    axis_name: str | None = None,
    chunk: int | None = None,
    implementation: str = "auto",
) -> LinearDistill:
    """Compare a student with its teacher through their linear heads.

    With p = softmax(teacher_hidden·teacher_head/T) and q = softmax(student_hidden·
    student_head/T) over the vocabulary, the loss is Σ over tokens of
    weights·T²·D(p, q) + label_weights·CE, where CE is the cross-entropy of the labels
    at temperature 1. Neither it nor its gradients hold an array (tokens, vocabulary):
    logits are made of some tokens at a time, once, and the gradients are ready when
    they are forgotten (see `xla.py`). Differentiated are the sum alone, hence the
    weights among the arguments, and of these the hidden states, heads and weights;
    what is not differentiated, such as a frozen teacher, costs nothing.

    For 8,192 tokens and a vocabulary of 128,256, widths 2,048 and 4,096, in bfloat16,
    value and gradients by student and its head take 755 MiB of temporaries on a TPU
    v5e by its compiler, whatever the divergence, and 8,016 MiB as they are written
    plainly (``"reference"``); for 21.6 TFLOP both. The price is that every chunk of
    tokens goes over the heads' weights: 125 GB to and from HBM, 46 GB plainly.

    Kernels for TPUs (``"pallas"``) keep no logits at all and go over the weights less
    often: 8 MiB of temporaries there, 117 with ``weights`` (the hidden states without
    what is masked), and 67 GB. But they make all logits three times, as probabilities
    need their normalisers first and gradients what the probabilities sum to: 47.3
    TFLOP. By these figures they would take longer than XLA's version on a v5e or v5p,
    at least 240 ms instead of 153 and 103 instead of 47, and less on a v6e, 52 instead
    of 76. ``"auto"`` is XLA's version everywhere; take the kernels for the memory.

    On a mesh, call it in ``jax.shard_map``, tokens split over one axis and vocabulary
    over another (``axis_name``); the loss is then that of the device's tokens::

        def loss(hidden, head, teacher_hidden, teacher_head, mask):
            found = linear_distill(
                *(hidden, head, teacher_hidden, teacher_head),
                weights=mask,
                axis_name="tensor",
            )
            return lax.psum(found.loss, "data") / lax.psum(mask.sum(), "data")

        tokens, columns = P("data"), P(None, "tensor")
        specs = tokens, columns, tokens, columns, tokens
        loss = jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=P())

    `jaxkd.methods.linear_kd` does so for language models, with and without a mesh.

    Args:
        student_hidden: the inputs of its last layer.
        student_head: that layer's weights; a tied embedding is given transposed. A
            class that no token may have has a bias of -1e30 (a further row, read by a
            feature that is 1), not of -∞, of which masked tokens would make 0·∞.
        teacher_hidden: of the same tokens.
        teacher_head: for the same vocabulary.
        labels: one of the vocabulary a token; None leaves the cross-entropy out.
        divergence: D, such as `forward_kl`, `reverse_kl`, ``jensen_shannon(0.5)``, or
            another `Divergence`.
        weights: of each token's divergence; None for 1. A token of weight 0 adds
            nothing, whatever its hidden states hold.
        label_weights: likewise of its cross-entropy.
        temperature: T > 0.
        top_k: p is of the teacher's k largest logits alone, and of those that equal the
            k-th; q is of all.
        interpolation: t in [0, 1]; p is instead the softmax of (1 − t)·student logits
            + t·teacher logits, the student's taken as constant (TAID, Shing et al.
            2025, arXiv:2501.16937). The loss that moves t there is
            `soft_cross_entropy`.
        axis_name: the mesh axis over which the vocabulary is split, each device having
            the heads' columns in order; labels are of the whole vocabulary.
        chunk: tokens at a time; None takes as many as have 256 MiB of logits (64 MiB on
            CPUs). More go over the heads' weights less often, and take more memory. The
            kernels' blocks have their own sizes.
        implementation: ``"auto"``, ``"reference"``, ``"xla"`` or ``"pallas"``, for
            TPUs and without ``top_k``; see `jaxkd.kernels`.

    Returns:
        The loss, and each token's two values, without gradient. A cross-entropy is NaN
        where the label is none of the vocabulary and counts.

    Raises:
        ValueError: shapes do not fit, label weights without labels, a temperature or
            chunk that is not above 0, ``top_k`` outside the vocabulary or with
            `reverse_kl` (which is infinite then), a vocabulary that is not split over
            ``axis_name``, or what the kernels cannot do: ``top_k``, float16, widths of
            which no block fits into VMEM.
        NotImplementedError: at compilation, ``"pallas"`` for another platform.
    """
    heads = {"student_head": student_head, "teacher_head": teacher_head}
    _check_shapes(student_hidden, teacher_hidden, heads)
    _check_split(heads, axis_name)
    batch = student_hidden.shape[:-1]
    tokens = {"labels": labels, "weights": weights, "label_weights": label_weights}
    for name, values in tokens.items():
        if values is not None and jnp.shape(values) != batch:
            raise ValueError(
                f"{name} has shape {jnp.shape(values)} but student_hidden has "
                f"{student_hidden.shape}: give one value a token"
            )
    if labels is None and label_weights is not None:
        raise ValueError("label_weights without labels: give the labels too")
    for name, value in (("temperature", temperature), ("chunk", chunk)):
        if value is not None and (isinstance(value, Tracer) or not value > 0):
            raise ValueError(f"{name} must be a number above 0, got {value}")
    _check_top_k(top_k, divergence, student_head.shape[1], axis_name)

    arrays = student_hidden, student_head, teacher_hidden, teacher_head
    if implementation == "pallas":
        _check_kernels(top_k, arrays)
    dtype = jnp.result_type(jnp.float32, *arrays)

    def spread(weights: Array | None, default: int) -> Array:
        if weights is None:
            return jnp.full(math.prod(batch), default, dtype)
        return jnp.asarray(weights, dtype).reshape(-1)

    if interpolation is not None:
        interpolation = lax.stop_gradient(jnp.asarray(interpolation, dtype))
    objective = Objective(divergence, temperature, top_k, axis_name)
    versions = Versions(
        reference=functools.partial(reference, objective),
        xla=functools.partial(xla, objective, chunk),
        tpu=functools.partial(_tpu, objective, False),
    )
    if implementation == "auto":
        implementation = "xla"
    loss, *values = dispatch(
        *("linear_distill", implementation, versions),
        *(student_hidden.reshape(-1, student_hidden.shape[-1]), student_head),
        *(teacher_hidden.reshape(-1, teacher_hidden.shape[-1]), teacher_head),
        *(spread(weights, 1), spread(label_weights, 0 if labels is None else 1)),
        *(None if labels is None else labels.reshape(-1), interpolation),
    )
    return LinearDistill(loss, *(lax.stop_gradient(x).reshape(batch) for x in values))


def _tpu(*arguments: Any) -> Any:
    from jaxkd.kernels.linear_distill.tpu import tpu  # Pallas: most of a second.

    return tpu(*arguments)


def _check_shapes(
    student_hidden: Array, teacher_hidden: Array, heads: dict[str, Array]
) -> None:
    hidden = {"student_hidden": student_hidden, "teacher_hidden": teacher_hidden}
    for (state, values), (name, head) in zip(
        hidden.items(), heads.items(), strict=True
    ):
        if values.shape[-1:] != head.shape[:1]:
            raise ValueError(
                f"{state} has shape {values.shape} but {name} has {head.shape}: a head "
                "is (width, vocabulary), and the hidden states have that width"
            )
    if student_hidden.shape[:-1] != teacher_hidden.shape[:-1]:
        raise ValueError(
            f"student_hidden has shape {student_hidden.shape} but teacher_hidden has "
            f"{teacher_hidden.shape}: give both networks the same tokens"
        )
    vocabularies = [head.shape[1] for head in heads.values()]
    if vocabularies[0] != vocabularies[1]:
        raise ValueError(
            f"student_head has a vocabulary of {vocabularies[0]} but teacher_head one "
            f"of {vocabularies[1]}: leave out what only one of them has, as "
            "methods.shared_vocabulary(method, size) does"
        )


def _check_split(heads: dict[str, Array], axis_name: str | None) -> None:
    for name, head in heads.items():
        if axis_name is not None and axis_name not in jax.typeof(head).mat.varying:
            raise ValueError(
                f"{name} is not split over axis {axis_name!r}: call this in "
                f"jax.shard_map with in_specs P(None, {axis_name!r}) for the heads, "
                "its check_vma left on"
            )


def _check_kernels(top_k: int | None, arrays: tuple[Array, ...]) -> None:
    half = any(x.dtype == jnp.float16 for x in arrays)
    for what, given in (("top_k", top_k is not None), ("float16", half)):
        if given:
            raise ValueError(
                f"{what} has no Pallas kernel: choose implementation 'auto', 'xla' or "
                "'reference'"
            )


def _check_top_k(
    top_k: int | None, divergence: Divergence, vocabulary: int, axis_name: str | None
) -> None:
    if top_k is None:
        return
    if divergence is reverse_kl:
        raise ValueError(
            "reverse_kl with top_k is infinite: use skew_reverse_kl or leave top_k out"
        )
    if axis_name is not None:
        vocabulary *= lax.axis_size(axis_name)
    if not 1 <= top_k <= vocabulary:
        raise ValueError(
            f"top_k must be in 1 … {vocabulary}, the vocabulary: got {top_k}"
        )
