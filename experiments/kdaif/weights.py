"""Whom to trust: the student's loss, the examples' influence on it, and weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.classification import Classification
from experiments.kdaif.settings import Config
from jaxkd import data, selection
from jaxkd.losses import weighted_kd_loss
from jaxkd.methods import from_loss
from jaxkd.network import Network
from jaxkd.papers.kdaif import Models
from jaxkd.reporting.run import History, Values
from jaxkd.types import Method


def objective(config: Config) -> Method:
    """Return the student's loss; ``weight`` in the batch weighs its examples."""

    def loss(student, teacher, batch):
        return kd_losses(config, student.logits, teacher.logits, batch["label"])

    return from_loss(loss, name="kd_aif")


def kd_losses(config: Config, student: Any, teacher: Any, labels: Any) -> jax.Array:
    """Return the losses that a student is trained on, before any weight.

    Without a label's share there is no factor T², as in the authors' example.
    """
    return weighted_kd_loss(
        student,
        teacher,
        labels,
        jnp.ones(len(student)),
        config.temperature,
        config.alpha,
        scale=config.alpha > 0,
    )


def influence(
    config: Config,
    images: Classification,
    validation: data.Source,
    models: Models,
    plain: bool = False,
) -> jax.Array:
    """Return each training example's influence on the validation loss by the student.

    Args:
        config: the loss and the damping.
        images: the training examples.
        validation: labels to be trusted.
        models: networks with their variables.
        plain: products of gradients in place of the inverse Hessian.
    """

    def seen(network: Network, source: data.Examples) -> selection.Seen:
        variables = [network.init(jax.random.key(0))]
        transform = images.test_transform
        return selection.observe(
            network, variables, source, tap="pooled", transform=transform
        )

    train: Any = images.train
    of_teacher = jnp.asarray(seen(models.teacher, train).logits[0])
    of_train = seen(models.student, train)
    labels = jnp.asarray(of_train.labels)

    def losses(z: jax.Array) -> jax.Array:
        return kd_losses(config, z, of_teacher, labels)

    # A damping far above the curvature leaves the gradients' products.
    damping = 1e4 if plain else config.damping
    held_out = seen(models.student, validation)
    return selection.last_layer_influence(of_train, held_out, losses, damping=damping)


def weights_of(name: str, scores: Any, wrong: np.ndarray) -> np.ndarray:
    """Return a row's weights of the examples."""
    if name == "oracle":
        return (~wrong) / np.mean(~wrong)
    kinds: dict[str, Any] = {
        "released": {"kind": "exp", "sign": 1, "clip": None},
        "gradients": {"kind": "sigmoid"},
    }
    arguments = kinds.get(name, {"kind": name})
    found = selection.influence_weights(jnp.asarray(scores), **arguments)
    return np.asarray(found)


def detection_auc(scores: Any, wrong: np.ndarray) -> float:
    """Return how often a wrong label's score is above a right one's."""
    above = np.asarray(scores)[wrong][:, None] - np.asarray(scores)[~wrong]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def measured(scores: Any, weights: np.ndarray, wrong: np.ndarray, labels: Any):
    """Return what measures whom the weights favour."""
    mean = [weights[labels == c].mean() for c in np.unique(labels)]
    found = {
        "detection_auc": detection_auc(scores, wrong) if wrong.any() else np.nan,
        "right_weight": weights[~wrong].mean(),
        "wrong_weight": weights[wrong].mean() if wrong.any() else np.nan,
        "class_weight_gap": max(mean) - min(mean),
    }
    values = {k: float(v) for k, v in found.items() if np.isfinite(v)}

    def measure(state: Any, history: History) -> Values:
        return values

    return measure
