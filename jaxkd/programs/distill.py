"""The common program: a student learns from labels and from a frozen teacher."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import PRNGKeyArray

from jaxkd.adapters import segment_name
from jaxkd.arguments import checked, count
from jaxkd.checks import (
    check_batch,
    check_counted,
    check_labels,
    check_read_tokens,
    check_teacher_ids,
    unknown_name,
)
from jaxkd.network import Network, axes_of
from jaxkd.networks.freezing import frozen_weights
from jaxkd.programs.update import Keys, Merge, Objective, Player, descend
from jaxkd.types import (
    Batch,
    Loss,
    Method,
    Metrics,
    Outputs,
    Program,
    TrainState,
    Variables,
)

NO_TEACHER = Outputs(None, {})


@checked(accumulate=count)
def distill(
    student: Network,
    teacher: Network | None,
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
) -> Program:
    """Return the program that trains a student, and the method's own parameters.

    Both networks run in one compiled step, the teacher frozen, in its own dtype and
    without gradient. Without a teacher it is supervised training. To start from
    trained weights, pass ``teacher.with_variables(variables)``; for several teachers,
    ``networks.ensemble([...])``; for a bf16 teacher, ``teacher.astype(jnp.bfloat16)``.

    Args:
        student: the network to train.
        teacher: the network to learn from, or None.
        method: the objective, such as ``combine((0.1, cross_entropy()), (0.9, kd()))``.
        optimizer: any optax transformation, of the tree ``{"student": params, "method":
            params}``; `jaxkd.training.part_labels` and `jaxkd.training.decay_mask` tell
            its parts apart.
        accumulate: parts in which a batch is worked through, in the memory of one; the
            gradient is that of the whole batch, see `programs.descend`.

    Returns:
        A program whose state is a `TrainState`. Its metrics are ``loss``,
        ``grad_norm`` and the method's own.

    Raises:
        ValueError: a tap that a network lacks; from ``init``, a batch that is empty,
            not finite, or has labels out of range, or that ``accumulate`` does not
            divide.
    """
    return distillation(student, teacher, method, optimizer, accumulate=accumulate)


@checked(accumulate=count)
def distillation(
    student: Network,
    teacher: Network | None,
    method: Method,
    optimizer: optax.GradientTransformation,
    losses: Callable[..., tuple[list[Loss], tuple[Any, dict[str, Any]]]] | None = None,
    merge: Merge | None = None,
    *,
    accumulate: int = 1,
) -> Program:
    """Return the program of `distill`, for one loss or several with a gradient each.

    Args:
        student: as in `distill`.
        teacher: likewise.
        method: likewise.
        optimizer: likewise.
        losses: ``loss`` of the method, but for a list; None for its own.
        merge: gradients of each of them ``-> (the gradient to apply, metrics)``.
        accumulate: as in `distill`.

    Raises:
        ValueError: as `distill`.
    """
    check_taps(student, teacher, method)
    objective = distillation_objective(student, teacher, method, losses)
    player = Player(("student", "method"), optimizer)

    def init(key: PRNGKeyArray, batch: Batch) -> TrainState:
        keys = Keys(key)
        state = initial(keys, batch, student, teacher, method)
        return dataclasses.replace(state, opt_state=player.init(parts_of(state)))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = Keys(state.key).at(state.step)
        found = descend(
            player,
            state.opt_state,
            objective,
            parts_of(state),
            carry_of(state),
            prepared(method, keys, batch),
            keys,
            state.step,
            accumulate=accumulate,
            merge=merge,
        )
        state = advanced(state, method, found.params, found.carry)
        return dataclasses.replace(state, opt_state=found.opt_state), found.metrics

    def check(state: TrainState, batch: Batch) -> None:
        check_training(state.classes, batch, student, teacher)

    return Program(init, step, frozen_teacher, axes_of(student, teacher), check)


@checked()
def distillation_objective(
    student: Network,
    teacher: Network | None,
    method: Method,
    losses: Callable[..., Any] | None = None,
) -> Objective:
    """Return the objective of `distill` for `programs.descend`.

    Its parts are ``student`` and ``method``, both params, and ``teacher``, variables;
    its carry is the student's ``stats`` and the method's ``state``.
    """

    def objective(params: Any, carry: Any, batch: Batch, keys: Keys, step: Any):
        taught = teach(teacher, method, params["teacher"], batch)
        variables = {"params": params["student"], "stats": carry["student"]}
        outputs, variables = learn(student, method, variables, batch, keys)
        held = {"params": params["method"], "state": carry["method"]}
        found, (state, metrics) = (losses or method.loss)(
            held, outputs, taught, batch, keys.method, step
        )
        return found, ({"student": variables["stats"], "method": state}, metrics)

    return objective


@checked()
def initial(
    keys: Keys,
    batch: Batch,
    student: Network,
    teacher: Network | None,
    method: Method,
) -> TrainState:
    """Return the first state, without an optimizer's.

    Raises:
        ValueError: a batch that is empty, not finite, or has labels out of range.
    """
    check_batch(batch)
    variables = student.init(keys.student)
    teacher_variables = None if teacher is None else teacher.init(keys.teacher)
    label = batch.get("label")
    labels = [] if label is None else list(np.shape(label))
    batch = prepared(method, keys, batch)
    outputs, _ = learn(student, method, variables, batch, keys)
    check_batch(batch, outputs.logits.shape[-1])
    taught = teach(teacher, method, teacher_variables, batch)
    *one_each, classes = outputs.logits.shape
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=keys.run,
        student=variables,
        teacher=teacher_variables,
        method=method.init(keys.method, outputs, taught, batch),
        opt_state=None,
        classes=classes if labels == one_each else None,
    )


@checked()
def check_training(
    classes: int | None, batch: Batch, student: Network, teacher: Network | None
) -> None:
    """Refuse a batch that a student cannot learn from, beyond what `check_batch` does.

    Args:
        classes: labels are below it; None checks none.
        batch: on the host.
        student: the network to train.
        teacher: the network to learn from, or None.

    Raises:
        ValueError: a batch that counts no example, labels or a teacher's best tokens
            outside the classes, or tokens outside a network's vocabulary.
    """
    check_counted(batch)
    label = batch.get("label")
    if (
        classes is not None
        and label is not None
        and np.asarray(label).dtype.kind in "iu"
    ):
        check_labels("batch['label']", label, classes, batch.get("mask"))
    if classes is not None:
        check_teacher_ids(batch.get("teacher_ids"), classes)
    for role, network in (("student", student), ("teacher", teacher)):
        if network is not None:
            check_read_tokens(batch, role, network.vocabulary)


@checked()
def parts_of(state: TrainState) -> dict[str, Any]:
    """Return a state's parts for `programs.descend`."""
    return {
        "student": state.student["params"],
        "method": state.method["params"],
        "teacher": state.teacher,
    }


@checked()
def carry_of(state: TrainState) -> dict[str, Any]:
    """Return what a state's forward passes change."""
    return {"student": state.student["stats"], "method": state.method["state"]}


@checked()
def advanced(state: TrainState, method: Method, params: Any, carry: Any) -> TrainState:
    """Return the state one step on; the opposite of `parts_of` and `carry_of`."""
    held = carry["method"]
    if method.update is not None:
        held = method.update(held, state.step)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        student={
            **state.student,
            "params": params["student"],
            "stats": carry["student"],
        },
        method={"params": params["method"], "state": held},
    )


@checked()
def prepared(method: Method, keys: Keys, batch: Batch) -> Batch:
    """Return the batch as the method wants it before the forward passes."""
    return method.prepare(keys.prepare, batch) if method.prepare else batch


@checked()
def teach(
    teacher: Network | None, method: Method, variables: Any, batch: Batch
) -> Outputs:
    """Return the teacher's outputs, which get no gradient."""
    if teacher is None:
        return NO_TEACHER
    outputs, _ = teacher.apply(
        variables, teacher.read(batch, "teacher"), taps=method.teacher_taps
    )
    segments = {
        segment_name(ends): _called(teacher.segment(*ends), variables)
        for ends in method.teacher_segments
    }
    return jax.lax.stop_gradient(dataclasses.replace(outputs, segments=segments))


def _called(segment: Network, variables: Variables) -> Partial:
    """Return a part of a network as a function whose weights get no gradient.

    It is a pytree of them, so that `jax.lax.stop_gradient` stops theirs alone.
    """
    return Partial(lambda weights, x: segment.apply(weights, x)[0].logits, variables)


@checked()
def learn(
    student: Network, method: Method, variables: Variables, batch: Batch, keys: Keys
) -> tuple[Outputs, Variables]:
    """Return the student's outputs in training, and its variables after."""
    return student.apply(
        variables,
        student.read(batch, "student"),
        taps=method.student_taps,
        train=True,
        key=keys.student,
    )


@checked()
def frozen_teacher(state: TrainState) -> Any:
    """Return the arrays of a state that no step changes."""
    return {"teacher": state.teacher, "student": frozen_weights(state.student)}


@checked()
def check_taps(student: Network, teacher: Network | None, method: Method) -> None:
    """Refuse a method that reads what a network does not have.

    Raises:
        ValueError: it names the tap, or what the teacher can be cut at, and the closest
            ones.
    """
    read = (*method.teacher_taps, *map(segment_name, method.teacher_segments))
    if teacher is None and read:
        raise ValueError(
            f"teacher is None, but the method reads the teacher's features {read}: "
            "pass the teacher's network"
        )
    for ends in method.teacher_segments:
        cast(Network, teacher).segment(*ends)
    for who, network, taps in (
        ("student", student, method.student_taps),
        ("teacher", teacher, method.teacher_taps),
    ):
        for tap in taps:
            if network is not None and tap not in network.taps:
                raise ValueError(unknown_name(f"{who} tap", tap, network.taps))
