"""Contrastive representation distillation."""

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from jaxkd.adapters import abstract_module, merge_module, split_module
from jaxkd.arguments import checked, count, fraction, positive
from jaxkd.losses.basics import frozen, weighted_loss
from jaxkd.losses.contrastive import crd_init, crd_loss, sample_negatives
from jaxkd.methods.base import example_weights
from jaxkd.methods.masks import masked
from jaxkd.methods.modules.projectors import EmbedPair
from jaxkd.types import Method


@checked(temperature=positive, momentum=fraction, dim=count, negatives=count)
def crd(
    tap: str,
    labels: Int[np.ndarray, "examples"],
    teacher_tap: str | None = None,
    *,
    dim: int = 128,
    negatives: int = 16384,
    temperature: float = 0.07,
    momentum: float = 0.5,
) -> Method:
    """Return contrastive distillation with memory banks of both networks' embeddings.

    Tian et al. 2020, arXiv:1910.10699. The recipe's weight is 0.8. The banks and the
    two normalising constants, set on the first step, are the method's state. Batches
    must hold ``index``, each example's position in the data set.

    Args:
        tap: the student's pooled features.
        labels: of the whole training set: negatives are of other classes.
        teacher_tap: the teacher's; None for the same name.
        dim: of the embeddings.
        negatives: drawn for each example, without replacement.
        temperature: τ > 0.
        momentum: the share of the old entry kept in a bank's update.

    Raises:
        ValueError: more negatives than examples of other classes; a batch without
            ``index``.
    """
    teacher_tap = teacher_tap or tap

    def build(student, teacher, rngs):
        return EmbedPair(
            student.features[tap].shape, teacher.features[teacher_tap].shape, dim, rngs
        )

    def indices(batch) -> Array:
        if "index" not in batch:
            raise ValueError(
                f"the batch has {sorted(batch)}, but crd() needs index, each example's "
                "position in the training set, for its memory banks"
            )
        return batch["index"]

    def init(key, student, teacher, batch):
        indices(batch)
        params, _ = split_module(build(student, teacher, nnx.Rngs(key)))
        banks = crd_init(jax.random.fold_in(key, 1), len(labels), dim)
        return {"params": params, "state": banks}

    def loss(variables, student, teacher, batch, key, step):
        abstract = abstract_module(lambda: build(student, teacher, nnx.Rngs(0)))
        module = merge_module(abstract, variables["params"], {})
        contrast = sample_negatives(key, labels, indices(batch), negatives)
        weights = example_weights(batch, student)
        embedded, target = module(
            student.features[tap], frozen(teacher.features[teacher_tap])
        )
        losses, state = crd_loss(
            variables["state"],
            embedded,
            target,
            contrast,
            temperature=temperature,
            momentum=momentum,
            weights=weights,
        )
        value = weighted_loss(losses, weights)
        return value, (state, {"crd": value})

    return masked(Method(init, loss, (tap,), (teacher_tap,)))
