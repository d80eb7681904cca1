"""Which heads and neurons stay, and what makes up for those that go."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxkd.arguments import checked, count, positive_share
from jaxkd.compression.shrink.importance import group_scores
from jaxkd.losses.basics import as_float


@checked(keep=count)
def top_mask(
    scores: Float[Array, "*layers units"], keep: int
) -> Bool[Array, "*layers units"]:
    """Return a mask of the highest scores of each layer; of equals the first.

    Args:
        scores: of heads, groups of heads or neurons.
        keep: units of each layer.

    Raises:
        ValueError: more are kept than there are.
    """
    units = scores.shape[-1]
    if keep > units:
        raise ValueError(f"keep must be at most the {units} units, got {keep}")
    rank = jnp.argsort(jnp.argsort(-scores, axis=-1, stable=True), axis=-1)
    return rank < keep


@checked(ratio=positive_share, head_dim=count, heads_per_group=count)
def global_width_masks(
    attention: Float[Array | np.ndarray, "layers attention_channels"],
    mlp: Float[Array | np.ndarray, "layers neurons"],
    ratio: float,
    *,
    head_dim: int,
    heads_per_group: int = 1,
) -> tuple[Bool[np.ndarray, "layers groups"], Bool[np.ndarray, "layers neurons"]]:
    """Choose heads and neurons over all layers together, by parameters that stay.

    Scores are standardised by layer, those of attention averaged over a head. From the
    highest down, units are counted by their parameters, a neuron's gate, up and down
    rows as 1 and a head's query, key, value and output rows as 4/3·head_dim, up to
    where their share is nearest to ``ratio``; what scores above the unit there stays.
    An et al. 2023 (FLAP, AL-AM), arXiv:2312.11983, as AmoebaLLM's code has it
    (arXiv:2411.10606). Layers get different widths. A ratio of 1 keeps everything.
    It runs on the host.

    Args:
        attention: scores of the channels that the output projection reads.
        mlp: scores of the neurons that the down projection reads.
        ratio: of the parameters of attention and MLP that stay, in (0, 1].
        head_dim: channels of a head.
        heads_per_group: heads that share their keys and values, which stay or go
            together.

    Returns:
        The heads, or groups of such, and the neurons that stay.

    Raises:
        ValueError: groups that do not divide the channels, or a single channel.
    """
    heads = _standardised("attention", attention)
    heads = group_scores(heads, head_dim * heads_per_group)
    neurons = _standardised("mlp", mlp)
    if ratio == 1:
        return np.ones(heads.shape, bool), np.ones(neurons.shape, bool)
    scores = np.concatenate([heads.ravel(), neurons.ravel()])
    cost = 2 * head_dim * (heads_per_group + 1) / 3
    costs = np.where(np.arange(scores.size) < heads.size, cost, 1.0)
    order = np.argsort(-scores, stable=True)
    counted = np.cumsum(costs[order])
    threshold = scores[order][np.argmin(np.abs(counted - ratio * counted[-1]))]
    return heads > threshold, neurons > threshold


@checked()
def compensation_bias(
    weights: Float[Array, "*layers inputs outputs"],
    baseline: Float[Array, "*layers inputs"],
    keep: Bool[Array, "*layers inputs"],
) -> Float[Array, "*layers outputs"]:
    """Return what dropped inputs add to the output on average, to be a bias.

    An et al. 2023 (FLAP), arXiv:2312.11983, Eq. 4: (b ∘ dropped)·W.

    Args:
        weights: W.
        baseline: b, the inputs' means, from `update_statistics`.
        keep: the inputs that stay.
    """
    dropped = jnp.where(keep, 0, baseline)
    return jnp.einsum("...i,...io->...o", dropped, as_float(weights))


def _standardised(name: str, scores: Array | np.ndarray) -> np.ndarray:
    if scores.shape[-1] < 2:
        raise ValueError(f"{name} needs at least 2 channels, got {scores.shape}")
    found = np.asarray(scores, np.float64)
    spread = found.std(-1, ddof=1, keepdims=True)
    # Equal scores, of a layer that no input reaches, are all average.
    return (found - found.mean(-1, keepdims=True)) / np.where(spread > 0, spread, 1)
