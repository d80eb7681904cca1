"""The contracts: Outputs, Method, Loss and Program; `Network` has a module of its own.

They are data and pure functions, so any of them can be written by hand, jitted,
differentiated, vmapped over seeds and sharded over a mesh without knowing the others.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

Inputs = Any
"""An image array (NHWC float), or a dict with Hugging Face's names, or a graph, or a
diffusion model's dict of ``image``, ``time`` and ``condition``."""

Batch = Mapping[str, Any]
"""A dict of ``image`` or the text names, ``label``, ``mask``, ``weight``, ``index``."""

Variables = dict[str, PyTree]
"""A network's ``{"params": trained, "stats": the rest}`` (BatchNorm averages, …)."""

Ask = Callable[[Variables, Batch], Batch]
"""``(the student's variables, prompts and answers) ->`` the same with what its teacher
says of them: what a step asks outside the device, see `jaxkd.programs.on_policy`."""

MethodVariables = dict[str, PyTree]
"""A method's ``{"params": trained with the student, "state": carried over steps}``."""

Metrics = dict[str, Array]

Axes = Mapping[tuple[str, ...], tuple[str | tuple[str, ...] | None, ...]]
"""The logical axis of each axis of a weight, by the weight's path in the params; () of
a weight that declares none."""

NO_AXES: Axes = MappingProxyType({})


@flax.struct.dataclass
class Outputs:
    """What any model returns for a batch.

    Attributes:
        logits: (batch, ..., classes) array; None where there is no teacher.
        features: the activations asked for by name (the taps), no others.
        segments: of a teacher, the parts that the method calls itself, by the name of
            their ends, such as ``block3:block7``: ``activation -> activation``.
    """

    logits: Any
    features: dict[str, Any] = flax.struct.field(default_factory=dict)
    segments: dict[str, Any] = flax.struct.field(default_factory=dict)


Segment = tuple[str | None, str | None]
"""The taps between which a network runs: after the first, up to the second; None for
its inputs and its logits."""


class Loss(NamedTuple):
    """A loss that is not divided yet: weighted sums, and what each is to be divided by.

    A mean taken of a part of the batch could not be put together with another part's
    again. So gradient accumulation adds totals and weights apart, and divides once.

    Attributes:
        total: Σ weight·loss of what is counted, a scalar or (terms,), differentiable.
        weight: Σ weight, of the same shape; it depends on the batch's masks alone.
    """

    total: Array
    weight: Array

    @property
    def value(self) -> Array:
        """The scalar Σ total/weight over the terms; a term that nothing counts is 0.

        It is NaN of a weight below 0 or NaN.
        """
        return self.over(self.weight)

    def over(self, weight: Array) -> Array:
        """Return Σ total/weight for another weight, such as a whole window's."""
        counted = weight > 0
        # A weight below 0 or NaN is a mistake, which a loss of 0 would hide.
        nothing = jnp.where(weight == 0, 0.0, jnp.nan)
        mean = self.total / jnp.where(counted, weight, 1)
        return jnp.where(counted, mean, nothing).sum()


class Method(NamedTuple):
    """A distillation objective.

    Attributes:
        init: ``(key, student, teacher, batch) -> {"params", "state"}`` from the two
            networks' `Outputs` for a batch (their shapes fix the projectors').
        loss: ``(variables, student, teacher, batch, key, step)
            -> (Loss or scalar, (new state, metrics))``. A scalar counts as one term of
            weight 1; a metric may be a `Loss` too, whose value is then reported.
        student_taps: features the loss reads from the student.
        teacher_taps: features the loss reads from the teacher.
        prepare: ``(key, batch) -> batch`` before the forward passes (mixup, masking).
        update: ``(state, step) -> state`` after each update of the weights, of whose
            batch ``loss`` may have seen several parts.
        teacher_segments: parts of the teacher that the loss calls on activations of
            its own making (see `Network.segment`). Their weights stand still, and
            gradients go through them.
    """

    init: Callable[..., MethodVariables]
    loss: Callable[..., tuple[Any, tuple[PyTree, dict[str, Any]]]]
    student_taps: tuple[str, ...] = ()
    teacher_taps: tuple[str, ...] = ()
    prepare: Callable[[PRNGKeyArray, Batch], Batch] | None = None
    update: Callable[[PyTree, Any], PyTree] | None = None
    teacher_segments: tuple[Segment, ...] = ()


def _nothing(state: Any) -> PyTree:
    return ()


def _unchecked(state: Any, batch: Batch) -> None:
    return None


class Program(NamedTuple):
    """Anything that can be trained: two pure, jittable functions over a pytree.

    Attributes:
        init: ``(key, batch) -> state``.
        step: ``(state, batch) -> (state, metrics)``; the metrics hold ``loss``.
        frozen: ``state ->`` those of its arrays that no step changes, such as a
            teacher's: checkpoints keep their fingerprint in place of them.
        axes: logical axes of the networks' weights by path, see `Network.axes`.
        check: ``(state's shapes, batch) -> None``, on the host, for every batch before
            it is sent to the device: it refuses what the program cannot learn from.
    """

    init: Callable[[PRNGKeyArray, Batch], Any]
    step: Callable[[Any, Batch], tuple[Any, Metrics]]
    frozen: Callable[[Any], PyTree] = _nothing
    axes: Axes = NO_AXES
    check: Callable[[Any, Batch], None] = _unchecked


@flax.struct.dataclass
class TrainState:
    """The state of `jaxkd.distill`'s programs.

    Attributes:
        step: steps done, an int32 scalar.
        key: the key all later randomness comes from.
        student: the student's variables.
        teacher: the teacher's variables, frozen; None without a teacher.
        method: the method's variables.
        opt_state: the optimizer's state over the student's and method's params.
        classes: of the student's logits, if there is one label to each; static.
    """

    step: Any
    key: Any
    student: Any
    teacher: Any
    method: Any
    opt_state: Any
    classes: int | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def deployed(self) -> Any:
        """The student's variables."""
        return self.student


def deployed(state: Any) -> Variables:
    """Return the variables that a state is trained for, and variables as they are.

    Evaluators read their argument by it, so that `jaxkd.training.fit` can give them its
    state. A state of your own says by ``deployed`` what that is: the student's
    variables, their moving average, ….
    """
    return state if isinstance(state, dict) else state.deployed
