"""Zero-cost proxies: what one batch tells of an untrained network, as baselines.

Definitions and names are those of Abdelfattah et al. 2021, arXiv:2101.08134; kernels
count, biases and BatchNorm do not. Size alone is a proxy as well:
`jaxkd.evaluation.cost.parameter_count` and `forward_cost`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxkd.arguments import checked


def _kernels(tree: PyTree) -> list[Array]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [leaf for path, leaf in leaves if path[-1].key == "kernel"]


def grad_norm(gradients: PyTree) -> Float[Array, ""]:
    """Return Σ ‖g‖ over the layers' kernels.

    Args:
        gradients: of the mean cross-entropy of a batch, a nested dict of parameters.
    """
    return sum(map(jnp.linalg.norm, map(jnp.ravel, _kernels(gradients))), jnp.zeros(()))


def snip(params: PyTree, gradients: PyTree) -> Float[Array, ""]:
    """Return ``Σ |w·g|`` over the kernels: Lee et al. 2019, arXiv:1810.02340.

    Args:
        params: w.
        gradients: g, of the mean cross-entropy of a batch.
    """
    pairs = zip(_kernels(params), _kernels(gradients), strict=True)
    return sum((jnp.abs(w * g).sum() for w, g in pairs), jnp.zeros(()))


@checked()
def synflow(logits_fn: Callable[[PyTree], Array], params: PyTree) -> Float[Array, ""]:
    """Return log Σ w·∂R/∂w over the kernels, where R is the logits' sum with ``|w|``.

    Tanaka et al. 2020, arXiv:2006.05467, Eq. 4. R grows by a factor a layer: under 40
    layers and more, only float64 (``jax.enable_x64``) holds it.

    Args:
        logits_fn: ``params -> logits`` of one image of ones, without BatchNorm: in
            evaluation with averages of 0 and variances of 1.
        params: of the network; all are taken by their absolute values.
    """
    positive = jax.tree.map(jnp.abs, params)
    gradients = jax.grad(lambda p: logits_fn(p).sum())(positive)
    pairs = zip(_kernels(positive), _kernels(gradients), strict=True)
    return jnp.log(sum((w * g).sum() for w, g in pairs))


@checked()
def code_similarity(active: Bool[Array, "batch *units"]) -> Float[Array, "batch batch"]:
    """Return how many of a ReLU layer's units any two examples switch alike.

    Args:
        active: which units are on. Layers' matrices add up to the kernel of `nwot`.
    """
    code = 2.0 * active.reshape(len(active), -1) - 1
    return (code.shape[1] + code @ code.T) / 2


@checked()
def nwot(kernel: Float[Array, "batch batch"]) -> Float[Array, ""]:
    """Return ``log |det K|`` of the ReLUs' codes: Mellor et al. 2021, arXiv:2006.04647.

    Args:
        kernel: K, the sum of `code_similarity` over the network's ReLUs.

    Returns:
        The score; -inf where two examples have the same codes.
    """
    return jnp.linalg.slogdet(kernel)[1]
