"""What optax is told about the trees that programs optimise.

A distillation program's optimizer sees one tree, ``{"student": params, "method":
params}``: the student's weights, and those that the method trains along (projectors,
heads), empty if it has none.
"""

from typing import Any

import jax
from jaxtyping import PyTree

SPARED = ("bias", "scale", "log_rate", "skip", "time_bias")
"""Names of biases, of norms' scales, and of what Mamba's layers have beside matrices.
In stacked layers these have an axis more, so that their number of axes tells nothing.
"""


def decay_mask(params: PyTree) -> PyTree:
    """Return True for the weights that weight decay is for: matrices and embeddings.

    Norms and biases are spared, of stacked layers too, and what has fewer than two
    axes: ``optax.adamw(1e-3, weight_decay=0.1, mask=training.decay_mask)``.

    Args:
        params: any tree of weights with the names that Flax gives them.
    """

    def decays(path: tuple, weight: Any) -> bool:
        return _name(path[-1]) not in SPARED and weight.ndim > 1

    return jax.tree_util.tree_map_with_path(decays, params)


def part_labels(params: PyTree) -> PyTree:
    """Return the tree with each weight's part in its place: ``student`` or ``method``.

    For one optimizer a part: ``optax.multi_transform({"student": optax.adam(1e-3),
    "method": optax.sgd(0.1)}, training.part_labels)``.

    Args:
        params: the tree of a program's optimizer, or any other; the first name of a
            weight's path is its part.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: _name(path[0]), params)


def _name(key: object) -> str:
    return jax.tree_util.keystr((key,), simple=True)
