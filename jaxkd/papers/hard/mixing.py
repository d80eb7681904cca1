"""Learned augmentations that mix images (HARD-Mix) or move their latents (HARD-VAE)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jaxkd.arguments import checked, count, integer, positive
from jaxkd.network import Network
from jaxkd.papers.hard.augmenters import (
    GRID,
    Augmented,
    Augmenter,
    Controller,
    Images,
    Noise,
    control,
)
from jaxkd.types import Variables

SHARPNESS = 4.0
"""The largest logit of a mixing map: of two images a share is at most 0.9997."""


@checked()
def mix_augment(
    params: PyTree, x: Images, eps: Noise, perms: Int[Array, "sources batch"]
) -> tuple[Images, Float[Array, "batch height width sources"]]:
    """Return x̃ = Σ_k m_k ⊙ x_{π_k}, and the maps m, which sum to 1 in every pixel.

    Args:
        params: of a controller of K·G² controls, G being `GRID`.
        x: images.
        eps: noise.
        perms: π, for each of the K sources the image that stands in each place.

    Raises:
        ValueError: fewer than 2 sources, or not one image a place.
    """
    if len(perms) < 2 or perms.shape[1:] != x.shape[:1]:
        raise ValueError(
            f"perms has shape {perms.shape} for {len(x)} images, but it must be "
            "(sources, images) with at least 2 sources: of one nothing can be mixed"
        )
    chosen = control(params, x, eps).reshape(len(x), GRID, GRID, -1)
    shape = (len(x), *x.shape[1:3], chosen.shape[-1])
    maps = jax.nn.softmax(SHARPNESS * jax.image.resize(chosen, shape, "bilinear"))
    return jnp.einsum("bhwk,kbhwc->bhwc", maps.astype(x.dtype), x[perms]), maps


@checked(sources=integer)
def mix(
    sources: int = 2,
    controller: Controller = Controller(),  # noqa: B008
) -> Augmenter:
    """Return HARD-Mix: every image is mixed with others of its batch, place by place.

    A mixture is no longer what its image was: train it with ``consistency=0``.

    Args:
        sources: images in a mixture, itself among them.
        controller: chooses the maps.

    Raises:
        ValueError: fewer than 2 sources.
    """
    if sources < 2:
        raise ValueError(f"sources must be at least 2, the image among them: {sources}")

    def init(key: PRNGKeyArray, images: Array) -> Variables:
        controls = sources * GRID**2
        return {"params": controller.init(key, images, controls), "frozen": {}}

    def apply(variables: Variables, images: Array, key: PRNGKeyArray) -> Augmented:
        noise, *keys = jax.random.split(key, sources)
        own = jnp.arange(len(images))
        others = [jax.random.permutation(key, own) for key in keys]
        found, maps = mix_augment(
            variables["params"],
            images,
            controller.draw(noise, images),
            jnp.stack([own, *others]),
        )
        return Augmented(found, maps.reshape(len(images), -1))

    return Augmenter(init, apply)


@checked(radius=positive)
def latent_augment(
    encode: Callable[[Array], PyTree],
    decode: Callable[[PyTree], Array],
    params: PyTree,
    x: Images,
    eps: Noise,
    radius: float,
    levels: Sequence[int] | None = None,
) -> tuple[Images, Float[Array, "batch controls"]]:
    """Return images decoded from moved latents z + δ with ‖δ‖ ≤ radius, and δ.

    Args:
        encode: ``images -> latents``, an array (batch, …) or several, such as the
            levels of a hierarchical VAE.
        decode: ``latents -> images``.
        params: of a controller with as many controls as an image has latents that
            move.
        x: images.
        eps: noise.
        radius: of the ball in which an image's latents move.
        levels: numbers of the arrays of latents that move; None for all.
    """
    leaves, structure = jax.tree.flatten(encode(x))
    chosen = control(params, x, eps)
    delta = radius / math.sqrt(chosen.shape[-1]) * chosen
    start = 0
    for i in range(len(leaves)) if levels is None else levels:
        size = math.prod(leaves[i].shape[1:])
        moved = delta[:, start : start + size].reshape(leaves[i].shape)
        leaves[i], start = leaves[i] + moved, start + size
    return decode(jax.tree.unflatten(structure, leaves)).reshape(x.shape), delta


@checked(latents=count, radius=positive)
def latent(
    encoder: Network,
    decoder: Network,
    latents: int,
    radius: float,
    controller: Controller = Controller(),  # noqa: B008
) -> Augmenter:
    """Return HARD-VAE: images are changed by moving them in an autoencoder's latents.

    Of one trained network both halves are segments that start from its variables::

        trained = network.with_variables(variables)
        latent(trained.segment(stop="latent"), trained.segment("latent"), 16, 4.0)

    Args:
        encoder: of images; its logits are the latents (batch, latents). Frozen.
        decoder: of latents; its logits are the images, flat or not. Frozen.
        latents: numbers that an image is encoded in.
        radius: of the ball in which they move.
        controller: chooses where to.
    """
    halves = {"encoder": encoder, "decoder": decoder}

    def init(key: PRNGKeyArray, images: Array) -> Variables:
        own, *keys = jax.random.split(key, 3)
        params = controller.init(own, images, latents)
        frozen = {
            name: network.init(key)
            for (name, network), key in zip(halves.items(), keys, strict=True)
        }
        encoded = encoder.apply(frozen["encoder"], images)[0].logits
        if math.prod(np.shape(encoded)[1:]) != latents:
            raise ValueError(
                f"latents is {latents}, but the encoder answers with shape "
                f"{np.shape(encoded)}: give as many as it has for one image"
            )
        return {"params": params, "frozen": frozen}

    def apply(variables: Variables, images: Array, key: PRNGKeyArray) -> Augmented:
        def through(name: str) -> Callable[[Any], Array]:
            held = variables["frozen"][name]
            return lambda x: halves[name].apply(held, x)[0].logits

        eps = controller.draw(key, images)
        found = latent_augment(
            through("encoder"),
            through("decoder"),
            variables["params"],
            images,
            eps,
            radius,
        )
        return Augmented(*found)

    return Augmenter(init, apply)
