"""Losses on the tokens of images: how they relate in an image, and over a batch.

A token is a place of a feature map, or a transformer's patch. Some tokens of every
image are the nodes of a graph, in which each has an edge from its nearest nodes, of its
own image or of another; shapes are static, so that it is built inside the train step.
``weights`` are one a node, and a node of weight 0 is as good as absent. Zhang, Liu, He
2023, arXiv:2306.12442.
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxkd.arguments import checked, count, positive, probability
from jaxkd.losses.basics import (
    as_float,
    check_array,
    frozen,
    l2_normalize,
    log_softmax,
    zero_masked,
)
from jaxkd.losses.divergences import kl_divergence
from jaxkd.losses.pooling import match_size

_EXACT = jax.lax.Precision.HIGHEST


@checked(patch=count)
def tokenize_feature_map(
    features: Float[Array, "batch height width channels"], patch: int = 1
) -> Float[Array, "batch tokens features"]:
    """Return the square patches of a map as tokens, row by row.

    Args:
        features: the map.
        patch: the patches' side; a token has patch²·channels features.

    Raises:
        ValueError: no map, or patches that do not tile it.
    """
    check_array("features", features, 4)
    _, height, width, _ = features.shape
    if height % patch or width % patch:
        raise ValueError(
            f"patch is {patch}, which does not tile a map of {height}x{width}: take a "
            "divisor of both"
        )
    return rearrange(features, "b (i y) (j x) c -> b (i j) (y x c)", y=patch, x=patch)


@checked(patch=count)
def matched_tokens(
    student: Float[Array, "batch ..."],
    teacher: Float[Array, "batch ..."],
    patch: int = 1,
) -> tuple[Float[Array, "batch tokens _"], Float[Array, "batch tokens _"]]:
    """Return as many tokens of both networks; the larger grid is average-pooled.

    Args:
        student: a map (batch, height, width, channels), or a transformer's tokens
            (batch, tokens, width). Tokens beyond the largest square number come first
            and are class tokens, which are left out.
        teacher: the same of the teacher, of either kind.
        patch: as in `tokenize_feature_map`.

    Raises:
        ValueError: features of other ranks, other batches, or patches that do not tile.
    """
    maps = match_size(_as_map("student", student), _as_map("teacher", teacher))
    first, second = (tokenize_feature_map(x, patch) for x in maps)
    return first, second


def _as_map(name: str, features: Array) -> Array:
    if jnp.ndim(features) == 4:
        return features
    check_array(name, features, 3)
    tokens = features.shape[1]
    side = math.isqrt(tokens)
    return rearrange(features[:, tokens - side**2 :], "b (i j) c -> b i j c", i=side)


@checked(batch=count, tokens=count, samples=count)
def sample_token_indices(
    key: PRNGKeyArray, batch: int, tokens: int, samples: int, replace: bool = False
) -> Int[Array, "batch samples"]:
    """Draw some tokens of every image, for `gather_tokens` of both networks.

    Args:
        key: draws them.
        batch: images.
        tokens: of an image.
        samples: to draw of each.
        replace: whether a token may be drawn twice.

    Raises:
        ValueError: more samples than tokens, without replacement.
    """
    if samples > tokens and not replace:
        raise ValueError(
            f"samples is {samples}, but an image has {tokens} tokens: draw fewer, or "
            "set replace"
        )

    def draw(key: PRNGKeyArray) -> Array:
        return jax.random.choice(key, tokens, (samples,), replace)

    return jax.vmap(draw)(jax.random.split(key, batch))


def gather_tokens(
    tokens: Float[Array, "batch tokens features"], indices: Int[Array, "batch samples"]
) -> Float[Array, "nodes features"]:
    """Return the tokens at some indices of each image, image after image."""
    nodes = jnp.take_along_axis(tokens, indices[..., None], axis=1)
    return nodes.reshape(-1, tokens.shape[-1])


@checked(k=count, sigma=positive)
def knn_adjacency(
    nodes: Float[Array, "nodes features"],
    k: int = 8,
    sigma: float = 0.5,
    mask: Bool[Array, "nodes nodes"] | None = None,
    weights: Float[Array, "nodes"] | None = None,
) -> tuple[Float[Array, "nodes nodes"], Bool[Array, "nodes nodes"]]:
    """Return the weights of the graph of nearest neighbours, and where its edges are.

    ``A[i, j] = exp(−‖x_i − x_j‖²/(2σ))`` where i is one of j's k nearest nodes, else 0:
    column j holds j's neighbours, so that A is not symmetric. No node is its own
    neighbour. Which nodes are near has no gradient, how near they are has. Takes
    memory for a few (nodes, nodes) matrices.

    Args:
        nodes: x; normalise them, or σ depends on their scale.
        k: neighbours of a node, fewer where fewer count.
        sigma: σ > 0; as the paper prints it, not squared.
        mask: edges to take in place of the nearest, such as another network's.
        weights: one a node; those of weight 0 are nobody's neighbours.

    Raises:
        ValueError: k is not below the number of nodes, or σ not above 0.
    """
    check_array("nodes", nodes, 2)
    count_, everyone = len(nodes), jnp.arange(len(nodes))
    if k >= count_:
        raise ValueError(
            f"k is {k}, but each of {count_} nodes has {count_ - 1} others: take a "
            "smaller k, or sample more tokens"
        )
    nodes = zero_masked(as_float(nodes), weights)
    squares = jnp.sum(nodes**2, axis=1)
    products = jnp.matmul(nodes, nodes.T, precision=_EXACT)
    # Rounding takes the distance of equal nodes below 0.
    distances = jnp.maximum(squares[:, None] + squares - 2 * products, 0)
    if mask is None:
        far = everyone[:, None] == everyone
        if weights is not None:
            far |= (as_float(weights) <= 0)[:, None]
        near = -jnp.where(far, jnp.inf, jax.lax.stop_gradient(distances))
        found, neighbors = jax.lax.top_k(near.T, k)
        mask = jnp.zeros((count_, count_), bool)
        mask = mask.at[neighbors, everyone[:, None]].set(found > -jnp.inf)
    return jnp.where(mask, jnp.exp(-distances / (2 * sigma)), 0), mask


@checked(k=count, sigma=positive)
def trg_local_loss(
    student_nodes: Float[Array, "nodes student_dim"],
    teacher_nodes: Float[Array, "nodes teacher_dim"],
    k: int = 8,
    sigma: float = 0.5,
    *,
    shared_neighbors: bool = True,
    reverse: bool = True,
    mask_non_neighbors: bool = False,
    normalize: bool = True,
    weights: Float[Array, "nodes"] | None = None,
) -> Float[Array, "nodes"]:
    """Local structure: KL of the softmaxed rows of both networks' `knn_adjacency`.

    Zhang, Liu, He 2023, arXiv:2306.12442: KL(softmax(A^s_i) ‖ softmax(A^t_i)). The rows
    hold the zeros of all that are no neighbours, whose e⁰ = 1 flattens them: losses are
    1e-3 and below, and fall with the number of nodes.

    Args:
        student_nodes: tokens.
        teacher_nodes: the same tokens of the teacher, of any width.
        k: neighbours of a node.
        sigma: width of the kernel.
        shared_neighbors: whether both graphs have the teacher's edges; else each
            network's are between its own nearest nodes, as the paper prints it.
        reverse: KL(student ‖ teacher), the paper's; else KL(teacher ‖ student).
        mask_non_neighbors: whether rows are of neighbours alone.
        normalize: whether tokens are divided by their norms, so that σ means the same
            for all networks.
        weights: one a node.

    Returns:
        The loss of each node; the paper takes the sum.

    Raises:
        ValueError: other numbers of nodes, k or σ out of range, or rows of different
            neighbours, between which KL is infinite.
    """
    _check_nodes(student_nodes, teacher_nodes)
    if mask_non_neighbors and not shared_neighbors:
        raise ValueError(
            "mask_non_neighbors needs shared_neighbors: where the networks' neighbours "
            "differ, KL of the neighbours alone is infinite"
        )
    student = zero_masked(as_float(student_nodes), weights)
    teacher = zero_masked(frozen(teacher_nodes), weights)
    if normalize:
        student, teacher = l2_normalize(student), l2_normalize(teacher)
    of_teacher, edges = knn_adjacency(teacher, k, sigma, weights=weights)
    shared = edges if shared_neighbors else None
    of_student, _ = knn_adjacency(student, k, sigma, shared, weights)
    counted = jnp.ones(len(student)) if weights is None else as_float(weights)
    columns = edges & (counted > 0) if mask_non_neighbors else counted > 0
    log_s, log_t = (
        log_softmax(jnp.where(columns, a, -jnp.inf)) for a in (of_student, of_teacher)
    )
    losses = kl_divergence(log_s, log_t) if reverse else kl_divergence(log_t, log_s)
    return zero_masked(losses, weights)


@checked()
def contextual_similarity(
    tokens: Float[Array, "batch tokens features"], normalize: bool = False
) -> Float[Array, "batch tokens tokens"]:
    """Return softmax(F·Fᵀ/√width) of every image: how its tokens relate.

    Args:
        tokens: F.
        normalize: whether tokens are brought to mean 0 and variance 1 first. Where
            their norms are far above 10, the softmax is 0 and 1 otherwise, and has no
            gradient.
    """
    check_array("tokens", tokens, 3)
    tokens = as_float(tokens)
    if normalize:
        tokens = jax.nn.standardize(tokens)
    scores = jnp.einsum("bid,bjd->bij", tokens, tokens, precision=_EXACT)
    return jax.nn.softmax(scores / tokens.shape[-1] ** 0.5)


@checked()
def trg_contextual_loss(
    student_tokens: Float[Array, "batch tokens student_dim"],
    teacher_tokens: Float[Array, "batch tokens teacher_dim"],
    normalize: bool = False,
) -> Float[Array, "batch"]:
    """Context in an image: squared difference of both `contextual_similarity`.

    Zhang, Liu, He 2023, arXiv:2306.12442, the inner-instance loss. Entries are about
    1/tokens, so that the loss is small.

    Args:
        student_tokens: all tokens of each image.
        teacher_tokens: as many of the teacher, of any width.
        normalize: as in `contextual_similarity`.

    Returns:
        The mean over tokens² of each image.

    Raises:
        ValueError: other numbers of images or tokens.
    """
    check_array("student_tokens", student_tokens, 3)
    check_array("teacher_tokens", teacher_tokens, 3)
    if student_tokens.shape[:2] != teacher_tokens.shape[:2]:
        raise ValueError(
            f"student_tokens has shape {student_tokens.shape} but teacher_tokens has "
            f"{teacher_tokens.shape}: bring them to as many tokens by matched_tokens"
        )
    own = contextual_similarity(student_tokens, normalize)
    taught = contextual_similarity(frozen(teacher_tokens), normalize)
    return jnp.square(own - taught).mean((1, 2))


@checked(progress=probability, start=positive, end=positive)
def dynamic_temperature(
    progress: float | Float[Array, ""], start: float = 0.5, end: float = 0.07
) -> Float[Array, ""]:
    """Return the temperature of `info_nce_loss` on a cosine from coarse to fine.

    Args:
        progress: the share of training that is over, in [0, 1].
        start: the temperature at 0.
        end: the temperature at 1.
    """
    return jnp.asarray(end + (start - end) * (1 + jnp.cos(jnp.pi * progress)) / 2)


def _check_nodes(student: Array, teacher: Array) -> None:
    check_array("student_nodes", student, 2)
    check_array("teacher_nodes", teacher, 2)
    if len(student) != len(teacher):
        raise ValueError(
            f"student_nodes holds {len(student)} nodes but teacher_nodes holds "
            f"{len(teacher)}: gather the same tokens of both networks"
        )
