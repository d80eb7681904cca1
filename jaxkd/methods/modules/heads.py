"""Classification heads that are trained beside a student's own and then dropped."""

from flax import nnx
from jaxtyping import Array, Float

from jaxkd.methods.modules.layers import Mask, MaskedBatchNorm, zero_padding


class AuxiliaryHead(nnx.Module):
    """A second classifier on pooled features, linear or of one hidden layer.

    Yang et al. 2024, arXiv:2411.08937. The hidden layer is followed by dropout,
    BatchNorm and ReLU, in this order.

    Args:
        features: of the pooled vectors.
        classes: how many logits.
        hidden: width of the hidden layer; None for a linear head.
        dropout: share of hidden units that are dropped.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        hidden: int | None = 200,
        dropout: float = 0.1,
        *,
        rngs: nnx.Rngs,
    ):
        self.deep = hidden is not None
        if hidden is not None:
            self.hidden = nnx.Linear(features, hidden, rngs=rngs)
            self.dropout = nnx.Dropout(dropout, rngs=rngs)
            self.norm = MaskedBatchNorm(hidden, rngs=rngs)
        self.out = nnx.Linear(hidden or features, classes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch features"], mask: Mask = None
    ) -> Float[Array, "batch classes"]:
        """Return the logits; BatchNorm leaves masked examples out."""
        x = zero_padding(x, mask)
        if self.deep:
            x = self.dropout(self.hidden(x))
            x = nnx.relu(self.norm(x, mask))
        return self.out(x)
