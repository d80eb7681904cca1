"""Distillation of language models that never holds their logits."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jaxkd.arguments import checked, positive
from jaxkd.kernels.linear_distill import Divergence, forward_kl, linear_distill
from jaxkd.losses.basics import OTHER_WIDTHS
from jaxkd.methods.masks import batch_weights, masked
from jaxkd.sharding.axes import logical_spec
from jaxkd.types import Batch, Loss, Method, MethodVariables, Outputs

TAPS = ("final", "head")


@checked(temperature=positive)
def linear_kd(
    divergence: Divergence = forward_kl,
    *,
    temperature: float = 1.0,
    label_weight: float = 0.0,
) -> Method:
    """Return a divergence between two language models, from hidden states and heads.

    The same number as `jaxkd.methods.kd`'s, or another divergence's, plus the
    cross-entropy, by `jaxkd.kernels.linear_distill`. Both networks need the taps
    ``final`` and ``head``. On a mesh each device has its own tokens and its own part of
    the vocabulary, and gathers the heads along ``fsdp``.

    Args:
        divergence: one of `jaxkd.kernels.linear_distill`.
        temperature: T > 0, of both.
        label_weight: of the cross-entropy with ``batch["label"]``; the divergence's
            is 1.

    Raises:
        ValueError: from ``loss``, ``label_weight`` without labels, or heads of two
            vocabularies.
    """

    def init(key, student, teacher, batch) -> MethodVariables:
        return {"params": {}, "state": {}}

    def loss(variables, student, teacher, batch, key, step):
        found = linear_kd_loss(
            student,
            teacher,
            batch,
            divergence,
            temperature=temperature,
            label_weight=label_weight,
        )
        return found, (variables["state"], {"linear_kd": found})

    return masked(Method(init, loss, TAPS, TAPS))


@checked(temperature=positive)
def linear_kd_loss(
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    divergence: Divergence,
    *,
    temperature: float = 1.0,
    label_weight: float = 0.0,
    interpolation: Float[Array, ""] | None = None,
) -> Loss:
    """Return the masked sum over tokens that `linear_kd` trains with, and its weight.

    Args:
        student: with the taps `TAPS`.
        teacher: likewise; it gets no gradient.
        batch: its ``label`` if ``label_weight`` is not 0, its masks.
        divergence: one of `jaxkd.kernels.linear_distill`.
        temperature: T > 0, of both.
        label_weight: of the cross-entropy.
        interpolation: see `jaxkd.kernels.linear_distill.linear_distill`.

    Raises:
        ValueError: ``label_weight`` without labels, or heads of two vocabularies.
    """
    hidden = student.features["final"]
    widths = [outputs.features["head"].shape[-1] for outputs in (student, teacher)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"the student's head has {widths[0]} logits but the teacher's {widths[1]}: "
            f"{OTHER_WIDTHS}"
        )
    labels = batch.get("label") if label_weight else None
    if label_weight and labels is None:
        raise ValueError(
            f"label_weight is {label_weight}, but the batch has no label: add the "
            "next tokens, or set it to 0"
        )
    weights = batch_weights(batch, hidden.shape[:-1])
    weights = jnp.ones(hidden.shape[:-1]) if weights is None else weights

    def value(arrays, weights, labels, interpolation, axis_name: str | None) -> Array:
        hidden, head, teacher_hidden, teacher_head = arrays
        found = linear_distill(
            hidden,
            head,
            teacher_hidden,
            teacher_head,
            labels,
            divergence=divergence,
            weights=weights,
            label_weights=None if labels is None else label_weight * weights,
            temperature=temperature,
            interpolation=interpolation,
            axis_name=axis_name,
        )
        return found.loss

    teacher = lax.stop_gradient(teacher)
    arrays = tuple(
        outputs.features[tap] for outputs in (student, teacher) for tap in TAPS
    )
    total = _on_mesh(value, arrays, weights, labels, interpolation)
    return Loss(total, weights.sum())


def _on_mesh(
    value: Any,
    arrays: tuple,
    weights: Array,
    labels: Array | None,
    interpolation: Array | None,
) -> Array:
    """Return the loss of all devices' tokens, each device computing its own part."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return value(arrays, weights, labels, interpolation, None)
    tokens, hidden = ("batch", None), ("batch", None, None)
    head = ("embed", "vocabulary")
    place = [
        logical_spec(array.shape, axes, mesh.shape)
        for array, axes in zip(arrays, (hidden, head) * 2, strict=True)
    ]
    by_token = logical_spec(weights.shape, tokens, mesh.shape)
    split = by_token[0] or ()
    vocabulary = {spec[1] for spec in (place[1], place[3])}
    if len(vocabulary) != 1:
        raise ValueError(
            f"heads of shapes {arrays[1].shape} and {arrays[3].shape} are not split "
            "alike over the mesh: pad the vocabularies to one size"
        )
    (over,) = vocabulary

    def local(arrays: tuple, weights, labels, interpolation) -> Array:
        gathered = [
            array
            if i % 2 == 0 or not place[i][0]
            else lax.all_gather(array, place[i][0], axis=0, tiled=True)
            for i, array in enumerate(arrays)
        ]
        found = value(tuple(gathered), weights, labels, interpolation, over)
        return lax.psum(found, split) if split else found

    whole = PartitionSpec()
    specs = (
        *(tuple(place), by_token, None if labels is None else by_token),
        None if interpolation is None else whole,
    )
    run = jax.shard_map(local, in_specs=specs, out_specs=whole)
    return run(arrays, weights, labels, interpolation)
