"""Weights in MXFP4, as gpt-oss is released: read as the numbers that they stand for.

Of every 32 numbers a file has 16 bytes, two numbers of 4 bits each, and one byte for
the power of two that they share (Open Compute Project, Microscaling Formats 1.0, 2023).
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from jaxkd.arguments import checked
from jaxkd.interop.shards import Shards

BLOCKS, SCALES = "_blocks", "_scales"
"""Ends of the names of tensors that belong together."""

SIZE = 32
"""Numbers that share a scale."""

VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
"""Of 3 bits; the fourth is the sign."""


@checked()
def decode(
    blocks: UInt8[np.ndarray, "*axes groups 16"],
    scales: UInt8[np.ndarray, "*axes groups"],
) -> Float[np.ndarray, "*axes inputs"]:
    """Return the numbers of packed weights, exact in bfloat16.

    Args:
        blocks: the low 4 bits of a byte are the number before that of the high ones.
        scales: powers of two, 127 for 1.
    """
    values = np.concatenate([VALUES, -VALUES])
    numbers = np.stack([values[blocks & 15], values[blocks >> 4]], axis=-1)
    numbers = numbers.reshape(*scales.shape, SIZE)
    scaled = np.ldexp(numbers, scales[..., None].astype(np.int32) - 127)
    flat = scaled.reshape(*scales.shape[:-1], -1)
    return flat.astype(jnp.bfloat16)


@checked()
class Mxfp4Shards(Shards):
    """A folder's tensors, of which packed ones seem to be (experts, inputs, outputs).

    Raises:
        ValueError: packed tensors that do not fit together.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.packed: dict[str, tuple[int, ...]] = {}
        for name in [name for name in self.tensors if name.endswith(BLOCKS)]:
            own = name.removesuffix(BLOCKS)
            blocks = self.tensors.pop(name)
            scales = self.tensors.pop(own + SCALES, None)
            fits = scales is not None and blocks.shape == (*scales.shape, SIZE // 2)
            if not fits or len(blocks.shape) != 4 or blocks.dtype != np.uint8:
                raise ValueError(
                    f"{folder}: {name} and {own + SCALES} are no weights in MXFP4 "
                    "(experts, outputs, groups, 16 bytes) and a scale a group: fetch "
                    "the model again"
                )
            experts, outputs, groups, _ = blocks.shape
            self.packed[own] = (experts, SIZE * groups, outputs)
            self.tensors[own] = jax.ShapeDtypeStruct(self.packed[own], jnp.bfloat16)

    def read(self, name: str, index: Any = ...) -> np.ndarray:
        """Return a tensor, or the part of it that slices of its axes take."""
        if name not in self.packed:
            return super().read(name, index)
        index = 3 * [slice(None)] if index is ... else index
        experts, inputs, outputs = index
        start, stop, _ = inputs.indices(self.packed[name][1])
        first = start // SIZE
        there = (experts, outputs, slice(first, -(-stop // SIZE)))
        blocks = super().read(name + BLOCKS, there)
        numbers = decode(blocks, super().read(name + SCALES, there)).swapaxes(1, 2)
        return numbers[:, start - first * SIZE : stop - first * SIZE]
