"""A small variational autoencoder of images, whose latents HARD-VAE moves.

Kingma, Welling 2013, arXiv:1312.6114. It is a `Network` that can be cut at its tap
``latent``: the part before it is the encoder, the part after it the decoder.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxkd.adapters import Steps
from jaxkd.arguments import checked, count, positive
from jaxkd.losses.basics import as_float
from jaxkd.methods.base import from_loss
from jaxkd.network import Network
from jaxkd.types import Method, Outputs


class VAE(nnx.Module):
    """Perceptrons to a normal distribution of latents, and back to pixels in [0, 1].

    Taps: ``latent`` (batch, latents), drawn in training and else the mean; ``mean``
    and ``log_variance``.
    """

    def __init__(self, features: int, latents: int, width: int, *, rngs: nnx.Rngs):
        self.encode = nnx.Linear(features, width, rngs=rngs)
        self.statistics = nnx.Linear(width, 2 * latents, rngs=rngs)
        self.decode = nnx.Linear(latents, width, rngs=rngs)
        self.pixels = nnx.Linear(width, features, rngs=rngs)
        self.taps, self.cuts = ("latent", "mean", "log_variance"), ("latent",)

    def __call__(
        self,
        image: Float[Array, "batch *shape"] | None,
        *,
        steps: Steps | None = None,
        train: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> Outputs:
        """Return the image again, flat, as logits."""
        steps = steps or Steps()

        def latent(image: Array) -> Array:
            hidden = jax.nn.relu(self.encode(image.reshape(len(image), -1)))
            mean, log_variance = jnp.split(self.statistics(hidden), 2, axis=-1)
            mean, log_variance = (
                steps.tap("mean", mean),
                steps.tap("log_variance", log_variance),
            )
            if not train or rngs is None:
                return mean
            noise = jax.random.normal(rngs(), mean.shape)
            return mean + jnp.exp(log_variance / 2) * noise

        z = steps("latent", latent, image)
        return steps.outputs(
            lambda z: jax.nn.sigmoid(self.pixels(jax.nn.relu(self.decode(z)))), z
        )


@checked(features=count, latents=count, width=count)
def vae(features: int, latents: int = 16, width: int = 256) -> Network:
    """Return a variational autoencoder of images in [0, 1], to be trained with `elbo`.

    Args:
        features: values in one flattened image.
        latents: that it is encoded in.
        width: of the hidden layers.
    """
    return Network.from_nnx(lambda rngs: VAE(features, latents, width, rngs=rngs))


@checked(noise=positive)
def elbo(noise: float = 0.1, reads: str = "image") -> Method:
    """Return the negative evidence lower bound, up to a constant, in nats.

    ‖x̂ − x‖² / 2σ² + KL(N(mean, variance) ‖ N(0, 1)), for pixels of deviation σ.

    Args:
        noise: σ.
        reads: the images' name in the batch.
    """

    def loss(student: Outputs, teacher: Outputs, batch) -> Array:
        made = as_float(student.logits)
        target = as_float(batch[reads]).reshape(made.shape)
        mean, log_variance = (
            as_float(student.features[tap]) for tap in ("mean", "log_variance")
        )
        divergence = 0.5 * (jnp.exp(log_variance) + mean**2 - 1 - log_variance)
        error = ((made - target) ** 2).sum(-1) / (2 * noise**2)
        return error + divergence.sum(-1)

    return from_loss(loss, name="elbo", student_taps=("mean", "log_variance"))
