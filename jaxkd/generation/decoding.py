"""Generation with a cache: the prompt is read once, then one token at a time."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxkd.arguments import checked, count, natural
from jaxkd.checks import TOKENS, check_tokens, unknown_name
from jaxkd.generation.sampling import Sampling, sample, sampling_log_prob
from jaxkd.network import Apply, Network
from jaxkd.sharding.axes import constrain
from jaxkd.types import Variables


class Generated(NamedTuple):
    """What `generate` returns.

    Attributes:
        tokens: the new tokens; ``pad`` after a row's end.
        mask: true for a row's tokens up to and with its end.
        log_probs: of each token in the model's own distribution (temperature 1, no
            token left out), 0 after a row's end.
        sampled_log_probs: of each token in the distribution that it was drawn from,
            after temperature, top-k and top-p; 0 after a row's end.
    """

    tokens: Int[Array, "batch new"]
    mask: Bool[Array, "batch new"]
    log_probs: Float[Array, "batch new"]
    sampled_log_probs: Float[Array, "batch new"]


@checked(eos=natural, max_new_tokens=count)
def generate(
    network: Network,
    variables: Variables,
    inputs: Mapping[str, Any],
    *,
    max_new_tokens: int,
    key: PRNGKeyArray | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008
    eos: int | tuple[int, ...] | None = None,
    pad: int = 0,
    vocabulary: int | None = None,
) -> Generated:
    """Continue every prompt of a batch, in one compiled program.

    The prompts are read at once, then a loop adds a token to each until all have ended.
    It may be called in another `jax.jit`, on a mesh, and under `jax.grad`, for which
    what it returns is constant.

    Args:
        network: a language model with the tap ``cache``.
        variables: of the network.
        inputs: as the network reads them: of a decoder ``input_ids`` (batch, length)
            and, of prompts of unequal lengths, ``attention_mask``, with 0 for padding,
            which comes before the prompt. Of an encoder-decoder model the encoder's
            inputs and ``decoder_input_ids`` (batch, length), which are continued: as a
            rule the one token that its decoder starts with.
        max_new_tokens: at least 1.
        key: that tokens are drawn from; not needed at temperature 0.
        sampling: how tokens are drawn.
        eos: token, or tokens, that end a row; None goes on to ``max_new_tokens``.
        pad: token that follows the end.
        vocabulary: tokens are drawn among those below it, such as those that another
            network has too; None for all that the network has.

    Raises:
        ValueError: a network without the tap ``cache``, prompts that are missing, empty
            or padded elsewhere than before them, ``max_new_tokens`` below 1, or tokens
            to be drawn without a key.
    """
    if "cache" not in network.taps:
        raise ValueError(
            f"{unknown_name('tap', 'cache', network.taps)}: generation needs a "
            "language model that returns its cache, such as jaxkd.models.llama"
        )
    _check_prompts(inputs)
    for name in TOKENS:
        check_tokens(f"inputs[{name!r}]", inputs.get(name), network.vocabulary)
    ends = (eos,) if isinstance(eos, int) else tuple(eos or ())
    return _generate(
        network.apply,
        max_new_tokens,
        sampling,
        ends,
        pad,
        vocabulary,
        variables,
        dict(inputs),
        key,
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _generate(
    apply: Apply,
    max_new_tokens: int,
    sampling: Sampling,
    ends: tuple[int, ...],
    pad: int,
    vocabulary: int | None,
    variables: Variables,
    inputs: dict[str, Any],
    key: PRNGKeyArray | None,
) -> Generated:
    variables = lax.stop_gradient(variables)
    name = _prompt_name(inputs)
    batch = inputs[name].shape[0]
    positions = None
    if name == "input_ids":
        mask = inputs.get("attention_mask", jnp.ones(inputs[name].shape))
        counted = jnp.cumsum(mask, axis=1, dtype=jnp.int32)
        inputs = {**inputs, "position_ids": jnp.maximum(counted - 1, 0)}
        positions = counted[:, -1:]

    def choose(i: Any, logits: Array, ended: Array) -> tuple[Array, tuple, Array]:
        """Return a token for each row, its log-probabilities, and which have ended."""
        logits = constrain(logits, "batch", None).astype(jnp.float32)
        among = logits[:, :vocabulary]
        token = sample(
            None if key is None else jax.random.fold_in(key, i), among, sampling
        )
        log_prob = jnp.take_along_axis(
            jax.nn.log_softmax(logits), token[:, None], axis=1
        )[:, 0]
        drawn = sampling_log_prob(among, token, sampling)
        log_probs = tuple(jnp.where(ended, 0, x) for x in (log_prob, drawn))
        over = ended | jnp.isin(token, jnp.asarray(ends, jnp.int32))
        return jnp.where(ended, pad, token), log_probs, over

    def write(i: Any, made: Generated, token, log_probs, ended) -> Generated:
        return Generated(
            *(
                array.at[:, i].set(values)
                for array, values in zip(made, (token, ~ended, *log_probs), strict=True)
            )
        )

    def going(carry: tuple) -> Array:
        i, _, _, ended, _ = carry
        return (i < max_new_tokens) & ~ended.all()

    def step(carry: tuple) -> tuple:
        i, made, token, ended, cache = carry
        new = {name: token[:, None], "cache": cache}
        if positions is not None:
            new["position_ids"] = positions + i - 1
        outputs, _ = apply(variables, new, taps=("cache",))
        token, log_probs, over = choose(i, outputs.logits[:, -1], ended)
        made = write(i, made, token, log_probs, ended)
        return i + 1, made, token, over, outputs.features["cache"]

    last = jnp.array([inputs[name].shape[1] - 1])
    outputs, _ = apply(variables, {**inputs, "logits_to_keep": last}, taps=("cache",))
    start = jnp.zeros(batch, bool)
    token, log_probs, over = choose(0, outputs.logits[:, -1], start)
    shape = (batch, max_new_tokens)
    made = Generated(
        jnp.full(shape, pad, jnp.int32),
        jnp.zeros(shape, bool),
        jnp.zeros(shape),
        jnp.zeros(shape),
    )
    made = write(0, made, token, log_probs, start)
    cache = outputs.features["cache"].grown(max_new_tokens - 1)
    return lax.while_loop(going, step, (1, made, token, over, cache))[1]


def _prompt_name(inputs: Mapping[str, Any]) -> str:
    return "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"


def _check_prompts(inputs: Mapping[str, Any]) -> None:
    name = _prompt_name(inputs)
    if name not in inputs:
        raise ValueError(
            f"inputs need input_ids (batch, length), the prompts, got {sorted(inputs)}"
        )
    shape = jnp.shape(inputs[name])
    if len(shape) != 2 or 0 in shape:
        raise ValueError(
            f"{name} has shape {shape}: it must be (batch, length) with at least one "
            "prompt of at least one token"
        )
    for given in ("cache", "position_ids", "segment_ids"):
        if given in inputs:
            raise ValueError(
                f"inputs has {given}: prompts are read from their start, one a row, "
                "and positions are counted here; leave it out"
            )
    padding = "attention_mask"
    mask = inputs.get(padding)
    if mask is None:
        return
    if jnp.shape(mask) != jnp.shape(inputs["input_ids"]):
        raise ValueError(
            f"{padding} has shape {jnp.shape(mask)} but input_ids "
            f"{jnp.shape(inputs['input_ids'])}: give one value a token"
        )
    if isinstance(mask, Tracer):
        return
    real = np.asarray(mask) > 0
    empty = np.flatnonzero(~real.any(axis=1))
    if len(empty):
        raise ValueError(
            f"row {empty[0]} has no token: its {padding} is 0 throughout; leave it out"
        )
    if name == "decoder_input_ids":
        return
    gaps = np.flatnonzero((real[:, :-1] & ~real[:, 1:]).any(axis=1))
    if len(gaps):
        raise ValueError(
            f"row {gaps[0]} has padding after a token: put it before the prompt "
            "(padding_side='left'), where what comes next joins on"
        )
