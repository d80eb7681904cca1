"""A mixture of experts: every token goes through the few MLPs a router chooses for it.

Tokens are sorted by expert, and each expert's product is one block of a ragged product
(`jax.lax.ragged_dot`): shapes are static, no expert has a capacity, and no token is
dropped. The router is a submodule of the name ``router``, whose output, the logits
(…, experts), is a tap of a network: ``Network.from_nnx(build, taps={"block0.router":
"blocks.0.mlp.router"})``. `jaxkd.methods.expert_balance` reads it.

On a mesh, experts lie over the devices that share their tokens (``tensor``). Each sends
these through its own experts alone, and the parts are summed: weights of experts stay
where they are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxkd.adapters import Tap, unchanged
from jaxkd.arguments import checked
from jaxkd.checks import unknown_name
from jaxkd.losses.basics import as_float
from jaxkd.models.parts.linear import Linear
from jaxkd.models.parts.routers import ROUTERS, RouterName, check_experts
from jaxkd.models.parts.tokens import normal
from jaxkd.sharding.axes import RULES, declare, on_devices


def gelu(up: Array) -> Array:
    """Return GELU of up, for experts without a gate."""
    return jax.nn.gelu(up, approximate=False)


def swiglu(up: Array, gate: Array) -> Array:
    """Return silu(gate)·up (Shazeer 2020, arXiv:2002.05202)."""
    return jax.nn.silu(gate) * up


def clamped_swiglu(up: Array, gate: Array) -> Array:
    """Return g·σ(1.702·g)·(u + 1), g and u being gate and up cut off at 7 (gpt-oss).

    OpenAI 2025, arXiv:2508.10925; the gate is cut off above alone.
    """
    gate, up = jnp.minimum(gate, 7.0), jnp.clip(up, -7.0, 7.0)
    return gate * jax.nn.sigmoid(1.702 * gate) * (up + 1)


ActivationName = Literal["gelu", "swiglu", "clamped_swiglu"]
ACTIVATIONS: Mapping[str, Callable[..., Array]] = {
    function.__name__: function for function in (gelu, swiglu, clamped_swiglu)
}


@checked()
@dataclass(frozen=True)
class Mixture:
    """The sizes and switches of a mixture of experts.

    Attributes:
        hidden: width of an expert.
        experts: that there are.
        k: that a token goes through.
        router: how they are chosen and weighed, a name of `ROUTERS`.
        activation: between an expert's products, a name of `ACTIVATIONS`.
        use_bias: of experts and router.
        groups: that experts are in; with ``sigmoid_of_top``.
        top_groups: that a token's experts may be of.
        choice_bias: whether a number for each expert, which no gradient trains, is
            added where experts are chosen; with ``sigmoid_of_top``.
        scale: of the weights.
        shared: width of the MLP that all tokens go through beside; 0 for none.

    Raises:
        ValueError: an unknown name, more experts to choose than there are, or groups
            that do not fit.
    """

    hidden: int
    experts: int
    k: int = 2
    router: RouterName = "softmax_of_top"
    activation: ActivationName = "gelu"
    use_bias: bool = True
    groups: int = 1
    top_groups: int = 1
    choice_bias: bool = False
    scale: float = 1.0
    shared: int = 0

    def __post_init__(self):
        check_experts(self.k, self.experts)
        if self.router not in ROUTERS:
            raise ValueError(unknown_name("router", self.router, ROUTERS))
        if self.activation not in ACTIVATIONS:
            raise ValueError(unknown_name("activation", self.activation, ACTIVATIONS))
        chosen = self.groups > 1 or self.choice_bias
        if chosen and self.router != "sigmoid_of_top":
            raise ValueError(
                f"groups and choice_bias are of sigmoid_of_top, not of {self.router}"
            )
        each, rest = divmod(self.experts, self.groups)
        room = self.top_groups * each >= self.k and self.top_groups <= self.groups
        if self.groups > 1 and (rest or each < 2 or not room):
            raise ValueError(
                f"{self.experts} experts in {self.groups} groups, of which a token's "
                f"{self.k} are of {self.top_groups}: groups must be of one size, at "
                "least 2, and hold as many as a token needs"
            )


class MoE(nnx.Module):
    """A router and experts, each an MLP, or a gated one as language models have it.

    Weights of experts declare the logical axes (expert, embed, hidden).

    Args:
        width: features of a token.
        mixture: sizes and switches.
        shared: an MLP whose output for every token is added, or None.
    """

    def __init__(
        self,
        width: int,
        mixture: Mixture,
        *,
        shared: nnx.Module | None = None,
        rngs: nnx.Rngs,
    ):
        self.mixture, self.shared = mixture, shared
        self.router = Linear(
            *(width, mixture.experts),
            axes=("embed", None),
            kernel_init=normal,
            use_bias=mixture.use_bias,
            rngs=rngs,
        )

        def weight(*axes: str) -> nnx.Param:
            sizes = {
                "expert": mixture.experts,
                "embed": width,
                "hidden": mixture.hidden,
            }
            shape = tuple(sizes[axis] for axis in axes)
            # The bias of an expert starts at 0.
            start = normal(rngs.params(), shape) if len(axes) > 2 else jnp.zeros(shape)
            return nnx.Param(start, **declare(*axes))

        gated, biased = mixture.activation != "gelu", mixture.use_bias
        self.up = weight("expert", "embed", "hidden")
        self.down = weight("expert", "hidden", "embed")
        self.gate = weight("expert", "embed", "hidden") if gated else None
        self.up_bias = weight("expert", "hidden") if biased else None
        self.down_bias = weight("expert", "embed") if biased else None
        self.gate_bias = weight("expert", "hidden") if gated and biased else None
        self.choice_bias = (
            nnx.BatchStat(jnp.zeros(mixture.experts)) if mixture.choice_bias else None
        )

    def __call__(
        self, x: Float[Array, "batch *places width"], tap: Tap = unchanged
    ) -> Float[Array, "batch *places width"]:
        """Return the weighted sum of each token's experts, in x's dtype.

        Args:
            x: features.
            tap: gets the router's logits, which are computed in float32.
        """
        mixture, tokens = self.mixture, ("batch", *[None] * (x.ndim - 1))
        logits = as_float(tap(self.router(as_float(x))))
        router = ROUTERS[mixture.router]
        if mixture.router == "sigmoid_of_top":
            bias = None if self.choice_bias is None else as_float(self.choice_bias[...])
            router = partial(
                router, bias=bias, groups=mixture.groups, top_groups=mixture.top_groups
            )
        weights, experts = router(logits, mixture.k)
        experts_own = (
            *(self.up, self.down, self.gate),
            *(self.up_bias, self.down_bias, self.gate_bias),
        )
        arrays = [None if w is None else w[...].astype(x.dtype) for w in experts_own]
        axes = [("expert", None, None)] * 3 + [("expert", None)] * 3
        given = (x, mixture.scale * weights, experts, *arrays)
        out = on_devices(self._mix, given, (tokens, tokens, tokens, *axes))
        return out if self.shared is None else out + self.shared(x)

    def _mix(
        self,
        x: Float[Array, "batch *places width"],
        weights: Float[Array, "batch *places k"],
        experts: Int[Array, "batch *places k"],
        up: Array,
        down: Array,
        gate: Array | None,
        up_bias: Array | None,
        down_bias: Array | None,
        gate_bias: Array | None,
    ) -> Array:
        """Return the sum over experts; on a mesh, these are a device's own at first."""
        mixture, held = self.mixture, len(up)
        tokens = x.reshape(-1, x.shape[-1])
        split = held < mixture.experts
        first = jax.lax.axis_index(RULES["expert"]) * held if split else 0
        # Token by token its k experts, counted from this device's first; sorted, every
        # expert's rows are together, and those of other devices' come last.
        chosen = (experts.reshape(-1) - first) % mixture.experts
        order = jnp.argsort(chosen, stable=True)
        sizes = jnp.bincount(chosen, length=mixture.experts)[:held]
        chosen = chosen[order]
        own = (chosen < held)[:, None]

        def product(rows: Array, kernel: Array, bias: Array | None) -> Array:
            out = jax.lax.ragged_dot(rows, kernel, sizes)
            return out if bias is None else out + jnp.take(bias, chosen, 0, mode="clip")

        def only_own(rows: Array) -> Array:
            # A ragged product may leave anything in the rows after its groups.
            return jnp.where(own, rows, 0) if split else rows

        rows = only_own(jnp.repeat(tokens, mixture.k, axis=0)[order])
        parts = [product(rows, up, up_bias)]
        if gate is not None:
            parts.append(product(rows, gate, gate_bias))
        hidden = ACTIVATIONS[mixture.activation](*parts)
        out = only_own(product(hidden, down, down_bias))
        # Back in their places by the inverse order: a sum that scatters would be
        # another at every run on GPUs.
        out = out[jnp.argsort(order)].reshape(len(tokens), mixture.k, -1)
        flat = weights.reshape(-1, mixture.k).astype(out.dtype)
        out = jnp.einsum("tkd,tk->td", out, flat).reshape(x.shape)
        return jax.lax.psum(out, RULES["expert"]) if split else out
