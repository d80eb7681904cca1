"""A part of a network with the weights that it reads, and no others."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PRNGKeyArray

from jaxkd.arguments import checked
from jaxkd.network import Network
from jaxkd.types import Inputs, Variables


@checked()
def trimmed(network: Network, inputs: Inputs) -> Network:
    """Return a network whose variables are those that its logits depend on.

    A `Network.segment` has the variables of the whole network: a tenth of them may be
    all that its optimizer and checkpoints need. Weights that are stacked for a compiled
    loop are one weight, and stay whole.

    Args:
        network: usually a segment.
        inputs: that it takes, arrays or their shapes.
    """
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    read = _read(network, shapes, inputs)

    def only(variables: Variables) -> Variables:
        flat = _flat(variables)
        kept = unflatten_dict({path: x for path, x in flat.items() if path in read})
        return {part: kept.get(part, {}) for part in ("params", "stats")}

    def init(key: PRNGKeyArray) -> Variables:
        return only(network.init(key))

    def apply(variables, inputs, **kwargs):
        # Nothing reads the zeros: they are only there for the structure.
        zeros = {
            path: jnp.zeros(x.shape, x.dtype)
            for path, x in _flat(shapes).items()
            if path not in read
        }
        filled = unflatten_dict(zeros | _flat(variables))
        whole = {part: filled.get(part, {}) for part in ("params", "stats")}
        outputs, changed = network.apply(whole, inputs, **kwargs)
        return outputs, only(changed)

    return replace(network, init=init, apply=apply, spec=None, module=None)


def _read(network: Network, shapes: Variables, inputs: Inputs) -> set[Any]:
    """Return the paths of the variables that the logits depend on."""
    flat = _flat(shapes)

    def logits(leaves: list[Any], inputs: Inputs) -> Any:
        variables = unflatten_dict(dict(zip(flat, leaves, strict=True)))
        variables = {part: variables.get(part, {}) for part in ("params", "stats")}
        return network.apply(variables, inputs)[0].logits

    traced = jax.make_jaxpr(logits)(list(flat.values()), inputs).jaxpr
    needed = {id(x) for x in traced.outvars}
    for equation in reversed(traced.eqns):
        if any(id(x) in needed for x in equation.outvars):
            needed |= {id(x) for x in equation.invars}
    first = traced.invars[: len(flat)]
    return {path for path, x in zip(flat, first, strict=True) if id(x) in needed}


def _flat(variables: Variables) -> dict[Any, Any]:
    return flatten_dict(variables)  # type: ignore[return-value]
