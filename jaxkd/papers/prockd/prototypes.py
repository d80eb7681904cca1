"""Prototypes of a teacher's local features, and features enhanced by them.

Tokens are places of a map or of a transformer's sequence, the class token among them.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.arguments import checked, count
from jaxkd.losses.basics import as_float, l2_normalize

Tokens = Float[Array, "batch tokens width"]

Layer = Float[Array, "batch tokens _"]


@checked()
def soft_assign(
    x: Float[Array, "batch tokens width"], kernel: Float[Array, "prototypes width"]
) -> Float[Array, "batch tokens prototypes"]:
    """Return each token's shares of the prototypes, softmax(x·Wᵀ).

    Arandjelović et al. 2016, arXiv:1511.07247, Eq. 3.

    Args:
        x: the tokens.
        kernel: W, a row for each prototype.

    Raises:
        ValueError: the widths differ.
    """
    if jnp.shape(x)[-1] != jnp.shape(kernel)[-1]:
        raise ValueError(
            f"x has shape {jnp.shape(x)} but kernel {jnp.shape(kernel)}: give one row "
            "a prototype, of as many values as a token has"
        )
    return jax.nn.softmax(as_float(x) @ as_float(kernel).T)


@checked()
def netvlad(
    z: Float[Array, "batch tokens width"],
    kernel: Float[Array, "prototypes width"],
    centroids: Float[Array, "prototypes width"],
) -> Float[Array, "batch values"]:
    """Return what the tokens add to the prototypes: V_k = Σ_n a_nk·(x_n − c_k).

    Arandjelović et al. 2016, arXiv:1511.07247: x are the tokens of length 1, a
    `soft_assign` of them; each V_k is brought to length 1, and so is all of them, one
    prototype after another. A V_k of 0 stays 0. The (batch, prototypes, tokens, width)
    array of residuals is never made.

    Args:
        z: the tokens, of any length.
        kernel: of the assignment.
        centroids: c, the prototypes.

    Raises:
        ValueError: the widths, or the numbers of prototypes, differ.
    """
    if jnp.shape(kernel) != jnp.shape(centroids):
        raise ValueError(
            f"kernel has shape {jnp.shape(kernel)} but centroids "
            f"{jnp.shape(centroids)}: both have one row a prototype"
        )
    x = l2_normalize(as_float(z))
    shares = soft_assign(x, kernel)
    centroids = as_float(centroids)
    summed = jnp.einsum("bnk,bnd->bkd", shares, x)
    residuals = summed - shares.sum(1)[..., None] * centroids
    return l2_normalize(l2_normalize(residuals).reshape(len(x), -1))


class _Mixed(nnx.Module):
    """Two linear maps, each with a ReLU, of tokens beside something else."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(2 * width, width, use_bias=False, rngs=rngs)
        self.second = nnx.Linear(width, width, use_bias=False, rngs=rngs)

    def __call__(self, x: Tokens, other: Tokens) -> Tokens:
        both = jnp.concatenate([x, other], axis=-1)
        return jax.nn.relu(self.second(jax.nn.relu(self.first(both))))


@checked(prototypes=count)
class PrototypeAugmentation(nnx.Module):
    """Features that attend to the prototypes: all that the enhanced head needs.

    One map E encodes tokens and prototypes alike; each token gets the prototypes it is
    like, softmax over prototypes of (E·x)·(E·c), and becomes ReLU(f(E·x, r) + x).

    Args:
        width: of a token and of a prototype.
        prototypes: K; the authors take 72.
        rngs: of the first weights; the prototypes start uniform in [0, 1).
    """

    def __init__(self, width: int, prototypes: int = 72, *, rngs: nnx.Rngs):
        draw = jax.random.uniform(rngs.params(), (prototypes, width))
        self.centroids = nnx.Param(draw)
        self.encode = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.transform = _Mixed(width, rngs=rngs)

    def __call__(self, x: Tokens) -> Tokens:
        """Return the enhanced tokens, none below 0.

        Raises:
            ValueError: tokens of another width.
        """
        centroids = self.centroids[...]
        if x.shape[-1] != centroids.shape[-1]:
            raise ValueError(
                f"x has shape {x.shape}, but the prototypes are {centroids.shape}: "
                "tokens and prototypes have one width"
            )
        encoded, known = self.encode(x), self.encode(centroids)
        shares = soft_assign(encoded, known).astype(encoded.dtype)
        return jax.nn.relu(self.transform(encoded, shares @ known) + x)


@checked(prototypes=count)
class PrototypeModule(nnx.Module):
    """What is learnt of the teacher: fused layers, prototypes, and their aggregate.

    Li et al. 2022, arXiv:2212.13180, as in the authors' code: its 1x1 convolutions have
    no bias, its linear layers do.

    Args:
        widths: of the teacher's layers that are fused; one of another width than the
            student's is projected to it.
        width: of the student's tokens.
        prototypes: K.
        rngs: of the first weights.
    """

    def __init__(
        self,
        widths: Sequence[int],
        width: int,
        prototypes: int = 72,
        *,
        rngs: nnx.Rngs,
    ):
        self.layers = len(widths)
        self.projections = nnx.Dict(
            {
                str(i): nnx.Linear(other, width, rngs=rngs)
                for i, other in enumerate(widths)
                if other != width
            }
        )
        self.fusion = nnx.Linear(len(widths) * width, width, rngs=rngs)
        self.assign = nnx.Linear(width, prototypes, use_bias=False, rngs=rngs)
        self.aggregate = nnx.Linear(prototypes * width, width, rngs=rngs)
        self.transform = _Mixed(width, rngs=rngs)
        self.augmentation = PrototypeAugmentation(width, prototypes, rngs=rngs)

    def __call__(self, features: Sequence[Layer]) -> Tokens:
        """Return the teacher's prototype representation U of its layers."""
        return self.represent(self.fuse(features))

    def fuse(self, features: Sequence[Layer]) -> Tokens:
        """Return Z = ReLU(linear map of the layers beside one another).

        Raises:
            ValueError: another number of layers, or of tokens.
        """
        if len(features) != self.layers:
            raise ValueError(
                f"features has {len(features)} layers, but {self.layers} are fused: "
                "give one array a layer"
            )
        counts = [x.shape[1] for x in features]
        if len(set(counts)) > 1:
            raise ValueError(
                f"features have {counts} tokens: pool the layers' maps to one size"
            )
        own = [
            self.projections[str(i)](x) if str(i) in self.projections else x
            for i, x in enumerate(features)
        ]
        return jax.nn.relu(self.fusion(jnp.concatenate(own, axis=-1)))

    def represent(self, z: Tokens) -> Tokens:
        """Return U = f(Z, v); v is a linear map of Z's `netvlad`, for all tokens."""
        centroids = self.augmentation.centroids[...]
        summary = netvlad(z, self.assign.kernel[...].T, centroids).astype(z.dtype)
        v = jnp.broadcast_to(self.aggregate(summary)[:, None], z.shape)
        return self.transform(z, v)

    def shares(self, z: Tokens) -> Float[Array, "batch tokens prototypes"]:
        """Return the assignment of Z's tokens, to see whether prototypes are used."""
        return soft_assign(l2_normalize(as_float(z)), self.assign.kernel[...].T)
