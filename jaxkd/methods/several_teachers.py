"""Several teachers, each with a method and tokens of its own, weighed by example."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxkd.arguments import checked, positive
from jaxkd.losses.basics import as_float, frozen
from jaxkd.losses.divergences import cross_entropy_loss
from jaxkd.methods.base import as_loss, summed
from jaxkd.types import Batch, Loss, Method, Outputs

Weigh = Callable[[Sequence[Outputs], Sequence[Batch]], Float[Array, "batch teachers"]]


@checked()
def several_teachers(methods: Sequence[Method], weigh: Weigh) -> Method:
    """Return Σ w(teacher, example)·loss over teachers that may differ in everything.

    The teacher is `jaxkd.networks.side_by_side`, and the batch has what method i reads
    with ``teacher_i_`` in place of ``teacher_``, as `jaxkd.data.several_tokenizers`
    makes it.

    Args:
        methods: of each teacher, such as ``aligned_kd(common)``; without parameters.
        weigh: ``(teachers' outputs, batches as each method sees them) ->`` weights,
            such as `by_domain` or `by_confidence`. They get no gradient.

    Raises:
        ValueError: no methods, or one with taps; from ``init``, one with parameters.
    """
    if not methods:
        raise ValueError("methods is empty: give one for each teacher")
    for i, method in enumerate(methods):
        if method.student_taps or method.teacher_taps:
            _refuse(i)
    taps = tuple(f"{i}.logits" for i in range(len(methods)))

    def views(teacher: Outputs, batch: Batch) -> tuple[list[Outputs], list[Batch]]:
        """Return outputs and batch as if each teacher were the only one."""
        shared = {n: x for n, x in batch.items() if not n.startswith("teacher_")}
        batches = []
        for i in range(len(methods)):
            before = f"teacher_{i}_"
            own = {
                f"teacher_{name.removeprefix(before)}": x
                for name, x in batch.items()
                if name.startswith(before)
            }
            batches.append(shared | own)
        return [Outputs(teacher.features[tap]) for tap in taps], batches

    def init(key, student, teacher, batch):
        for i, (method, one, own) in enumerate(
            zip(methods, *views(teacher, batch), strict=True)
        ):
            held = method.init(key, student, one, own)
            if jax.tree.leaves(held):
                _refuse(i)
        return {"params": {}, "state": {}}

    def loss(variables, student, teacher, batch, key, step):
        outputs, batches = views(teacher, batch)
        weights = jax.lax.stop_gradient(weigh(outputs, batches))
        terms, metrics = [], {}
        nothing = {"params": {}, "state": {}}
        for i, (method, one, own) in enumerate(
            zip(methods, outputs, batches, strict=True)
        ):
            given = jnp.asarray(own.get("weight", 1.0))
            each = weights[:, i].reshape(-1, *(1,) * (given.ndim - 1))
            weighed, plain = (
                as_loss(method.loss(nothing, student, one, some, key, step)[0])
                for some in ({**own, "weight": given * each}, own)
            )
            # What divides is the batch's own, whatever the teachers say of it.
            terms.append((1.0, Loss(weighed.total, plain.weight)))
            metrics[f"teacher_{i}"] = weights[:, i].mean()
        found = summed(*terms)
        return found, (variables["state"], {"several_teachers": found, **metrics})

    return Method(init, loss, (), taps)


def _refuse(i: int) -> None:
    raise ValueError(
        f"methods[{i}] has parameters, a state or taps, which several teachers do not "
        "share: give methods of logits alone, such as aligned_kd()"
    )


@checked()
def by_domain(weights: Float[np.ndarray, "domains teachers"]) -> Weigh:
    """Return what weighs teachers by the ``domain`` of each example in the batch.

    Args:
        weights: of each teacher in each domain, at least 0.

    Raises:
        ValueError: a weight below 0; from the method, a batch without ``domain``.
    """
    table = jnp.asarray(weights, jnp.float32)
    if np.ndim(weights) != 2 or not np.all(np.asarray(weights) >= 0):
        raise ValueError(
            f"weights must be at least 0, (domains, teachers), got {weights!r:.200}"
        )

    def weigh(outputs: Sequence[Outputs], batches: Sequence[Batch]) -> Array:
        if "domain" not in batches[0]:
            raise ValueError(
                f"the batch has {sorted(batches[0])}, but by_domain() needs "
                "domain, the number of each example's, as data.mixture_batches makes it"
            )
        return table[batches[0]["domain"]]

    return weigh


@checked(temperature=positive)
def by_confidence(temperature: float = 1.0) -> Weigh:
    """Return what weighs teachers by how probable each finds the answer.

    Zhang et al. 2022 (CA-MKD), arXiv:2201.00007, weigh by the cross-entropy with the
    label; here w = softmax(−CE/T) over the teachers. CE is of the whole answer, in nats
    and not by the token, so that tokenizers do not matter, over the student's number
    of tokens.

    Args:
        temperature: T > 0; towards 0 the most confident teacher alone counts.
    """

    def weigh(outputs: Sequence[Outputs], batches: Sequence[Batch]) -> Array:
        losses = []
        for one, batch in zip(outputs, batches, strict=True):
            mask = jnp.asarray(batch["teacher_mask"]) > 0
            logits = jnp.where(mask[..., None], frozen(one.logits), 0)
            label = jnp.where(mask, batch["teacher_label"], 0)
            each = jnp.where(mask, cross_entropy_loss(logits, label), 0)
            losses.append(each.sum(-1))
        tokens = jnp.maximum(as_float(batches[0]["mask"]).sum(-1), 1)
        return jax.nn.softmax(-jnp.stack(losses, -1) / tokens[:, None] / temperature)

    return weigh
