"""Spaces of elastic transformers, and the few of their shapes that train in a step.

By the sandwich rule (Yu et al. 2019, arXiv:1903.05134) each step trains the largest
shape, the smallest, and some between.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from jaxkd.arguments import checked, count, natural


class Shape(NamedTuple):
    """A transformer of a space.

    Attributes:
        layers: blocks.
        heads: of attention in each.
        hidden: width between the blocks, not tied to the heads'.
        ratio: of the MLP's width to ``hidden``.
    """

    layers: int
    heads: int
    hidden: int
    ratio: float


@checked()
@dataclass(frozen=True)
class ShapeSpace:
    """All transformers with one of some depths, heads, widths and MLP ratios.

    AutoDistil's three are `AUTODISTIL_SPACES`.

    Attributes:
        layers: choices of the depth.
        heads: choices of the heads.
        hidden: choices of the width.
        ratios: choices of the MLP's ratio.

    Raises:
        ValueError: an axis without choices, or with one that is not above 0.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    hidden: tuple[int, ...]
    ratios: tuple[float, ...]

    def __post_init__(self):
        for name, choices in vars(self).items():
            if not choices or min(choices) <= 0:
                raise ValueError(
                    f"{name} needs at least one choice, each above 0, got {choices}"
                )

    def shapes(self) -> list[Shape]:
        """Return all of them, in the order of the choices."""
        return [Shape(*choice) for choice in itertools.product(*vars(self).values())]


AUTODISTIL_SPACES = {
    "base": ShapeSpace(
        (9, 10, 11, 12), (9, 10, 11, 12), (544, 576, 608, 640), (2.5, 3, 3.5, 4)
    ),
    "small": ShapeSpace(
        (9, 10, 11, 12), (7, 8, 9, 10), (256, 288, 320, 352), (2.5, 3, 3.5, 4)
    ),
    "tiny": ShapeSpace(
        (4, 5, 6, 7), (7, 8, 9, 10), (128, 160, 192, 224), (2, 2.5, 3, 3.5)
    ),
}
"""Xu et al. 2022 (AutoDistil), arXiv:2201.12507: 256 students of BERT-base each."""


@checked(vocabulary=count, positions=count, types=count, head_dim=count)
def bert_parameters(
    shape: Shape,
    *,
    vocabulary: int = 30522,
    positions: int = 512,
    types: int = 2,
    head_dim: int = 64,
    paper_formula: bool = False,
) -> int:
    """Count the parameters of a BERT with a pooler and no head on top.

    Args:
        shape: of the encoder.
        vocabulary: words.
        positions: the longest input.
        types: of segments.
        head_dim: width of a head, the same in all shapes.
        paper_formula: count as AutoDistil's code does, which ranks students but takes
            queries, keys and values for hidden² · heads/12 each, attention's output for
            hidden², whatever the heads, their biases for 4 · hidden, and once in all
            hidden too many.
    """
    layers, heads, hidden, ratio = shape
    mlp = round(hidden * ratio)
    embeddings = hidden * (vocabulary + positions + types + 2)
    feed_forward = 2 * hidden * mlp + mlp + hidden + 2 * hidden
    pooler = hidden**2 + hidden
    if paper_formula:
        attention = hidden**2 + round(3 * hidden**2 * heads / 12) + 6 * hidden
        pooler += hidden
    else:
        inner = heads * head_dim
        attention = 4 * hidden * inner + 3 * inner + hidden + 2 * hidden
    return embeddings + layers * (attention + feed_forward) + pooler


@checked()
def enumerate_shapes(
    shapes: Sequence[Shape],
    size: Callable[[Shape], float],
    budget: int | float | None = None,
) -> list[Shape]:
    """Return the shapes within a budget, smallest first; of equals the first.

    Args:
        shapes: of one space, or of several.
        size: ``shape ->`` its parameters, FLOPs or time, such as `bert_parameters`.
        budget: the largest size; None for all shapes.

    Raises:
        ValueError: no shape is within the budget.
    """
    found = sorted((s for s in shapes if budget is None or size(s) <= budget), key=size)
    if not found:
        smallest = min(map(size, shapes), default=None)
        raise ValueError(
            f"budget {budget} allows none of {len(shapes)} shapes, whose smallest has "
            f"{smallest}: raise it, or give smaller shapes"
        )
    return found


@checked(parts=count)
def partition_shapes(shapes: Sequence[Shape], parts: int) -> list[list[Shape]]:
    """Cut shapes into sub-spaces of like sizes, each with a SuperLM of its own.

    Args:
        shapes: sorted by size, as `enumerate_shapes` returns them.
        parts: that they are cut into; their lengths differ by at most 1.

    Raises:
        ValueError: fewer shapes than parts.
    """
    if parts > len(shapes):
        raise ValueError(f"parts must be at most {len(shapes)} shapes, got {parts}")
    bounds = [len(shapes) * i // parts for i in range(parts + 1)]
    return [list(shapes[a:b]) for a, b in itertools.pairwise(bounds)]


@checked(randoms=natural)
def sandwich_sample(
    key: PRNGKeyArray, shapes: Sequence[Shape], randoms: int = 2
) -> list[Shape]:
    """Return the largest shape, the smallest, and some others without replacement.

    The shapes of a step of a SuperLM (AutoDistil, arXiv:2201.12507); they are static,
    so that each compiles to its own slices.

    Args:
        key: of the draw, such as ``jax.random.fold_in(key, step)``.
        shapes: sorted by size, as `enumerate_shapes` returns them.
        randoms: others.

    Raises:
        ValueError: fewer than ``randoms`` + 2 shapes.
    """
    if len(shapes) < randoms + 2:
        raise ValueError(
            f"randoms must be at most the number of shapes less 2 ({len(shapes) - 2}), "
            f"got {randoms}"
        )
    drawn = jax.random.permutation(key, len(shapes) - 2)[:randoms]
    return [shapes[-1], shapes[0], *(shapes[1 + i] for i in np.asarray(drawn))]


@checked(widths=count, randoms=natural)
def sandwich_masks(
    key: PRNGKeyArray,
    keep: Bool[Array, "removed layers"] | Bool[np.ndarray, "removed layers"],
    widths: int,
    randoms: int = 2,
) -> tuple[Bool[Array, "shapes layers"], Int[Array, "shapes"]]:
    """Return a step's shapes as masks, so that one compiled step serves all of them.

    The order is the largest, the random ones, the smallest. A random shape removes 1 to
    M layers, all numbers equally likely, and has a width of its own, drawn without
    replacement and independent of the depth (Fu et al. 2024, AmoebaLLM,
    arXiv:2411.10606, as its code has it). It may be jitted.

    Args:
        key: of the draw.
        keep: row m says which layers stay when m are removed: `DepthSelection.keep`.
        widths: how many there are, the full one first and the narrowest last.
        randoms: K.

    Returns:
        Which layers each of K + 2 shapes keeps, and the position of its width.

    Raises:
        ValueError: K is above ``widths``, or ``keep`` has but one row.
    """
    if randoms > widths:
        raise ValueError(
            f"randoms must be at most widths ({widths}), which are drawn without "
            f"replacement, got {randoms}"
        )
    if len(keep) < 2:
        raise ValueError("keep must have a row for 0 layers removed and one for 1")
    of_depth, of_width = jax.random.split(key)
    removed = jax.random.randint(of_depth, (randoms,), 1, len(keep))
    drawn = jax.random.permutation(of_width, widths)[:randoms]
    ends = jnp.array([0]), jnp.array([len(keep) - 1]), jnp.array([widths - 1])
    rows = jnp.concatenate([ends[0], removed, ends[1]])
    return jnp.asarray(keep)[rows], jnp.concatenate([ends[0], drawn, ends[2]])
