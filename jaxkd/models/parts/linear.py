"""A linear layer whose weights may be quantised."""

from flax import nnx
from jaxtyping import Array, Float

from jaxkd.kernels.quant_matmul import QuantizedWeights, quant_matmul


class Linear(nnx.Linear):
    """`nnx.Linear`, also with a kernel that `jaxkd.compression` has quantised."""

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        """Return ``x·W + b`` in x's dtype."""
        kernel = self.kernel.get_value()
        if not isinstance(kernel, QuantizedWeights):
            return super().__call__(x)
        out = quant_matmul(x, kernel)
        return out if self.bias is None else out + self.bias[...].astype(out.dtype)
