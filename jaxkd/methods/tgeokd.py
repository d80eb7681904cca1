"""TGeo-KD, and simpler rules for how much of the loss is the teacher's."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import abstract_module, merge_module, split_module
from jaxkd.arguments import checked, positive
from jaxkd.checks import unknown_name
from jaxkd.losses.basics import frozen, weighted_loss
from jaxkd.losses.fusion import (
    GEOMETRY,
    ada_alpha,
    fused_kd_loss,
    trilateral_features,
    wls_alpha,
)
from jaxkd.methods.masks import batch_weights, masked
from jaxkd.methods.modules.fusion import FusionController
from jaxkd.types import Batch, Loss, Method, Outputs

RULES = ("wls", "ada")


@checked(temperature=positive)
def tgeokd(
    class_average: Float[Array, "classes classes"],
    temperature: float = 4.0,
    *,
    parts: Sequence[str] = GEOMETRY,
    per_class: bool = True,
    hidden: Sequence[int] = (32, 16),
) -> Method:
    """Return distillation with a learnt share α of the teacher in each example's loss.

    Hu et al. 2024, arXiv:2312.15112: α·T²·KL + (1 − α)·cross-entropy, with α from
    `FusionController` on the geometry of student, teacher and
    label, whose features are detached from the student. Train it with
    `programs.bilevel`, which moves the controller to where the student does well on
    validation data; `programs.distill` would only teach it which loss is smaller.

    The metrics hold the mean, least and largest α of the batch.

    Args:
        class_average: `losses.class_average_predictions` of the training set.
        temperature: T > 0.
        parts: the controller's inputs, see `losses.trilateral_features`.
        per_class: likewise.
        hidden: sizes of the controller's hidden layers.
    """

    def features(student: Outputs, teacher: Outputs, batch: Batch) -> Array:
        return trilateral_features(
            jax.nn.softmax(frozen(student.logits)),
            jax.nn.softmax(frozen(teacher.logits)),
            batch["label"],
            class_average,
            parts,
            per_class,
        )

    def build(size: int, rngs: nnx.Rngs) -> FusionController:
        return FusionController(size, hidden, rngs=rngs)

    def init(key, student, teacher, batch):
        size = features(student, teacher, batch).shape[-1]
        return {"params": split_module(build(size, nnx.Rngs(key)))[0], "state": {}}

    def loss(variables, student, teacher, batch, key, step):
        x = features(student, teacher, batch)
        abstract = abstract_module(lambda: build(x.shape[-1], nnx.Rngs(0)))
        controller = merge_module(abstract, variables["params"], {})
        value, metrics = _fused(
            "tgeokd", student, teacher, batch, controller(x), temperature
        )
        return value, (variables["state"], metrics)

    return masked(Method(init, loss))


@checked(temperature=positive)
def fused_kd(rule: Literal["wls", "ada"], temperature: float = 4.0) -> Method:
    """Return distillation whose teacher's share α follows a rule for each example.

    The rules TGeo-KD is compared with: `losses.wls_alpha` and `losses.ada_alpha`. A
    constant or scheduled α is ``combine((1 - α, cross_entropy()), (α, kd(T)))``.

    Args:
        rule: ``"wls"`` or ``"ada"``.
        temperature: T > 0.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(unknown_name("rule", rule, RULES))
    alphas: dict[str, Callable[..., Array]] = {
        "wls": wls_alpha,
        "ada": lambda student, teacher, labels: ada_alpha(teacher, labels),
    }

    def init(key, student, teacher, batch):
        return {"params": {}, "state": {}}

    def loss(variables, student, teacher, batch, key, step):
        alpha = alphas[rule](student.logits, teacher.logits, batch["label"])
        value, metrics = _fused("fused_kd", student, teacher, batch, alpha, temperature)
        return value, (variables["state"], metrics)

    return masked(Method(init, loss))


def _fused(
    name: str,
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    alpha: Float[Array, "batch"],
    temperature: float,
) -> tuple[Loss, dict[str, Any]]:
    """Return the masked sum of `fused_kd_loss`, and what α is."""
    losses = fused_kd_loss(
        student.logits, teacher.logits, batch["label"], alpha, temperature
    )
    weights = batch_weights(batch, losses.shape)
    counted = jnp.ones_like(alpha) if weights is None else weights
    value = weighted_loss(losses, weights)
    return value, {
        name: value,
        "alpha": weighted_loss(alpha, weights),
        "alpha_min": jnp.where(counted > 0, alpha, 1).min(),
        "alpha_max": jnp.where(counted > 0, alpha, 0).max(),
    }
