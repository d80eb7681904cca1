"""Which examples and tokens of a batch count, and which tokens belong together.

Padding is 0 in ``attention_mask`` (of an encoder-decoder's outputs in
``decoder_attention_mask``) and in ``segment_ids``, which number the documents of packed
rows from 1. What ``mask`` or ``weight`` leaves out may be read all the same: a prompt
that no loss is taken of is what the answer's tokens relate to.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Integer

from jaxkd.arguments import checked
from jaxkd.losses.basics import as_float, expand_weights
from jaxkd.types import Batch, Method, Outputs

COUNTS = ("mask", "weight")
"""What says how often an example or token counts."""

TEXTS = (
    *("attention_mask", "segment_ids"),
    *("decoder_input_ids", "decoder_attention_mask"),
)
"""What says where the text is."""


@checked()
def batch_weights(batch: Batch, shape: tuple[int, ...]) -> Array | None:
    """Return the weights of a batch for losses of ``shape``; None if all count alike.

    Args:
        batch: its ``mask`` and ``weight``, (batch,) or (batch, tokens), are multiplied,
            and for losses of tokens the padding, see `documents`, is left out.
        shape: of the losses. A token mask weighs a loss of whole examples by whether
            the example has any token.

    Raises:
        ValueError: a mask's or weight's leading axes are not the losses'.
    """
    total = None
    for name in COUNTS:
        if batch.get(name) is None:
            continue
        weights = as_float(batch[name])
        if weights.ndim > len(shape):
            weights = weights.max(axis=tuple(range(len(shape), weights.ndim)))
        if weights.shape != shape[: weights.ndim]:
            raise ValueError(
                f"batch[{name!r}] has shape {jnp.shape(batch[name])}, but the losses "
                f"have shape {shape}: give one value an example or token"
            )
        weights = expand_weights(weights, shape)
        total = weights if total is None else total * weights
    numbers = documents(batch, shape)
    if numbers is not None:
        weights = expand_weights(numbers > 0, shape)
        total = weights if total is None else total * weights
    return total


@checked()
def documents(
    batch: Batch, shape: tuple[int, ...]
) -> Integer[Array, "batch length"] | None:
    """Return the number of each token's document, 0 for padding.

    Args:
        batch: an encoder-decoder's losses are of its decoder's tokens.
        shape: of the losses or features, (batch, length, …).

    Returns:
        None if they are not of the batch's tokens, or if nothing says that there is
        padding or more than one document in a row.
    """
    target = batch.get("decoder_input_ids")
    if target is not None and jnp.shape(target) == shape[:2]:
        real, segments = batch.get("decoder_attention_mask"), None
    else:
        real, segments = batch.get("attention_mask"), batch.get("segment_ids")
    numbers = None
    if segments is not None and jnp.shape(segments) == shape[:2]:
        numbers = jnp.asarray(segments)
    if real is not None and jnp.shape(real) == shape[:2]:
        numbers = jnp.where(jnp.asarray(real) > 0, 1 if numbers is None else numbers, 0)
    return numbers


def same_document(
    numbers: Integer[Array, "batch length"],
) -> Bool[Array, "batch length length"]:
    """Return which tokens are of one document."""
    return numbers[:, :, None] == numbers[:, None, :]


def earlier_tokens(
    numbers: Integer[Array, "batch length"], counted: Bool[Array, "batch length"]
) -> Int[Array, "batch length"]:
    """Return how many tokens of its document that count come before each token."""
    before = jnp.tri(numbers.shape[1], k=-1, dtype=bool)
    return (same_document(numbers) & counted[:, None, :] & before).sum(-1)


@checked()
def tap_batch(batch: Batch, tap: str) -> Batch:
    """Return the batch as masks of the tokens that a tap's features are of.

    A tap of an encoder-decoder's encoder, such as ``encoder.block0``, has the input's
    tokens, of which ``mask`` and ``weight`` say nothing but which examples count.
    """
    if "decoder_input_ids" not in batch or "encoder" not in tap.split("."):
        return batch
    given = {name: x for name, x in batch.items() if not name.startswith("decoder_")}
    rows = {
        name: jnp.asarray(batch[name]).reshape(len(batch[name]), -1).max(1)
        for name in COUNTS
        if batch.get(name) is not None
    }
    return {**given, **rows}


def masked(method: Method) -> Method:
    """Return a method to whose loss nothing gets that is not finite and does not count.

    `from_loss` and `from_module` do it. A method that is written by hand is blind to
    what stands at masked places by it, see `finite_where_masked`.
    """

    def loss(variables, student, teacher, batch, key, step):
        clean = finite_where_masked(student, teacher, batch)
        try:
            return method.loss(variables, *clean, key, step)
        except KeyError as error:
            name = error.args[0] if error.args else None
            if not isinstance(name, str) or name in batch:
                raise
            raise ValueError(
                f"the method asks for {name!r}, but the batch holds {sorted(batch)} "
                f"and the student's features are {sorted(student.features)}: name your "
                "data as the method does"
            ) from error

    return method._replace(loss=loss)


def finite_where_masked(
    student: Outputs, teacher: Outputs | None, batch: Batch
) -> tuple[Outputs, Outputs | None, Batch]:
    """Return both networks' outputs as `finite_outputs`, and the batch likewise.

    Labels of what does not count become class 0.

    Args:
        student: its logits and features, (batch, …, features).
        teacher: likewise, or None; with ``teacher_mask`` in the batch, of its own
            tokens.
        batch: what says what counts; its other arrays, such as a cached teacher's
            answers, are cleaned too.
    """
    arrays = {
        name: x if name in COUNTS else _clean(x, batch) for name, x in batch.items()
    }
    label = arrays.get("label")
    if label is not None and jnp.issubdtype(jnp.result_type(label), jnp.integer):
        # Which may be no class there, such as −100.
        counted = counted_places(batch, jnp.shape(label))
        if counted is not None:
            kept = counted.reshape(counted.shape + (1,) * (label.ndim - counted.ndim))
            arrays["label"] = jnp.where(kept, label, 0)
    if teacher is not None:
        teacher = finite_outputs(teacher, _teacher_batch(batch))
    return finite_outputs(student, batch), teacher, arrays


def finite_outputs(outputs: Outputs, batch: Batch) -> Outputs:
    """Return outputs with zeros for what is not finite where nothing counts.

    An example or token that is left out of the last sum alone still makes the gradient
    NaN, since 0 times infinity is. Finite numbers stay as they are: a method may read
    tokens that it does not count. What does count stays in any case: a NaN there must
    be seen.

    Args:
        outputs: of a network, (batch, …, features); the tap ``head`` has no examples.
        batch: its masks.
    """

    def clean(tap: str, x: Any) -> Any:
        if tap.split(".")[-1] == "head":
            return x
        return _clean(x, tap_batch(batch, tap), trailing=1)

    features = {tap: clean(tap, x) for tap, x in outputs.features.items()}
    return Outputs(clean("logits", outputs.logits), features)


@checked()
def counted_places(batch: Batch, shape: tuple[int, ...]) -> Bool[Array, "..."] | None:
    """Return which examples count, or which tokens if the masks are of tokens.

    Args:
        batch: its masks.
        shape: of examples, or of examples and tokens.

    Returns:
        (batch,) or (batch, tokens); None if nothing says that any does not.
    """
    masks = [batch.get(name) for name in COUNTS] + [documents(batch, shape)]
    total = None
    for mask in masks:
        if mask is None:
            continue
        counted = jnp.asarray(mask) > 0
        if counted.shape != shape[: counted.ndim]:
            counted = counted.reshape(len(counted), -1).any(1)
        if counted.shape != shape[: counted.ndim]:
            continue
        if total is not None:
            ndim = max(total.ndim, counted.ndim)
            total, counted = (
                x.reshape(x.shape + (1,) * (ndim - x.ndim)) for x in (total, counted)
            )
            counted = total & counted
        total = counted
    return total


def _teacher_batch(batch: Batch) -> Batch:
    """Return the batch as masks of the teacher's tokens, where it has its own."""
    if "teacher_mask" not in batch:
        return batch
    own = {
        name: batch[f"teacher_{name}"]
        for name in ("mask", *TEXTS)
        if f"teacher_{name}" in batch
    }
    counted = counted_places(batch, jnp.shape(batch["teacher_mask"])[:1])
    return {**own, "weight": counted}


def _clean(x: Any, batch: Batch, trailing: int = 0) -> Any:
    """Return an array that is clean; its last axes may be no examples or tokens."""
    if not isinstance(x, jax.Array | np.ndarray) or not jnp.issubdtype(
        x.dtype, jnp.floating
    ):
        return x
    counted = counted_places(batch, x.shape[: x.ndim - trailing])
    if counted is None:
        return x
    # All of an example or token at once: the gradient keeps one boolean for it.
    finite = jnp.isfinite(x).all(axis=tuple(range(counted.ndim, x.ndim)))
    kept = (counted | finite).reshape(counted.shape + (1,) * (x.ndim - counted.ndim))
    return jnp.where(kept, x, 0)
