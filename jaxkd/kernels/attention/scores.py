"""How products of queries and keys become scores: their scale and their soft cap."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array


@dataclass(frozen=True)
class Scores:
    """Scores are ``scale·products``, or ``cap·tanh(scale·products / cap)``.

    Attributes:
        scale: of the products.
        soft_cap: that scores stay within; None for no cap.
    """

    scale: float
    soft_cap: float | None = None

    def __call__(self, products: Array) -> Array:
        """Return the scores."""
        scores = products * self.scale
        if self.soft_cap is None:
            return scores
        return self.soft_cap * jnp.tanh(scores / self.soft_cap)

    def slope(self, scores: Array) -> Array | float:
        """Return the scores' derivative by the products."""
        if self.soft_cap is None:
            return self.scale
        return self.scale * (1 - (scores / self.soft_cap) ** 2)
