"""LELP: distillation of few classes through sub-classes of the teacher's features."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxkd.arguments import checked, count, fraction, positive
from jaxkd.losses.subclasses import (
    SubclassDirections,
    hard_subclass_targets,
    subclass_loss,
    subclass_targets,
)
from jaxkd.methods.base import from_loss
from jaxkd.networks.subclasses import SUBCLASS_TAP
from jaxkd.types import Method


@checked(beta=positive, temperature=positive)
def lelp(
    directions: SubclassDirections,
    beta: float = 1.0,
    temperature: float = 1.0,
    *,
    tap: str = "pooled",
) -> Method:
    """Return distillation into sub-classes by linear projections of teacher features.

    Loo et al. 2024, arXiv:2409.20449, who take it alone, without the labels' loss. The
    student is a network in `jaxkd.networks.with_subclasses`.

    Args:
        directions: as `jaxkd.papers.lelp.subclass_directions` finds them.
        beta: β > 0, a temperature of the sub-classes.
        temperature: T > 0, of student and targets.
        tap: the input of the teacher's last layer.
    """

    def loss(student, teacher, batch):
        targets = subclass_targets(
            teacher.features[tap], teacher.logits, directions, beta
        )
        return subclass_loss(student.features[SUBCLASS_TAP], targets, temperature)

    return from_loss(
        loss, name="lelp", student_taps=(SUBCLASS_TAP,), teacher_taps=(tap,)
    )


@checked(subclasses=count, eps=fraction, temperature=positive)
def subclass_kd(
    assignments: Int[np.ndarray, "examples"],
    subclasses: int,
    eps: float = 0.0,
    temperature: float = 1.0,
) -> Method:
    """Return distillation into sub-classes that are given, such as finer labels.

    Clusters of the teacher's features are LELP's baseline, the true finer labels its
    upper bound. Batches must hold ``index``, each example's position in the data set.

    Args:
        assignments: class · subclasses + sub-class of every training example, or −1.
        subclasses: of each class.
        eps: ε in [0, 1), what an assignment leaves to the class's other sub-classes.
        temperature: T > 0, of student and targets.

    Raises:
        ValueError: a batch without ``index``.
    """
    table = jnp.asarray(assignments)

    def loss(student, teacher, batch):
        if "index" not in batch:
            raise ValueError(
                f"the batch has {sorted(batch)}, but subclass_kd() needs index, each "
                "example's position in the training set"
            )
        # One that is not in the table gives NaN.
        beyond = jnp.iinfo(table.dtype).max
        own = table.at[batch["index"]].get(mode="fill", fill_value=beyond)
        targets = hard_subclass_targets(own, teacher.logits, subclasses, eps)
        return subclass_loss(student.features[SUBCLASS_TAP], targets, temperature)

    return from_loss(loss, name="subclass_kd", student_taps=(SUBCLASS_TAP,))
