"""Answers to bad input: unknown names, and batches that would train on nonsense."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxkd.arguments import unknown_name as unknown_name
from jaxkd.graphs import Graph, check_graph
from jaxkd.types import Batch

TOKENS = ("input_ids", "decoder_input_ids", "response_ids")
"""What of a batch holds tokens."""


def disjoint(*metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return all metrics in one dict.

    Raises:
        ValueError: a name stands twice, so that one would overwrite the other.
    """
    found: dict[str, Any] = {}
    for some in metrics:
        for name in found.keys() & some.keys():
            raise ValueError(
                f"two metrics are called {name!r}, and one would overwrite the other: "
                "give yours another name"
            )
        found |= some
    return found


def check_batch(batch: Batch, classes: int | None = None) -> None:
    """Refuse a batch that would train on nothing or on nonsense.

    Arrays that are being traced are passed over: their values are not known.

    Args:
        batch: arrays with the examples on the first axis; a graph's examples are its
            nodes.
        classes: labels must be below it; None checks no label.

    Raises:
        ValueError: not a dict, an empty batch, arrays of different lengths, a value
            that is not finite, a mask, weight or token below 0, or a label out of
            range. It names the array, the example and the value.
    """
    if not isinstance(batch, Mapping) or not batch:
        raise ValueError(
            f"batch must be a dict of arrays such as image and label, got "
            f"{type(batch).__name__}: {batch!r:.80}"
        )
    lengths = {}
    for name, value in batch.items():
        if isinstance(value, Graph):
            check_graph(value)
            lengths[f"batch[{name!r}].nodes"] = value.nodes
            continue
        for path, array in _arrays({name: value}):
            if np.shape(array):
                lengths[path] = np.shape(array)[0]
    for path, array in _arrays(batch):
        if not isinstance(array, Tracer):
            _check_finite(path, np.asarray(array))
    for name in batch:
        if name in ("mask", "weight") or name.endswith(("_mask", "_weight")):
            _refuse(
                f"batch[{name!r}]",
                batch[name],
                lambda x: x < 0,
                "a mask or weight must be at least 0; 0 leaves an example out",
            )
        elif name.endswith(TOKENS):
            check_tokens(f"batch[{name!r}]", batch[name])
    if min(lengths.values(), default=0) == 0 or len(set(lengths.values())) > 1:
        unequal = len(set(lengths.values())) > 1
        problem = "has arrays of unequal length" if unequal else "is empty"
        raise ValueError(
            f"the batch {problem}: {lengths}. Give every array the same number of "
            "examples, at least one"
        )
    label = batch.get("label")
    if classes is not None and label is not None:
        check_labels("batch['label']", label, classes, batch.get("mask"))


def check_counted(batch: Batch) -> None:
    """Refuse a batch of which nothing counts, so that a step would learn nothing.

    With several processes this one's part may count nothing.

    Raises:
        ValueError: its ``mask`` or ``weight`` is 0 throughout.
    """
    for name in ("mask", "weight"):
        values = batch.get(name)
        if values is None or isinstance(values, Tracer) or jax.process_count() > 1:
            continue
        if not np.any(values):
            raise ValueError(
                f"batch[{name!r}] is 0 throughout, so no example counts and nothing "
                "can be learnt from the batch: leave it out of the data"
            )


def check_tokens(name: str, tokens: Any, vocabulary: int | None = None) -> None:
    """Refuse tokens below 0, or outside a vocabulary.

    Args:
        name: of the array.
        tokens: integers with the examples on the first axis; None and traced arrays are
            passed over.
        vocabulary: they must be below it; None where it is not known.

    Raises:
        ValueError: it names the array, the first bad example and its token.
    """
    if tokens is None:
        return
    end = np.inf if vocabulary is None else vocabulary
    _refuse(
        name,
        tokens,
        lambda x: (x < 0) | (x >= end),
        "tokens must be at least 0 (mask padding by attention_mask)"
        if vocabulary is None
        else f"the network's tokens are 0 to {vocabulary - 1}: use its own tokenizer",
    )


def check_read_tokens(batch: Batch, role: str, vocabulary: int | None) -> None:
    """Refuse a batch whose tokens a network does not know.

    Args:
        batch: on the host.
        role: the network's, whose own tokens (``teacher_input_ids``) come first.
        vocabulary: they must be below it; None where it is not known.

    Raises:
        ValueError: as `check_tokens`.
    """
    if vocabulary is not None:
        for name in TOKENS:
            key = f"{role}_{name}" if f"{role}_{name}" in batch else name
            check_tokens(f"batch[{key!r}]", batch.get(key), vocabulary)


def check_labels(name: str, labels: Any, classes: int, mask: Any = None) -> None:
    """Refuse class indices outside 0 … classes − 1, and rows that are no probabilities.

    Args:
        name: of the array.
        labels: indices, or rows of probabilities; a traced array is passed over.
        classes: indices are below it.
        mask: 0 where an index may be anything, over the leading axes of ``labels`` or
            all of them; None counts all.

    Raises:
        ValueError: it names the array, the first bad example and its label.
    """
    if isinstance(labels, Tracer) or isinstance(mask, Tracer):
        return
    labels = np.asarray(labels)
    if np.issubdtype(labels.dtype, np.floating) and labels.shape[1:] == (classes,):
        # Negated, so that NaN is refused too.
        bad = np.argwhere(~((labels >= 0).all(1) & (np.abs(labels.sum(1) - 1) < 1e-3)))
        if len(bad):
            raise ValueError(
                f"{name} must hold class indices, or probabilities that sum to 1; "
                f"example {bad[0, 0]} has {labels[bad[0, 0]]}"
            )
        return
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name} must hold integer class indices, got {labels.dtype} of shape "
            f"{labels.shape}; probabilities have the shape (examples, {classes})"
        )
    if labels.size and labels.min() >= 0 and labels.max() < classes:
        return
    bad = (labels < 0) | (labels >= classes)
    if mask is not None and np.shape(mask) == labels.shape[: np.ndim(mask)]:
        trailing = (1,) * (labels.ndim - np.ndim(mask))
        bad &= np.reshape(mask, np.shape(mask) + trailing) > 0
    found = np.argwhere(bad)
    if len(found):
        where = tuple(found[0].tolist())
        raise ValueError(
            f"{name} has label {labels[where]} at example {where[0]}, but the classes "
            f"are 0 to {classes - 1}: correct the labels, or build the network with "
            "more classes (mask tokens with batch['mask'], not with a label)"
        )


def check_teacher_ids(ids: Any, vocabulary: int) -> None:
    """Refuse a teacher's tokens that a student has no logits for.

    Args:
        ids: a batch's ``teacher_ids``; None and a traced array are passed over.
        vocabulary: the student's logits.

    Raises:
        ValueError: it names the first such token and its place.
    """
    if ids is None or isinstance(ids, Tracer):
        return
    ids = np.asarray(ids)
    if not ids.size or (ids.min() >= 0 and ids.max() < vocabulary):
        return
    where = tuple(np.argwhere((ids < 0) | (ids >= vocabulary))[0].tolist())
    raise ValueError(
        f"batch['teacher_ids'] has token {ids[where]} at {where}, but the student's "
        f"logits are of tokens 0 to {vocabulary - 1}: the teacher has another "
        "vocabulary. Keep of it what both networks share, by vocabulary= of "
        "teachers.network_targets (--vocabulary of jaxkd cache-teacher) with what "
        "data.check_vocabularies returns, or build the student with more"
    )


def _arrays(batch: Batch) -> list[tuple[str, Any]]:
    flat = jax.tree_util.tree_flatten_with_path(dict(batch))[0]
    return [(f"batch{jax.tree_util.keystr(path)}", leaf) for path, leaf in flat]


def _refuse(
    name: str, values: Any, bad: Callable[[np.ndarray], np.ndarray], rule: str
) -> None:
    """Refuse an array that holds a bad value, naming the first."""
    if values is None or isinstance(values, Tracer):
        return
    values = np.asarray(values)
    # The least and the greatest tell: two passes without a temporary.
    if not values.size or not bad(np.array([values.min(), values.max()])).any():
        return
    where = tuple(np.argwhere(bad(values))[0].tolist())
    at = f" in example {where[0]}" if where else ""
    raise ValueError(f"{name} holds {values[where]}{at}: {rule}")


def _check_finite(name: str, array: np.ndarray) -> None:
    # JAX's test knows bfloat16 too, which NumPy's does not.
    if not jnp.issubdtype(array.dtype, np.floating):
        return
    # One pass without a temporary; only a bad (or overflowing) sum is looked into.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum(dtype=np.float64)):
            return
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        where = tuple(bad[0].tolist())
        raise ValueError(
            f"{name} holds {len(bad)} values that are not finite, the first "
            f"({array[where]}) in example {where[0]}: clean the data, and put 0 in "
            "the place of what batch['mask'] leaves out"
        )
