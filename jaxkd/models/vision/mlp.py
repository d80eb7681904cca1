"""A multilayer perceptron: the smallest tapped network."""

from collections.abc import Sequence
from itertools import pairwise

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import Steps, unchanged
from jaxkd.arguments import checked
from jaxkd.models.parts.blocks import check_floats
from jaxkd.models.parts.recorded import recorded
from jaxkd.network import Network
from jaxkd.types import Outputs


class MLP(nnx.Module):
    """Linear layers with ReLU between them, on flattened inputs.

    Taps: ``hidden0`` … (batch, width) after each hidden layer's ReLU, and ``pooled``,
    the last of them.
    """

    def __init__(
        self, features: int, widths: Sequence[int], classes: int, *, rngs: nnx.Rngs
    ):
        sizes = [features, *widths]
        self.features = features
        self.hidden = nnx.List(nnx.Linear(a, b, rngs=rngs) for a, b in pairwise(sizes))
        self.head = nnx.Linear(sizes[-1], classes, rngs=rngs)
        self.taps = self.cuts = (*(f"hidden{i}" for i in range(len(widths))), "pooled")

    def __call__(
        self,
        inputs: Float[Array, "batch *shape"] | None,
        *,
        steps: Steps | None = None,
    ) -> Outputs:
        """Return logits (batch, classes), and the features asked for."""
        steps = steps or Steps()
        x = steps(None, self._flattened, inputs)
        for i, layer in enumerate(self.hidden):
            x = steps(f"hidden{i}", lambda x, layer=layer: jax.nn.relu(layer(x)), x)
        x = steps("pooled", unchanged, x)
        return steps.outputs(self.head, x)

    def _flattened(self, inputs: Array) -> Array:
        check_floats(inputs)
        x = inputs.reshape(inputs.shape[0], -1)
        if x.shape[1] != self.features:
            raise ValueError(
                f"inputs has shape {inputs.shape}, {x.shape[1]} values an example, but "
                f"this MLP was built for {self.features}: build it with features="
                f"{x.shape[1]}"
            )
        return x


@checked()
@recorded
def mlp(
    features: int = 64, widths: Sequence[int] = (256, 256), classes: int = 10
) -> Network:
    """Return a multilayer perceptron.

    Args:
        features: values in one flattened input.
        widths: the hidden layers' sizes.
        classes: logits.
    """
    return Network.from_nnx(lambda rngs: MLP(features, widths, classes, rngs=rngs))
