"""A mixture of experts: every token goes through the few MLPs a router chooses for it.

Tokens are sorted by expert, and each expert's product is one block of a ragged product
(`jax.lax.ragged_dot`): shapes are static, no expert has a capacity, and no token is
dropped. The router is a submodule of the name ``router``, whose output, the logits
(…, experts), is a tap of a network: ``Network.from_nnx(build, taps={"block0.router":
"blocks.0.mlp.router"})``. `jaxkd.methods.expert_balance` reads it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.arguments import checked, count
from jaxkd.checks import unknown_name
from jaxkd.losses.basics import as_float
from jaxkd.models.parts.linear import Linear
from jaxkd.models.parts.tokens import normal
from jaxkd.sharding.axes import declare, on_devices

Router = Callable[[Array, int], tuple[Array, Array]]
"""``(logits, k) -> (weights, experts)`` of each token's k experts, the best first."""


@checked(k=count)
def softmax_of_top(logits: Array, k: int) -> tuple[Array, Array]:
    """Return the k best experts, weighed by the softmax among them (Mixtral, fastmoe).

    Shazeer et al. 2017, arXiv:1701.06538, Eq. 3, without noise.
    """
    best, experts = jax.lax.top_k(logits, k)
    return jax.nn.softmax(best), experts


@checked(k=count)
def top_of_softmax(logits: Array, k: int) -> tuple[Array, Array]:
    """Return the k best experts, weighed by the softmax over all (Switch, V-MoE).

    Riquelme et al. 2021, arXiv:2106.05974, Eq. 2, without noise.
    """
    weights, experts = jax.lax.top_k(jax.nn.softmax(logits), k)
    return weights, experts


@checked(k=count)
def sigmoid_of_top(logits: Array, k: int) -> tuple[Array, Array]:
    """Return the k best experts, weighed by their sigmoids over these' sum.

    DeepSeek-AI 2024, arXiv:2412.19437, Eq. 13-15, without the bias of the choice.
    """
    best, experts = jax.lax.top_k(logits, k)
    weights = jax.nn.sigmoid(best)
    return weights / weights.sum(-1, keepdims=True), experts


ROUTERS: Mapping[str, Router] = {
    router.__name__: router
    for router in (softmax_of_top, top_of_softmax, sigmoid_of_top)
}
RouterName = Literal["softmax_of_top", "top_of_softmax", "sigmoid_of_top"]


class MoE(nnx.Module):
    """A router and experts, each an MLP, or a gated one as language models have it.

    Weights of experts declare the logical axes (expert, embed, hidden): they are kept
    split as an MLP's are, and over a mesh's axis ``expert`` where it has one.

    Args:
        width: features of a token.
        hidden: of an expert.
        experts: how many.
        k: that a token goes through.
        router: how their weights are made, a name of `ROUTERS`.
        activation: between an expert's products; None for GELU.
        gated: whether the activation of a third product is multiplied in (SwiGLU with
            ``jax.nn.silu``).
        use_bias: of experts and router.

    Raises:
        ValueError: an unknown router, or k above the number of experts.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        k: int = 2,
        *,
        router: RouterName = "softmax_of_top",
        activation: Callable[[Array], Array] | None = None,
        gated: bool = False,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        check_experts(k, experts)
        if router not in ROUTERS:
            raise ValueError(unknown_name("router", router, ROUTERS))
        self.k, self.experts, self.kind = k, experts, router
        self.activation = activation or partial(jax.nn.gelu, approximate=False)
        self.router = Linear(
            *(width, experts),
            axes=("embed", None),
            kernel_init=normal,
            use_bias=use_bias,
            rngs=rngs,
        )

        def weight(*axes: str) -> nnx.Param:
            sizes = {"expert": experts, "embed": width, "hidden": hidden}
            shape = tuple(sizes[axis] for axis in axes)
            # The bias of an expert starts at 0.
            start = normal(rngs.params(), shape) if len(axes) > 2 else jnp.zeros(shape)
            return nnx.Param(start, **declare(*axes))

        self.up = weight("expert", "embed", "hidden")
        self.down = weight("expert", "hidden", "embed")
        self.gate = weight("expert", "embed", "hidden") if gated else None
        self.up_bias = weight("expert", "hidden") if use_bias else None
        self.down_bias = weight("expert", "embed") if use_bias else None

    def __call__(
        self, x: Float[Array, "batch *places width"]
    ) -> Float[Array, "batch *places width"]:
        """Return the weighted sum of each token's experts, in x's dtype.

        On a mesh every device sorts its own tokens, and has all experts' weights
        gathered while it does.
        """
        given = (x, self.router(x), self.up, self.up_bias, self.down, self.down_bias)
        given = [
            w.get_value().astype(x.dtype) if isinstance(w, nnx.Param) else w
            for w in (*given, self.gate)
        ]
        tokens = ("batch", *[None] * (x.ndim - 1))
        whole = [[None] * (0 if w is None else w.ndim) for w in given[2:]]
        return on_devices(self._mix, given, (tokens, tokens, *whole))

    def _mix(
        self,
        x: Array,
        logits: Array,
        up: Array,
        up_bias: Array | None,
        down: Array,
        down_bias: Array | None,
        gate: Array | None,
    ) -> Array:
        scores = as_float(logits).reshape(-1, self.experts)
        weights, experts = ROUTERS[self.kind](scores, self.k)
        tokens = x.reshape(-1, x.shape[-1])
        # Token by token its k experts; sorted, every expert's rows are together.
        chosen = experts.reshape(-1)
        order = jnp.argsort(chosen, stable=True)
        sizes = jnp.bincount(chosen, length=self.experts)
        sorted_ = chosen[order]

        def product(rows: Array, kernel: Array, bias: Array | None = None) -> Array:
            out = jax.lax.ragged_dot(rows, kernel, sizes)
            return out if bias is None else out + bias[sorted_]

        rows = jnp.repeat(tokens, self.k, axis=0)[order]
        hidden = product(rows, up, up_bias)
        if gate is None:
            hidden = self.activation(hidden)
        else:
            hidden = self.activation(product(rows, gate)) * hidden
        out = product(hidden, down, down_bias)
        # Back in their places by the inverse order: a sum that scatters would be
        # another at every run on GPUs.
        out = out[jnp.argsort(order)].reshape(len(tokens), self.k, -1)
        out = jnp.einsum("tkd,tk->td", out, weights.astype(out.dtype))
        return out.reshape(x.shape)


@checked(k=count, experts=count)
def check_experts(k: int, experts: int) -> None:
    """Refuse a router that is to choose more experts than there are.

    Raises:
        ValueError: it names both numbers.
    """
    if k > experts:
        raise ValueError(
            f"k is {k}, but there are {experts} experts: a token goes through as many "
            "at most"
        )
