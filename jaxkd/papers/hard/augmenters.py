"""Augmentations that are learned: an `Augmenter` changes images, and is differentiable.

A small network, the controller, reads an image and noise and says how the image is
changed. Its answers lie in (−1, 1), and each augmentation bounds what they can do. At
the start the noise dominates, so that the changes differ from image to image: with a
weak noise an augmenter soon makes one and the same change of all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxkd.arguments import checked, count, positive
from jaxkd.losses.pooling import adaptive_average_pool
from jaxkd.models.parts.sampling import Padding, affine_grid, grid_sample
from jaxkd.types import Variables

Images = Float[Array, "batch height width channels"]
Noise = Float[Array, "batch noise"]

GRID = 4
"""Of the image a controller sees averages over so many squares each way."""


class Augmented(NamedTuple):
    """What an augmentation makes of a batch.

    Attributes:
        images: of the shape they had.
        controls: (batch, …) what was chosen for each; how far it spreads over a batch
            tells whether the augmentation has collapsed.
    """

    images: Array
    controls: Array


class Augmenter(NamedTuple):
    """An augmentation of images, learned or fixed.

    Attributes:
        init: ``(key, images) -> {"params": what is trained, "frozen": what is not}``.
        apply: ``(variables, images, key) -> Augmented``, differentiable by the params.
    """

    init: Callable[[PRNGKeyArray, Array], Variables]
    apply: Callable[[Variables, Array, PRNGKeyArray], Augmented]


@checked(noise=count, width=count, noise_scale=positive)
@dataclass(frozen=True)
class Controller:
    """The network that steers an augmentation: one hidden layer, and tanh at its end.

    Attributes:
        noise: numbers of noise an image.
        width: of the hidden layer.
        noise_scale: of the noise's first weights, relative to the image's.
    """

    noise: int = 16
    width: int = 64
    noise_scale: float = 3.0

    def init(self, key: PRNGKeyArray, images: Any, controls: int) -> PyTree:
        """Return the parameters for images like these and that many controls."""
        height, width, channels = np.shape(images)[1:]
        seen = min(height, GRID) * min(width, GRID) * channels
        first, last = jax.random.split(key)
        normal = jax.nn.initializers.lecun_normal()
        hidden = normal(first, (seen + self.noise, self.width))
        return {
            "hidden": hidden.at[seen:].multiply(self.noise_scale),
            "hidden_bias": jnp.zeros(self.width),
            "out": normal(last, (self.width, controls)),
            "out_bias": jnp.zeros(controls),
        }

    def draw(self, key: PRNGKeyArray, images: Array) -> Noise:
        """Return the noise of a batch."""
        return jax.random.normal(key, (len(images), self.noise))


@checked()
def control(params: PyTree, x: Images, eps: Noise) -> Float[Array, "batch controls"]:
    """Return what a controller chooses for each image, in (−1, 1).

    Args:
        params: of `Controller.init`.
        x: images.
        eps: noise, drawn from a normal distribution.
    """
    size = min(x.shape[1], GRID), min(x.shape[2], GRID)
    seen = adaptive_average_pool(x, size).reshape(len(x), -1).astype(jnp.float32)
    both = jnp.concatenate([seen, eps], axis=-1)
    hidden = jax.nn.relu(both @ params["hidden"] + params["hidden_bias"])
    return jnp.tanh(hidden @ params["out"] + params["out_bias"])


@checked()
def affine_augment(
    params: PyTree,
    x: Images,
    eps: Noise,
    max_translate: float,
    max_linear: float,
    padding: Padding = "zeros",
) -> tuple[Images, Float[Array, "batch 2 3"]]:
    """Return images under an affine map of each, and the maps.

    θ is the identity plus a bounded change: of its 2x2 part by at most ``max_linear``
    an entry, of the shift by ``max_translate``.

    Args:
        params: of a controller of 2 controls, or 6 where ``max_linear`` is above 0.
        x: images.
        eps: noise.
        max_translate: in halves of an image.
        max_linear: of each entry.
        padding: of `grid_sample`.
    """
    chosen = control(params, x, eps)
    theta = jnp.broadcast_to(jnp.eye(2, 3), (len(x), 2, 3))
    theta = theta.at[..., 2].add(max_translate * chosen[:, :2])
    if max_linear:
        theta = theta.at[..., :2].add(max_linear * chosen[:, 2:].reshape(-1, 2, 2))
    return grid_sample(x, affine_grid(theta, *x.shape[1:3]), padding), theta


@checked()
def affine(
    max_translate: float = 0.5,
    max_linear: float = 0.0,
    padding: Padding = "zeros",
    controller: Controller = Controller(),
) -> Augmenter:
    """Return HARD-Affine: shifts, and with ``max_linear`` turns, shears and scales too.

    Args:
        max_translate: of the shift, in halves of an image.
        max_linear: of each entry of the 2x2 part; 0 for shifts alone.
        padding: ``"zeros"`` for digits on black, ``"reflect"`` for photographs.
        controller: chooses the map.

    Raises:
        ValueError: both bounds are 0, so that nothing would ever change.
    """
    if not max_translate and not max_linear:
        raise ValueError(
            "max_translate and max_linear are both 0, so no image would change: give "
            "one of them a bound, such as max_translate=0.5"
        )
    controls = 6 if max_linear else 2
    bounds = max_translate, max_linear, padding

    def init(key: PRNGKeyArray, images: Array) -> Variables:
        return {"params": controller.init(key, images, controls), "frozen": {}}

    def apply(variables: Variables, images: Array, key: PRNGKeyArray) -> Augmented:
        eps = controller.draw(key, images)
        found, theta = affine_augment(variables["params"], images, eps, *bounds)
        moves = theta if max_linear else theta[..., 2:]
        return Augmented(found, moves.reshape(len(images), -1))

    return Augmenter(init, apply)


@checked()
def elastic_augment(
    params: PyTree, x: Images, eps: Noise, max_shift: float, padding: Padding = "zeros"
) -> tuple[Images, Float[Array, "batch height width 2"]]:
    """Return images whose pixels have moved, smoothly, and by how much.

    The shifts of `GRID` x `GRID` places are interpolated in between.

    Args:
        params: of a controller of 2·G² controls, G being `GRID`.
        x: images.
        eps: noise.
        max_shift: in halves of an image.
        padding: of `grid_sample`.
    """
    chosen = control(params, x, eps).reshape(-1, GRID, GRID, 2)
    shape = (len(x), *x.shape[1:3], 2)
    moved = max_shift * jax.image.resize(chosen, shape, "bilinear")
    identity = affine_grid(jnp.eye(2, 3)[None], *x.shape[1:3])
    return grid_sample(x, identity + moved, padding), moved


@checked(max_shift=positive)
def elastic(
    max_shift: float = 0.2,
    padding: Padding = "zeros",
    controller: Controller = Controller(),
) -> Augmenter:
    """Return a learned elastic deformation.

    Args:
        max_shift: of a pixel, in halves of an image.
        padding: ``"zeros"`` for digits on black, ``"reflect"`` for photographs.
        controller: chooses the shifts.
    """

    def init(key: PRNGKeyArray, images: Array) -> Variables:
        return {"params": controller.init(key, images, 2 * GRID**2), "frozen": {}}

    def apply(variables: Variables, images: Array, key: PRNGKeyArray) -> Augmented:
        eps = controller.draw(key, images)
        found = elastic_augment(variables["params"], images, eps, max_shift, padding)
        return Augmented(found[0], found[1].reshape(len(images), -1))

    return Augmenter(init, apply)


@checked()
def colour_augment(
    params: PyTree, x: Images, eps: Noise, max_gain: float, max_shift: float
) -> tuple[Images, Float[Array, "batch controls"]]:
    """Return images with other contrast and brightness, channel by channel.

    x̃ = x̄ + (1 + gain)·(x − x̄) + shift, with x̄ the mean of an image's channel.

    Args:
        params: of a controller of 2 controls a channel.
        x: images.
        eps: noise.
        max_gain: of the gain.
        max_shift: of the shift, in the images' unit.
    """
    chosen = control(params, x, eps)
    gain, shift = jnp.split(chosen[:, None, None, :], 2, axis=-1)
    mean = x.mean((1, 2), keepdims=True)
    found = mean + (1 + max_gain * gain) * (x - mean) + max_shift * shift
    return found.astype(x.dtype), chosen


@checked()
def colour(
    max_gain: float = 0.5,
    max_shift: float = 0.3,
    controller: Controller = Controller(),
) -> Augmenter:
    """Return a learned change of contrast, brightness and, of several channels, colour.

    Args:
        max_gain: of the contrast's relative change.
        max_shift: of the brightness's, in the images' unit.
        controller: chooses both for every channel.

    Raises:
        ValueError: both bounds are 0, so that nothing would ever change.
    """
    if not max_gain and not max_shift:
        raise ValueError(
            "max_gain and max_shift are both 0, so no image would change: give one of "
            "them a bound"
        )

    def init(key: PRNGKeyArray, images: Array) -> Variables:
        controls = 2 * np.shape(images)[-1]
        return {"params": controller.init(key, images, controls), "frozen": {}}

    def apply(variables: Variables, images: Array, key: PRNGKeyArray) -> Augmented:
        eps = controller.draw(key, images)
        found = colour_augment(variables["params"], images, eps, max_gain, max_shift)
        return Augmented(*found)

    return Augmenter(init, apply)


@checked()
def within(augmenter: Augmenter, low: Any, high: Any) -> Augmenter:
    """Return an augmenter whose images are clipped to the range that pixels can have.

    Args:
        augmenter: any.
        low: the darkest pixel, a number or one a channel: of normalised images
            −mean/std.
        high: the brightest, likewise (1 − mean)/std.
    """

    def apply(variables: Variables, images: Array, key: PRNGKeyArray) -> Augmented:
        found = augmenter.apply(variables, images, key)
        low_, high_ = (jnp.asarray(x, found.images.dtype) for x in (low, high))
        return found._replace(images=jnp.clip(found.images, low_, high_))

    return augmenter._replace(apply=apply)
