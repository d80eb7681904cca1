"""How a `Method` is made: from a loss, from a loss with modules, or from other methods.

Every method here honours ``batch["mask"]`` and ``batch["weight"]``: an example or token
of weight 0 contributes nothing, whatever the networks say of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray, PyTree

from jaxkd.adapters import abstract_module, merge_module, split_module
from jaxkd.arguments import checked, finite
from jaxkd.losses.basics import weighted_loss
from jaxkd.methods.masks import batch_weights as batch_weights
from jaxkd.methods.masks import masked
from jaxkd.methods.modules.projectors import Connector
from jaxkd.types import Batch, Loss, Method, MethodVariables, Metrics, Outputs

Schedule = Callable[[Any], Any]


def example_weights(batch: Batch, outputs: Outputs) -> Array | None:
    """Return one weight an example, or None, for losses that relate examples."""
    return batch_weights(batch, outputs.logits.shape[:1])


def masked_loss(values: Any, batch: Batch) -> Loss:
    """Return losses of examples or tokens as their weighted sum, and its weight.

    Args:
        values: (batch, ...); or a `Loss`, which is left as it is; or the scalar of a
            loss that relates the batch's examples, which counts as often as there are
            examples that do.
        batch: its masks and weights.
    """
    if isinstance(values, Loss):
        return values
    if jnp.ndim(values):
        return weighted_loss(values, batch_weights(batch, values.shape))
    count = counted_examples(batch)
    return Loss(values * count, count)


def counted_examples(batch: Batch) -> Array:
    """Return the sum of the examples' weights, from the batch alone."""
    given = [batch[name] for name in ("mask", "weight") if batch.get(name) is not None]
    sizes = [len(x) for x in jax.tree.leaves(given or dict(batch)) if jnp.ndim(x)]
    weights = batch_weights(batch, (sizes[0],))
    return jnp.full((), sizes[0], float) if weights is None else weights.sum()


@checked()
def from_loss(
    loss: Callable[[Outputs, Outputs, Batch], Any],
    *,
    name: str,
    student_taps: tuple[str, ...] = (),
    teacher_taps: tuple[str, ...] = (),
) -> Method:
    """Lift a plain loss to a `Method` without parameters or state.

    Args:
        loss: ``(student, teacher, batch)`` to one loss an example or token, of which
            the masked mean is taken; or to a scalar that is masked already; or to a
            `Loss`.
        name: of the loss in the metrics.
        student_taps: features read from the student.
        teacher_taps: features read from the teacher.
    """

    def init(key, student, teacher, batch) -> MethodVariables:
        return {"params": {}, "state": {}}

    def value(variables, student, teacher, batch, key, step):
        found = masked_loss(loss(student, teacher, batch), batch)
        return found, (variables["state"], {name: found})

    return masked(Method(init, value, student_taps, teacher_taps))


@checked()
def from_module(
    build: Callable[[Outputs, Outputs, nnx.Rngs], nnx.Module],
    loss: Callable[[Any, Outputs, Outputs, Batch, PRNGKeyArray], Any],
    *,
    name: str,
    student_taps: tuple[str, ...] = (),
    teacher_taps: tuple[str, ...] = (),
) -> Method:
    """Make a `Method` of a loss with a Flax module trained along (a projector).

    Args:
        build: ``(student, teacher, rngs)`` to the module, for the outputs' shapes.
        loss: ``(module, student, teacher, batch, key)`` to losses, as in `from_loss`.
            The module is in training mode; its BatchNorm averages are the state.
        name: of the loss in the metrics.
        student_taps: features read from the student.
        teacher_taps: features read from the teacher.
    """

    def init(key, student, teacher, batch) -> MethodVariables:
        params, state = split_module(build(student, teacher, nnx.Rngs(key)))
        return {"params": params, "state": state}

    def value(variables, student, teacher, batch, key, step):
        abstract = abstract_module(lambda: build(student, teacher, nnx.Rngs(0)))
        module = merge_module(abstract, variables["params"], variables["state"], key)
        module.train()
        found = masked_loss(loss(module, student, teacher, batch, key), batch)
        return found, (split_module(module)[1], {name: found})

    return masked(Method(init, value, student_taps, teacher_taps))


@checked()
def pair_taps(
    taps: Sequence[str], teacher_taps: Sequence[str] | None
) -> list[tuple[str, str]]:
    """Return (student's, teacher's) tap for every stage.

    Raises:
        ValueError: no taps, one string instead of a sequence, or unequal numbers.
    """
    teacher_taps = taps if teacher_taps is None else teacher_taps
    if isinstance(taps, str) or isinstance(teacher_taps, str) or not taps:
        raise ValueError(f"taps must be a sequence of at least one name, got {taps!r}")
    if len(taps) != len(teacher_taps):
        raise ValueError(
            f"taps names {len(taps)} layers {tuple(taps)} but teacher_taps "
            f"{len(teacher_taps)} {tuple(teacher_taps)}: give one for each"
        )
    return list(zip(taps, teacher_taps, strict=True))


@checked()
def connectors(
    student: Outputs, teacher: Outputs, pairs: list[tuple[str, str]], rngs: nnx.Rngs
) -> nnx.Module:
    """Return a trained 1x1 convolution and BatchNorm for each pair of maps."""
    return nnx.List(
        Connector(
            student.features[s].shape[-1], teacher.features[t].shape[-1], rngs=rngs
        )
        for s, t in pairs
    )


def combine(*terms: tuple[float | Schedule, Method]) -> Method:
    """Return the weighted sum of methods over one forward pass of each network.

    Args:
        *terms: ``(weight, method)``. A weight may be an optax schedule of the step, so
            a loss can warm up, or train alone for a first stage.

    Raises:
        ValueError: no terms, a term that is not a pair of weight and method, a weight
            that is neither a finite number nor a function; from the loss, a schedule
            that returns no number.
    """
    if not terms:
        raise ValueError("combine() needs at least one (weight, method) pair")
    for term in terms:
        if not (isinstance(term, tuple) and len(term) == 2):
            raise ValueError(f"combine() takes (weight, method) pairs, got {term!r}")
        if not isinstance(term[1], Method):
            raise ValueError(
                f"combine() takes (weight, method) pairs, got {term!r}: call the "
                "method's constructor, as in (0.9, kd(temperature=4.0))"
            )
        _check_weight(term[0])
    methods = [method for _, method in terms]

    def init(key, student, teacher, batch) -> MethodVariables:
        parts = [
            method.init(jax.random.fold_in(key, i), student, teacher, batch)
            for i, method in enumerate(methods)
        ]
        return {
            kind: {str(i): part[kind] for i, part in enumerate(parts)}
            for kind in ("params", "state")
        }

    def loss(variables, student, teacher, batch, key, step):
        losses, found = weighted_losses(
            terms, variables, student, teacher, batch, key, step
        )
        return summed(*((1.0, loss) for loss in losses)), found

    def prepare(key, batch):
        for i, method in enumerate(methods):
            if method.prepare is not None:
                batch = method.prepare(jax.random.fold_in(key, i), batch)
        return batch

    def update(state, step):
        return {
            str(i): state[str(i)]
            if method.update is None
            else method.update(state[str(i)], step)
            for i, method in enumerate(methods)
        }

    return Method(
        init,
        loss,
        _union(method.student_taps for method in methods),
        _union(method.teacher_taps for method in methods),
        prepare if any(method.prepare for method in methods) else None,
        update if any(method.update for method in methods) else None,
    )


@checked(weight=finite)
def _check_weight(weight: float | Schedule) -> None:
    """Refuse a weight of `combine` that is no finite number and no function."""


@checked()
def weighted_losses(
    terms: Sequence[tuple[float | Schedule, Method]],
    variables: MethodVariables,
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    key: PRNGKeyArray,
    step: Any,
) -> tuple[list[Loss], tuple[PyTree, dict[str, Any]]]:
    """Return each term's weighted loss, and the new state and metrics of them all.

    Args:
        terms: of `combine`, whose variables these are.
        variables: of the combined method.
        student: outputs.
        teacher: outputs.
        batch: as every method gets it.
        key: likewise.
        step: likewise.
    """
    losses, state, metrics = [], {}, {}
    for i, (weight, method) in enumerate(terms):
        own = {kind: tree[str(i)] for kind, tree in variables.items()}
        loss, (state[str(i)], found) = method.loss(
            own, student, teacher, batch, jax.random.fold_in(key, i), step
        )
        loss, factor = as_loss(loss), weight(step) if callable(weight) else weight
        if getattr(factor, "size", 1) != 1 or factor is None:
            raise ValueError(
                f"the weight of term {i} is a schedule that returned {factor!r:.80}: "
                "it must return a number"
            )
        losses.append(Loss(factor * loss.total, loss.weight))
        metrics |= {
            name if name not in metrics else f"{name}_{i}": metric
            for name, metric in found.items()
        }
    return losses, (state, metrics)


def as_loss(loss: Any) -> Loss:
    """Return a `Loss`; a scalar counts as one term of weight 1.

    Raises:
        ValueError: an array that is no scalar.
    """
    if isinstance(loss, Loss):
        return loss
    if jnp.ndim(loss) != 0:
        raise ValueError(
            f"the method's loss has shape {jnp.shape(loss)}: it must be a Loss or a "
            "scalar; from_loss sums losses of examples"
        )
    return Loss(jnp.asarray(loss), jnp.ones(()))


@checked()
def resolved(
    found: tuple[Any, tuple[PyTree, dict[str, Any]]],
) -> tuple[Array, tuple[PyTree, Metrics]]:
    """Return what a method's ``loss`` returned, every `Loss` divided by its weight.

    Args:
        found: ``(loss, (state, metrics))``.
    """
    loss, (state, metrics) = found
    values = {k: m.value if isinstance(m, Loss) else m for k, m in metrics.items()}
    return as_loss(loss).value, (state, values)


def summed(*terms: tuple[Any, Loss]) -> Loss:
    """Return Σ factor·loss as one `Loss`, whose terms keep their own weights.

    Args:
        *terms: ``(factor, loss)``.
    """
    totals = [jnp.ravel(factor * loss.total) for factor, loss in terms]
    weights = [jnp.ravel(loss.weight) for _, loss in terms]
    return Loss(jnp.concatenate(totals), jnp.concatenate(weights))


def _union(taps) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tap for some in taps for tap in some))
