"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864)."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked


@checked()
@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of rotations to contexts longer than trained on.

    Attributes:
        factor: by which low frequencies are slowed down.
        low_frequency_factor: wavelengths above ``original_length`` / this are slowed.
        high_frequency_factor: those below ``original_length`` / this are kept; what
            lies between is interpolated.
        original_length: tokens of the context trained on.
    """

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192


@checked()
def frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> np.ndarray:
    """Return the radians a token of each pair of a head's features, (head_dim / 2,).

    Args:
        head_dim: features of a head, even.
        theta: base of the frequencies.
        scaling: Llama 3.1's, or None.
    """
    base = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    if scaling is None:
        return base.astype(np.float32)
    turns = scaling.original_length * base / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (base * (kept + (1 - kept) / scaling.factor)).astype(np.float32)


@checked()
def rotate(
    x: Float[Array, "batch length heads dim"],
    positions: Int[Array, "batch length"],
    radians: np.ndarray,
) -> Float[Array, "batch length heads dim"]:
    """Turn every pair (i, i + dim / 2) of features by its position's angle.

    Args:
        x: queries or keys.
        positions: of the tokens.
        radians: a token, from `frequencies`.
    """
    angles = positions[..., None, None].astype(jnp.float32) * radians
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    work = jnp.promote_types(x.dtype, jnp.float32)
    first, second = jnp.split(x.astype(work), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
