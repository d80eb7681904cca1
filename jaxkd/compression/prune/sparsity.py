"""N:M sparsity of whole networks: which weights, which masks, and what is left.

Weights are named by their path in the parameters, such as ``blocks.mlp.up.kernel``, and
chosen by a regular expression that the end of the path must match: the ``scope``. They
have Flax's layout (..., inputs, outputs), where leading axes are layers stacked for a
scan; the groups of m run along the inputs.
"""

import functools
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, Bool, Float, PyTree

from jaxkd.arguments import checked
from jaxkd.kernels.nm_matmul import NMWeights, nm_mask, nm_pack, nm_unpack

INPUTS = -2
"""The axis of the groups."""

Masks = dict[str, Bool[Array, "..."]]
"""By the weight's path, which of its entries are kept."""


@checked()
def weights_in_scope(params: PyTree, scope: str) -> dict[str, Array]:
    """Return the weights that sparsity is to touch, by path.

    Args:
        params: any nesting of dicts, lists and tuples.
        scope: a regular expression such as ``r"blocks\\..*\\.kernel"``.

    Raises:
        ValueError: no path matches, or a weight that matches has no two axes.
    """
    leaves = named(params)
    found = {
        name: leaf for name, leaf in leaves.items() if re.search(f"(?:{scope})$", name)
    }
    if not found:
        raise ValueError(
            f"scope {scope!r} matches the end of no weight's path; there are "
            f"{', '.join([*leaves][:8])}{', …' if len(leaves) > 8 else ''}"
        )
    for name, leaf in found.items():
        if jnp.ndim(leaf) < 2:
            raise ValueError(
                f"scope {scope!r} matches {name} of shape {jnp.shape(leaf)}: groups "
                "need weights of at least 2 axes, so leave biases and norms out of it"
            )
    return found


@checked()
def nm_masks(
    params: PyTree,
    scope: str,
    n: int = 2,
    m: int = 4,
    scores: Mapping[str, Array] | None = None,
) -> Masks:
    """Return the mask of every weight in scope: n of every m inputs are kept.

    Args:
        params: a network's.
        scope: as in `weights_in_scope`.
        n: kept, exactly; of equals the first.
        m: consecutive inputs.
        scores: by path, what decides instead of magnitudes (`wanda_score`).

    Raises:
        ValueError: nothing in scope, inputs that m does not divide, or a weight
            without a score.
    """
    weights = weights_in_scope(params, scope)
    missing = [name for name in weights if scores is not None and name not in scores]
    if missing:
        raise ValueError(f"scores has none for {', '.join(missing)}: give all in scope")
    return {
        name: nm_mask(
            weight, n, m, axis=INPUTS, score=None if scores is None else scores[name]
        )
        for name, weight in weights.items()
    }


@checked()
def map_weights(
    function: Callable[[str, Array], Any], params: PyTree, names: Container[str]
) -> PyTree:
    """Return the parameters with a function applied to the weights of some names.

    Args:
        function: ``(name, weight) -> weight``.
        params: a network's.
        names: paths, or a dict by path.
    """

    def change(path: tuple, leaf: Array) -> Any:
        name = path_name(path)
        return function(name, leaf) if name in names else leaf

    return jax.tree_util.tree_map_with_path(change, params)


@checked()
def prune(params: PyTree, masks: Masks) -> PyTree:
    """Return the parameters with 0 where a mask drops a weight.

    Args:
        params: a network's.
        masks: from `nm_masks`; weights without one stay.
    """
    return map_weights(lambda name, w: jnp.where(masks[name], w, 0), params, masks)


@checked()
def wanda_score(
    weights: Float[Array, "*layers inputs outputs"],
    input_norms: Float[Array, "*layers inputs"],
) -> Float[Array, "*layers inputs outputs"]:
    """Return ``|W|·‖x‖₂``, better than magnitudes where nothing is retrained.

    Sun et al. 2023 (Wanda), arXiv:2306.11695, Eq. 1. A factor of the input alone counts
    here since the inputs of a group compete.

    Args:
        weights: W.
        input_norms: each input's Euclidean norm over the tokens of a calibration set.
    """
    return jnp.abs(weights) * input_norms[..., None]


@checked()
def masked_magnitude_ratio(params: PyTree, masks: Masks) -> Float[Array, ""]:
    """Return the mean magnitude of dropped weights over that of kept ones.

    Pruning is free when it is 0. That half the weights are masked shows nothing, it is
    so by construction; that this ratio falls does.

    Args:
        params: a network's.
        masks: from `nm_masks`.
    """
    weights = named(params)

    def mean(of: Callable[[Array], Array]) -> Array:
        chosen = {name: of(mask) for name, mask in masks.items()}
        total = [jnp.sum(jnp.abs(weights[k]) * chosen[k]) for k in chosen]
        return sum(total, jnp.zeros(())) / sum(map(jnp.sum, chosen.values()))

    return mean(jnp.logical_not) / mean(jnp.asarray)


@checked()
@dataclass(frozen=True)
class NMReport:
    """How sparse a network's weights are.

    Attributes:
        weights: in scope.
        nonzero: of them.
        groups: of m inputs.
        exact: groups with exactly n that are not 0.
    """

    weights: int
    nonzero: int
    groups: int
    exact: int


@checked()
def check_sparse(params: PyTree, scope: str, n: int = 2, m: int = 4) -> NMReport:
    """Return how sparse the weights in scope are; refuse those that are not N:M.

    Args:
        params: a network's, not traced.
        scope: as in `weights_in_scope`.
        n: that a group may have at most.
        m: consecutive inputs.

    Raises:
        ValueError: a group has more than n weights that are not 0. It names the weight.
    """
    size = nonzero = groups = exact = 0
    for name, weight in weights_in_scope(params, scope).items():
        split = (*weight.shape[:-2], -1, m, weight.shape[-1])
        counts = jnp.sum(weight.reshape(split) != 0, axis=-2)
        if int(counts.max()) > n:
            raise ValueError(
                f"{name} has a group of {m} inputs with {int(counts.max())} weights "
                f"that are not 0, but {n}:{m} sparsity allows {n}: prune it first"
            )
        size, groups = size + weight.size, groups + counts.size
        nonzero, exact = nonzero + int(counts.sum()), exact + int((counts == n).sum())
    return NMReport(size, nonzero, groups, exact)


@checked()
def pack_weights(params: PyTree, scope: str, n: int = 2, m: int = 4) -> PyTree:
    """Return the parameters with the weights in scope without their zeros.

    Each is an `NMWeights`, which `nm_matmul` multiplies by; of stacked layers its
    arrays have the layers' axes before their own.

    Args:
        params: a pruned network's, not traced.
        scope: as in `weights_in_scope`.
        n: that a group has at most.
        m: consecutive inputs.

    Raises:
        ValueError: a group has more than n weights that are not 0.
    """
    check_sparse(params, scope, n, m)

    def pack(name: str, weight: Array) -> NMWeights:
        one = functools.partial(_pack, n=n, m=m)
        for _ in range(weight.ndim - 2):
            one = jax.vmap(one)
        return one(weight)

    return map_weights(pack, params, weights_in_scope(params, scope))


def _pack(weight: Array, n: int, m: int) -> NMWeights:
    return nm_pack(weight, n, m, weight != 0)


def unpack_weights(packed: PyTree) -> PyTree:
    """Return the parameters that `pack_weights` took, bit for bit.

    Args:
        packed: from `pack_weights`.
    """

    def unpack(leaf: Any) -> Any:
        if not isinstance(leaf, NMWeights):
            return leaf
        one = nm_unpack
        for _ in range(leaf.values.ndim - 3):
            one = jax.vmap(one)
        return one(leaf)

    return jax.tree.map(unpack, packed, is_leaf=lambda x: isinstance(x, NMWeights))


@checked()
def path_name(path: tuple) -> str:
    """Return a leaf's path as its name, such as ``blocks.mlp.up.kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def named(tree: PyTree) -> dict[str, Any]:
    """Return a tree's leaves by name."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {path_name(path): leaf for path, leaf in leaves}


@checked()
def nested(leaves: Mapping[str, Array]) -> PyTree:
    """Return leaves by name as nested dicts, as `named` takes them apart.

    States keep masks so: what decides by path how a weight lies on a mesh decides the
    same for its mask.
    """
    return unflatten_dict(dict(leaves), sep=".")
