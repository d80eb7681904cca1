"""Networks as they are while they become sparse, and as they are deployed.

`scaled` gives every weight matrix learnt scales (CAST), `straight_through` multiplies
by a mask that the gradient does not see (SR-STE, AST). Both turn a network into another
network, so that any program trains them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxkd.arguments import checked, count, fraction
from jaxkd.compression.prune.sparsity import (
    NMReport,
    check_sparse,
    map_weights,
    named,
    nested,
    nm_masks,
    prune,
    weights_in_scope,
)
from jaxkd.kernels.nm_matmul import sr_ste
from jaxkd.network import Network
from jaxkd.sharding.axes import constrain, declared_axes
from jaxkd.types import NO_AXES, Axes, Variables


@checked()
def weight_scale(
    weights: Float[Array, "*layers inputs outputs"],
    scales: Float[Array, "*layers groups outputs"],
) -> Float[Array, "*layers inputs outputs"]:
    """Return the weights, each contiguous group of an output's inputs times its scale.

    Huang et al. 2025, arXiv:2509.25996, Eq. 11-12.

    Args:
        weights: W.
        scales: A; the paper has 2 groups.

    Raises:
        ValueError: groups that do not divide the inputs, or other outputs.
    """
    *layers, inputs, outputs = weights.shape
    groups = scales.shape[-2]
    if inputs % groups or scales.shape != (*layers, groups, outputs):
        raise ValueError(
            f"scales has shape {scales.shape} but weights {weights.shape}: the scales "
            f"must have the weights' axes, with groups that divide {inputs} as inputs"
        )
    return weights * jnp.repeat(scales, inputs // groups, axis=-2)


@checked(groups=count)
def scaled(network: Network, scope: str, groups: int = 2) -> Network:
    """Return the network with learnt scales of the weights in scope, 1 at first.

    Its params are ``{"network": the network's, "scales": by path}``. AdamS shrinks
    weights; the scales undo that at no cost, since `finalize` folds them in.

    Args:
        network: to be trained.
        scope: the weights' paths, as in `compression.prune.sparsity`.
        groups: contiguous groups of inputs.

    Raises:
        ValueError: from ``init``, groups that do not divide a weight's inputs, or
            nothing in scope.
    """

    def init(key: PRNGKeyArray) -> Variables:
        variables = network.init(key)
        scales = {}
        for name, weight in weights_in_scope(variables["params"], scope).items():
            *layers, inputs, outputs = weight.shape
            if inputs % groups:
                raise ValueError(
                    f"groups {groups} does not divide the {inputs} inputs of {name}"
                )
            shape = (*layers, groups, outputs)
            scales[f"{name}.scale"] = jnp.ones(shape, weight.dtype)
        params = {"network": variables["params"], "scales": nested(scales)}
        return {**variables, "params": params}

    def apply(variables, inputs, **kwargs):
        params = fold_scales(variables["params"], network.axes)
        outputs, after = network.apply(
            {**variables, "params": params}, inputs, **kwargs
        )
        return outputs, {**after, "params": variables["params"]}

    return replace(network, init=init, apply=apply, spec=None, module=None)


@checked()
def fold_scales(params: Mapping[str, PyTree], axes: Axes = NO_AXES) -> PyTree:
    """Return the params of a `scaled` network as the plain network's.

    Zeros stay zeros, so a pruned network's folded weights are as sparse.

    Args:
        params: ``{"network", "scales"}``.
        axes: of the network, for params on a mesh.
    """
    scales = {
        name.removesuffix(".scale"): scale
        for name, scale in named(params["scales"]).items()
    }

    def fold(name: str, weight: Array) -> Array:
        return _in_place(axes, name, weight_scale(weight, scales[name]))

    return map_weights(fold, params["network"], scales)


def _in_place(axes: Axes, name: str, weight: Array) -> Array:
    """Pin a weight that is computed to where on a mesh the stored one lies.

    XLA may else gather it, and every chip multiplies by all of it.
    """
    declared = declared_axes(axes, name.split("."), weight.ndim)
    return weight if declared is None else constrain(weight, *declared)


@flax.struct.dataclass
class MaskedStats:
    """What a `straight_through` network carries from step to step.

    Attributes:
        network: the network's own stats.
        count: training steps done.
        masks: of the weights in scope, each at its weight's path.
    """

    network: Any
    count: Any
    masks: PyTree


@checked(decay=fraction, mask_every=count)
def straight_through(
    network: Network,
    scope: str,
    decay: float = 0.0,
    *,
    mask_every: int = 1,
    n: int = 2,
    m: int = 4,
) -> Network:
    """Return the network computing with pruned weights, its gradient as if dense.

    Zhou et al. 2021 (SR-STE), arXiv:2102.04010: masks follow the weights, and dropped
    weights get the gradient of where they would stand, and decay·weight besides.

    Args:
        network: to be trained.
        scope: the weights' paths, as in `compression.prune.sparsity`.
        decay: λ_w of SR-STE; 0 where the optimizer decays them (`ast_adam`).
        mask_every: training steps between new masks.
        n: weights kept of every m.
        m: consecutive inputs.

    Raises:
        ValueError: ``mask_every`` below 1; from ``init``, nothing in scope, or inputs
            that m does not divide.
    """

    def init(key: PRNGKeyArray) -> Variables:
        variables = network.init(key)
        masks = nested(nm_masks(variables["params"], scope, n, m))
        stats = MaskedStats(variables["stats"], jnp.zeros((), jnp.int32), masks)
        return {**variables, "stats": stats}

    def apply(variables, inputs, *, train=False, **kwargs):
        params, stats = variables["params"], variables["stats"]
        masks = stats.masks
        if train:
            masks = jax.lax.cond(
                stats.count % mask_every == 0,
                lambda: nested(nm_masks(params, scope, n, m)),
                lambda: stats.masks,
            )
        kept = named(masks)
        pull = jnp.asarray(decay, jnp.float32)
        sparse = map_weights(
            lambda name, weight: _in_place(
                network.axes, name, sr_ste(weight, kept[name], pull)
            ),
            params,
            kept,
        )
        outputs, after = network.apply(
            {**variables, "params": sparse, "stats": stats.network},
            inputs,
            train=train,
            **kwargs,
        )
        stats = MaskedStats(after["stats"], stats.count + train, masks)
        return outputs, {**variables, "stats": stats}

    return replace(network, init=init, apply=apply, spec=None, module=None)


@checked()
def finalize(
    params: PyTree, scope: str, n: int = 2, m: int = 4
) -> tuple[PyTree, NMReport]:
    """Return the params to deploy: pruned by magnitude, scales folded in, and checked.

    The masks are of the weights without their scales, as in training.

    Args:
        params: a network's, or a `scaled` network's.
        scope: the weights' paths, as in `compression.prune.sparsity`.
        n: weights kept of every m.
        m: consecutive inputs.

    Raises:
        ValueError: nothing in scope, or inputs that m does not divide.
    """
    params = prune(params, nm_masks(params, scope, n, m))
    if isinstance(params, Mapping) and set(params) == {"network", "scales"}:
        params = fold_scales(params)
    return params, check_sparse(params, scope, n, m)
