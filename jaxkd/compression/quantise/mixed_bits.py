"""Bits layer by layer: which weights of a network are rounded, and how.

A network stays useful at 1.58 bits a weight on average only if the bits are unequal:
experts' matrices take about 1.6 to 2.5, attention and the first layers 4 or 6, and the
embedding more (Zhang et al. 2025, arXiv:2504.02010, on dynamic quantisation).
"""

import re
from collections.abc import Iterable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from jaxkd.arguments import checked
from jaxkd.compression.prune.sparsity import path_name
from jaxkd.kernels.quant_matmul import QuantizedWeights, quantize
from jaxkd.network import Network
from jaxkd.types import Variables

Rule = tuple[str, str | None]
"""A regular expression that the end of a weight's path must match, and what it is
rounded to (see `jaxkd.kernels.quant_matmul.weights.KINDS`), or None to leave it."""


@checked()
def quantize_layers(
    params: PyTree, rules: Iterable[Rule], group: int | None = None
) -> PyTree:
    """Return the parameters with weights rounded as the first rule that matches says.

    For example, attention at 4 bits, the first block as it is and other matrices
    ternary::

        rules = [(r"block0\\..*", None), (r"attention\\..*kernel", "int4"),
                 (r".*kernel", "ternary")]

    Args:
        params: weights that rules round are (..., inputs, outputs), where leading axes
            are layers stacked for a scan.
        rules: what no rule matches is left as it is.
        group: inputs that share a scale; see `quantize`.

    Returns:
        The same tree, with a `QuantizedWeights` for each weight that was rounded.

    Raises:
        ValueError: a rule that no weight is left for, a weight of fewer than 2 axes
            that is to be rounded, or what `quantize` raises.
    """
    rules = list(rules)
    used = set()

    def rounded(path: tuple, weight: jax.Array) -> jax.Array | QuantizedWeights:
        name = path_name(path)
        for index, (pattern, kind) in enumerate(rules):
            if re.search(f"(?:{pattern})$", name):
                used.add(index)
                return weight if kind is None else _rounded(name, weight, kind, group)
        return weight

    found = jax.tree.map_with_path(rounded, params)
    unused = [rules[i][0] for i in range(len(rules)) if i not in used]
    if unused:
        raise ValueError(
            f"rules {', '.join(map(repr, unused))} match no path, or only paths that a "
            "rule before them matches: correct or reorder them"
        )
    return found


@checked()
def quantized(
    network: Network, rules: Iterable[Rule], group: int | None = None
) -> Network:
    """Return a network whose weights are rounded once it has been made or loaded.

    For a frozen teacher, or inference; the layers of `jaxkd.models.llama` take
    quantised kernels.

    Args:
        network: any whose layers do.
        rules: as in `quantize_layers`.
        group: likewise.

    Raises:
        ValueError: from ``init``, as `quantize_layers`.
    """
    rules = list(rules)

    def init(key: PRNGKeyArray) -> Variables:
        variables = network.init(key)
        return {
            **variables,
            "params": quantize_layers(variables["params"], rules, group),
        }

    return replace(network, init=init, spec=None)


def average_bits(params: PyTree) -> float:
    """Return the bits a weight takes, scales and zeros included.

    Ternary codes count the 2 bits that products take; stored with `pack_ternary` they
    take 1.6.
    """
    leaves = jax.tree.leaves(params, is_leaf=_is_rounded)
    weights = sum(
        leaf.codes.size if _is_rounded(leaf) else leaf.size for leaf in leaves
    )
    return sum(_bits(leaf) for leaf in jax.tree.leaves(params)) / weights


def _rounded(
    name: str, weight: jax.Array, kind: str, group: int | None
) -> QuantizedWeights:
    if weight.ndim < 2:
        raise ValueError(
            f"{name} of shape {weight.shape} is no matrix to be rounded to {kind}: add "
            "a rule for it with None before"
        )

    def layer(weight: jax.Array) -> QuantizedWeights:
        return quantize(weight, kind, group=group)

    for _ in weight.shape[:-2]:
        layer = jax.vmap(layer)
    return layer(weight)


def _is_rounded(leaf: object) -> bool:
    return isinstance(leaf, QuantizedWeights)


def _bits(array: jax.Array) -> int:
    dtype = array.dtype
    if jnp.issubdtype(dtype, jnp.integer):
        return array.size * jnp.iinfo(dtype).bits
    return array.size * dtype.itemsize * 8
