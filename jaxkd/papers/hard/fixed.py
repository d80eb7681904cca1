"""Augmentations made by hand, to compare learned ones with: they train nothing."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from jaxkd.arguments import checked, count, positive_share
from jaxkd.models.parts.sampling import Padding, affine_grid, grid_sample
from jaxkd.papers.hard.augmenters import Augmented, Augmenter
from jaxkd.types import Variables

NOTHING = {"params": {}, "frozen": {}}


@checked()
def random_affine(
    max_translate: float = 0.5, max_linear: float = 0.0, padding: Padding = "zeros"
) -> Augmenter:
    """Return affine maps drawn uniformly from those that `affine` can learn.

    Args:
        max_translate: of the shift, in halves of an image.
        max_linear: of each entry of the 2x2 part.
        padding: of `grid_sample`.
    """

    def apply(variables: Variables, images: Array, key: PRNGKeyArray) -> Augmented:
        drawn = jax.random.uniform(key, (len(images), 2, 3), minval=-1.0)
        bounds = jnp.array([max_linear, max_linear, max_translate])
        change = drawn * bounds
        grid = affine_grid(jnp.eye(2, 3) + change, *images.shape[1:3])
        moves = change if max_linear else change[..., 2:]
        found = grid_sample(images, grid, padding)
        return Augmented(found, moves.reshape(len(images), -1))

    return Augmenter(lambda key, images: NOTHING, apply)


OPERATIONS = ("shift x", "shift y", "shear x", "shear y", "turn", "contrast", "bright")
"""What `rand_augment` draws from, beside leaving the image alone."""


@checked(operations=count, magnitude=positive_share)
def rand_augment(
    operations: int = 2, magnitude: float = 0.5, padding: Padding = "reflect"
) -> Augmenter:
    """Return an augmentation like RandAugment: a few of `OPERATIONS`, each at random.

    After Cubuk et al. 2019, arXiv:1909.13719: every image has ``operations`` of them,
    of one magnitude and a random sign. Of their list these are the ones that a
    differentiable pipeline has; at magnitude 1 they are theirs, shifts by 45 % of the
    image, shears by 0.3, turns by 30°, contrast by 0.9; brightness moves by 0.9
    standard deviations of the image.

    Args:
        operations: to each image, drawn with replacement.
        magnitude: in (0, 1].
        padding: of `grid_sample`.
    """

    def draw(key: PRNGKeyArray) -> tuple[Array, Array]:
        """Return one operation: a 3x3 map, and the changes of contrast and light."""
        which, sign = jax.random.split(key)
        chosen = jax.random.randint(which, (), 0, len(OPERATIONS) + 1)
        amount = magnitude * jax.random.choice(sign, jnp.array([-1.0, 1.0]))
        shift_x, shift_y, shear_x, shear_y, turn, contrast, bright = (
            jnp.where(chosen == i, amount, 0.0) for i in range(len(OPERATIONS))
        )
        angle = math.radians(30) * turn
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        matrix = jnp.array(
            [
                [cos, 0.3 * shear_x - sin, 0.9 * shift_x],
                [0.3 * shear_y + sin, cos, 0.9 * shift_y],
                [0.0, 0.0, 1.0],
            ]
        )
        return matrix, 0.9 * jnp.array([contrast, bright])

    def draw_all(key: PRNGKeyArray) -> tuple[Array, Array]:
        matrices, light = jax.vmap(draw)(jax.random.split(key, operations))
        whole = jnp.eye(3)
        for i in range(operations):
            whole = whole @ matrices[i]
        return whole[:2], light.sum(0)

    def apply(variables: Variables, images: Array, key: PRNGKeyArray) -> Augmented:
        theta, light = jax.vmap(draw_all)(jax.random.split(key, len(images)))
        moved = grid_sample(images, affine_grid(theta, *images.shape[1:3]), padding)
        mean = moved.mean((1, 2), keepdims=True)
        gain, shift = (light[:, i, None, None, None] for i in (0, 1))
        gain = jnp.maximum(1 + gain, 0)
        found = (
            mean + gain * (moved - mean) + shift * moved.std((1, 2, 3), keepdims=True)
        )
        controls = jnp.concatenate([theta.reshape(len(images), -1), light], axis=-1)
        return Augmented(found.astype(images.dtype), controls)

    return Augmenter(lambda key, images: NOTHING, apply)
