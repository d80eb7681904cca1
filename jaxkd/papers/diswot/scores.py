"""DisWOT: how well an untrained student would learn from an untrained teacher.

Dong, Li, Wei 2023, arXiv:2303.15678. Both networks are drawn at random and see one
batch, with BatchNorm on the batch's statistics; the closer their relations between
classes and between examples, the better the student. Nothing is differentiated.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxkd.arguments import checked
from jaxkd.checks import unknown_name
from jaxkd.losses.basics import as_float, check_class_indices
from jaxkd.losses.channels import (
    cam_relation_loss,
    class_activation_maps,
    ickd_loss,
)
from jaxkd.losses.relations import sp_loss

Mode = Literal["fc_grad", "cam", "channel"]
MODES: tuple[Mode, ...] = ("fc_grad", "cam", "channel")


class Statistics(NamedTuple):
    """What the score reads of one network on a batch.

    Attributes:
        features: the last convolutional map, before global average pooling.
        logits: class scores.
        kernel: of the linear layer between pooling and logits.
    """

    features: Float[Array, "batch height width channels"]
    logits: Float[Array, "batch classes"]
    kernel: Float[Array, "channels classes"]


@checked()
def fc_grad(
    features: Float[Array, "batch channels"],
    logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
) -> Float[Array, "classes channels"]:
    """Return the mean cross-entropy's gradient in the last linear layer's weights.

    It is (softmax(z) − onehot(y))ᵀ F / batch: no backward pass is needed.

    Args:
        features: F, the layer's inputs.
        logits: z.
        labels: y, class indices.

    Raises:
        ValueError: numbers of examples differ, or labels are no class indices; under
            jit, where values cannot be checked, a label out of range gives NaN.
    """
    check_class_indices(labels)
    batch, classes = logits.shape
    if not len(features) == len(labels) == batch:
        raise ValueError(
            f"features, logits and labels hold {len(features)}, {batch} and "
            f"{len(labels)} examples: give all of one batch"
        )
    labels = jnp.asarray(labels)
    valid = (labels >= 0) & (labels < classes)
    if not isinstance(valid, Tracer) and not np.all(np.asarray(valid)):
        raise ValueError(f"labels must be 0 to {classes - 1}, got {labels}")
    target = jnp.where(valid[:, None], jax.nn.one_hot(labels, classes), jnp.nan)
    error = jax.nn.softmax(as_float(logits)) - target
    return (
        jnp.matmul(error.T, as_float(features), precision=jax.lax.Precision.HIGHEST)
        / batch
    )


@checked()
def relation_similarity(
    student: Float[Array, "batch *student_dims"],
    teacher: Float[Array, "batch *teacher_dims"],
) -> Float[Array, ""]:
    """Return M_r, the squared gap of the examples' similarity matrices, / batch².

    It is `jaxkd.losses.sp_loss` of the last maps; 0 for networks that relate the
    examples alike, and for one example, which is all alike to itself.

    Args:
        student: features of any shape, at best the last convolutional map.
        teacher: features of any shape.

    Raises:
        ValueError: batch sizes differ, or there is no example.
    """
    if len(student) == len(teacher) == 1:
        return jnp.zeros(())
    return sp_loss(student, teacher)


@checked()
def channel_similarity(
    student: Float[Array, "batch *student_positions channels"],
    teacher: Float[Array, "batch *teacher_positions channels"],
) -> Float[Array, ""]:
    """Return the mean of `jaxkd.losses.ickd_loss` over the batch.

    Raises:
        ValueError: batch sizes or channels differ.
    """
    return ickd_loss(student, teacher).mean()


@checked()
def semantic_similarity(
    student: Statistics,
    teacher: Statistics,
    labels: Int[Array, "batch"],
    mode: Mode = "fc_grad",
) -> Float[Array, ""]:
    """Return M_s, the gap of the networks' correlations between classes.

    Args:
        student: its statistics.
        teacher: its statistics on the same batch.
        labels: of the batch; only ``"fc_grad"`` reads them.
        mode: what is correlated: ``"fc_grad"``, the channels of each class's row of
            `fc_grad`, as in the authors' code; ``"cam"``, the classes' activation maps,
            as in the paper; ``"channel"``, the channels of the last map.

    Raises:
        ValueError: an unknown mode; channels differ, where the mode is not ``"cam"``.
    """
    if mode == "cam":
        return cam_relation_loss(
            class_activation_maps(student.features, student.kernel),
            class_activation_maps(teacher.features, teacher.kernel),
        )
    if mode == "channel":
        return channel_similarity(student.features, teacher.features)
    if mode != "fc_grad":
        raise ValueError(unknown_name("mode", mode, MODES))
    gradients = [
        fc_grad(as_float(s.features).mean((1, 2)), s.logits, labels)
        for s in (student, teacher)
    ]
    return channel_similarity(*gradients)


@checked()
def diswot_score(
    student: Statistics,
    teacher: Statistics,
    labels: Int[Array, "batch"],
    mode: Mode = "fc_grad",
) -> Float[Array, ""]:
    """Return −(M_s + M_r), the paper's score: the higher, the better the student.

    M_s is about a hundred times M_r, so the sum hardly reads M_r; to weigh both alike,
    rank candidates by each and add the ranks (`jaxkd.search.rank_sum`).

    Args:
        student: its statistics.
        teacher: its statistics on the same batch.
        labels: of the batch.
        mode: of `semantic_similarity`.

    Raises:
        ValueError: as `semantic_similarity` and `relation_similarity`.
    """
    return -(
        semantic_similarity(student, teacher, labels, mode)
        + relation_similarity(student.features, teacher.features)
    )


@checked()
def gaussian_reinit(params: PyTree, key: PRNGKeyArray) -> PyTree:
    """Return parameters drawn as the score wants them, whatever they were.

    Kernels are standard normal, scales 1 and biases 0; leaves of other names are kept.
    At a scale of 1 the logits are large, which tells architectures apart.

    Args:
        params: of a network, a nested dict whose leaves are arrays or their shapes.
        key: of the draw.
    """
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    keys = iter(jax.random.split(key, max(len(paths), 1)))

    def drawn(path, leaf):
        kind, own = path[-1].key, next(keys)
        if kind == "kernel":
            return jax.random.normal(own, leaf.shape, leaf.dtype)
        if kind in ("scale", "bias"):
            return jnp.full(leaf.shape, kind == "scale", leaf.dtype)
        return leaf

    return jax.tree_util.tree_map_with_path(drawn, params)
