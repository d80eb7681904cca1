"""The common program: a student learns from labels and from a frozen teacher."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PRNGKeyArray, PyTree

from jaxkd.checks import check_batch, unknown_name
from jaxkd.network import Network
from jaxkd.types import (
    Batch,
    Inputs,
    Method,
    Metrics,
    Outputs,
    Program,
    TrainState,
    Variables,
)

DIFFUSION_INPUTS = ("image", "time", "condition")
TEXT_INPUTS = (
    "input_ids",
    "attention_mask",
    "segment_ids",
    "position_ids",
    "token_type_ids",
    "decoder_input_ids",
    "pixel_values",
)


def network_inputs(batch: Batch) -> Inputs:
    """Return what a network reads of a batch: the image, graph, or named inputs.

    With ``time`` in the batch, these are a diffusion model's: the dict of ``image``,
    ``time`` and, if there is one, ``condition``.

    Raises:
        ValueError: the batch has none of them, or an image that is not of floats.
    """
    if "image" in batch:
        image = batch["image"]
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise ValueError(
                f"batch['image'] is {image.dtype}, but networks take floats: pass "
                "data.batches a transform that ends in data.Normalize(mean, std)"
            )
        if "time" in batch:
            return {name: batch[name] for name in DIFFUSION_INPUTS if name in batch}
        return image
    if "graph" in batch:
        return batch["graph"]
    inputs = {name: batch[name] for name in TEXT_INPUTS if name in batch}
    if not inputs:
        raise ValueError(
            f"the batch has {sorted(batch)}, but no inputs: name them image, graph, or "
            f"one of {', '.join(TEXT_INPUTS)}"
        )
    return inputs


def teacher_inputs(batch: Batch) -> Inputs:
    """Return what a teacher reads: its own tokens if the batch has them.

    They are the text inputs with ``teacher_`` before their names, of a teacher whose
    tokenizer is not the student's; without them it reads what the student does.
    """
    own = {
        name: batch[f"teacher_{name}"]
        for name in TEXT_INPUTS
        if f"teacher_{name}" in batch
    }
    return own or network_inputs(batch)


def distill(
    student: Network,
    teacher: Network | None,
    method: Method,
    optimizer: optax.GradientTransformation,
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
        optimizer: any optax transformation.

    Returns:
        A program whose state is a `TrainState`. Its metrics are ``loss``,
        ``grad_norm`` and the method's own.

    Raises:
        ValueError: a tap that a network lacks; from ``init``, a batch that is empty,
            not finite, or has labels out of range.
    """

    def losses(*arguments: Any) -> tuple[list[Array], Any]:
        loss, found = method.loss(*arguments)
        return [loss], found

    return distillation(
        student, teacher, method, optimizer, losses, lambda trees: (trees[0], {})
    )


def distillation(
    student: Network,
    teacher: Network | None,
    method: Method,
    optimizer: optax.GradientTransformation,
    losses: Callable[..., tuple[list[Array], tuple[PyTree, Metrics]]],
    merge: Callable[[list[PyTree]], tuple[PyTree, Metrics]],
) -> Program:
    """Return the program of `distill`, for several losses with a gradient each.

    Args:
        student: as in `distill`.
        teacher: likewise.
        method: likewise; of its functions only ``loss`` is not used.
        optimizer: likewise.
        losses: ``loss`` of a method, but for a list of scalars in place of one.
        merge: gradients of each of them ``-> (the gradient to apply, metrics)``.

    Raises:
        ValueError: as `distill`.
    """
    _check_taps("student", student, method.student_taps)
    if teacher is None and method.teacher_taps:
        raise ValueError(
            f"teacher is None, but the method reads the teacher's features "
            f"{method.teacher_taps}: pass the teacher's network"
        )
    if teacher is not None:
        _check_taps("teacher", teacher, method.teacher_taps)

    def prepared(key: PRNGKeyArray, batch: Batch) -> Batch:
        return method.prepare(key, batch) if method.prepare else batch

    def teach(variables: Any, batch: Batch) -> Outputs:
        if teacher is None:
            return Outputs(None, {})
        outputs, _ = teacher.apply(
            variables, teacher.read(batch, "teacher"), taps=method.teacher_taps
        )
        return jax.lax.stop_gradient(outputs)

    def learn(variables: Variables, batch: Batch, key: PRNGKeyArray):
        return student.apply(
            variables,
            student.read(batch),
            taps=method.student_taps,
            train=True,
            key=key,
        )

    def init(key: PRNGKeyArray, batch: Batch) -> TrainState:
        check_batch(batch)
        keys = jax.random.split(key, 5)
        variables = student.init(keys[0])
        teacher_variables = None if teacher is None else teacher.init(keys[1])
        batch = prepared(keys[2], batch)
        outputs, _ = learn(variables, batch, keys[2])
        check_batch(batch, outputs.logits.shape[-1])
        method_variables = method.init(
            keys[3], outputs, teach(teacher_variables, batch), batch
        )
        trained = {"student": variables["params"], "method": method_variables["params"]}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=keys[4],
            student=variables,
            teacher=teacher_variables,
            method=method_variables,
            opt_state=optimizer.init(trained),
        )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
        batch = prepared(keys[0], batch)
        taught = teach(state.teacher, batch)

        def objective(trained: dict[str, Any]):
            outputs, variables = learn(
                {**state.student, "params": trained["student"]}, batch, keys[1]
            )
            values, (carried, metrics) = losses(
                {**state.method, "params": trained["method"]},
                outputs,
                taught,
                batch,
                keys[2],
                state.step,
            )
            for value in values:
                if jnp.ndim(value) != 0:
                    raise ValueError(
                        f"the method's loss has shape {jnp.shape(value)}: it must be a "
                        "scalar; from_loss takes the masked mean of losses of examples"
                    )
            return values, (variables["stats"], carried, metrics)

        trained = {"student": state.student["params"], "method": state.method["params"]}
        values, pull, (stats, carried, metrics) = jax.vjp(
            objective, trained, has_aux=True
        )
        gradients, merged = merge(
            [
                pull([jnp.full_like(v, j == i) for j, v in enumerate(values)])[0]
                for i in range(len(values))
            ]
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        trained = cast(dict[str, Any], optax.apply_updates(trained, updates))
        metrics = {
            "loss": sum(values, jnp.zeros(())),
            "grad_norm": optax.tree.norm(gradients),
            **merged,
            **{name: value for name, value in metrics.items() if name != "loss"},
        }
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            student={"params": trained["student"], "stats": stats},
            method={"params": trained["method"], "state": carried},
            opt_state=opt_state,
        )
        return state, metrics

    return Program(init, step)


def _check_taps(who: str, network: Network, taps: tuple[str, ...]) -> None:
    for tap in taps:
        if tap not in network.taps:
            raise ValueError(unknown_name(f"{who} tap", tap, network.taps))
