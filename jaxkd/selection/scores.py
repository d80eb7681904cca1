"""Scores of examples, all of one form: ``score(seen) -> (examples,)``.

Which examples are hard, forgotten, memorised or typical, by what networks say of them
(`Seen`). Most are high for hard examples; `aum_scores` and `moderate_scores` say
otherwise. `jaxkd.selection.top_select` and others choose by them; your own are any
array with one number an example.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxkd.arguments import checked
from jaxkd.losses.basics import as_float
from jaxkd.losses.directions import class_means, class_sums
from jaxkd.selection.seen import Seen


@checked()
def el2n_scores(seen: Seen) -> Float[Array, "examples"]:
    """Return the mean error of the probabilities over networks: EL2N, high is hard.

    Paul et al. 2021, arXiv:2107.07075: mean of ‖softmax(z) − onehot(y)‖₂ over networks
    early in training (a tenth of it), of several first weights.

    Args:
        seen: ``logits``.

    Raises:
        ValueError: something is missing or does not fit.
    """
    return jnp.linalg.norm(_error(seen), axis=-1).mean(0)


@checked()
def grand_scores(seen: Seen) -> Float[Array, "examples"]:
    """Return the mean gradient norm over networks: GraNd, high is hard.

    Paul et al. 2021, arXiv:2107.07075: of networks early in training. Of all parameters
    where ``gradient_norms`` is given; else of the last linear layer and its bias, whose
    gradient is (softmax(z) − onehot(y)) ⊗ [h; 1].

    Args:
        seen: ``gradient_norms``, or ``logits`` and ``features`` h.

    Raises:
        ValueError: something is missing or does not fit.
    """
    if seen.gradient_norms is not None:
        return as_float(seen.need("gradient_norms")[0]).mean(0)
    (features,) = seen.need("features")
    length = jnp.sqrt(jnp.sum(as_float(features) ** 2, axis=-1) + 1)
    return (jnp.linalg.norm(_error(seen), axis=-1) * length).mean(0)


@checked()
def forgetting_scores(seen: Seen) -> Float[Array, "examples"]:
    """Return how often each example was forgotten; ∞ if it was never learnt.

    Toneva et al. 2018, arXiv:1812.05159: the times that an example is wrong at one
    evaluation and was right at the one before.

    Args:
        seen: ``right``, or ``logits``, of evaluations of one run in their order.

    Raises:
        ValueError: fewer than two evaluations, or something is missing.
    """
    (right,) = seen.need("right")
    if len(right) < 2:
        raise ValueError(
            f"seen has {len(right)} evaluation: to forget takes at least 2 of one run"
        )
    forgotten = (right[:-1] & ~right[1:]).sum(0)
    return jnp.where(right.any(0), forgotten.astype(float), jnp.inf)


@checked()
def memorization_scores(seen: Seen) -> Float[Array, "examples"]:
    """Return how much oftener an example is right if it was trained on: high is hard.

    Feldman, Zhang 2020, arXiv:2008.03703: P(right | in the subset) − P(right | not in
    it), over networks that were each trained on a random subset, such as 70 %.

    Args:
        seen: ``right``, or ``logits``, and ``in_subset``.

    Returns:
        In [−1, 1]; NaN for an example that was in all subsets, or in none.

    Raises:
        ValueError: something is missing or does not fit.
    """
    right, inside = seen.need("right", "in_subset")
    # Of no network the mean is 0 / 0.
    rates = [
        jnp.sum(right & group, 0) / group.sum(0) for group in (inside > 0, inside == 0)
    ]
    return rates[0] - rates[1]


@checked()
def aum_scores(seen: Seen) -> Float[Array, "examples"]:
    """Return the mean margin over evaluations: LOW is hard, or labelled wrongly.

    Pleiss et al. 2020, arXiv:2001.10528, the area under the margin: mean of
    z_y − max over k ≠ y of z_k.

    Args:
        seen: ``logits`` of evaluations of one run.

    Raises:
        ValueError: fewer than two classes, or something is missing.
    """
    (logits,) = seen.need("logits")
    if logits.shape[-1] < 2:
        raise ValueError("seen.logits has 1 class: a margin needs at least 2")
    z = as_float(logits)
    own = jax.nn.one_hot(seen.labels, z.shape[-1], dtype=bool)
    margin = jnp.max(z, -1, where=own, initial=-jnp.inf) - jnp.max(
        z, -1, where=~own, initial=-jnp.inf
    )
    return margin.mean(0)


@checked()
def moderate_scores(seen: Seen) -> Float[Array, "examples"]:
    """Return how far from its class's median distance an example lies: LOW is typical.

    Xia et al. 2023 (ICLR, "Moderate Coreset"): abs(d − median of d over the class),
    with d the distance of the features to their class's mean; the mean over networks.

    Args:
        seen: ``features``.

    Raises:
        ValueError: something is missing or does not fit.
    """
    (features,) = seen.need("features")
    labels = jnp.asarray(seen.labels)
    classes = int(labels.max()) + 1

    def one(features: Array) -> Array:
        means = class_means(*class_sums(features, labels, classes))
        distance = jnp.linalg.norm(features - means[labels], axis=-1)
        of_class = labels == jnp.arange(classes)[:, None]
        median = jnp.nanmedian(jnp.where(of_class, distance, jnp.nan), axis=-1)
        return jnp.abs(distance - median[labels])

    return jax.vmap(one)(as_float(features)).mean(0)


def _error(seen: Seen) -> Array:
    (logits,) = seen.need("logits")
    p = jax.nn.softmax(as_float(logits))
    return p - jax.nn.one_hot(seen.labels, p.shape[-1], dtype=p.dtype)
