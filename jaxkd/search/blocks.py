"""What variants of a decoder's blocks cost, and what each alone does to the network."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxkd.arguments import checked, count, natural


class BlockVariant(NamedTuple):
    """Attention and MLP of a block; 0 leaves one out, with its norm.

    Attributes:
        kv_heads: of attention; ``"linear"`` is one matrix in its place.
        hidden: width of the gated MLP; ``"linear"`` is one matrix in its place.
    """

    kv_heads: int | Literal["linear"]
    hidden: int | Literal["linear"]


@checked(
    width=count,
    heads=count,
    head_dim=count,
    batch=count,
    prompt=natural,
    generated=natural,
    weight_bytes=count,
    cache_bytes=count,
)
def block_costs(
    variants: Sequence[BlockVariant],
    *,
    width: int,
    heads: int,
    head_dim: int,
    batch: int,
    prompt: int,
    generated: int = 0,
    weight_bytes: int = 2,
    cache_bytes: int = 2,
) -> dict[str, Float[np.ndarray, "variants"]]:
    """Return the parameters, bytes and FLOPs of variants, without bias.

    Bytes are those of the weights and of ``batch`` caches of keys and values for all N
    positions. FLOPs are 2 a weight of a matrix and token, and 4·heads·head_dim·N(N+1)/2
    a sequence for causal attention. Bercovich et al. 2025 (Puzzle), arXiv:2411.19146.
    Embeddings and head are no block's: take them off the limits.

    Args:
        variants: of one layer.
        width: between the blocks.
        heads: of queries.
        head_dim: width of a head.
        batch: sequences at once.
        prompt: tokens of each.
        generated: tokens after it; N is the sum.
        weight_bytes: of one weight.
        cache_bytes: of one number of the cache.

    Returns:
        ``parameters``, ``bytes`` and ``flops``, one a variant.

    Raises:
        ValueError: a variant's sizes are below 0, or its ``kv_heads`` do not divide
            ``heads``.
    """
    length = prompt + generated
    rows = []
    for kv_heads, hidden in variants:
        matrices = cache = scores = norms = 0
        if kv_heads == "linear":
            matrices, norms = width**2, width
        elif kv_heads != 0:
            if kv_heads < 0 or heads % kv_heads:
                raise ValueError(
                    f"variants: kv_heads must divide heads ({heads}), got {kv_heads}"
                )
            matrices, norms = 2 * width * head_dim * (heads + kv_heads), width
            cache = 2 * kv_heads * head_dim * length
            scores = 2 * heads * head_dim * length * (length + 1)
        if hidden == "linear":
            matrices, norms = matrices + width**2, norms + width
        elif hidden != 0:
            if hidden < 0:
                raise ValueError(f"variants: hidden must be at least 0, got {hidden}")
            matrices, norms = matrices + 3 * width * hidden, norms + width
        parameters = matrices + norms
        stored = parameters * weight_bytes + batch * cache * cache_bytes
        rows.append((parameters, stored, batch * (2 * matrices * length + scores)))
    columns = np.array(rows, np.float64).reshape(-1, 3).T
    return dict(zip(("parameters", "bytes", "flops"), columns, strict=True))


@checked()
def replace_one_scores(
    damage: Callable[[list[Any]], float],
    parent: Sequence[Any],
    library: Sequence[Sequence[Any]],
) -> Float[np.ndarray, "layers variants"]:
    """Score each variant by what it does to the network as the only new block.

    Bercovich et al. 2025 (Puzzle), arXiv:2411.19146: damage(parent with block i
    replaced by variant j) − damage(parent), so that the parent's own blocks score 0.
    The damage is `jaxkd.losses.kd_loss` to the parent at temperature 1 (the paper's
    best), `cross_entropy_loss` or `cosine_loss`, averaged over validation tokens.

    Args:
        damage: ``blocks -> value`` of the network of these blocks, lower is better.
        parent: its blocks, whatever ``damage`` takes for one.
        library: the variants of each layer.

    Returns:
        The scores, ∞ where the damage is NaN and where a layer has fewer variants.

    Raises:
        ValueError: ``library`` is not of the parent's layers, or the parent's own
            damage is not finite.
    """
    if len(library) != len(parent):
        raise ValueError(
            f"library is of {len(library)} layers but parent has {len(parent)}: give "
            "the variants of each layer"
        )
    base = float(damage(list(parent)))
    if not np.isfinite(base):
        raise ValueError(f"damage of parent must be finite, got {base}")
    scores = np.full((len(parent), max(map(len, library), default=0)), np.inf)
    for i, variants in enumerate(library):
        for j, variant in enumerate(variants):
            value = float(damage([*parent[:i], variant, *parent[i + 1 :]])) - base
            scores[i, j] = np.inf if np.isnan(value) else value
    return scores
