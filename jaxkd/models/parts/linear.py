"""The linear layer of the zoo: it says what its axes mean, and works on rows."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.arguments import checked
from jaxkd.kernels.quant_matmul import QuantizedWeights, quant_matmul
from jaxkd.models.parts.adapted import AdaptedWeights
from jaxkd.sharding.axes import declare


@checked()
def on_rows(
    product: Callable[[Array], Array], x: Float[Array, "*places inputs"]
) -> Float[Array, "*places outputs"]:
    """Return ``product(x)``, of one matrix (places, inputs) where that is faster.

    On CPUs XLA's gradient of a product with (batch, length, inputs) copies the output's
    gradient transposed before it makes the weight's; of rows it does not. At (8, 197,
    192) -> 768 both gradients take 0.70 of the time on two cores. Meshes,
    where batch and length may be split over different axes, and accelerators get x as
    it is.

    Args:
        product: of x's last axis with a weight.
        x: features.
    """
    on_cpu = jax.default_backend() == "cpu" and jax.sharding.get_abstract_mesh().empty
    if x.ndim < 3 or not on_cpu:
        return product(x)
    out = product(x.reshape(-1, x.shape[-1]))
    return out.reshape(*x.shape[:-1], out.shape[-1])


@checked()
def product(
    x: Float[Array, "*places inputs"], kernel: Any
) -> Float[Array, "*places outputs"]:
    """Return ``x·W`` of a kernel that is an array, quantised, or adapted."""
    if isinstance(kernel, QuantizedWeights):
        return quant_matmul(x, kernel)
    if not isinstance(kernel, AdaptedWeights):
        return on_rows(lambda x: x @ kernel, x)
    out = product(x, kernel.base)
    out = out + on_rows(kernel.low, x.astype(out.dtype))
    if kernel.magnitude is None:
        return out
    return out * kernel.ratio().astype(out.dtype)


@checked()
class Linear(nnx.Linear):
    """`nnx.Linear` of tokens, whose kernel may be quantised or have an adapter.

    See `jaxkd.compression` and `jaxkd.networks.with_lora`.

    Args:
        features_in: of a token.
        features: that it gets.
        axes: logical axes of the kernel (inputs, outputs), see `jaxkd.sharding.axes`;
            None leaves it to the mesh.
        **others: of `nnx.Linear`.
    """

    def __init__(
        self,
        features_in: int,
        features: int,
        *,
        axes: tuple[str | None, str | None] | None = None,
        **others: Any,
    ):
        metadata = declare(*axes) if axes else {}
        super().__init__(features_in, features, kernel_metadata=metadata, **others)

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        """Return ``x·W + b`` in x's dtype."""
        kernel = self.kernel.get_value()
        if not isinstance(kernel, QuantizedWeights | AdaptedWeights):
            return on_rows(super().__call__, x)
        out = product(x, kernel)
        return out if self.bias is None else out + self.bias[...].astype(out.dtype)
