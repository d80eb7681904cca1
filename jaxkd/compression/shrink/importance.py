"""How important a linear layer's inputs are: FLAP's, Wanda's and plain magnitudes.

The layers are those that end attention and the MLP, so that an input is a channel of a
head, or a neuron. Weights have Flax's layout (..., inputs, outputs), where leading axes
are layers stacked for a scan.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxkd.arguments import checked, count
from jaxkd.compression.prune.sparsity import wanda_score
from jaxkd.losses.basics import as_float


class InputStatistics(NamedTuple):
    """What a calibration set says of a linear layer's inputs.

    Attributes:
        baseline: (channels,) their running mean.
        fluctuation: (channels,) how far they stray from it.
        sequences: that were read.
    """

    baseline: Float[Array, "channels"]
    fluctuation: Float[Array, "channels"]
    sequences: Int[Array, ""]


@checked(channels=count)
def input_statistics(channels: int) -> InputStatistics:
    """Return the statistics of no sequence.

    Args:
        channels: inputs of the layer.
    """
    return InputStatistics(
        jnp.zeros(channels), jnp.zeros(channels), jnp.zeros((), jnp.int32)
    )


@checked()
def update_statistics(
    statistics: InputStatistics,
    x: Float[Array, "length channels"],
    *,
    welford: bool = False,
) -> InputStatistics:
    """Return the statistics with one more sequence in them.

    With n sequences before, b ← (n·b + mean x)/(n + 1), and but for the first sequence
    f ← f·(n − 1)/n + Σ (x − b_new)·(x − b_old)/(n + 1), after An et al. 2023 (FLAP),
    arXiv:2312.11983. It runs under ``jax.lax.scan``.

    Args:
        statistics: so far.
        x: the layer's input, of one sequence.
        welford: whether b_old is the baseline before this sequence. False takes b_new
            twice, as the code of FLAP and AmoebaLLM does, which overwrites the old one.
    """
    baseline, fluctuation, n = statistics
    x = as_float(x)
    new = (baseline * n + x.mean(0)) / (n + 1)
    stray = jnp.sum((x - new) * (x - (baseline if welford else new)), 0)
    later = fluctuation * (n - 1) / jnp.maximum(n, 1) + stray / (n + 1)
    return InputStatistics(new, jnp.where(n > 0, later, 0), n + 1)


@checked()
def wifv_scores(
    weights: Float[Array, "*layers inputs outputs"],
    fluctuation: Float[Array, "*layers inputs"],
) -> Float[Array, "*layers inputs"]:
    """Return the weighted fluctuation of each input, f·Σ_o W[·, o]².

    An et al. 2023 (FLAP), arXiv:2312.11983, Eq. 5. AmoebaLLM squares those of attention
    before `global_width_masks`.

    Args:
        weights: W.
        fluctuation: f, from `update_statistics`.
    """
    return fluctuation * jnp.sum(as_float(weights) ** 2, -1)


@checked()
def wanda_scores(
    weights: Float[Array, "*layers inputs outputs"],
    input_norms: Float[Array, "*layers inputs"],
) -> Float[Array, "*layers inputs"]:
    """Return Wanda's scores Σ_o abs(W[·, o])·‖x‖₂ (arXiv:2306.11695) by input.

    Args:
        weights: W.
        input_norms: each input's Euclidean norm over the tokens of a calibration set.
    """
    return wanda_score(as_float(weights), input_norms).sum(-1)


@checked()
def magnitude_scores(
    weights: Float[Array, "*layers inputs outputs"],
) -> Float[Array, "*layers inputs"]:
    """Return the Euclidean norm of each input's weights, which needs no data.

    Args:
        weights: W.
    """
    return jnp.linalg.norm(as_float(weights), axis=-1)


@checked(size=count)
def group_scores(
    scores: Float[Array | np.ndarray, "*layers channels"], size: int
) -> Float[Array | np.ndarray, "*layers groups"]:
    """Return the mean score of neighbouring channels, such as those of a head.

    Args:
        scores: of channels.
        size: channels of a group: ``head_dim``, or, for heads that share keys and
            values, ``head_dim`` times the heads that do.

    Raises:
        ValueError: groups that do not divide the channels.
    """
    if scores.shape[-1] % size:
        raise ValueError(f"size {size} does not divide {scores.shape[-1]} channels")
    return scores.reshape(*scores.shape[:-1], -1, size).mean(-1)
