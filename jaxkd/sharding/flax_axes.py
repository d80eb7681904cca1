"""Axes that Flax models declare at their weights: NNX metadata and Linen boxes."""

from collections.abc import Iterable, Sequence
from typing import Any

from flax import linen, nnx
from flax.core import meta
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec
from jaxtyping import PyTree

from jaxkd.arguments import checked
from jaxkd.types import Axes


@checked()
def nnx_axes(module: nnx.Module) -> Axes:
    """Return what a module's variables declare as ``out_sharding``, by their paths.

    Layers of the zoo do so by `jaxkd.sharding.axes.declare`, users' by
    ``nnx.with_partitioning``: a name for every axis, but not for those by which
    ``nnx.vmap`` stacks layers, which come first.
    """
    found = {}
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        names = variable.get_metadata("out_sharding", None)
        rules = variable.get_metadata("sharding_rules", None)
        found[tuple(map(str, path))] = _translated(names, rules)
    return found


def linen_axes(variables: PyTree) -> Axes:
    """Return what boxes in a collection declare, by their paths.

    They come from ``nn.with_partitioning`` and ``nn.with_logical_partitioning``.
    """
    found = {}
    for path, box in flatten_dict(variables).items():
        names = _translated(getattr(box, "names", None), getattr(box, "rules", None))
        ndim = len(unboxed(box).shape)  # Linen lets the last names out.
        found[path] = names and names + (None,) * (ndim - len(names))
    return found


def unboxed(variables: PyTree) -> PyTree:
    """Return Linen's variables without boxes, and nothing constrained by them."""

    def value(box: Any) -> Any:
        plain = isinstance(box, meta.Partitioned)
        return box.unbox(apply_constraint=False) if plain else box.unbox()

    return meta.map_axis_meta(value, variables)


def _translated(names: Any, rules: Iterable[Sequence[Any]] | None) -> tuple[Any, ...]:
    """Return names with those replaced that Flax's rules have, the weight's own first.

    Args:
        names: of axes; what is no list of names declares nothing.
        rules: pairs of a name and what stands for it.
    """
    if not isinstance(names, tuple | PartitionSpec):
        return ()
    known: dict[str, Any] = {}
    for name, over in (*(rules or ()), *linen.get_logical_axis_rules()):
        known.setdefault(name, over)
    return tuple(known.get(n, n) if isinstance(n, str) else n for n in names)
