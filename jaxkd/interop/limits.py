"""Whether a config can be of the weights beside it, told before anything is built.

Building takes some hundredths of a second a layer, so that a line in a file could ask
for days. But a layer has a tensor at least.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

COUNTS = {"layers", "decoder_layers", "depth", "blocks", "cells", "branches"}
"""Arguments of constructors that say how many of something are built."""

SIZES = {"size", "image", "text"}
"""Arguments that say it after a width."""

FEW, STACKED = 64, 10_000
"""Layers that are always allowed, and that are at most where tensors hold all layers
along an axis (``scan`` in this library's own format)."""


def check_layers(
    arguments: Mapping[str, Any],
    tensors: Mapping[str, jax.ShapeDtypeStruct],
    source: Path,
) -> None:
    """Refuse arguments of a constructor that ask for more layers than a file can have.

    Args:
        arguments: by name.
        tensors: of the file, by name.
        source: the config, for the message.

    Raises:
        ValueError: it names the config, the argument and the limit.
    """
    longest = max((n for tensor in tensors.values() for n in tensor.shape), default=0)
    stacked = max(len(tensors), min(longest, STACKED))
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            check_layers(value, tensors, source)
        numbers = value if isinstance(value, list | tuple) else [value]
        most = stacked if arguments.get("scan") else len(tensors)
        if name in SIZES:  # Among what follows a width may be other widths.
            numbers, most = numbers[1:], stacked
        asked = [n for n in numbers if isinstance(n, int) and name in COUNTS | SIZES]
        if max(len(numbers), *asked, 0) > max(most, FEW):
            raise ValueError(
                f"{source} has {name} = {value!r:.80}, but weights of {len(tensors)} "
                f"tensors can be of {most} layers at most: it is of other weights"
            )


def check_sizes(
    arrays: Mapping[str, jax.ShapeDtypeStruct],
    tensors: Mapping[str, jax.ShapeDtypeStruct],
) -> None:
    """Refuse a model with an array that is larger than all of a file's.

    Args:
        arrays: of the model, by path.
        tensors: of the file, by name.

    Raises:
        ValueError: it names the array.
    """
    most = sum(math.prod(tensor.shape) for tensor in tensors.values())
    for path, array in arrays.items():
        if math.prod(array.shape) > most:
            raise ValueError(
                f"{path} would have the shape {array.shape}, but the weights have "
                f"{most} numbers in all"
            )
