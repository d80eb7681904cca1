"""Stitches: what brings a module of one width between layers of another."""

from dataclasses import replace

import jax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jaxkd.adapters import abstract_module, merge_module, split_module
from jaxkd.arguments import checked, count
from jaxkd.models.parts.linear import Linear
from jaxkd.models.parts.tokens import layer_norm
from jaxkd.network import Network
from jaxkd.types import Variables


class Stitch(nnx.Module):
    """A layer norm and a linear layer to another width."""

    def __init__(
        self, width_in: int, width: int, *, layernorm: bool = True, rngs: nnx.Rngs
    ):
        self.norm = layer_norm(width_in, 1e-5, rngs=rngs) if layernorm else None
        self.linear = Linear(width_in, width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*tokens features"]
    ) -> Float[Array, "*tokens width"]:
        """Return features of the other width."""
        return self.linear(x if self.norm is None else self.norm(x))


@checked(width=count, outside=count)
def stitched(
    module: Network,
    width: int,
    outside: int,
    *,
    first: bool = False,
    last: bool = False,
    layernorm: bool = True,
) -> Network:
    """Return a module with a stitch before and after it, trained with it.

    Args:
        module: from `split_modules`.
        width: of its features.
        outside: width of the features around it, the meta model's.
        first: whether it takes the network's inputs, and so no stitch before.
        last: whether it ends in logits, and so no stitch after.
        layernorm: whether stitches have layer norms (V-MoE), or are linear (NAC).
    """
    sizes = {} if first else {"pre_stitch": (outside, width)}
    sizes |= {} if last else {"post_stitch": (width, outside)}

    def build(name: str, key: PRNGKeyArray) -> Stitch:
        return Stitch(*sizes[name], layernorm=layernorm, rngs=nnx.Rngs(key))

    def init(key: PRNGKeyArray) -> Variables:
        variables, params = module.init(key), {}
        for i, name in enumerate(sizes):
            params[name] = split_module(build(name, jax.random.fold_in(key, i)))[0]
        return {
            "params": {"module": variables["params"], **params},
            "stats": {"module": variables["stats"]},
        }

    def stitch(name: str, variables: Variables, x: Array) -> Array:
        if name not in sizes:
            return x
        abstract = abstract_module(lambda: build(name, jax.random.key(0)))
        return merge_module(abstract, variables["params"][name], {})(x)

    def apply(variables, inputs, **kwargs):
        inner = {part: tree["module"] for part, tree in variables.items()}
        x = stitch("pre_stitch", variables, inputs)
        outputs, changed = module.apply(inner, x, **kwargs)
        logits = stitch("post_stitch", variables, outputs.logits)
        stats = {"module": changed["stats"]}
        return replace(outputs, logits=logits), {**variables, "stats": stats}

    return replace(module, init=init, apply=apply, spec=None, module=None, cuts=())
