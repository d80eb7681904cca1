"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), and how they stretch.

Frequencies are scaled for contexts longer than trained on: all alike, as in Gemma 3
(Chen et al. 2023, arXiv:2306.15595), the low ones, as in Llama 3.1 (arXiv:2407.21783),
or by YaRN (Peng et al. 2023, arXiv:2309.00071), as in gpt-oss.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked, count, positive


@checked(
    factor=positive,
    low_frequency_factor=positive,
    high_frequency_factor=positive,
    original_length=count,
)
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

    def slowed(self, base: np.ndarray, theta: float) -> np.ndarray:
        """Return the frequencies after scaling."""
        turns = self.original_length * base / (2 * math.pi)
        low, high = self.low_frequency_factor, self.high_frequency_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return base * (kept + (1 - kept) / self.factor)


@checked(factor=positive)
@dataclass(frozen=True)
class LinearScaling:
    """Every frequency slowed down alike.

    Attributes:
        factor: by which.
    """

    factor: float

    def slowed(self, base: np.ndarray, theta: float) -> np.ndarray:
        """Return the frequencies after scaling."""
        return base / self.factor


@checked(
    factor=positive,
    original_length=count,
    fast=positive,
    slow=positive,
    magnitude=positive,
)
@dataclass(frozen=True)
class YarnScaling:
    """YaRN: pairs of features are slowed by how often they turn, and all are scaled.

    Attributes:
        factor: by which slow pairs are slowed down.
        original_length: tokens of the context trained on.
        fast: pairs that turn more often than this in it are kept.
        slow: those that turn less often are slowed; what lies between is interpolated.
        truncate: whether the limits are rounded outwards to whole pairs.
        magnitude: that queries and keys are multiplied by; None for
            0.1·ln(factor) + 1.
    """

    factor: float
    original_length: int
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True
    magnitude: float | None = None

    def slowed(self, base: np.ndarray, theta: float) -> np.ndarray:
        """Return the frequencies after scaling."""
        pairs = len(base)
        # Of the pair that turns once in the context, twice, …
        low, high = (
            pairs
            * math.log(self.original_length / (2 * math.pi * turns))
            / math.log(theta)
            for turns in (self.fast, self.slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * pairs - 1)
        high += 0.001 * (low == high)
        slow = np.clip((np.arange(pairs) - low) / (high - low), 0, 1)
        return base * (1 - slow + slow / self.factor)


Scaling = RopeScaling | LinearScaling | YarnScaling


@checked(theta=positive)
@dataclass(frozen=True)
class Rope:
    """The rotations of a layer's queries and keys.

    Attributes:
        theta: base of the frequencies.
        scaling: stretches them to longer contexts, or None.
    """

    theta: float = 10_000.0
    scaling: Scaling | None = None

    @property
    def magnitude(self) -> float:
        """What queries and keys are multiplied by."""
        if not isinstance(self.scaling, YarnScaling):
            return 1.0
        given = self.scaling.magnitude
        return 0.1 * math.log(self.scaling.factor) + 1 if given is None else given


@checked()
def frequencies(
    head_dim: int, theta: float, scaling: Scaling | None = None
) -> np.ndarray:
    """Return the radians a token of each pair of a head's features, (head_dim / 2,).

    Args:
        head_dim: features of a head, even.
        theta: base of the frequencies.
        scaling: or None.
    """
    base = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    slowed = base if scaling is None else scaling.slowed(base, theta)
    return slowed.astype(np.float32)


@checked()
def rotate(
    x: Float[Array, "batch length heads dim"],
    positions: Int[Array, "batch length"],
    radians: Float[Array, "pairs"] | np.ndarray,
    magnitude: Float[Array, ""] | float = 1.0,
) -> Float[Array, "batch length heads dim"]:
    """Turn every pair (i, i + dim / 2) of features by its position's angle.

    Args:
        x: queries or keys.
        positions: of the tokens.
        radians: a token, from `frequencies`.
        magnitude: that they are multiplied by.
    """
    angles = positions[..., None, None].astype(jnp.float32) * radians
    cos, sin = magnitude * jnp.cos(angles), magnitude * jnp.sin(angles)
    work = jnp.promote_types(x.dtype, jnp.float32)
    first, second = jnp.split(x.astype(work), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
