"""Which token comes next: pure functions of the logits."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxkd.arguments import checked, own_check, positive_share


@checked(temperature=own_check, top_k=own_check)
@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: draw among as many of the most likely tokens; None for all.
        top_p: draw among the fewest tokens that hold this share of the probability
            (nucleus sampling), after ``temperature`` and ``top_k``; None for all.

    Raises:
        ValueError: temperature below 0, top_k below 1, or top_p outside (0, 1].
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        """Refuse what draws no token."""
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be at least 0 and finite, got {self.temperature}; "
                "0 takes the most likely token"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")


GREEDY = Sampling(temperature=0.0)
"""The most likely token."""


@checked()
def keep_top_k(
    logits: Float[Array, "*batch vocabulary"], k: int
) -> Float[Array, "*batch vocabulary"]:
    """Return the logits with all but the k largest at −∞ (Fan et al. 2018).

    arXiv:1805.04833, Section 5.4. Those that equal the k-th are kept too.

    Args:
        logits: of the next token.
        k: at least 1; more than there are keeps all.
    """
    least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


@checked(p=positive_share)
def keep_top_p(
    logits: Float[Array, "*batch vocabulary"], p: float
) -> Float[Array, "*batch vocabulary"]:
    """Return the logits with all but the nucleus at −∞ (Holtzman et al. 2020).

    arXiv:1904.09751, Eq. 2: the fewest tokens, the most likely first, whose
    probabilities sum to at least p. Those that equal the last are kept too.

    Args:
        logits: of the next token.
        p: in (0, 1].
    """
    ordered = jnp.sort(logits.astype(jnp.float32), axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    least = jnp.where(before < p, ordered, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits < least, -jnp.inf, logits)


@checked()
def sampling_logits(
    logits: Float[Array, "*batch vocabulary"], sampling: Sampling
) -> Float[Array, "*batch vocabulary"]:
    """Return the logits, in float32, of the distribution that tokens are drawn from.

    Args:
        logits: of the next token.
        sampling: how it is drawn, with a temperature above 0.
    """
    logits = logits.astype(jnp.float32) / sampling.temperature
    if sampling.top_k is not None:
        logits = keep_top_k(logits, sampling.top_k)
    if sampling.top_p is not None:
        logits = keep_top_p(logits, sampling.top_p)
    return logits


@checked()
def sample(
    key: PRNGKeyArray | None,
    logits: Float[Array, "*batch vocabulary"],
    sampling: Sampling,
) -> Int[Array, "*batch"]:
    """Return one token for each row.

    Args:
        key: needed where the temperature is above 0.
        logits: of the next token.
        sampling: how it is drawn.

    Raises:
        ValueError: a token is to be drawn without a key.
    """
    if sampling.temperature == 0:
        return logits.argmax(axis=-1).astype(jnp.int32)
    if key is None:
        raise ValueError(
            "key is None, but tokens are drawn at random: pass key=jax.random.key(...) "
            "or sampling=GREEDY"
        )
    drawn = jax.random.categorical(key, sampling_logits(logits, sampling))
    return drawn.astype(jnp.int32)


@checked()
def sampling_log_prob(
    logits: Float[Array, "*batch vocabulary"],
    tokens: Int[Array, "*batch"],
    sampling: Sampling,
) -> Float[Array, "*batch"]:
    """Return the log-probability that `sample` draws each token with.

    It is of the distribution after temperature, top-k and top-p: −∞ of a token that
    they leave out, and at temperature 0 the most likely token has 0.

    Args:
        logits: of the next token.
        tokens: one a row.
        sampling: how they were drawn.
    """
    if sampling.temperature == 0:
        return jnp.where(tokens == logits.argmax(axis=-1), 0.0, -jnp.inf)
    log_p = jax.nn.log_softmax(sampling_logits(logits, sampling))
    return jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
