"""A branched network for ONE: a shared trunk, several last stages, and a gate."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from jaxkd.adapters import Steps
from jaxkd.arguments import checked
from jaxkd.losses.online import one_gate_logits
from jaxkd.models.parts.blocks import BatchNorm, Image, pool
from jaxkd.models.parts.recorded import recorded
from jaxkd.models.vision.cnn import Stage
from jaxkd.network import Network
from jaxkd.types import Outputs


class ONECNN(nnx.Module):
    """`CNN`'s stages, the last one and the head once a branch (Lan et al. 2018).

    The gate is softmax(ReLU(BatchNorm(linear))) of the trunk's pooled map, and the
    logits are the gated sum of the branches'. Taps: ``0.logits`` … (batch, classes) of
    each branch, ``gate`` (batch, branches).
    """

    def __init__(
        self,
        channels_in: int,
        channels: Sequence[int],
        classes: int,
        branches: int,
        *,
        rngs: nnx.Rngs,
    ):
        sizes = [channels_in, *channels]
        self.trunk = nnx.List(
            Stage(a, b, 1 if i == 0 else 2, rngs=rngs)
            for i, (a, b) in enumerate(pairwise(sizes[:-1]))
        )
        self.branches = nnx.List(
            Stage(sizes[-2], sizes[-1], 2, rngs=rngs) for _ in range(branches)
        )
        self.heads = nnx.List(
            nnx.Linear(channels[-1], classes, rngs=rngs) for _ in range(branches)
        )
        self.gate = nnx.Linear(sizes[-2], branches, rngs=rngs)
        self.gate_norm = BatchNorm(branches, rngs=rngs)
        self.taps = (*(f"{i}.logits" for i in range(branches)), "gate")

    def __call__(self, image: Image, *, steps: Steps | None = None) -> Outputs:
        """Return the ensemble's logits (batch, classes), the branches' and the gate."""
        steps = steps or Steps()
        return steps.outputs(self._combined, image, steps)

    def _combined(self, x: Array, steps: Steps) -> Array:
        for stage in self.trunk:
            x = jax.nn.relu(stage(x))
        gate = jax.nn.softmax(jax.nn.relu(self.gate_norm(self.gate(pool(x)))))
        logits = [
            steps.tap(f"{i}.logits", head(pool(jax.nn.relu(branch(x)))))
            for i, (branch, head) in enumerate(
                zip(self.branches, self.heads, strict=True)
            )
        ]
        return one_gate_logits(jnp.stack(logits), steps.tap("gate", gate))


@checked()
@recorded
def one_cnn(
    channels_in: int = 1,
    channels: Sequence[int] = (16, 32, 64),
    classes: int = 10,
    branches: int = 3,
) -> Network:
    """Return a branched small convolutional network for `methods.one`.

    Args:
        channels_in: the image's channels.
        channels: of each stage; the last is the branches'.
        classes: logits.
        branches: at least 2.

    Raises:
        ValueError: fewer than two stages or branches.
    """
    if len(channels) < 2 or branches < 2:
        raise ValueError(
            f"one_cnn needs at least 2 stages and 2 branches, got channels="
            f"{tuple(channels)} and branches={branches}"
        )
    return Network.from_nnx(
        lambda rngs: ONECNN(channels_in, channels, classes, branches, rngs=rngs)
    )
