"""Norm and direction (KD++): features longer, and towards their class's mean."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.arguments import checked, fraction
from jaxkd.losses.directions import (
    class_means,
    class_sums,
    direction_loss,
    nd_loss,
    norm_loss,
)
from jaxkd.methods.base import batch_weights, from_module
from jaxkd.methods.modules.layers import Mask, MaskedBatchNorm
from jaxkd.types import Method


class NDTransform(nnx.Module):
    """BatchNorm, dropout and a linear layer to the teacher's width, for ND alone."""

    def __init__(self, channels: int, width: int, dropout: float, *, rngs: nnx.Rngs):
        self.norm = MaskedBatchNorm(channels, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.linear = nnx.Linear(channels, width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch channels"], mask: Mask = None
    ) -> Float[Array, "batch width"]:
        """Return features of the teacher's width."""
        return self.linear(self.dropout(self.norm(x, mask)))


class _Module(nnx.Module):
    """What is trained along, and the class means where batches make them."""

    def __init__(
        self, channels: int, width: int, classes: int, dropout: float, rngs: nnx.Rngs
    ):
        self.transform = (
            None
            if channels == width
            else NDTransform(channels, width, dropout, rngs=rngs)
        )
        if classes:
            self.sums = nnx.BatchStat(jnp.zeros((classes, width)))
            self.counts = nnx.BatchStat(jnp.zeros(classes))

    def means(self, features: Array, labels: Array, weights: Array | None) -> Array:
        """Return the means of all examples until now, these included."""
        sums, counts = class_sums(features, labels, len(self.counts[...]), weights)
        self.sums[...] += sums
        self.counts[...] += counts
        return class_means(self.sums[...], self.counts[...])


@checked(dropout=fraction)
def nd(
    means: Float[np.ndarray | Array, "classes channels"] | None = None,
    *,
    tap: str = "pooled",
    teacher_tap: str | None = None,
    dropout: float = 0.5,
    kind: Literal["both", "direction", "norm", "own"] = "both",
) -> Method:
    """Return norm and direction, to be added to any other distillation.

    Wang et al. 2023, arXiv:2305.17007: KD++ is ``combine((1.0, cross_entropy()), (w_k,
    kd(4.0)), (w_n, nd(means)))``, DKD++, DIST++ and ReviewKD++ have those methods in
    place of KD; w_n is 0.5 to 4. A student of another width is seen through a trained
    transform, which its classifier does not use.

    Args:
        means: of the teacher's features by class, over all training examples, as
            `jaxkd.evaluation.class_means.feature_means` makes them; None for those of
            the batches seen so far.
        tap: the student's feature (batch, channels) before its classifier.
        teacher_tap: the teacher's; None for the same name.
        dropout: of the transform.
        kind: ``"both"``, or what the paper compares it with: the ``"direction"`` alone;
            the ``"norm"`` alone, in steps of 1; both, towards the teacher's ``"own"``
            feature of the example in place of its class's mean.
    """
    there = teacher_tap or tap

    def build(student, teacher, rngs):
        classes = student.logits.shape[-1] if means is None else 0
        width = teacher.features[there].shape[-1]
        return _Module(student.features[tap].shape[-1], width, classes, dropout, rngs)

    def loss(module, student, teacher, batch, key):
        features, taught = student.features[tap], teacher.features[there]
        weights = batch_weights(batch, features.shape[:1])
        if module.transform is not None:
            features = module.transform(features, weights)
        wanted = (
            module.means(taught, batch["label"], weights)
            if means is None
            else jnp.asarray(means)
        )
        if kind == "direction":
            return direction_loss(features, wanted, batch["label"])
        if kind == "norm":
            return norm_loss(features)
        if kind == "own":
            return nd_loss(features, taught, taught, jnp.arange(len(taught)))
        return nd_loss(features, taught, wanted, batch["label"])

    return from_module(
        build, loss, name="nd", student_taps=(tap,), teacher_taps=(there,)
    )
