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
from jaxkd.models.parts.recorded import recorded
from jaxkd.network import Network
from jaxkd.types import Outputs


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
@recorded
def vae(features: int, latents: int = 16, width: int = 256) -> Network:
    """Return a variational autoencoder of images in [0, 1], trained with `elbo_loss`.

    Args:
        features: values in one flattened image.
        latents: that it is encoded in.
        width: of the hidden layers.
    """
    return Network.from_nnx(lambda rngs: VAE(features, latents, width, rngs=rngs))


@checked(noise=positive)
def elbo_loss(
    outputs: Outputs, images: Float[Array, "batch *shape"], noise: float = 0.1
) -> Float[Array, "batch"]:
    """Return the negative evidence lower bound of each image, up to a constant.

    ‖x̂ − x‖² / 2σ² + KL(N(mean, variance) ‖ N(0, 1)), in nats. A method is made of it by
    ``from_loss(lambda student, _, batch: elbo_loss(student, batch["image"]),
    name="elbo", student_taps=("mean", "log_variance"))``.

    Args:
        outputs: of `vae`, with the taps ``mean`` and ``log_variance``.
        images: x.
        noise: σ, the deviation of a pixel.
    """
    made = as_float(outputs.logits)
    error = ((made - as_float(images).reshape(made.shape)) ** 2).sum(-1)
    mean, log_variance = (
        as_float(outputs.features[tap]) for tap in ("mean", "log_variance")
    )
    divergence = 0.5 * (jnp.exp(log_variance) + mean**2 - 1 - log_variance)
    return error / (2 * noise**2) + divergence.sum(-1)
